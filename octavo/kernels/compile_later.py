"""Kernels that nobody waits for: compiled by other processes while an engine starts, and after.

A step that comes before its kernel waits, for that one alone. Steps that nobody asked for, which a
start runs to measure their memory, do without: `LateKernels.leaving_out`.

Kernels are loaded by the thread that launches them, or by `LateKernels.load`, never beside steps:
a device may have to stop for it, and must not while a graph is captured.
"""

from __future__ import annotations

import contextlib
import logging
import operator
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("octavo")

_launcher_of = operator.attrgetter("run")
_launching = threading.local()  # leaves_out: see `LateKernels.leaving_out`


class _Nothing:
    """A kernel whose launch does nothing."""

    function = packed_metadata = None

    def launch_metadata(self, *_: Any) -> None:
        """See `triton.compiler.CompiledKernel`."""

    def run(self, *_: Any) -> None:
        """The same."""


_NOTHING = _Nothing()


class LateKernel:
    """Stands in Triton's tables for a kernel, until a launch asks for it. Thread-safe.

    Args:
        name: of the kernel.
        compile_fn: gives the kernel, from the cache on disk if it is there.
        finalize_fn: has launches find what it is given.

    Attributes:
        is_compiled: set once it is in the cache, or nobody else will put it there.
        hurry: has it compiled before others.
    """

    def __init__(
        self,
        name: str,
        compile_fn: Callable[[], Any],
        finalize_fn: Callable[[Any], None],
    ) -> None:
        self.is_compiled = threading.Event()
        self.hurry: Callable[[], None] = lambda: None
        self._name, self._compile, self._finalize = name, compile_fn, finalize_fn
        self._kernel: Any = None
        self._lock = threading.Lock()

    def result(self, ignore_errors: bool = False) -> Any:
        """The kernel, loaded; waits for it, or inside `leaving_out` may give one that does nothing.

        Raises:
            Exception: what compiling it raised.
        """
        if getattr(_launching, "leaves_out", False):
            return _NOTHING
        with self._lock:
            if self._kernel is None:
                begin = time.perf_counter()
                if not self.is_compiled.is_set():
                    self.hurry()
                    self.is_compiled.wait()
                    waited = time.perf_counter() - begin
                    logger.warning("a step waited %.2f s for the kernel %s", waited, self._name)
                kernel = self._compile()
                _launcher_of(kernel)  # makes it, and sends the kernel to the device
                self._finalize(kernel)
                self._kernel = kernel
        return self._kernel

    def __getattr__(self, name: str) -> Any:
        """Launches by some versions of Triton take it for the kernel."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.result(), name)


class LateKernels:
    """All of them. `len` tells how many."""

    def __init__(self) -> None:
        self._kernels: list[LateKernel] = []

    def __len__(self) -> int:
        return len(self._kernels)

    def add(self, kernel: LateKernel) -> None:
        """One more."""
        self._kernels.append(kernel)

    @contextlib.contextmanager
    def leaving_out(self) -> Iterator[None]:
        """Launches of these kernels by this thread do nothing, unless all are compiled by now.

        All or none: some read what others wrote, and leave things as the next ones expect them.
        What they would have written is left as it was.
        """
        _launching.leaves_out = not all(kernel.is_compiled.is_set() for kernel in self._kernels)
        try:
            yield
        finally:
            _launching.leaves_out = False

    def load(self) -> Loaded:
        """Load those that are compiled.

        One that cannot be compiled makes no difference here; its launch raises the error.
        """
        begin = time.perf_counter()
        num = 0
        for kernel in self._kernels:
            if kernel.is_compiled.is_set():
                with contextlib.suppress(Exception):
                    kernel.result()
                    num += 1
        return Loaded(num, len(self._kernels) - num, time.perf_counter() - begin)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `LateKernels.load` found.

    Attributes:
        num_kernels: that are there.
        num_missing: that are still being compiled.
        seconds: that loading took.
    """

    num_kernels: int
    num_missing: int
    seconds: float

    def __str__(self) -> str:
        """For the log."""
        return (
            f"kernels: {self.num_kernels} that nobody waited for are there, loaded in "
            f"{self.seconds:.2f} s; {self.num_missing} are still being compiled"
        )
