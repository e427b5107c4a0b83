"""Starts the engine process, watches for its end, ends it. The API server's side.

A plain child process: nothing is forked with threads running, nothing is pickled, and the child
finds the same modules as we do because it gets our `sys.path`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import msgspec

from octavo.engine.channel import (
    ServerChannel,
    clients_address,
    new_address,
    remove_address,
)
from octavo.engine.process import EngineStart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from octavo.config import EngineConfig, LogLevel

_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from octavo.engine.process import engine_process; "
    "sys.exit(engine_process(sys.argv[2]))"
)


class EngineProcess:
    """A running engine process and our end of its channel.

    Start it from the main thread: on Linux the child dies with the thread that started it.

    Args:
        builder: `module:function` that builds the engine in the child (see `engine_process`).
        config: handed to the builder.
        log_level: of the child's log, which goes to our standard error.
        has_clients: several API servers connect to `clients_address`; we send no requests.
        folder: where to make the folder of the addresses; None: where temporary files go.

    Attributes:
        channel: our end.
        clients_address: where API servers connect; None: we are the only one.
    """

    def __init__(
        self,
        builder: str,
        config: EngineConfig,
        *,
        log_level: LogLevel = "info",
        has_clients: bool = False,
        folder: Path | None = None,
    ) -> None:
        address = new_address(folder)
        self.clients_address = clients_address(address) if has_clients else None
        start = EngineStart(
            address=address,
            config=config,
            log_level=log_level,
            parent_pid=os.getpid(),
            started_at=time.time(),
            has_clients=has_clients,
        )
        try:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, "octavo-engine", builder, *sys.path],
                stdin=subprocess.PIPE,
                stdout=2,  # standard output is the command's
                process_group=0,  # Ctrl-C in the terminal is for us alone
            )
            assert self._popen.stdin is not None
            self._stdin = self._popen.stdin
            with contextlib.suppress(BrokenPipeError):  # dead already: `watch` will tell
                self._stdin.write(msgspec.json.encode(start) + b"\n")
                self._stdin.flush()
            self.channel = ServerChannel(address)
        except BaseException:
            remove_address(address)
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._popen.pid

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """Call `on_exit` with the exit code, from another thread, as soon as the process ended."""

        def wait() -> None:
            on_exit(self._popen.wait())

        threading.Thread(target=wait, name="engine-watch", daemon=True).start()

    def forget_address(self) -> None:
        """Delete the channel's folder: once the engine is connected, nobody needs it any more.

        Where other API servers may come later, it stays until the end.
        """
        if self.clients_address is None:
            remove_address(self.channel.address)

    def kill(self) -> None:
        """End the process at once; `watch` tells when it is gone, and `stop` cleans up."""
        self._popen.kill()

    def stop(self, timeout_s: float) -> int:
        """Wait for the end, terminate after `timeout_s` seconds, kill after another second.

        Frees everything and returns the exit code; a second call does nothing more.
        """
        if self.channel.is_closed:
            return self._popen.wait()
        for signum, patience in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 1.0)):
            try:
                self._popen.wait(patience)
                break
            except subprocess.TimeoutExpired:
                self._popen.send_signal(signum)
        code = self._popen.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self.channel.close()
        remove_address(self.channel.address)
        return code


def describe_exit(code: int) -> str:
    """`signal 9 (SIGKILL)` or `exit code 3`."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
