"""What kernels written for Hopper ask of a device and of Triton, and how they are shown tensors."""

from __future__ import annotations

import functools
import importlib.metadata
import math
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.attention.interface import AttentionSpec, LayerAttention

_HOPPER = (9, 0)
_VERSIONS = ((3, 6), (3, 8))
"""Of Triton, first and last that the kernels were compiled with: Gluon is still in motion."""


def why_not(spec: AttentionSpec, min_block: int, max_group: int) -> str | None:
    """Why a kernel cannot serve `spec`, or None when it can.

    Args:
        spec: a model's attention.
        min_block: fewest tokens of a block.
        max_group: most query heads to a KV head.
    """
    if spec.dtype.itemsize != 2 or spec.stored_dtype != spec.dtype:
        return "only queries, keys and values of 16 bits"
    if spec.head_dim not in (64, 128):
        return f"heads of {spec.head_dim}, not 64 or 128"
    if spec.block_size & (spec.block_size - 1) or spec.block_size < min_block:
        return f"blocks of {spec.block_size} tokens, not a power of two from {min_block} on"
    if spec.num_heads // spec.num_kv_heads > max_group:
        return f"more than {max_group} query heads to a KV head"
    return why_not_on(spec.device)


@functools.cache
def why_not_on(device: torch.device) -> str | None:
    """Why a device, or the Triton at hand, is none for these kernels."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "needs a Hopper GPU"
    if torch.cuda.get_device_capability(device) != _HOPPER:
        return "needs a Hopper GPU (compute capability 9.0)"
    version = importlib.metadata.version("triton")
    release = tuple(int(part) for part in version.split(".")[:2])
    if not _VERSIONS[0] <= release <= _VERSIONS[1]:
        return f"Triton {version} was not tried"
    return None


def softmax_args(layer: LayerAttention, cap: float | None) -> tuple[float, float, float]:
    """What logits are multiplied with to be logarithms (base 2) of weights, and the soft cap.

    The first number comes last, where there is a cap after it; the second makes of logits the
    exponent in tanh(x) = 1 - 2 / (2 ** exponent + 1), and the third is the cap.
    """
    log2 = math.log2(math.e)
    if cap is None:
        return layer.scale * log2, 1.0, 1.0
    return log2, layer.scale * 2 * log2 / cap, cap


def descriptor(
    x: torch.Tensor, box: list[int], shape: Sequence[int] = (), strides: Sequence[int] = ()
) -> object:
    """What the copy engine is told of a tensor of 16-bit numbers, to fetch boxes of it.

    Args:
        x: its memory.
        box: side lengths; the last one is 64, which are interleaved as products want them.
        shape: of another view of it, in elements; none: its own.
        strides: of that view.
    """
    from triton.experimental.gluon.language import NVMMASharedLayout
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

    layout = NVMMASharedLayout(128, 16, rank=len(box))
    return TensorDescriptor(x, list(shape or x.shape), list(strides or x.stride()), box, layout)
