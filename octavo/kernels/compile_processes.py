"""Processes that compile kernels beside this one, as this one sees them.

Imports neither torch nor Triton, so they can be started before those are imported here. What they
compile comes through Triton's cache on disk, under the names that this process would give it; if
anything is amiss with them, this process compiles for itself. See `compile_server.py`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import queue
import subprocess
import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

logger = logging.getLogger("octavo")

_MOST = 16
_BOOT = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from octavo.kernels.compile_server import main; main(int(sys.argv[2]))"
)
_started: CompileProcesses | None = None


@dataclass(frozen=True, slots=True)
class Compiled:
    """How a kernel went.

    Attributes:
        seconds: from its process's start to its end; 0 if there was none.
        error: why it is not in the cache; None: it is.
    """

    seconds: float
    error: str | None


class CompileProcesses:
    """A server of processes, started at once. Thread-safe.

    Args:
        num_processes: that compile at a time.
    """

    def __init__(self, num_processes: int) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[int, Callable[[Compiled], None]] = {}
        self._num_jobs = 0
        self._lost: str | None = None
        self._to_write: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT, "octavo-compile", str(num_processes), *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in the terminal is for us alone
        )
        # Requests may be more than a pipe holds before the server is there.
        threading.Thread(target=self._write, name="compile-write", daemon=True).start()
        threading.Thread(target=self._read, name="compile-read", daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Whether nothing more is compiled here."""
        return self._lost is not None

    def submit(self, job: Mapping[str, Any], on_done: Callable[[Compiled], None]) -> int:
        """Have a kernel compiled.

        Args:
            job: what `compile_server.Job` has, but for its id.
            on_done: called once, from another thread or at once.

        Returns:
            Its id.
        """
        with self._lock:
            job_id = self._num_jobs
            self._num_jobs += 1
            lost = self._lost
            if lost is None:
                self._waiting[job_id] = on_done
        if lost is None:
            self._send({"id": job_id, **job})
        else:
            on_done(Compiled(0.0, lost))
        return job_id

    def hurry(self, job_id: int) -> None:
        """A kernel that can wait is waited for now."""
        self._send({"hurry": job_id})

    def end(self) -> None:
        """Nothing more comes: the processes end when all is compiled."""
        self._send({"end": True})

    def close(self) -> None:
        """End the processes; what was not compiled fails."""
        self._lose("the processes that compile were closed")
        self._process.kill()

    def _send(self, request: Mapping[str, Any]) -> None:
        self._to_write.put(json.dumps(request).encode() + b"\n")

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        # An error means that the process is gone, which the end of its answers tells.
        with contextlib.suppress(OSError), pipe:
            while (line := self._to_write.get()) is not None:
                pipe.write(line)
                pipe.flush()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            for line in pipe:
                answer = json.loads(line)
                with self._lock:
                    on_done = self._waiting.pop(answer["id"], None)
                if on_done is not None:
                    on_done(Compiled(answer["seconds"], answer["error"]))
        code = self._process.wait()
        self._lose(f"the process that compiles ended with exit code {code}")
        self._to_write.put(None)

    def _lose(self, reason: str) -> None:
        with self._lock:
            self._lost = self._lost or reason
            waiting, self._waiting = list(self._waiting.values()), {}
        for on_done in waiting:
            on_done(Compiled(0.0, reason))


def num_processes() -> int:
    """How many should compile at a time; 0: none, threads do it.

    OCTAVO_COMPILE_PROCESSES says so, else one core is left to who waits for the kernels.

    Raises:
        ConfigError: the variable is no number.
    """
    given = os.environ.get("OCTAVO_COMPILE_PROCESSES")
    if given:
        if not given.isdecimal():
            raise ConfigError(f"OCTAVO_COMPILE_PROCESSES must be a number, got {given!r}")
        return int(given)
    if sys.platform != "linux":
        return 0
    return min(max(len(os.sched_getaffinity(0)) - 1, 1), _MOST)


def start() -> None:
    """Have processes ready for the kernels of an engine that this process is about to make."""
    global _started
    if _started is None and importlib.util.find_spec("triton") is not None:
        _started = _make()


def take() -> CompileProcesses | None:
    """Those that `start` made, else new ones; None: there are to be none. The caller ends them."""
    global _started
    taken, _started = _started, None
    return taken or _make()


def drop() -> None:
    """Close what `start` made, unless somebody took it."""
    global _started
    if _started is not None:
        _started.close()
        _started = None


def _make() -> CompileProcesses | None:
    num = num_processes()
    if num < 1:
        return None
    try:
        return CompileProcesses(num)
    except OSError as error:
        logger.warning("kernels are compiled in threads: no process could be started (%s)", error)
        return None
