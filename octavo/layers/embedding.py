"""Token embedding and output layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class Embedding(nn.Module):
    """Row lookup; `scale` multiplies the rows (Gemma's sqrt(hidden size), in the rows' dtype)."""

    def __init__(
        self, num_rows: int, size: int, dtype: torch.dtype, *, scale: float | None = None
    ) -> None:
        super().__init__()
        self.weight = torch.empty(num_rows, size, dtype=dtype)
        # Rounded as the rows are, and a number of the host's: nothing to copy in a step.
        rounded = None if scale is None else torch.tensor(scale, dtype=dtype, device="cpu")
        self.scale = None if rounded is None else float(rounded)

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[t] ids to [t, size]."""
        rows = F.embedding(token_ids, self.weight)
        if self.scale is not None:
            rows = rows * self.scale
        return rows
