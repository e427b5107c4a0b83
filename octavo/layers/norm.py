"""Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467), and layer
normalization (Ba et al. 2016, arXiv:1607.06450), which encoders have.

Layers of decoders carry a pair (x, residual): what the last block gave, and the sum of all blocks
before it. The sum is taken where the next norm reads it, so that a GPU does both in one pass over
memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from octavo.layers.fused import fused_kernels
from octavo.layers.symbol import Symbol


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * (offset + weight) over the last dimension, computed in float32.

    Args:
        size: of the last dimension.
        eps: added to the mean square.
        offset: 1 for families that store the weight's distance from one (Gemma).
    """

    def __init__(self, size: int, eps: float, dtype: torch.dtype, *, offset: float = 0.0) -> None:
        super().__init__()
        self.eps = eps
        self.offset = offset
        self.weight = torch.empty(size, dtype=dtype)
        self._kernels = fused_kernels("norm", self.weight.device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        if isinstance(x, Symbol):
            return x.recorder.norm(self, x)
        if self._kernels is not None and x.dim() == 2:
            out: torch.Tensor = self._kernels.rms_norm(x, self.weight, self.eps, self.offset)
            return out
        if x.dtype == torch.float32:
            weight = self.weight + self.offset if self.offset else self.weight
            return F.rms_norm(x, (x.shape[-1],), weight, self.eps)
        wide = F.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        if self.offset:
            return (wide * (self.weight.float() + self.offset)).to(x.dtype)
        return wide.to(x.dtype) * self.weight

    def add(
        self, x: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The norm of `residual + x`, and that sum, which takes `residual`'s memory; both [t, d].

        The sum is rounded to its dtype before it is normalized. Without a residual, x begins the
        sum, and its memory will hold it.
        """
        if residual is None:
            return self(x), x
        if isinstance(x, Symbol):
            return x.recorder.add_norm(self, x, residual), residual
        if self._kernels is not None:
            args = (self.weight, self.eps, self.offset)
            return self._kernels.add_rms_norm(x, residual, *args), residual
        residual.add_(x)
        return self(residual), residual


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) * weight + bias over the last dimension.

    Args:
        size: of the last dimension.
        eps: added to the variance.
    """

    def __init__(self, size: int, eps: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.eps = eps
        self.weight = torch.empty(size, dtype=dtype)
        self.bias = torch.empty(size, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
