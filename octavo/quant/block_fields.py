"""Fields of stored blocks: codes of five and six bits, scales and minima, as bytes hold them.

Knows how ggml lays out a block's bits (`ggml-common.h`), not what a weight is: that is made of the
fields by `block_codes` and by `weights/gguf_blocks.py`.

Shape legend: n blocks of `Bytes`, one a row; what is said to take blocks takes whole ones.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


def halves(field: Bytes) -> Floats:
    """(n, 2 * k) bytes to (n, k) float32."""
    return field.view("<f2").astype(np.float32)


def split_nibbles(qs: Bytes, out: NDArray[Any]) -> None:
    """Split bytes into nibbles: `out[..., 0, :]` takes the low ones, `out[..., 1, :]` the high."""
    out[..., 0, :] = qs & 15
    out[..., 1, :] = qs >> 4


def crumbs(qs: Bytes) -> Bytes:
    """Two-bit codes (n, 2, 4, 32) from (n, 64): byte j of a half holds 4 elements, 32 apart."""
    parts = qs.reshape(-1, 2, 32)
    codes = np.empty((len(qs), 2, 4, 32), np.uint8)
    for k in range(4):
        np.right_shift(parts, 2 * k, out=codes[:, :, k])
    codes &= 3
    return codes


def five_bit_codes(qh: Bytes, qs: Bytes) -> Bytes:
    """Codes (n, 32) of Q5_0 and Q5_1: bit i of the 4 bytes `qh` is the top bit of element i."""
    codes = np.unpackbits(qh, axis=1, bitorder="little")
    codes <<= 4
    codes[:, :16] |= qs & 15
    codes[:, 16:] |= qs >> 4
    return codes


def scale_min_codes(blocks: Bytes) -> tuple[Bytes, Bytes]:
    """Scales and minima (n, 8) of Q4_K's and Q5_K's blocks: 8 pairs of 6 bits in 12 bytes."""
    first, second, mixed = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    return (
        np.concatenate([first & 63, (mixed & 15) | ((first >> 2) & 48)], axis=1),
        np.concatenate([second & 63, (mixed >> 4) | ((second >> 2) & 48)], axis=1),
    )


def q5_k_codes(blocks: Bytes) -> Bytes:
    """Codes (n, 8, 32) of Q5_K's blocks: bit k of 32 bytes of top bits belongs to run k."""
    codes = np.empty((len(blocks), 8, 32), np.uint8)
    split_nibbles(blocks[:, 48:].reshape(-1, 4, 32), codes.reshape(-1, 4, 2, 32))
    top = blocks[:, 16:48]
    for k in range(8):
        codes[:, k] |= ((top >> k) & 1) << 4
    return codes


def q6_k_codes(blocks: Bytes) -> Bytes:
    """Codes (n, 2, 4, 32) of Q6_K's blocks: two halves of nibbles, and 64 bytes of top pairs."""
    codes = crumbs(blocks[:, 128:192])
    codes <<= 4
    nibbles = np.empty((len(blocks), 2, 2, 64), np.uint8)
    split_nibbles(blocks[:, :128].reshape(-1, 2, 64), nibbles)
    codes |= nibbles.reshape(codes.shape)
    return codes
