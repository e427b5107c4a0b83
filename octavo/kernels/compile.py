"""Compiles kernels side by side, before a step needs them.

Left to itself, Triton compiles a kernel when it is first launched, and the launch waits: one kernel
after the other, each by LLVM, then `ptxas`, then a C compiler that makes the function which
launches it. Here launches are rehearsed instead. They are made by the code that makes the real
ones, so what is compiled is what will be launched, with the types and alignments of its arguments;
but nothing runs, and compilers, which leave the interpreter's lock to others, work in threads.

Knows Triton alone: not which kernels there are, nor what launches them.
"""

from __future__ import annotations

import logging
import operator
import threading
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
import triton
from triton.compiler.compiler import make_backend
from triton.runtime import driver
from triton.runtime.cache import triton_key
from triton.runtime.jit import JITFunction

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Future
    from types import TracebackType
    from typing import Self

logger = logging.getLogger("octavo")

_is_patched = threading.Lock()
_num_open = 0  # compilers
_launcher_of = operator.attrgetter("run")


@dataclass(frozen=True, slots=True)
class Compilation:
    """What a `Compiler` did.

    Attributes:
        num_kernels: compiled, or read from Triton's cache on disk, and loaded.
        work_s: the time of that, over all threads.
        elapsed_s: from the first rehearsal until the last kernel was there.
        waited_s: how much of it the caller spent on waiting.
    """

    num_kernels: int = 0
    work_s: float = 0.0
    elapsed_s: float = 0.0
    waited_s: float = 0.0

    def __str__(self) -> str:
        """For the log."""
        return (
            f"kernels: {self.num_kernels} within {self.elapsed_s:.2f} s, by {self.work_s:.2f} s of "
            f"work in threads; waited {self.waited_s:.2f} s for them"
        )

    def as_dict(self) -> dict[str, float]:
        """The same by name."""
        return asdict(self)


class Compiler:
    """A context: leaving it waits until everything rehearsed inside is compiled and loaded.

    A kernel that cannot be compiled makes no difference here; its first launch raises the error.
    Each kernel of ours that is compiled after the end is logged: some step waited for it.

    Args:
        device: whose kernels they are.
        num_threads: that compile.

    Attributes:
        done: what was done; filled in at the end.
    """

    def __init__(self, device: torch.device, num_threads: int) -> None:
        self.done = Compilation()
        self._pool = ThreadPoolExecutor(num_threads, "compile", _use, (device,))
        self._loader = _Loader(self._pool)
        self._mode = triton.AsyncCompileMode(self._loader, ignore_errors=True)
        self._begin: float | None = None
        self._is_set_up = self._pool.submit(_set_up)

    def __enter__(self) -> Self:
        global _num_open
        _num_open += 1
        return self

    @contextmanager
    def rehearse(self) -> Iterator[None]:
        """Launches by this thread start compilations, and no kernel runs.

        What kernels would have written is left as it was: torch's own operators, which do run, must
        not take it for indices.
        """
        self._is_set_up.result()
        if self._begin is None:
            self._begin = time.perf_counter()
            self._mode.__enter__()
        thread = threading.get_ident()
        with _is_patched:
            run = JITFunction.run

            def compile_only(kernel: Any, *args: Any, warmup: bool, **options: Any) -> Any:
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
            self._pool.shutdown(wait=False, cancel_futures=True)
        if self._begin is not None:
            self._mode.__exit__(None, None, None)
        self._pool.shutdown(wait=kind is None)
        _num_open -= 1
        if triton.knobs.runtime.jit_post_compile_hook is None:
            triton.knobs.runtime.jit_post_compile_hook = _warn
        now = time.perf_counter()
        self.done = Compilation(
            num_kernels=len(self._loader.seconds),
            work_s=sum(self._loader.seconds),
            elapsed_s=now - (self._begin or now),
            waited_s=now - waiting,
        )


class _Loader(Executor):
    """Follows each compilation, in its thread, by what its first launch would do."""

    def __init__(self, pool: Executor) -> None:
        self.seconds: list[float] = []
        self._pool = pool

    def submit(  # type: ignore[override]
        self, compile_kernel: Callable[[], Any]
    ) -> Future[Any]:
        """The future of the kernel."""
        return self._pool.submit(self._compile_and_load, compile_kernel)

    def _compile_and_load(self, compile_kernel: Callable[[], Any]) -> Any:
        begin = time.perf_counter()
        kernel = compile_kernel()
        _launcher_of(kernel)  # made when asked for, with the kernel sent to the device, and kept
        self.seconds.append(time.perf_counter() - begin)
        return kernel


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
    if not _num_open and fn.module.startswith("octavo."):
        logger.warning("a step waited for the kernel %s: %s", fn.name, about.get("repr"))
