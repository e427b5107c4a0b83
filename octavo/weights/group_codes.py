"""Codes, zero points and columns' groups out of the tensors that checkpoints store them in.

Knows arrays of 32-bit words, no files and no names. Codes come out unsigned, whatever the format:
a weight is scale * (code - zero), with 8 or 128 as the zero of symmetric codes.

A word holds 8 codes of 4 bits or 4 of 8, the first in its lowest bits. What runs along a word:
  gptq    columns: words [k / 8, n]; of zero points the rows, [groups, n / 8]
  awq     rows: words [k, n / 8], and [groups, n / 8] of zero points, in the order `AWQ_ORDER`
  packed  columns: words [n, k / 8]; of zero points the rows: words [n / 8, groups]
  plain   no words: int8 [n, k]

Shapes: n rows of a weight (outputs), k columns (inputs), g groups of columns.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from octavo.weights.group_config import GroupScheme

Codes = NDArray[np.uint8]
Words = NDArray[Any]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of 8 neighbouring rows each 4 bits of a word are, from the lowest on (AutoAWQ's GEMM)."""


def unpack(words: Words, bits: int) -> Codes:
    """(m, w) int32 words to (m, 32 / bits * w) codes."""
    raw = np.ascontiguousarray(words, "<i4").view(np.uint8)
    if bits == 8:
        return raw
    codes = np.empty((*raw.shape, 2), np.uint8)
    np.bitwise_and(raw, 15, out=codes[..., 0])
    np.right_shift(raw, 4, out=codes[..., 1])
    return codes.reshape(len(raw), -1)


def read_codes(stored: Words, scheme: GroupScheme, begin: int, end: int, num_cols: int) -> Codes:
    """Codes (end - begin, k) of some rows, C-contiguous.

    Args:
        stored: the whole tensor of codes.
        scheme: of the layer.
        begin: the first row, a multiple of 8.
        end: behind the last one.
        num_cols: k.
    """
    if scheme.layout == "plain":
        return np.bitwise_xor(stored[begin:end].view(np.uint8), np.uint8(128))
    if scheme.layout == "awq":
        return np.ascontiguousarray(_unpack_awq(stored[:, begin // 8 : -(-end // 8)]).T)
    words = stored[:, begin:end].T if scheme.layout == "gptq" else stored[begin:end]
    return np.ascontiguousarray(unpack(words, scheme.bits)[:, :num_cols])


def read_zeros(stored: Words | None, scheme: GroupScheme, num_rows: int, num_groups: int) -> Codes:
    """Zero points (n, g).

    Args:
        stored: the tensor of zero points; None: codes are symmetric.
        scheme: of the layer.
        num_rows: n.
        num_groups: g.
    """
    half = 1 << scheme.bits - 1
    if stored is None:
        return np.full((num_rows, num_groups), half, np.uint8)
    if stored.dtype == np.int8:  # of compressed-tensors: signed and not packed
        moved = stored.astype(np.int16) + half
        codes: Codes = (moved & 2**scheme.bits - 1).astype(np.uint8)
        return codes
    if scheme.layout == "awq":
        return _unpack_awq(stored).T
    if scheme.layout == "packed":
        return unpack(stored.T, scheme.bits)[:, :num_rows].T
    # GPTQ's first format takes 1 from whole words before it stores them, so what one code borrows
    # from the next comes back only where 1 is added to whole words again.
    ones = sum(scheme.zero_offset << shift for shift in range(0, 32, scheme.bits))
    words = stored.astype("<i4").view("<u4") + np.uint32(ones)
    return unpack(words.view("<i4"), scheme.bits)[:, :num_rows].T


def _unpack_awq(words: Words) -> Codes:
    """(m, w) words to (m, 8 w) codes in the order of rows."""
    codes = unpack(words, 4).reshape(len(words), -1, 8)
    ordered = np.empty_like(codes)
    ordered[..., list(AWQ_ORDER)] = codes
    return ordered.reshape(len(words), -1)


def block_groups(groups: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Groups (k / 32) of blocks of 32 columns; None: a block has columns of several groups.

    Args:
        groups: (k), of each column; k is a multiple of 32.
    """
    blocks = groups.reshape(-1, 32)
    return blocks[:, 0] if (blocks == blocks[:, :1]).all() else None
