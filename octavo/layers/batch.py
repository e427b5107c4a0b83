"""The device's side of a step: what a model's forward is called with. Made in `runner/batch.py`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from octavo.attention.interface import AttentionBackend


@dataclass(frozen=True, slots=True)
class ForwardBatch:
    """Tokens of all scheduled sequences, one behind the other, without padding.

    Attributes:
        token_ids: [t] int64 or int32.
        positions: [t] int64 or int32, place of each token in its sequence.
        logit_indices: [n] int64 or int32, tokens whose logits are wanted; None: all.
        backend: attention.
        meta: the backend's plan of this step.
        kv_caches: one per layer, as the backend allocated them.
        token_types: [t] int64, of the texts of a pair, for models that ask for it; None: all 0.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    logit_indices: torch.Tensor | None
    backend: AttentionBackend
    meta: Any
    kv_caches: Sequence[torch.Tensor]
    token_types: torch.Tensor | None = None

    def select(self, x: torch.Tensor) -> torch.Tensor:
        """Rows of x [t, ...] at the tokens whose logits are wanted: [n, ...]."""
        return x if self.logit_indices is None else x.index_select(0, self.logit_indices)
