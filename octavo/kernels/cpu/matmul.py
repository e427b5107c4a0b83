"""Products with GGUF blocks as they are stored, and rows of them: the library's side of `quant`.

Knows tensors and block formats, no layers. Activations are rounded to 8 bits, 32 columns at a time
with one scale (as ggml does), those with the largest scales twice (src/acts.h); weights are not
rounded again. src/blocks.h has the packed layout.

Shapes: n rows of weights (outputs), k columns (inputs), t rows of activations.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import torch

from octavo.kernels.cpu import library
from octavo.kernels.cpu.memory import large_pages

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}

ALIGNMENT = 64
"""Bytes; of a packed matrix's address."""

_MOST = 2**31
"""Rows or columns of a packed matrix."""

_CHUNK_BYTES = 32 * 1024**2

MAX_PARTS = 8
"""Most matrices that one product takes together."""

TYPES = {
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 6,
    "Q5_1": 7,
    "Q8_0": 8,
    "Q4_K": 12,
    "Q5_K": 13,
    "Q6_K": 14,
}
"""Block formats that are multiplied as stored, by ggml's number."""

_WIDE = ("Q4_K", "Q5_K", "Q6_K")
"""Formats with blocks of 256 columns; the others' have 32."""


def can_pack(block_format: str, num_rows: int, num_cols: int) -> bool:
    """Whether `packed_bytes` is more than 0; needs no library."""
    block_cols = 256 if block_format in _WIDE else 32
    return (
        block_format in TYPES
        and 0 < num_rows <= _MOST
        and 0 < num_cols <= _MOST
        and num_cols % block_cols == 0
    )


def packed_bytes(block_format: str, num_rows: int, num_cols: int) -> int:
    """Bytes of a packed matrix (n, k), a multiple of `ALIGNMENT`; 0 where it cannot be packed."""
    number = TYPES.get(block_format)
    return 0 if number is None else int(library().octavo_packed_bytes(number, num_rows, num_cols))


def allocate_packed(num_bytes: int) -> torch.Tensor:
    """Uninitialized bytes for one matrix alone, aligned; `PackedMemory` is for many."""
    raw = torch.empty(num_bytes + ALIGNMENT, dtype=torch.uint8, device="cpu")
    return raw.narrow(0, -raw.data_ptr() % ALIGNMENT, num_bytes)


class PackedMemory:
    """Memory for packed matrices, close together and in large pages where the system has them.

    A chunk's pages come into being when they are written, so the rest of the last one costs
    nothing. May be used by several threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, num_bytes: int) -> torch.Tensor:
        """`num_bytes` uninitialized bytes, aligned for packed matrices, valid while it lives."""
        needed = -(-num_bytes // ALIGNMENT) * ALIGNMENT
        with self._lock:
            if self._left.numel() < needed:
                self._left = large_pages(max(_CHUNK_BYTES, needed))
            taken, self._left = self._left[:num_bytes], self._left[needed:]
        return taken


def pack(
    target: torch.Tensor,
    stored: NDArray[np.uint8],
    block_format: str,
    shape: tuple[int, int],
    order: torch.Tensor | None,
    *,
    is_last: bool,
) -> None:
    """Pack one matrix.

    Args:
        target: [packed_bytes], from `allocate_packed` or `PackedMemory`; the next part follows it.
        stored: the file's blocks, (n, bytes per row), C-contiguous; left unchanged.
        block_format: a key of `TYPES`.
        shape: (n, k).
        order: int64 [n], the stored row that becomes each row; None: as they are.
        is_last: whether no further part follows.
    """
    num_bytes = packed_bytes(block_format, *shape)
    assert target.numel() == num_bytes > 0
    assert target.data_ptr() % ALIGNMENT == 0
    assert stored.flags.c_contiguous
    if order is not None:
        assert order.shape == shape[:1]
        assert order.dtype == torch.int64
        order = order.contiguous()
    done = library().octavo_pack(
        TYPES[block_format],
        stored.ctypes.data,
        None if order is None else order.data_ptr(),
        *shape,
        0 if is_last else num_bytes,
        target.data_ptr(),
    )
    assert done, "order has rows that are not there"


def linear(
    x: torch.Tensor, packed: torch.Tensor, num_outputs: int, bias: torch.Tensor | None
) -> torch.Tensor:
    """X W^T + bias, in x's dtype.

    Args:
        x: [t, k].
        packed: W's parts, all of k columns.
        num_outputs: n, of all parts together.
        bias: [n] of x's dtype, or None.
    """
    dtype = _DTYPES.get(x.dtype)
    if dtype is None:
        wide = None if bias is None else bias.float()
        return linear(x.float(), packed, num_outputs, wide).to(x.dtype)
    if x.stride(1) != 1:
        x = x.contiguous()
    num_rows = x.shape[0]
    y = x.new_empty(num_rows, num_outputs)
    library().octavo_linear(
        packed.data_ptr(),
        x.data_ptr(),
        num_rows,
        x.stride(0),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        num_outputs,
        dtype,
    )
    return y


def decode_rows(
    packed: torch.Tensor, ids: torch.Tensor, num_cols: int, dtype: torch.dtype
) -> torch.Tensor:
    """Rows [t, k] of a packed matrix of one part, decoded.

    Args:
        packed: the matrix.
        ids: [t], integers.
        num_cols: k.
        dtype: of the result.

    Raises:
        IndexError: an id is no row.
    """
    ids = ids.to(torch.int64).contiguous()
    kept = dtype if dtype in _DTYPES else torch.float32
    rows = torch.empty(ids.shape[0], num_cols, dtype=kept, device="cpu")
    done = library().octavo_decode_rows(
        packed.data_ptr(), ids.data_ptr(), ids.shape[0], rows.data_ptr(), _DTYPES[kept]
    )
    if not done:
        raise IndexError("an id is beyond the embedding's rows")
    return rows.to(dtype)
