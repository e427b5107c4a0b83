"""Qwen2 and Qwen2.5, text: Llama with biases on queries, keys and values.

A window, where the configuration turns it on, holds from layer `max_window_layers` on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from octavo.models.gguf import LLAMA_BLOCK_NAMES, GGUFNames
from octavo.models.llama import AttentionOptions, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from octavo.models.base import ModelShape


class Qwen2ForCausalLM(LlamaForCausalLM):
    """See the module, and `models.base.CausalModel`."""

    gguf: ClassVar[GGUFNames] = GGUFNames(block=LLAMA_BLOCK_NAMES)

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `CausalModel`."""
        shape = super().read_shape({"max_position_embeddings": 32768, **config})
        window = config.get("sliding_window") if config.get("use_sliding_window") else None
        types = config.get("layer_types")
        if types is None:
            first = config.get("max_window_layers", 28)
            is_local = [index >= first for index in range(shape.num_layers)]
        else:
            is_local = [kind == "sliding_attention" for kind in types]
        return replace(shape, windows=tuple(window if local else None for local in is_local))

    @classmethod
    def attention_options(cls, config: Mapping[str, Any]) -> AttentionOptions:
        """See `LlamaForCausalLM`."""
        return AttentionOptions(qkv_bias=True)

    def from_gguf(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """GGUF keeps the rows of this family's queries and keys in their order."""
        return tensor
