"""Root mean square normalization (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


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

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape and dtype as x."""
        if x.dtype == torch.float32:
            weight = self.weight + self.offset if self.offset else self.weight
            return F.rms_norm(x, (x.shape[-1],), weight, self.eps)
        wide = F.rms_norm(x.float(), (x.shape[-1],), None, self.eps)
        if self.offset:
            return (wide * (self.weight.float() + self.offset)).to(x.dtype)
        return wide.to(x.dtype) * self.weight
