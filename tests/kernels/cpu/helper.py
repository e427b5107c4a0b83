"""Random blocks of every format, and what a product with them may be off by."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import numpy as np

from octavo.config import cpu_activation_bits
from octavo.kernels.cpu import build, matmul
from octavo.weights.block_formats import FORMATS_BY_NAME
from octavo.weights.gguf_blocks import dequantize

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

ISAS = [*build.ISAS.get(platform.machine().lower(), {}), "portable"]
"""Every instruction set that is compiled for this kind of processor."""

# Where a block's half-precision numbers lie.
HALVES = {
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q8_0": (0,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
}


def random_blocks(
    name: str, num_rows: int, num_cols: int, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(rows, bytes): all codes, and scales of a usual size, some of them negative or zero."""
    fmt = FORMATS_BY_NAME[name]
    num_blocks = num_rows * num_cols // fmt.block_size
    blocks = rng.integers(0, 256, (num_blocks, fmt.block_bytes), dtype=np.uint8)
    for at in HALVES[name]:
        values = (rng.standard_normal(num_blocks) * 0.01).astype("<f2")
        values[rng.random(num_blocks) < 0.02] = 0
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(num_rows, -1)


def pack(
    stored: NDArray[np.uint8], name: str, shape: tuple[int, int], order: torch.Tensor | None = None
) -> torch.Tensor:
    packed = matmul.allocate_packed(matmul.packed_bytes(name, *shape))
    matmul.pack(packed, stored, name, shape, order, is_last=True)
    return packed


def decode(stored: NDArray[np.uint8], name: str, shape: tuple[int, int]) -> NDArray[np.float64]:
    return dequantize(stored, name).reshape(shape).astype(np.float64)


def rounded(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """X [t, k] as the kernels round it: 8 bits for each 32 columns, one scale; the quarter of the
    blocks with the largest scales has what is left over in 8 bits as well, in steps of a 254th;
    all have if activations are to have 16 bits.
    """
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    codes, scale = eight_bits(blocks)
    values = codes * scale.astype(np.float64)
    steps = np.divide(np.float32(254), scale, out=np.zeros_like(scale), where=scale > 0)
    second = np.rint((blocks - codes * scale) * steps)
    num_blocks = blocks.shape[1]
    num_second = num_blocks if cpu_activation_bits() == 16 else -(-num_blocks // 4)
    largest = np.argsort(-scale[..., 0], axis=1, kind="stable")[:, :num_second]
    rows = np.arange(len(x))[:, None]
    values[rows, largest] += (second * scale.astype(np.float64) / 254)[rows, largest]
    return values.reshape(x.shape)


def eight_bits(blocks: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Codes [..., 32] and their scale [..., 1]."""
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(blocks * inverse), largest / np.float32(127)


def bound(x: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Most that rounding x to 8 bits changes each product: half a step times each weight."""
    blocks = np.abs(x).reshape(*x.shape[:-1], -1, 32).max(axis=-1)
    steps = np.repeat(blocks / 127 / 2, 32, axis=-1)
    return steps @ np.abs(w).T
