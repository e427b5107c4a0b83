"""Codes, scales and minima of stored blocks, as native kernels take them apart (`blocks.h`).

A weight is scale * code + minimum. The formats are those that the kernels keep; how their blocks
are laid out is ggml's (`ggml-common.h`), and said at length in `weights/gguf_blocks.py`.

Shapes: n rows, g blocks of 32 columns, s scales of each (2 for Q6_K, else 1), b stored blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]
    Floats = NDArray[np.float32]

BLOCK = 32
STORED = {
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "Q4_K": 144, "Q5_K": 176,
    "Q6_K": 210,
}  # fmt: skip
"""Bytes of a stored block: of 256 columns in K-quants, of 32 in the others."""


class Codes(NamedTuple):
    """A matrix in blocks.

    Attributes:
        codes: [n, g, 32], below 64, or signed (Q8_0).
        scales: [n, g, s].
        minima: [n, g, s]; None: they are 0 (Q8_0).
    """

    codes: NDArray[np.uint8] | NDArray[np.int8]
    scales: Floats
    minima: Floats | None

    def in_order(self, rows: NDArray[np.int64]) -> Codes:
        """These of its rows."""
        return Codes(
            self.codes[rows], self.scales[rows], None if self.minima is None else self.minima[rows]
        )


def read_codes(stored: Bytes, name: str) -> Codes:
    """Take blocks of format `name`, [n, bytes of a row], apart."""
    blocks = stored.reshape(len(stored), -1, STORED[name])
    if name in ("Q4_K", "Q5_K"):
        return _with_minima(blocks, has_fifth=name == "Q5_K")
    if name == "Q6_K":
        return _of_six_bits(blocks)
    scales = _halves(blocks[..., :2])
    if name == "Q8_0":
        return Codes(blocks[..., 2:].view(np.int8), scales, None)
    at = 4 if name.endswith("1") else 2
    codes = _nibbles(blocks[..., -16:])
    if name.startswith("Q5"):
        fifth = np.unpackbits(blocks[..., at : at + 4], axis=-1, bitorder="little")
        codes |= fifth << 4
    minima = _halves(blocks[..., 2:4]) if at == 4 else scales * -(8 if name == "Q4_0" else 16)
    return Codes(codes, scales, minima.astype(np.float32))


def _halves(field: Bytes) -> Floats:
    """[..., 2] bytes to [..., 1]."""
    return np.ascontiguousarray(field).view("<f2").astype(np.float32)


def _nibbles(qs: Bytes) -> Bytes:
    """[..., k] bytes to [..., 2 k] codes: the low halves, then the high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _with_minima(blocks: Bytes, *, has_fifth: bool) -> Codes:
    num_rows, num_stored, _ = blocks.shape
    first, second, mixed = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    scales = np.concatenate([first & 63, (mixed & 15) | ((first >> 2) & 48)], axis=-1)
    minima = np.concatenate([second & 63, (mixed >> 4) | ((second >> 2) & 48)], axis=-1)
    codes = _nibbles(blocks[..., -128:].reshape(num_rows, num_stored, 4, BLOCK))
    codes = codes.reshape(num_rows, num_stored, 8, BLOCK)
    if has_fifth:
        bits = np.arange(8, dtype=np.uint8)[:, None]
        codes |= (blocks[..., None, 16:48] >> bits & 1) << 4
    return Codes(
        codes.reshape(num_rows, -1, BLOCK),
        (_halves(blocks[..., :2]) * scales).reshape(num_rows, -1, 1),
        (-_halves(blocks[..., 2:4]) * minima).reshape(num_rows, -1, 1),
    )


def _of_six_bits(blocks: Bytes) -> Codes:
    num_rows, num_stored, _ = blocks.shape
    low = blocks[..., :128].reshape(num_rows, num_stored, 2, 64)
    codes = _nibbles(low).reshape(num_rows, num_stored, 2, 4, BLOCK)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    high = blocks[..., 128:192].reshape(num_rows, num_stored, 2, 1, BLOCK)
    codes |= (high >> shifts & 3) << 4
    scales = _halves(blocks[..., 208:]) * blocks[..., 192:208].view(np.int8)
    scales = scales.reshape(num_rows, -1, 2)
    return Codes(codes.reshape(num_rows, -1, BLOCK), scales, scales * np.float32(-32))
