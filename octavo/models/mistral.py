"""Mistral: Llama with one sliding window for all layers, or none.

GGUF files of this family call themselves `llama`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from octavo.models.llama import AttentionOptions, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.models.base import ModelShape


class MistralForCausalLM(LlamaForCausalLM):
    """See the module, and `models.base.CausalModel`."""

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `CausalModel`. A configuration that is silent on the window means 4096."""
        shape = super().read_shape({"max_position_embeddings": 131072, **config})
        window = config.get("sliding_window", 4096)
        return replace(shape, windows=(window,) * shape.num_layers)

    @classmethod
    def attention_options(cls, config: Mapping[str, Any]) -> AttentionOptions:
        """See `LlamaForCausalLM`."""
        return AttentionOptions()
