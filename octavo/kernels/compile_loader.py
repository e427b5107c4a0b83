"""Hands kernels that Triton wants compiled to other processes, and loads them in threads.

What the processes have to know of a launch is what Triton tells its hook of it, and what they
compile has the name in Triton's cache under which the thread looks for it.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import operator
import threading
import time
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import triton
from triton.runtime import driver
from triton.runtime.cache import get_cache_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from octavo.kernels.compile_later import LateKernel
    from octavo.kernels.compile_processes import Compiled, CompileProcesses

logger = logging.getLogger("octavo")

_launcher_of = operator.attrgetter("run")


class Loader(Executor):
    """Has kernels compiled, and follows each by what its first launch would do.

    Attributes:
        key: of the kernel that is submitted next, before it is hashed.
        seconds: of threads, for each kernel.
        process_seconds: of processes, for each kernel that they compiled.
    """

    def __init__(self, pool: Executor, processes: CompileProcesses | None) -> None:
        self.key = ""
        self.seconds: list[float] = []
        self.process_seconds: list[float] = []
        self._pool, self._processes = pool, processes
        self._job: dict[str, Any] | None = None
        self._has_warned = False

    @contextmanager
    def noting(self, thread: int) -> Iterator[None]:
        """Take notes of what the thread launches, as processes have to know it."""
        before = triton.knobs.runtime.jit_cache_hook
        if self._processes is None or before is not None:  # somebody else's, such as a test's
            yield
            return

        def note(*, fn: Any, **about: Any) -> None:
            if threading.get_ident() == thread:
                target = driver.active.get_current_target()
                self._job = {
                    "module": fn.module,
                    "name": fn.name,
                    "launch": about["compile"]["specialization_data"],
                    "target": (target.backend, target.arch, target.warp_size),
                }

        triton.knobs.runtime.jit_cache_hook = note
        try:
            yield
        finally:
            triton.knobs.runtime.jit_cache_hook = before

    @property
    def name(self) -> str:
        """Of the kernel that is submitted next."""
        return self._job["name"] if self._job is not None else "?"

    @property
    def has_processes(self) -> bool:
        """Whether other processes can compile what is submitted next."""
        return not (self._processes is None or self._processes.is_lost or self._job is None)

    def submit(  # type: ignore[override]
        self, compile_kernel: Callable[[], Any]
    ) -> Future[Any]:
        """The future of the kernel."""
        if not self.has_processes or self._is_cached():
            return self._pool.submit(self._compile_and_load, compile_kernel)
        kernel: Future[Any] = Future()

        def load(compiled: Compiled) -> None:
            if compiled.error is None:
                self.process_seconds.append(compiled.seconds)
            self._follow(compiled, lambda: self._compile_and_load(compile_kernel), kernel)

        self._ask(load, can_wait=False)
        return kernel

    def compile_later(self, kernel: LateKernel, compile_kernel: Callable[[], Any]) -> None:
        """Have a kernel compiled that can wait, without loading it."""
        if self._is_cached():
            kernel.is_compiled.set()
            return
        in_thread: Future[Any] = Future()
        in_thread.add_done_callback(lambda _: kernel.is_compiled.set())

        def tell(compiled: Compiled) -> None:
            if compiled.error is None:
                kernel.is_compiled.set()
            else:
                self._follow(compiled, compile_kernel, in_thread)

        kernel.hurry = self._ask(tell, can_wait=True)

    def _is_cached(self) -> bool:
        manager = get_cache_manager(hashlib.sha256(self.key.encode()).hexdigest())
        return manager.get_group(f"{self.name[:150]}.json") is not None

    def _ask(self, on_done: Callable[[Compiled], None], *, can_wait: bool) -> Callable[[], None]:
        """Have the processes compile what is submitted; gives what tells them to hurry."""
        assert self._processes is not None
        assert self._job is not None
        job_id = self._processes.submit({**self._job, "can_wait": can_wait}, on_done)
        return functools.partial(self._processes.hurry, job_id)

    def _follow(self, compiled: Compiled, work: Callable[[], Any], to: Future[Any]) -> None:
        """Go on in a thread after the processes did their part."""
        if compiled.error is not None and not self._has_warned:
            self._has_warned = True
            logger.warning("kernels are compiled in threads: %s", compiled.error)
        try:
            done = self._pool.submit(work)
        except RuntimeError:  # the start is over
            to.cancel()
            to.set_running_or_notify_cancel()
        else:
            done.add_done_callback(lambda done: _hand_on(done, to))

    def _compile_and_load(self, compile_kernel: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        kernel = compile_kernel()
        _launcher_of(kernel)  # made when asked for, with the kernel sent to the device, and kept
        self.seconds.append(time.perf_counter() - begin)
        return kernel


def _hand_on(done: Future[Any], to: Future[Any]) -> None:
    """What became of one future is what becomes of the other."""
    if done.cancelled():
        to.cancel()
        to.set_running_or_notify_cancel()
    elif (error := done.exception()) is not None:
        to.set_exception(error)
    else:
        to.set_result(done.result())
