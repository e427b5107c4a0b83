"""Compiles kernels side by side, before a step needs them.

Left to itself, Triton compiles a kernel when it is first launched, and the launch waits: one kernel
after the other, each by LLVM, then `ptxas`, then a C compiler that makes the function which
launches it. Here launches are rehearsed instead. They are made by the code that makes the real
ones, so what is compiled is what will be launched, with the types and alignments of its arguments;
but nothing runs, and what is to be compiled goes to other processes. They leave it in Triton's
cache on disk, from which threads of this one load it. Where there are no processes, or one fails,
the threads compile.

Knows Triton alone: not which kernels there are, nor what launches them.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.compiler.compiler import make_backend
from triton.runtime import driver
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITFunction

from octavo.kernels.compile_later import LateKernel, LateKernels
from octavo.kernels.compile_loader import Loader
from octavo.kernels.compile_server import settle_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import Self

    from octavo.kernels.compile_processes import CompileProcesses

logger = logging.getLogger("octavo")

_is_patched = threading.Lock()
_num_open = 0  # compilers
_loading = threading.local()  # is_late: the kernel that the hook hears of was compiled before


@dataclass(frozen=True, slots=True)
class Compilation:
    """What a `Compiler` did.

    Attributes:
        num_kernels: compiled, or read from Triton's cache on disk, and loaded.
        num_later: that nobody waited for.
        num_by_processes: of those that were waited for, compiled by other processes.
        processes_s: the time of that, over all processes.
        work_s: the time of threads, over all of them.
        elapsed_s: from the first rehearsal until the last kernel was there.
        waited_s: how much of it the caller spent on waiting.
    """

    num_kernels: int = 0
    num_later: int = 0
    num_by_processes: int = 0
    processes_s: float = 0.0
    work_s: float = 0.0
    elapsed_s: float = 0.0
    waited_s: float = 0.0

    def __str__(self) -> str:
        """For the log."""
        return (
            f"kernels: {self.num_kernels} within {self.elapsed_s:.2f} s, {self.num_by_processes} "
            f"of them by {self.processes_s:.2f} s of work in processes, {self.work_s:.2f} s in "
            f"threads; waited {self.waited_s:.2f} s for them; {self.num_later} more come later"
        )

    def as_dict(self) -> dict[str, float]:
        """The same by name."""
        return asdict(self)


class Compiler:
    """A context: leaving it waits until what was rehearsed inside is compiled and loaded.

    A kernel that cannot be compiled makes no difference here; its first launch raises the error.
    Each kernel of ours that is compiled after the end is logged: some step waited for it.

    Args:
        device: whose kernels they are.
        num_threads: that load kernels, and compile those that the processes do not.
        processes: that compile; None: there are none. Ended in here.

    Attributes:
        done: what was done; filled in at the end.
        later: kernels that nobody waited for.
    """

    def __init__(
        self,
        device: torch.device,
        num_threads: int,
        processes: CompileProcesses | None = None,
    ) -> None:
        self.done = Compilation()
        self.later = LateKernels()
        self._processes = processes
        self._pool = ThreadPoolExecutor(num_threads, "compile", _use, (device,))
        self._loader = Loader(self._pool, processes)
        self._mode = _Mode(self._loader, self.later)
        self._begin: float | None = None
        self._is_set_up = self._pool.submit(_set_up)

    def __enter__(self) -> Self:
        global _num_open
        _num_open += 1
        return self

    @contextmanager
    def rehearse(self, *, can_wait: bool = False) -> Iterator[None]:
        """Launches by this thread start compilations, and no kernel runs.

        What kernels would have written is left as it was: torch's own operators, which do run, must
        not take it for indices.

        Args:
            can_wait: the end of the context does not wait for these kernels, if there are processes
                that compile them (see `LateKernels`).
        """
        self._is_set_up.result()
        if self._begin is None:
            self._begin = time.perf_counter()
            self._mode.__enter__()
        self._mode.can_wait = can_wait
        thread = threading.get_ident()
        with _is_patched, self._loader.noting(thread):
            run = JITFunction.run

            def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> Any:
                settle_name(kernel)
                only = warmup or threading.get_ident() == thread
                return run(kernel, *args, warmup=only, **options)

            JITFunction.run = compile_only
            try:
                yield
            finally:
                JITFunction.run = run

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _num_open
        waiting = time.perf_counter()
        if kind is not None:
            self._mode.raw_futures.clear()
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._begin is not None:
            self._mode.__exit__(None, None, None)
        self._pool.shutdown(wait=kind is None)
        if self._processes is not None:
            self._processes.end() if kind is None else self._processes.close()
        _num_open -= 1
        if triton.knobs.runtime.jit_post_compile_hook is None:
            triton.knobs.runtime.jit_post_compile_hook = _warn
        now = time.perf_counter()
        by_processes = self._loader.process_seconds
        self.done = Compilation(
            num_kernels=len(self._loader.seconds),
            num_later=len(self.later),
            num_by_processes=len(by_processes),
            processes_s=sum(by_processes),
            work_s=sum(self._loader.seconds),
            elapsed_s=now - (self._begin or now),
            waited_s=now - waiting,
        )


class _Mode(triton.AsyncCompileMode):  # type: ignore[misc]
    """Triton's, but for kernels that can wait."""

    def __init__(self, loader: Loader, later: LateKernels) -> None:
        super().__init__(loader, ignore_errors=True)
        self.can_wait = False
        self._loader, self._later = loader, later

    def submit(
        self, key: str, compile_fn: Callable[[], Any], finalize_fn: Callable[[Any], None]
    ) -> Any:
        """A stand-in for the kernel, which launches ask for its `result`.

        Args:
            key: of the kernel in the cache on disk, before it is hashed.
            compile_fn: gives the kernel, by compiling it or from that cache.
            finalize_fn: has launches find what it is given.
        """
        if key in self.future_kernels:
            return self.future_kernels[key]
        self._loader.key = key
        if not self.can_wait or not self._loader.has_processes:
            return super().submit(key, compile_fn, finalize_fn)

        def finalize(kernel: Any) -> None:
            _loading.is_late = True
            try:
                finalize_fn(kernel)
            finally:
                _loading.is_late = False

        late = LateKernel(self._loader.name, compile_fn, finalize)
        self.future_kernels[key] = late
        self._later.add(late)
        self._loader.compile_later(late, compile_fn)
        finalize(late)
        return late


def _use(device: torch.device) -> None:
    """Threads begin with the first device, whatever the others use."""
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _set_up() -> None:
    """What every compilation needs and some other thread can wait for.

    Triton's driver, which a C compiler makes, and the hash of Triton itself, hundreds of megabytes,
    that goes into the names of cached kernels. Both are kept.
    """
    triton_key()
    make_backend(driver.active.get_current_target()).hash()


def _warn(*, fn: Any, **about: Any) -> None:
    """Triton's hook, called after each compilation."""
    is_late = getattr(_loading, "is_late", False)
    if not _num_open and not is_late and fn.module.startswith("octavo."):
        logger.warning("a step waited for the kernel %s: %s", fn.name, about.get("repr"))
