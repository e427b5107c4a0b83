"""Dequantization of GGUF's block formats into float32, with numpy, bit-equal to ggml's reference.

Knows blocks of bytes, not files, tensors' names or torch. The layouts are those of ggml's block
structures (`ggml-common.h`); each decoder's comment gives the order of the fields.

Shape legend: n blocks; a block's elements run along the last axis. `d` is a block's scale, `m` its
minimum, `q` its codes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from octavo.errors import UnsupportedModelError
from octavo.quant.block_fields import (
    Bytes,
    Floats,
    crumbs,
    five_bit_codes,
    halves,
    q5_k_codes,
    q6_k_codes,
    scale_min_codes,
    split_nibbles,
)
from octavo.weights.block_formats import FORMATS, FORMATS_BY_NAME, BlockFormat

__all__ = [
    "CHUNK_ELEMENTS",
    "FORMATS",
    "FORMATS_BY_NAME",
    "BlockFormat",
    "can_dequantize",
    "dequantize",
]

Decoder = Callable[[Bytes, Floats], None]
"""Fills (n, block_size) float32 from (n, block_bytes) uint8. Both are C-contiguous."""

CHUNK_ELEMENTS = 1 << 17
"""Elements decoded at once: small enough that codes and floats stay in the cache between passes."""


def can_dequantize(name: str) -> bool:
    """True when `dequantize` knows the format of this name."""
    return name in _DECODERS


def dequantize(packed: Bytes, name: str, out: Floats | None = None) -> Floats:
    """Decode whole blocks of format `name`.

    Args:
        packed: C-contiguous bytes, any shape, a whole number of blocks; left unchanged.
        name: a key of `FORMATS_BY_NAME`.
        out: flat C-contiguous float32 with room for exactly the decoded elements; None: a new one.

    Returns:
        `out`, flat.

    Raises:
        UnsupportedModelError: no decoder for this format.
    """
    decode = _DECODERS.get(name)
    if decode is None:
        known = ", ".join(sorted(_DECODERS))
        raise UnsupportedModelError(
            f"GGUF block format {name} is not supported; these are: {known}"
        )
    _, block_size, block_bytes = FORMATS_BY_NAME[name]
    blocks = packed.reshape(-1, block_bytes)
    if out is None:
        out = np.empty(len(blocks) * block_size, np.float32)
    values = out.reshape(len(blocks), block_size)
    step = max(1, CHUNK_ELEMENTS // block_size)
    # A block whose scale is infinite or not a number decodes to such numbers, silently, as in ggml.
    with np.errstate(all="ignore"):
        for start in range(0, len(blocks), step):
            decode(blocks[start : start + step], values[start : start + step])
    return out


def _f32(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks.view("<f4")


def _f16_plain(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks.view("<f2")


def _bf16(blocks: Bytes, out: Floats) -> None:
    np.left_shift(blocks.view("<u2"), 16, out=out.view(np.uint32), dtype=np.uint32)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    # d f16, 16 bytes: element i in the low nibble of byte i, element i + 16 in the high one
    split_nibbles(blocks[:, 2:], out.reshape(-1, 2, 16))
    out -= 8
    out *= halves(blocks[:, :2])


def _q4_1(blocks: Bytes, out: Floats) -> None:
    # d f16, m f16, nibbles as in Q4_0
    split_nibbles(blocks[:, 4:], out.reshape(-1, 2, 16))
    out *= halves(blocks[:, :2])
    out += halves(blocks[:, 2:4])


def _q5_0(blocks: Bytes, out: Floats) -> None:
    # d f16, qh u32, nibbles
    out[:] = five_bit_codes(blocks[:, 2:6], blocks[:, 6:])
    out -= 16
    out *= halves(blocks[:, :2])


def _q5_1(blocks: Bytes, out: Floats) -> None:
    # d f16, m f16, qh u32, nibbles
    out[:] = five_bit_codes(blocks[:, 4:8], blocks[:, 8:])
    out *= halves(blocks[:, :2])
    out += halves(blocks[:, 2:4])


def _q8_0(blocks: Bytes, out: Floats) -> None:
    # d f16, 32 i8
    out[:] = blocks[:, 2:].view(np.int8)
    out *= halves(blocks[:, :2])


def _q2_k(blocks: Bytes, out: Floats) -> None:
    # 16 scales (low nibble: scale, high: minimum) for 16 elements each, 64 bytes of codes, d, dmin
    scales = blocks[:, :16]
    values = out.reshape(-1, 16, 16)
    values[:] = crumbs(blocks[:, 16:80]).reshape(-1, 16, 16)
    values *= (halves(blocks[:, 80:82]) * (scales & 15))[..., None]
    values -= (halves(blocks[:, 82:84]) * (scales >> 4))[..., None]


def _q3_k(blocks: Bytes, out: Floats) -> None:
    # 32 bytes of top bits, 64 bytes of codes, 12 bytes holding 16 scales of 6 bits, d
    codes = crumbs(blocks[:, 32:96]).reshape(-1, 8, 32)
    top = blocks[:, :32]
    for k in range(8):
        codes[:, k] |= ((top >> k) & 1) << 2
    low, high = blocks[:, 96:104], blocks[:, 104:108]
    scales = np.concatenate([low & 15, low >> 4], axis=1)
    for k in range(4):
        scales[:, 4 * k : 4 * k + 4] |= ((high >> (2 * k)) & 3) << 4
    values = out.reshape(-1, 16, 16)
    values[:] = codes.reshape(-1, 16, 16)
    values -= 4
    values *= (halves(blocks[:, 108:110]) * (scales.view(np.int8) - 32))[..., None]


def _scale_min(blocks: Bytes) -> tuple[Floats, Floats]:
    """Scales and minima (n, 8, 1) of Q4_K and Q5_K: d, dmin, then 8 pairs of 6 bits in 12 bytes."""
    scales, minima = scale_min_codes(blocks)
    return (
        (halves(blocks[:, :2]) * scales)[..., None],
        (halves(blocks[:, 2:4]) * minima)[..., None],
    )


def _q4_k(blocks: Bytes, out: Floats) -> None:
    # d, dmin, 12 bytes of scales, 4 runs of 32 bytes: low nibbles, then high nibbles
    scales, minima = _scale_min(blocks)
    split_nibbles(blocks[:, 16:].reshape(-1, 4, 32), out.reshape(-1, 4, 2, 32))
    values = out.reshape(-1, 8, 32)
    values *= scales
    values -= minima


def _q5_k(blocks: Bytes, out: Floats) -> None:
    # d, dmin, 12 bytes of scales, 32 bytes of top bits (bit k belongs to run k), codes as in Q4_K
    scales, minima = _scale_min(blocks)
    values = out.reshape(-1, 8, 32)
    values[:] = q5_k_codes(blocks)
    values *= scales
    values -= minima


def _q6_k(blocks: Bytes, out: Floats) -> None:
    # two halves of 64 bytes of nibbles, 64 bytes of top pairs, 16 i8 scales, d
    values = out.reshape(-1, 16, 16)
    values[:] = q6_k_codes(blocks).reshape(-1, 16, 16)
    values -= 32
    values *= (halves(blocks[:, 208:210]) * blocks[:, 192:208].view(np.int8))[..., None]


# The 16 steps of the non-linear 4-bit codes, by code.
_IQ4_STEPS = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32
)


def _iq4_nl(blocks: Bytes, out: Floats) -> None:
    # as Q4_0, with a table of steps
    codes = np.empty((len(blocks), 2, 16), np.uint8)
    split_nibbles(blocks[:, 2:], codes)
    np.take(_IQ4_STEPS, codes.reshape(out.shape), out=out, mode="clip")
    out *= halves(blocks[:, :2])


def _iq4_xs(blocks: Bytes, out: Floats) -> None:
    # d, u16 with the top pairs of 8 scales, 4 bytes with their low nibbles, 8 runs of 16 bytes
    high = blocks[:, 2:4].view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16)
    scales = np.empty((len(blocks), 4, 2), np.uint8)
    scales[..., 0] = blocks[:, 4:8] & 15
    scales[..., 1] = blocks[:, 4:8] >> 4
    scales = scales.reshape(-1, 8) | ((high & 3) << 4).astype(np.uint8)
    codes = np.empty((len(blocks), 8, 2, 16), np.uint8)
    split_nibbles(blocks[:, 8:].reshape(-1, 8, 16), codes)
    np.take(_IQ4_STEPS, codes.reshape(out.shape), out=out, mode="clip")
    values = out.reshape(-1, 8, 32)
    values *= (halves(blocks[:, :2]) * (scales.view(np.int8) - 32))[..., None]


_DECODERS: dict[str, Decoder] = {
    "F32": _f32,
    "F16": _f16_plain,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
