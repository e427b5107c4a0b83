"""A process that compiles kernels into Triton's cache on disk, each in a child of its own.

Forked children begin with Triton imported, and no interpreter's lock is shared with anybody. The
process gets along without torch, so that it is there long before the engine has imported it, and
never touches a device: what a kernel is compiled for is told with each one. Requests are lines of
JSON on standard input (`CompileProcesses` writes them), answers are lines on standard output. The
end of standard input ends it all.

Kernels are compiled in the order in which they come, those that can wait after all others and with
the lowest priority, so that a serving engine does not feel them.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import select
import signal
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

_NICEST = 19
_FAILED = 1


class DescribedDriver:
    """A device as far as Triton's compiler asks for one; it can launch nothing.

    Args:
        target: Triton's description of it: backend, architecture, threads of a warp.
    """

    def __init__(self, target: tuple[str, Any, int]) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget(*target)

    def get_current_target(self) -> Any:
        """See `triton.backends.driver.DriverBase`."""
        return self._target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0


@dataclass(frozen=True, slots=True)
class Job:
    """A kernel to be compiled.

    Attributes:
        id: of the request.
        module: that defines the kernel.
        name: of the kernel in the module.
        launch: types, constants and options, as `JITFunction.preload` takes them.
        target: see `DescribedDriver`.
        can_wait: nobody waits for it so far.
    """

    id: int
    module: str
    name: str
    launch: str
    target: tuple[str, Any, int]
    can_wait: bool


@dataclass(slots=True)
class _Child:
    pid: int
    begin: float
    job: Job | None
    said: bytes = b""


@dataclass(slots=True)
class _Queues:
    first: deque[Job] = field(default_factory=deque)
    later: deque[Job] = field(default_factory=deque)

    def add(self, job: Job) -> None:
        (self.later if job.can_wait else self.first).append(job)

    def hurry(self, job_id: int) -> None:
        """A step waits for it now."""
        for job in self.later:
            if job.id == job_id:
                self.later.remove(job)
                self.first.append(job)
                return

    def next(self) -> Job | None:
        if self.first:
            return self.first.popleft()
        return self.later.popleft() if self.later else None


def settle_name(kernel: Any) -> None:
    """Make a kernel's part of its name in Triton's cache independent of what was compiled before.

    Triton puts the constants that called functions use into it only if they were hashed earlier.

    Args:
        kernel: of `triton.jit`.
    """
    if kernel.hash is not None:
        return
    for name in kernel.fn.__code__.co_names:
        called = kernel.__globals__.get(name)
        if called is not kernel and isinstance(called, _jit_callable()):
            settle_name(called)
    kernel.cache_key  # noqa: B018  kept


@functools.cache
def _jit_callable() -> type:
    from triton.runtime.jit import JITCallable

    found: type = JITCallable
    return found


def compile_kernel(job: Job) -> None:
    """Put the kernel into Triton's cache, and with it the C function that launches it.

    Raises:
        Exception: whatever Triton or the kernel's module raises.
    """
    from triton.runtime import driver

    driver.set_active(DescribedDriver(job.target))
    function = getattr(importlib.import_module(job.module), job.name)
    settle_name(function)
    kernel = function.preload(job.launch)
    if job.target[0] == "cuda":
        # Without it the engine makes the launcher itself.
        with contextlib.suppress(Exception):
            from triton.backends.nvidia.driver import CudaLauncher

            CudaLauncher(kernel.src, kernel.metadata)


def _compile_driver() -> None:
    """Triton's module that talks to CUDA, which is compiled too; loading it makes no context."""
    with contextlib.suppress(Exception):
        from triton.backends.nvidia.driver import CudaUtils

        CudaUtils()


class _Server:
    def __init__(self, num_processes: int, requests: int, answers: int) -> None:
        self._num_processes = num_processes
        self._requests, self._answers = requests, answers
        self._queues = _Queues()
        self._children: dict[int, _Child] = {}
        self._poll = select.poll()
        self._poll.register(requests, select.POLLIN)
        self._rest = b""
        self._takes_more = True

    def run(self) -> None:
        """Until everything is compiled after the last request, or the requests' writer is gone."""
        self._start(None)
        while self._takes_more or self._children:
            for fd, _ in self._poll.poll():
                if fd == self._requests:
                    self._read()
                else:
                    self._hear(fd)
            while len(self._children) < self._num_processes and (job := self._queues.next()):
                self._start(job)

    def _read(self) -> None:
        data = os.read(self._requests, 1 << 16)
        if not data:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)
            sys.exit()
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            if "hurry" in request:
                self._queues.hurry(request["hurry"])
            elif "end" in request:
                self._takes_more = False
            else:
                target = tuple(request.pop("target"))
                self._queues.add(Job(target=target, **request))

    def _start(self, job: Job | None) -> None:
        begin = time.perf_counter()
        if job is not None and (error := _prepare(job)) is not None:
            self._answer(job, begin, error)
            return
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            _be_child(job, write)
        os.close(write)
        self._children[read] = _Child(pid, begin, job)
        self._poll.register(read, select.POLLIN | select.POLLHUP)

    def _hear(self, fd: int) -> None:
        child = self._children[fd]
        data = os.read(fd, 1 << 16)
        child.said += data
        if data:
            return
        self._poll.unregister(fd)
        os.close(fd)
        del self._children[fd]
        _, status = os.waitpid(child.pid, 0)
        if child.job is not None:
            code = os.waitstatus_to_exitcode(status)
            error = child.said.decode(errors="replace") or f"exit code {code}" if code else None
            self._answer(child.job, child.begin, error)

    def _answer(self, job: Job, begin: float, error: str | None) -> None:
        answer = {"id": job.id, "seconds": time.perf_counter() - begin, "error": error}
        os.write(self._answers, json.dumps(answer).encode() + b"\n")


def _prepare(job: Job) -> str | None:
    """Have in this process what every child would make for itself; why that failed, if it did."""
    try:
        from triton.compiler.compiler import make_backend
        from triton.runtime.cache import triton_key

        triton_key()
        make_backend(DescribedDriver(job.target).get_current_target()).hash()
        settle_name(getattr(importlib.import_module(job.module), job.name))
    except Exception as error:
        return repr(error)
    return None


def _be_child(job: Job | None, write: int) -> None:
    code = 0
    try:
        if job is None:
            _compile_driver()
        else:
            if job.can_wait:
                os.nice(_NICEST)
            compile_kernel(job)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.write(write, repr(error).encode()[:4096])
        code = _FAILED
    finally:
        os._exit(code)


def main(num_processes: int) -> None:
    """Serve on standard input and output; what others print there goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.dup(1)
    os.dup2(2, 1)
    # Kernels' modules import torch for what launches them, of which nothing is called here. What
    # asks this one for anything fails, and the engine compiles that kernel itself.
    sys.modules["torch"] = ModuleType("torch")
    server = _Server(num_processes, 0, answers)
    import triton  # noqa: F401
    from triton.runtime.cache import triton_key

    triton_key()
    server.run()
