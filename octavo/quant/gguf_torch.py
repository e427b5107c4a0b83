"""What the native CPU kernels compute, by torch: for machines where their library is not.

Weights that the kernels would keep in blocks are decoded to float32, and activations are rounded as
the kernels round them (`kernels/cpu/src/acts.h`), bit for bit. So the same model gives the same
numbers with and without the library, but for the order of float32's sums, of which rounding makes
more from layer to layer (docs/decisions/0014). Layers that the kernels would not keep are computed
by another method, unrounded.

Shapes: t rows of activations, k columns, g = k / 32 blocks, c blocks with a second code.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from octavo.config import cpu_activation_bits
from octavo.kernels.cpu import matmul

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.quant.method import LinearMethod, ParamSpec, StoredBlocks

DECODED = "decoded"
"""The one tensor that a layer has instead of `weight`: [out, in] float32."""

BLOCK = 32
"""Columns of activations that have a scale together."""

_SMALLEST, _LARGEST = 1e-35, 1e36
"""A scale is between them: with a smaller one a block is zero, with a larger one not a number."""


class GGUFTorch:
    """See the module, and `method.BlockMethod`.

    Args:
        dense: the method of layers that the kernels would not keep in blocks.
    """

    def __init__(self, dense: LinearMethod) -> None:
        self._dense = dense

    def param_specs(self, in_features: int, out_features: int) -> tuple[ParamSpec, ...]:
        """Of a layer that the kernels would not keep in blocks."""
        return self._dense.param_specs(in_features, out_features)

    def block_bytes(self, formats: Sequence[str], shapes: Sequence[tuple[int, int]]) -> int:
        """See `BlockMethod.block_bytes`; 0 for the same layers as `GGUFNative`'s."""
        if len(formats) > matmul.MAX_PARTS:
            return 0
        parts = zip(formats, shapes, strict=True)
        if not all(matmul.can_pack(name, *shape) for name, shape in parts):
            return 0
        return 4 * sum(num_rows * num_cols for num_rows, num_cols in shapes)

    def keep(self, parts: Sequence[StoredBlocks]) -> dict[str, torch.Tensor]:
        """See `BlockMethod.keep`."""
        num_rows = sum(part.shape[0] for part in parts)
        weight = torch.empty(num_rows, parts[0].shape[1], dtype=torch.float32, device="cpu")
        for part, target in zip(
            parts, torch.split(weight, [p.shape[0] for p in parts]), strict=True
        ):
            decoded = part.decoded()
            target.copy_(decoded if part.order is None else decoded.index_select(0, part.order))
        return {DECODED: weight}

    def apply(
        self, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `LinearMethod.apply`."""
        weight = params.get(DECODED)
        if weight is None:
            return self._dense.apply(x, params, bias)
        rounded = round_activations(x.float().reshape(-1, x.shape[-1]))
        y = F.linear(rounded, weight, None if bias is None else bias.float())
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def rows(
        self, params: dict[str, torch.Tensor], ids: torch.Tensor, num_cols: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `BlockMethod.rows`."""
        assert params[DECODED].shape[1] == num_cols
        return F.embedding(ids, params[DECODED]).to(dtype)


def round_activations(x_tk: torch.Tensor) -> torch.Tensor:
    """X [t, k] float32 as products with packed blocks see it: 8 bits for each 32 columns, with one
    scale; the quarter of a row's blocks with the largest scales, the first ones among equals, has
    what this leaves over in 8 bits as well, in steps of a 254th of that scale. With 16 bits
    (`config.cpu_activation_bits`) all blocks have.

    A block that has an infinite number, or something that is none, has no numbers.
    """
    num_rows, num_cols = x_tk.shape
    blocks = x_tk.reshape(-1, BLOCK)
    values, scales = _eight_bits(blocks)
    num_blocks = num_cols // BLOCK
    num_second = num_blocks if cpu_activation_bits() == 16 else -(-num_blocks // 4)
    order = scales.view(num_rows, num_blocks).sort(dim=-1, descending=True, stable=True).indices
    chosen = order[:, :num_second]
    if num_rows > 1:
        firsts = torch.arange(0, num_rows * num_blocks, num_blocks, device=chosen.device)
        chosen = chosen + firsts[:, None]
    chosen = chosen.reshape(-1)
    first = values.index_select(0, chosen)
    scale = scales.index_select(0, chosen)
    rest = blocks.index_select(0, chosen) - first
    steps = (rest * (_STEPS / scale.clamp_min(_SMALLEST))).round_()
    values.index_copy_(0, chosen, steps.mul_(scale / _STEPS).add_(first))
    return values.view(num_rows, num_cols)


def _eight_bits(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks [n, 32] rounded to the nearest of 255 multiples of a scale, ties to the even one, and
    the scales [n, 1].
    """
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    scales = F.threshold(largest / 127, _SMALLEST, 0.0)
    scales.masked_fill_(scales >= _LARGEST, torch.nan)
    # The bound keeps zeros from becoming 0 times infinity; usual blocks are above it.
    inverse = _TOP / largest.clamp_min_(100 * _SMALLEST)
    return (blocks * inverse).round_().mul_(scales), scales


# A number's quotient would be rounded twice.
_TOP, _STEPS = torch.tensor(127.0, device="cpu"), torch.tensor(254.0, device="cpu")
