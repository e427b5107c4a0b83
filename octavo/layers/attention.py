"""The attention layer: hands one layer's queries, keys and values to the batch's backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from octavo.attention.interface import LayerAttention

if TYPE_CHECKING:
    from octavo.layers.batch import ForwardBatch


class Attention(nn.Module):
    """Paged attention of one layer.

    Args:
        index: which of the batch's KV caches is this layer's.
        scale: of the logits.
        window: sliding window, or None.
    """

    def __init__(self, index: int, scale: float, window: int | None = None) -> None:
        super().__init__()
        self.index = index
        self.layer = LayerAttention(scale, window)

    def forward(
        self, q_thd: torch.Tensor, k_tkd: torch.Tensor, v_tkd: torch.Tensor, batch: ForwardBatch
    ) -> torch.Tensor:
        """[t, h, d], keys and values written to the cache."""
        cache = batch.kv_caches[self.index]
        return batch.backend.forward(self.layer, q_thd, k_tkd, v_tkd, cache, batch.meta)
