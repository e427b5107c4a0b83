"""Uniform numbers on the device: `runner/philox.py`'s function of a seed and a position.

The same generator, Philox4x32-10 (Salmon et al., SC'11), of which a float32 keeps the first 24
bits. Knows nothing of tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

if TYPE_CHECKING:
    import torch

_TILE = 128


@triton.jit(do_not_specialize=["seeds_ptr", "positions_ptr", "out_ptr", "num_rows", "stride"])
def uniform_kernel(seeds_ptr, positions_ptr, out_ptr, num_rows, stride, TILE: tl.constexpr):
    """Grid (tiles,)."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    real = row < num_rows
    key_low = tl.load(seeds_ptr + row, mask=real, other=0).to(tl.uint32, bitcast=True)
    key_high = tl.load(seeds_ptr + stride + row, mask=real, other=0).to(tl.uint32, bitcast=True)
    place = tl.load(positions_ptr + row, mask=real, other=0).to(tl.uint32, bitcast=True)
    zero = place * 0
    word, _, _, _ = tl.philox_impl(place, zero, zero, zero, key_low, key_high, 10)
    # 24 bits are exact in float32, so the largest number stays below 1.
    fraction = (word >> 8).to(tl.int32, bitcast=True).to(tl.float32) * 5.9604644775390625e-08
    tl.store(out_ptr + row, fraction, mask=real)


def draw_uniform(seeds: torch.Tensor, positions: torch.Tensor, out: torch.Tensor) -> None:
    """One number in [0, 1) for each row, a multiple of 2**-24.

    Args:
        seeds: [2, n] int32, low words of the seeds, then high words; rows may lie apart.
        positions: [n] int32, >= 0.
        out: [n] float32, written.
    """
    num_rows = positions.shape[0]
    uniform_kernel[(-(-num_rows // _TILE),)](
        seeds, positions, out, num_rows, seeds.stride(0), TILE=_TILE, num_warps=4
    )
