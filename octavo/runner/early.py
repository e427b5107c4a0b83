"""What a start on a GPU can do beside the import of torch, which takes seconds.

Other processes get ready to compile kernels, and CUDA's context for the device is made by a thread.
Imports neither torch nor Triton. All of it is a head start: what is missing here is made later.
"""

from __future__ import annotations

import ctypes
import importlib.util
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from octavo.kernels import compile_processes

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.config import EngineConfig

_DRIVER = Path("/dev/nvidiactl")


@contextmanager
def head_start(config: EngineConfig) -> Iterator[None]:
    """While an engine is made; processes that it did not take are closed at the end."""
    index = _device_index(config.device)
    if index is not None and _has_cuda():
        compile_processes.start()
        threading.Thread(target=_make_context, args=(index,), name="context", daemon=True).start()
    try:
        yield
    finally:
        compile_processes.drop()


def _has_cuda() -> bool:
    """Whether there are a card's driver and a torch that is built for it."""
    torch = importlib.util.find_spec("torch")
    if torch is None or torch.origin is None or not _DRIVER.exists():
        return False
    return Path(torch.origin).with_name("lib").joinpath("libtorch_cuda.so").exists()


def _device_index(name: str) -> int | None:
    """Of the CUDA device that `--device` is likely to mean; None: another kind of device."""
    kind, _, index = name.partition(":")
    if kind not in ("auto", "cuda") or not (index or "0").isdecimal():
        return None
    return int(index or 0)


def _make_context(index: int) -> None:
    """Make the device's primary context (CUDA Driver API), which torch and Triton then use too.

    It is kept: torch never gives it back either. Errors are left to torch, which reports them.
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return
    device, context = ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) == 0 and cuda.cuDeviceGet(ctypes.byref(device), index) == 0:
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
