"""Codes, scales and minima of stored blocks, as native kernels take them apart (`blocks.h`).

A weight is scale * code + minimum. The formats are those that the kernels keep; how their blocks
are laid out is ggml's (`ggml-common.h`), and said at length in `weights/gguf_blocks.py`.

Shapes: n rows, g blocks of 32 columns, s scales of each (2 for Q6_K, else 1), b stored blocks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from octavo.quant.block_fields import (
    five_bit_codes,
    halves,
    q5_k_codes,
    q6_k_codes,
    scale_min_codes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo.quant.block_fields import Bytes, Floats

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
    num_rows, num_scales = len(stored), 2 if name == "Q6_K" else 1
    codes, scales, minima = _read(stored.reshape(-1, STORED[name]), name)
    return Codes(
        codes.reshape(num_rows, -1, BLOCK),
        scales.reshape(num_rows, -1, num_scales),
        None if minima is None else minima.reshape(num_rows, -1, num_scales),
    )


def _read(blocks: Bytes, name: str) -> Codes:
    """Of [b, bytes of a block], in the same order, with other shapes."""
    if name in ("Q4_K", "Q5_K"):
        return _with_minima(blocks, has_fifth=name == "Q5_K")
    if name == "Q6_K":
        scales = halves(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8)
        return Codes(q6_k_codes(blocks), scales, scales * np.float32(-32))
    scales = halves(blocks[:, :2])
    if name == "Q8_0":
        return Codes(blocks[:, 2:].view(np.int8), scales, None)
    at = 4 if name.endswith("1") else 2
    if name.startswith("Q5"):
        codes = five_bit_codes(blocks[:, at : at + 4], blocks[:, at + 4 :])
    else:
        codes = _nibbles(blocks[:, at:])
    minima = halves(blocks[:, 2:4]) if at == 4 else scales * -(8 if name == "Q4_0" else 16)
    return Codes(codes, scales, minima.astype(np.float32))


def _nibbles(qs: Bytes) -> Bytes:
    """[..., k] bytes to [..., 2 k] codes: the low halves, then the high ones."""
    return np.concatenate([qs & 15, qs >> 4], axis=-1)


def _with_minima(blocks: Bytes, *, has_fifth: bool) -> Codes:
    scales, minima = scale_min_codes(blocks)
    return Codes(
        q5_k_codes(blocks) if has_fifth else _nibbles(blocks[:, 16:].reshape(-1, 4, BLOCK)),
        halves(blocks[:, :2]) * scales,
        -halves(blocks[:, 2:4]) * minima,
    )
