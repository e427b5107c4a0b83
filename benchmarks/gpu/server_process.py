"""`octavo serve` as a child process: started, waited for, asked about, stopped.

Knows the command's log lines and signals; knows nothing of requests.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import psutil

from benchmarks.gpu.common import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import TracebackType

_READY = re.compile(r"ready at (\S+?)(?:/v1)?$")
_PARTS = re.compile(r"start-up took (.*)")
_TAIL = 40


@dataclass
class Stopped:
    """How the server ended, and how long that took."""

    exit_code: int
    seconds: float


@dataclass
class Server:
    """A context manager: inside, the server is ready; at the end it has stopped.

    Args:
        model: a folder.
        flags: more flags of `octavo serve`.
        environment: variables over our own.
        timeout_s: a server that is not ready by then is killed.

    Attributes:
        url: where it listens, without `/v1`.
        launched: `time.time()` when the process was started.
        ready_s: seconds from then until it said that it is ready.
        parts: what the log says of them, part by part.
        stopped: set by `stop`.
    """

    model: Path
    flags: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    timeout_s: float = 300.0
    url: str = ""
    launched: float = 0.0
    ready_s: float = 0.0
    parts: str = ""
    stopped: Stopped | None = None

    def __enter__(self) -> Self:
        command = [sys.executable, "-m", "octavo.cli.main", "serve", str(self.model)]
        command += ["--port", "0", "--served-model-name", "bench", *self.flags]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
        self._lines: list[str] = []
        self._is_ready = threading.Event()
        self.launched = time.time()
        begin = time.perf_counter()
        self._process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environment | dict(self.environment)
        )
        self._reader = threading.Thread(target=self._read, args=(begin,), daemon=True)
        self._reader.start()
        in_time = self._is_ready.wait(self.timeout_s)
        if not in_time or not self.url:
            self._process.kill()
            self._process.wait()
            self._reader.join()
            said = "\n".join(self._lines[-_TAIL:])
            raise RuntimeError(f"the server did not get ready; it said last:\n{said}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self, timeout_s: float = 60.0) -> Stopped:
        """SIGTERM, and SIGKILL after `timeout_s`; a second call changes nothing."""
        if self.stopped is None:
            begin = time.perf_counter()
            self._process.send_signal(signal.SIGTERM)
            try:
                code = self._process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            self.stopped = Stopped(code, time.perf_counter() - begin)
            self._reader.join()
        return self.stopped

    @property
    def log(self) -> list[str]:
        """What it wrote so far."""
        return list(self._lines)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far of the API server and of the engine process."""
        server = psutil.Process(self._process.pid)
        times = {"server": sum(server.cpu_times()[:2])}
        times["engine"] = sum(
            sum(child.cpu_times()[:2]) for child in server.children(recursive=True)
        )
        return times

    def _read(self, begin: float) -> None:
        """Until the process and its children have closed their standard error."""
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                text = line.rstrip()
                self._lines.append(text)
                if found := _PARTS.search(text):
                    self.parts = found[1]
                elif not self.url and (found := _READY.search(text)):
                    self.ready_s = time.perf_counter() - begin
                    self.url = found[1]
                    self._is_ready.set()
        self._is_ready.set()
