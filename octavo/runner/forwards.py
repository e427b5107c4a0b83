"""Which forward pass a model gets that runs step by step, without graphs of a device's own."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from octavo.attention.native_cpu import NativeAttention
from octavo.attention.reference import ReferenceAttention
from octavo.layers.symbol import CannotRecordError
from octavo.runner.forward import LayerByLayer
from octavo.runner.native_plan import NativePlan
from octavo.runner.reference import ReferenceForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from octavo.attention.interface import AttentionBackend, AttentionSpec
    from octavo.models.base import CausalModel
    from octavo.runner.forward import Forward

logger = logging.getLogger("octavo")


def choose_forward(
    model: CausalModel,
    spec: AttentionSpec,
    backend: AttentionBackend,
    kv_caches: Sequence[torch.Tensor],
) -> Forward:
    """One native call for a step, where the model can be recorded, or the same by torch; else its
    modules.

    Args:
        model: with its weights loaded.
        spec: its attention.
        backend: that serves it, and says what goes with it.
        kv_caches: of the backend, one per layer.
    """
    if isinstance(backend, NativeAttention):
        try:
            return NativePlan(model, spec, kv_caches)
        except CannotRecordError as error:
            logger.info("torch runs the model layer by layer: %s", error)
    if isinstance(backend, ReferenceAttention):
        return ReferenceForward(model, spec)
    return LayerByLayer(model)
