"""Groups of integers as ggml's blocks of 32, which our kernels multiply by.

A group's scale is repeated in each of its blocks, as float16: Q4_0 is scale (code - 8), Q4_1 is
scale code + minimum with -scale zero for the minimum, Q8_0 is scale times a signed code.

Shapes: n rows, k columns, b = k / 32 blocks of a row, g groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from octavo.weights.group_codes import Codes

Floats = NDArray[np.float32]
Halves = NDArray[np.float16]

MOST_ERROR = 2.0**-11
"""Of a scale as float16, relative: what rounding costs where float16 has all of its bits."""


def as_half(values: Floats) -> Halves | None:
    """The values as float16; None: one of them is not a number or not held to `MOST_ERROR`."""
    with np.errstate(over="ignore", invalid="ignore"):
        halves = values.astype(np.float16)
        error = np.abs(halves.astype(np.float32) - values)
        holds = error <= MOST_ERROR * np.abs(values)
    return halves if holds.all() else None


def pick_format(bits: int, scales: Floats, zeros: Codes) -> tuple[str, str | None]:
    """The block format for scales and zero points (n, g); else `int4` or `int8`, and why."""
    if as_half(scales) is None:
        return f"int{bits}", "scales that float16 cannot hold"
    if (zeros == 1 << bits - 1).all():
        return "Q4_0" if bits == 4 else "Q8_0", None
    if bits == 8:
        return "int8", "8 bits with zero points"
    if as_half(minima(scales, zeros)) is None:
        return "int4", "zero points that float16 cannot hold"
    return "Q4_1", None


def minima(scales: Floats, zeros: Codes) -> Floats:
    """What code 0 stands for, of the same shape."""
    with np.errstate(over="ignore", invalid="ignore"):
        return -scales * zeros


def make_blocks(
    block_format: str, codes: Codes, scales: Halves, mins: Halves | None, out: NDArray[np.uint8]
) -> None:
    """Blocks of some rows.

    Args:
        block_format: Q4_0, Q4_1 or Q8_0.
        codes: (n, k), unsigned, C-contiguous.
        scales: (n, b).
        mins: (n, b), of Q4_1.
        out: (n, bytes of a row), filled.
    """
    num_rows, num_blocks = scales.shape
    blocks = out.reshape(num_rows, num_blocks, -1)
    blocks[..., :2] = _bytes_of(scales)
    if block_format == "Q8_0":
        np.bitwise_xor(codes.reshape(num_rows, num_blocks, 32), 128, out=blocks[..., 2:])
        return
    start = 2
    if mins is not None:
        blocks[..., 2:4] = _bytes_of(mins)
        start = 4
    halves = codes.reshape(num_rows, num_blocks, 2, 16)
    np.left_shift(halves[..., 1, :], 4, out=blocks[..., start:])
    blocks[..., start:] |= halves[..., 0, :]


def _bytes_of(halves: Halves) -> NDArray[np.uint8]:
    """(n, b) to (n, b, 2)."""
    return np.ascontiguousarray(halves, "<f2").view(np.uint8).reshape(*halves.shape, 2)
