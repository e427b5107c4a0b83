"""Products by cuBLASLt, with an algorithm that the caller names: y = x W^T.

torch takes the first algorithm that the library's heuristics name, which is often not the fastest
for the numbers of rows of a decode step. So here the algorithm is an argument: 64 opaque bytes,
good for the version of the library that they come from (cuBLAS documentation,
`cublasLtMatmulAlgo_t`). The library is the one that torch has loaded, called through
ctypes; which algorithm is worth what is measured elsewhere.

Knows raw tensors alone. Calls may be captured in graphs.
"""

from __future__ import annotations

import ctypes
from ctypes import byref, c_float, c_int, c_int64, c_size_t, c_uint64, c_void_p
from typing import Any

import torch

ALGORITHM_BYTES = 64
ALIGNMENT = 256
"""Of every address: what the library's heuristics take for granted if nothing else is said."""

WORKSPACE_BYTES = 32 << 20
"""Scratch of products whose k is divided; what torch lets cuBLAS have on these cards."""

DTYPES = {torch.bfloat16: 14, torch.float16: 2}
"""cudaDataType_t."""

_FLOAT32, _COMPUTE_FLOAT32 = 0, 68
_TRANSPOSE_A = 3  # attribute of a product
_MAX_WORKSPACE, _REDUCTIONS = 1, 3  # attributes of a preference
_EXACT_REDUCTIONS = 1 | 2  # in place and in float32, but not in the output's type


class _Algorithm(ctypes.Structure):
    _fields_ = (("data", c_uint64 * (ALGORITHM_BYTES // 8)),)


class _Found(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t."""

    _fields_ = (
        ("algorithm", _Algorithm),
        ("workspace", c_size_t),
        ("status", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    )


class LibraryError(RuntimeError):
    """cuBLASLt refused."""


class Library:
    """CuBLASLt on one device.

    Args:
        device: a CUDA device; torch has made its context.

    Raises:
        OSError: torch has no cuBLASLt.
        LibraryError: it does not work on the device.

    Attributes:
        version: as `cublasLtGetVersion` gives it; algorithms belong to it.
    """

    def __init__(self, device: torch.device) -> None:
        major = (torch.version.cuda or "0").partition(".")[0]
        self._calls = ctypes.CDLL(f"libcublasLt.so.{major}")  # by that name, torch's own
        self._calls.cublasLtGetVersion.restype = c_size_t
        self.version = int(self._calls.cublasLtGetVersion())
        self.device = device
        with torch.cuda.device(device):
            self._handle = c_void_p()
            self._check(self._calls.cublasLtCreate(byref(self._handle)))
        self._workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        self._multiply = self._calls.cublasLtMatmul
        self._multiply.argtypes = [c_void_p] * 14 + [c_size_t, c_void_p]
        self._one, self._zero = c_float(1.0), c_float(0.0)

    def _check(self, status: int) -> None:
        if status:
            self._calls.cublasLtGetStatusString.restype = ctypes.c_char_p
            name = self._calls.cublasLtGetStatusString(status)
            raise LibraryError(f"cuBLASLt: {name.decode() if name else status}")

    def product(self, m: int, n: int, k: int, dtype: torch.dtype) -> Product:
        """The product of x [m, k] and a weight [n, k]."""
        return Product(self, m, n, k, dtype)


class Product:
    """x [m, k] times W^T, W [n, k], both contiguous, as [m, n]. Use `Library.product`."""

    def __init__(self, library: Library, m: int, n: int, k: int, dtype: torch.dtype) -> None:
        self._library, self._calls = library, library._calls
        self.shape, self.dtype = (m, n, k), dtype
        check, kind = library._check, DTYPES[dtype]
        self._what = c_void_p()
        check(self._calls.cublasLtMatmulDescCreate(byref(self._what), _COMPUTE_FLOAT32, _FLOAT32))
        yes = c_int(1)
        check(self._calls.cublasLtMatmulDescSetAttribute(self._what, _TRANSPOSE_A, byref(yes), 4))
        # The library counts columns first: y^T [n, m] = (W^T)^T x^T.
        self._w, self._x, self._y = (
            self._layout(kind, *sizes) for sizes in ((k, n), (k, m), (n, m))
        )

    def _layout(self, kind: int, rows: int, cols: int) -> c_void_p:
        made = c_void_p()
        self._library._check(
            self._calls.cublasLtMatrixLayoutCreate(
                byref(made), kind, c_uint64(rows), c_uint64(cols), c_int64(rows)
            )
        )
        return made

    def __del__(self) -> None:
        """Give the library's descriptions back."""
        for made in (getattr(self, name, None) for name in ("_w", "_x", "_y")):
            if made:
                self._calls.cublasLtMatrixLayoutDestroy(made)
        if getattr(self, "_what", None):
            self._calls.cublasLtMatmulDescDestroy(self._what)

    def candidates(self, most: int) -> list[bytes]:
        """Algorithms that the library names, the one it expects to be fastest first."""
        calls, check = self._calls, self._library._check
        wishes = c_void_p()
        check(calls.cublasLtMatmulPreferenceCreate(byref(wishes)))
        try:
            size, reductions = c_size_t(WORKSPACE_BYTES), c_int(_EXACT_REDUCTIONS)
            for name, value, length in (
                (_MAX_WORKSPACE, byref(size), 8),
                (_REDUCTIONS, byref(reductions), 4),
            ):
                check(calls.cublasLtMatmulPreferenceSetAttribute(wishes, name, value, length))
            found, count = (_Found * most)(), c_int()
            check(
                calls.cublasLtMatmulAlgoGetHeuristic(
                    self._library._handle, self._what, self._w, self._x, self._y, self._y,
                    wishes, most, found, byref(count),
                )
            )  # fmt: skip
        finally:
            calls.cublasLtMatmulPreferenceDestroy(wishes)
        return [bytes(each.algorithm) for each in found[: count.value] if not each.status]

    def load(self, algorithm: bytes) -> Any | None:
        """What `multiply` takes; None: this product, or this card, cannot be computed with it.

        Args:
            algorithm: `ALGORITHM_BYTES` of `candidates`, of any shape and of this version.
        """
        loaded, about = _Algorithm.from_buffer_copy(algorithm), _Found()
        status = self._calls.cublasLtMatmulAlgoCheck(
            self._library._handle, self._what, self._w, self._x, self._y, self._y,
            byref(loaded), byref(about),
        )  # fmt: skip
        if status or about.status or about.workspace > WORKSPACE_BYTES:
            return None
        return byref(loaded)

    def multiply(self, x: torch.Tensor, weight: torch.Tensor, algorithm: Any) -> torch.Tensor:
        """[m, n], on torch's current stream. One stream at a time may use a library.

        Args:
            x: [m, k], contiguous, of the product's type; addresses as `ALIGNMENT` says.
            weight: [n, k], likewise.
            algorithm: as `load` gave it.

        Raises:
            LibraryError: the launch failed.
        """
        library = self._library
        m, n, _ = self.shape
        y = torch.empty((m, n), dtype=x.dtype, device=x.device)
        status = library._multiply(
            library._handle, self._what, byref(library._one), weight.data_ptr(), self._w,
            x.data_ptr(), self._x, byref(library._zero), y.data_ptr(), self._y, y.data_ptr(),
            self._y, algorithm, library._workspace.data_ptr(), WORKSPACE_BYTES,
            torch.cuda.current_stream(x.device).cuda_stream,
        )  # fmt: skip
        if status:
            library._check(status)
        return y
