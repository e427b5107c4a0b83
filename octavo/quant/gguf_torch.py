"""What the native CPU kernels compute, by torch: for machines where their library is not.

Products have the kernels' bits (`kernels/cpu/src/acts.h`, `dot.h`): activations are rounded as
there, a block's codes are multiplied as integers, which float32 holds exactly, and blocks are added
up in their order. Layers that the kernels would not keep are computed by another method.

Shapes: t rows of activations, k columns, n outputs, g = k / 32 blocks, s = 1 or 2 scales of each.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from octavo.config import cpu_activation_bits
from octavo.kernels.cpu import matmul
from octavo.kernels.cpu.reference import fused, fused_
from octavo.quant.block_codes import BLOCK, read_codes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.quant.method import LinearMethod, ParamSpec, StoredBlocks

CODES, LARGE_CODES, SCALES, MINIMA = "codes", "large_codes", "scales", "minima"
"""Tensors of part i, with its number behind: [g s, 32 / s, n], codes below 16 or others, and twice
[g s, 1, n], float32.
"""

CHUNK = 1 << 20
"""Products of blocks that are made at a time, so that they stay in the cache."""

_SMALLEST, _LARGEST = 1e-35, 1e36
"""A scale is between them: with a smaller one a block is zero, with a larger one not a number."""

_STEPS = 254
"""Steps of a second code in one of a first."""


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
        parts = list(zip(formats, shapes, strict=True))
        if not all(matmul.can_pack(name, *shape) for name, shape in parts):
            return 0
        numbers = {"Q8_0": 1, "Q6_K": 4}  # scales and minima of a block
        return sum(
            4 * num_rows * (num_cols + num_cols // BLOCK * numbers.get(name, 2))
            for name, (num_rows, num_cols) in parts
        )

    def keep(self, parts: Sequence[StoredBlocks]) -> dict[str, torch.Tensor]:
        """See `BlockMethod.keep`. Neighbours of one format become one part."""
        kept: dict[str, torch.Tensor] = {}
        first = 0
        for end in range(1, len(parts) + 1):
            if end == len(parts) or parts[end].block_format != parts[first].block_format:
                number = len(kept)
                for name, tensor in _take_apart(parts[first:end]).items():
                    kept[f"{name}{number}"] = tensor
                first = end
        return kept

    def apply(
        self, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        """See `LinearMethod.apply`."""
        parts = _parts_of(params)
        if not parts:
            return self._dense.apply(x, params, bias)
        rounded = round_activations(x.float().reshape(-1, x.shape[-1]))
        y = torch.cat([_multiply(rounded, part) for part in parts], dim=1)
        if bias is not None:
            y += bias.float()
        return y.view(*x.shape[:-1], -1).to(x.dtype)

    def rows(
        self, params: dict[str, torch.Tensor], ids: torch.Tensor, num_cols: int, dtype: torch.dtype
    ) -> torch.Tensor:
        """See `BlockMethod.rows`."""
        (part,) = _parts_of(params)
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < part.codes.shape[-1]:
            raise IndexError("an id is no row")
        own = part._replace(
            codes=part.codes.index_select(2, ids),
            scales=part.scales.index_select(2, ids),
            minima=None if part.minima is None else part.minima.index_select(2, ids),
        )
        return _decode(own).view(len(ids), num_cols).to(dtype)


class Part(NamedTuple):
    """Weights of one format, see `CODES`; `minima` are None where codes are signed."""

    codes: torch.Tensor
    scales: torch.Tensor
    minima: torch.Tensor | None
    has_large_codes: bool


def _take_apart(parts: Sequence[StoredBlocks]) -> dict[str, torch.Tensor]:
    """Tensors of parts of one format, see `CODES`."""
    found = []
    for part in parts:
        stored = part.stored().reshape(part.shape[0], -1)
        found.append(read_codes(stored, part.block_format))
        if part.order is not None:
            found[-1] = found[-1].in_order(part.order.numpy())

    def joined(values: list[Any]) -> torch.Tensor:
        """[n, g, s, ...] to [g s, ..., n]."""
        rows = torch.from_numpy(np.concatenate(values)).flatten(1, 2)
        return rows.movedim(0, -1).to(torch.float32).contiguous()

    num_scales = found[0].scales.shape[2]
    codes = [each.codes.reshape(*each.scales.shape[:2], num_scales, -1) for each in found]
    is_small = all(each.min() >= 0 and each.max() < 16 for each in codes)
    kept = {
        CODES if is_small else LARGE_CODES: joined(codes),
        SCALES: joined([each.scales for each in found]).unsqueeze(1),
    }
    if found[0].minima is not None:
        kept[MINIMA] = joined([each.minima for each in found]).unsqueeze(1)
    return kept


def _parts_of(params: dict[str, torch.Tensor]) -> list[Part]:
    parts = []
    for name, tensor in params.items():
        kind, number = name.rstrip("0123456789"), name.lstrip("abcdefghijklmnopqrstuvwxyz_")
        if kind in (CODES, LARGE_CODES):
            rest = params[SCALES + number], params.get(MINIMA + number)
            parts.append(Part(tensor, *rest, kind == LARGE_CODES))
    return parts


def decoded(params: dict[str, torch.Tensor]) -> torch.Tensor:
    """The weights [n, k] float32 of `GGUFTorch.keep`."""
    return torch.cat([_decode(part) for part in _parts_of(params)])


def _decode(part: Part) -> torch.Tensor:
    values = part.codes * part.scales
    if part.minima is not None:
        values += part.minima
    return values.permute(2, 0, 1).flatten(1)


def _multiply(x: Rounded, part: Part) -> torch.Tensor:
    """[t, n]: a block is one number, which its scales multiply; one block after the other."""
    num_rows, num_blocks, _ = x.codes.shape
    num_runs, run, num_outputs = part.codes.shape

    def by_runs(codes: torch.Tensor) -> torch.Tensor:
        """[t, g, 32] to [g s, t, 32 / s]."""
        return codes.reshape(num_rows, num_runs, run).transpose(0, 1)

    def each(values: torch.Tensor) -> torch.Tensor:
        """[t, g, 1] to [g s, t, 1]."""
        return values.repeat_interleave(num_runs // num_blocks, dim=1).transpose(0, 1)

    first, second, scales = by_runs(x.first), by_runs(x.second), each(x.scales)
    has_second = each(x.first_scales != x.scales)
    # What a minimum is multiplied by.
    sums = each(x.first_scales) * first.sum(dim=2, keepdim=True)
    sums = torch.where(has_second, fused(second.sum(dim=2, keepdim=True), scales, sums), sums)
    factors = torch.where(has_second, _TENSOR_STEPS, _ONE)
    left = torch.cat([first, second], dim=1) if part.has_large_codes else by_runs(x.codes)
    y = torch.zeros(num_rows, num_outputs, dtype=torch.float32, device="cpu")
    step = max(CHUNK // (num_runs * num_rows), 256)
    for begin in range(0, num_outputs, step):
        own = slice(begin, begin + step)
        products = torch.bmm(left, part.codes[:, :, own])
        if part.has_large_codes:
            # Together they are no longer below 2^24.
            firsts, products = torch.split(products, num_rows, dim=1)
            fused_(products, firsts, factors)
        weights = part.scales[:, :, own] * scales
        total = y[:, own]
        if part.minima is None:
            for product, weight in zip(products.unbind(), weights.unbind(), strict=True):
                fused_(total, product, weight)
            continue
        minima = part.minima[:, :, own].unbind()
        runs = zip(products.unbind(), weights.unbind(), minima, sums.unbind(), strict=True)
        for product, weight, minimum, of_codes in runs:
            fused_(total, product, weight)
            fused_(total, minimum, of_codes)
    return y


class Rounded(NamedTuple):
    """Activations as kernels see them: 8 bits for each 32 columns, with one scale; the quarter of a
    row's blocks with the largest scales, the first ones among equals, has what this leaves over in
    8 bits as well, in steps of a 254th of that scale. With 16 bits (`config.cpu_activation_bits`)
    all blocks have.

    A block that has an infinite number, or something that is none, has no numbers.

    Attributes:
        codes: [t, g, 32]; those of blocks with second codes times 254, plus the second ones.
        scales: [t, g, 1] of these: of blocks with second codes the second ones'.
        first, second: [t, g, 32], 0 where there is none.
        first_scales: [t, g, 1].
    """

    codes: torch.Tensor
    scales: torch.Tensor
    first: torch.Tensor
    second: torch.Tensor
    first_scales: torch.Tensor

    def numbers(self) -> torch.Tensor:
        """[t, k], rounded to float32."""
        return (self.codes * self.scales).flatten(1)


def round_activations(x_tk: torch.Tensor) -> Rounded:
    """Round X [t, k] float32."""
    num_rows, num_cols = x_tk.shape
    num_blocks = num_cols // BLOCK
    blocks = x_tk.reshape(num_rows, num_blocks, BLOCK)
    codes, scales = _eight_bits(blocks)
    num_second = num_blocks if cpu_activation_bits() == 16 else -(-num_blocks // 4)
    order = scales.squeeze(2).sort(dim=-1, descending=True, stable=True).indices
    chosen = order[:, :num_second].unsqueeze(2)
    scale = scales.gather(1, chosen)
    wide = chosen.expand(-1, -1, BLOCK)
    own = codes.gather(1, wide)
    rest = blocks.gather(1, wide) - own * scale
    # Where the scale is 0 or none there is no second code.
    step = scale / _TENSOR_STEPS
    usual = scale > 0
    second = (rest * (_TENSOR_STEPS / scale.clamp_min(_SMALLEST))).round_().where(usual, _ZERO)
    both = (own * _TENSOR_STEPS + second).where(usual, own)
    return Rounded(
        codes.scatter(1, wide, both),
        scales.scatter(1, chosen, step.where(usual, scale)),
        codes,
        torch.zeros_like(codes).scatter_(1, wide, second),
        scales,
    )


def _eight_bits(blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [..., 32] of blocks, to the nearest of 255 multiples of a scale, ties to the even one,
    and the scales [..., 1].
    """
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    scales = F.threshold(largest / 127, _SMALLEST, 0.0)
    scales.masked_fill_(scales >= _LARGEST, torch.nan)
    # The bound keeps zeros from becoming 0 times infinity; usual blocks are above it.
    inverse = _TOP / largest.clamp_min_(100 * _SMALLEST)
    return (blocks * inverse).round_(), scales


# A number's quotient would be rounded twice.
_TOP, _TENSOR_STEPS = torch.tensor(127.0, device="cpu"), torch.tensor(float(_STEPS), device="cpu")
_ZERO, _ONE = torch.tensor(0.0, device="cpu"), torch.tensor(1.0, device="cpu")
