"""Other ways to sum for `texts.py`: in float64, and from the last column and key to the first.

Replaces what torch computes where the native kernels are missing: products, norms and attention,
which is torch's own then. With float64 a result is rounded once, at its end, so that the order of
its sum hardly ever shows.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from octavo.attention import torch_cpu
from octavo.layers.norm import RMSNorm
from octavo.quant.gguf_torch import GGUFTorch, decoded, round_activations

if TYPE_CHECKING:
    from collections.abc import Callable


def sum_otherwise(dtype: torch.dtype, *, in_reverse: bool) -> None:
    """From now on, in this process, and for models without a norm of queries and keys."""

    def turned(x: torch.Tensor, dim: int = -1) -> torch.Tensor:
        return x.flip(dim).to(dtype) if in_reverse else x.to(dtype)

    weights: dict[int, torch.Tensor] = {}

    def multiply(
        _: GGUFTorch, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        place = next(iter(params.values())).data_ptr()
        own = weights.get(place)
        if own is None:
            own = weights[place] = turned(decoded(params)).contiguous()
        rounded = turned(round_activations(x).numbers())
        y = F.linear(rounded, own, None if bias is None else bias.to(dtype))
        return y.float()

    def normalize(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
        mean = turned(x).square().sum(dim=-1, keepdim=True) / x.shape[-1]
        return x * (mean + norm.eps).rsqrt().float() * (norm.weight + norm.offset)

    def attend(
        attention: Callable[..., torch.Tensor],
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        attn_mask: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        own_k, own_v, mask = turned(k, 2), turned(v, 2), turned(attn_mask, 3)
        return attention(q.to(dtype), own_k, own_v, attn_mask=mask, scale=scale).float()

    class Functions:
        """torch's, with another attention."""

        scaled_dot_product_attention = staticmethod(partial(attend, F.scaled_dot_product_attention))

    replaced: Any = GGUFTorch
    replaced.apply = multiply
    replaced = RMSNorm
    replaced.forward = normalize
    replaced = torch_cpu
    replaced.F = Functions
