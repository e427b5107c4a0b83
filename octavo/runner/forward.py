"""How a step's forward pass runs: layer by layer in torch (here), or as one call of native code
(`native_plan.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from octavo.runner.sampler import largest

if TYPE_CHECKING:
    import torch

    from octavo.layers.batch import ForwardBatch
    from octavo.models.base import CausalModel


class Forward(Protocol):
    """A model's forward pass, on whatever computes it. Results last until the next call."""

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """[n, vocab] at the batch's logit indices."""
        ...

    def largest(self, batch: ForwardBatch) -> torch.Tensor:
        """[n] the token of each row's largest logit, the lowest id among ties."""
        ...

    def hidden(self, batch: ForwardBatch) -> torch.Tensor:
        """[n, hidden] states at the batch's logit indices, for `CausalModel.compute_logits`."""
        ...


class LayerByLayer:
    """Calls the model's modules."""

    def __init__(self, model: CausalModel) -> None:
        self._model = model

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        logits: torch.Tensor = self._model(batch)
        return logits

    def largest(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        return largest(self.logits(batch).float())

    def hidden(self, batch: ForwardBatch) -> torch.Tensor:
        """See `Forward`."""
        hidden: torch.Tensor = self._model.model(batch)
        return hidden
