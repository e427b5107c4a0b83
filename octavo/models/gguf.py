"""How GGUF spells what a Hugging Face config and checkpoint say. Values only, no tensors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class GGUFNames:
    """Translation of GGUF tensor names into Hugging Face names.

    Attributes:
        outer: names outside the blocks, without `.weight`.
        block: names within `blk.N.`, without `.weight`.
        extra: whole names of tensors that the model takes under the same name.
    """

    outer: Mapping[str, str] = field(
        default_factory=lambda: {
            "token_embd": "model.embed_tokens",
            "output_norm": "model.norm",
            "output": "lm_head",
        }
    )
    block: Mapping[str, str] = field(default_factory=dict)
    extra: frozenset[str] = frozenset()

    def translate(self, name: str) -> str | None:
        """`model.layers.3.mlp.up_proj.weight` for `blk.3.ffn_up.weight`; None if unknown."""
        if name in self.extra:
            return name
        stem, _, kind = name.rpartition(".")
        block = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
        if block:
            inner = self.block.get(block[2])
            return None if inner is None else f"model.layers.{block[1]}.{inner}.{kind}"
        outer = self.outer.get(stem)
        return None if outer is None else f"{outer}.{kind}"


LLAMA_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
"""GGUF's block names for models laid out as Llama."""


def read_gguf(metadata: Mapping[str, Any], keys: Mapping[str, str]) -> dict[str, Any]:
    """Pick `ARCH.key` entries: `keys` maps GGUF's key to the config's; absent ones are left out."""
    arch = metadata["general.architecture"]
    pairs = ((name, metadata.get(f"{arch}.{key}")) for key, name in keys.items())
    return {name: value for name, value in pairs if value is not None}


GGUF_KEYS = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta",
}
"""GGUF keys that most decoder families share."""


def gguf_vocab_size(metadata: Mapping[str, Any]) -> int:
    """Rows of the embedding."""
    return len(metadata.get("tokenizer.ggml.tokens") or ()) or int(
        metadata[f"{metadata['general.architecture']}.vocab_size"]
    )


def gguf_rope_scaling(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` out of GGUF's `rope.scaling.*`, or None."""
    arch = metadata["general.architecture"]
    kind = metadata.get(f"{arch}.rope.scaling.type")
    if kind in (None, "none"):
        return None
    return {"rope_type": kind, "factor": metadata.get(f"{arch}.rope.scaling.factor", 1.0)}
