"""Qwen3, dense: Llama with norms over each head's queries and keys, and a head size of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from octavo.models.gguf import LLAMA_BLOCK_NAMES, GGUFNames
from octavo.models.llama import AttentionOptions
from octavo.models.qwen2 import Qwen2ForCausalLM

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.models.base import ModelShape


class Qwen3ForCausalLM(Qwen2ForCausalLM):
    """See the module, and `models.base.CausalModel`."""

    gguf: ClassVar[GGUFNames] = GGUFNames(
        block=LLAMA_BLOCK_NAMES
        | {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
    )

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `CausalModel`."""
        return super().read_shape({"head_dim": 128, **config})

    @classmethod
    def attention_options(cls, config: Mapping[str, Any]) -> AttentionOptions:
        """See `LlamaForCausalLM`."""
        bias = bool(config.get("attention_bias"))
        return AttentionOptions(qkv_bias=bias, o_bias=bias, has_qk_norm=True)
