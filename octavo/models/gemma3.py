"""Gemma 3, text.

Beside Llama: norms around both halves of a layer and on queries and keys, stored as the distance
from one; embeddings scaled by sqrt(hidden size); five layers of a sliding window with their own
rotary base for each layer of full attention. Shapes as in `llama.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from octavo.layers.attention import Attention
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.mlp import MLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import Rotary, rotate
from octavo.models.base import BuildContext, CausalModel, ModelShape, require
from octavo.models.gguf import LLAMA_BLOCK_NAMES, GGUFNames

if TYPE_CHECKING:
    from octavo.layers.batch import ForwardBatch

Rope = tuple[torch.Tensor, torch.Tensor]


class Gemma3Attention(nn.Module):
    """Grouped-query attention with normalized queries and keys."""

    def __init__(self, config: Mapping[str, Any], index: int, context: BuildContext) -> None:
        super().__init__()
        shape = Gemma3ForCausalLM.read_shape(config)
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim = shape.head_dim
        hidden, eps = require(config, "hidden_size"), require(config, "rms_norm_eps")
        bias = bool(config.get("attention_bias"))
        parts = [n * self.head_dim for n in (self.num_heads, *[self.num_kv_heads] * 2)]
        method, dtype = context.method, context.dtype
        self.qkv_proj = Linear(hidden, parts, method, bias=bias, dtype=dtype)
        self.o_proj = Linear(parts[0], [hidden], method, bias=bias, dtype=dtype)
        self.q_norm = RMSNorm(self.head_dim, eps, dtype, offset=1.0)
        self.k_norm = RMSNorm(self.head_dim, eps, dtype, offset=1.0)
        scale = float(config.get("query_pre_attn_scalar", 256)) ** -0.5
        self.attention = Attention(index, scale, shape.windows[index])

    def forward(self, x: torch.Tensor, rope: Rope, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        num_tokens, heads, kv_heads = x.shape[0], self.num_heads, self.num_kv_heads
        qkv_tjd = self.qkv_proj(x).view(num_tokens, heads + 2 * kv_heads, self.head_dim)
        q_thd, k_tkd, v_tkd = qkv_tjd.split((heads, kv_heads, kv_heads), dim=1)
        q_thd = rotate(self.q_norm(q_thd), *rope)
        k_tkd = rotate(self.k_norm(k_tkd), *rope)
        out_thd = self.attention(q_thd, k_tkd, v_tkd, batch)
        out: torch.Tensor = self.o_proj(out_thd.reshape(num_tokens, -1))
        return out


class Gemma3Layer(nn.Module):
    """One decoder layer, normalized before and after each half."""

    def __init__(self, config: Mapping[str, Any], index: int, context: BuildContext) -> None:
        super().__init__()
        hidden, eps = require(config, "hidden_size"), require(config, "rms_norm_eps")

        def norm() -> RMSNorm:
            return RMSNorm(hidden, eps, context.dtype, offset=1.0)

        self.input_layernorm = norm()
        self.self_attn = Gemma3Attention(config, index, context)
        self.post_attention_layernorm = norm()
        self.pre_feedforward_layernorm = norm()
        method, dtype = context.method, context.dtype
        activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
        self.mlp = MLP(hidden, require(config, "intermediate_size"), activation, method, dtype)
        self.post_feedforward_layernorm = norm()

    def forward(self, x: torch.Tensor, rope: Rope, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        attended = self.self_attn(self.input_layernorm(x), rope, batch)
        x = x + self.post_attention_layernorm(attended)
        fed = self.mlp(self.pre_feedforward_layernorm(x))
        out: torch.Tensor = x + self.post_feedforward_layernorm(fed)
        return out


class Gemma3Model(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__()
        shape = Gemma3ForCausalLM.read_shape(config)
        hidden = require(config, "hidden_size")
        self.embed_tokens = Embedding(
            shape.vocab_size, hidden, context.dtype, scale=float(hidden) ** 0.5
        )
        self.layers = nn.ModuleList(
            Gemma3Layer(config, index, context) for index in range(shape.num_layers)
        )
        self.norm = RMSNorm(hidden, require(config, "rms_norm_eps"), context.dtype, offset=1.0)
        global_rope, local_rope = _ropes(config)
        self.rotary = Rotary(shape.head_dim, context.max_len, *global_rope)
        self.rotary_local = Rotary(shape.head_dim, context.max_len, *local_rope)
        self._is_local = [window is not None for window in shape.windows]

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states at the batch's logit indices, [n, hidden]."""
        x = self.embed_tokens(batch.token_ids)
        rope, rope_local = self.rotary(batch.positions), self.rotary_local(batch.positions)
        for layer, is_local in zip(self.layers, self._is_local, strict=True):
            x = layer(x, rope_local if is_local else rope, batch)
        out: torch.Tensor = self.norm(x.index_select(0, batch.logit_indices))
        return out


class Gemma3ForCausalLM(CausalModel):
    """See the module, and `models.base.CausalModel`."""

    gguf: ClassVar[GGUFNames] = GGUFNames(
        block=LLAMA_BLOCK_NAMES
        | {
            "attn_q_norm": "self_attn.q_norm",
            "attn_k_norm": "self_attn.k_norm",
            "post_attention_norm": "post_attention_layernorm",
            "ffn_norm": "pre_feedforward_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        }
    )

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `CausalModel`."""
        num_layers = require(config, "num_hidden_layers")
        window = config.get("sliding_window")
        types = config.get("layer_types")
        if types is None:
            # Every n-th layer sees everything: 6 in all published sizes.
            every = config.get("sliding_window_pattern") or 6
            is_local = [(index + 1) % every != 0 for index in range(num_layers)]
        else:
            is_local = [kind == "sliding_attention" for kind in types]
        return ModelShape(
            num_layers=num_layers,
            num_heads=require(config, "num_attention_heads"),
            num_kv_heads=require(config, "num_key_value_heads"),
            head_dim=config.get("head_dim") or 256,
            vocab_size=require(config, "vocab_size"),
            max_position=config.get("max_position_embeddings") or 131072,
            windows=tuple(window if local else None for local in is_local),
            soft_cap=config.get("attn_logit_softcapping"),
        )

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__(config, context, tied_by_default=True)
        self.model = Gemma3Model(config, context)
        self.logit_soft_cap = config.get("final_logit_softcapping")

    def from_gguf(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """GGUF adds one to the norms' weights; take it away."""
        return tensor - 1 if name.endswith("norm.weight") else tensor


RopeArgs = tuple[float, Mapping[str, Any] | None]


def _ropes(config: Mapping[str, Any]) -> tuple[RopeArgs, RopeArgs]:
    """Base and scaling of full and of sliding layers; only full ones are ever scaled."""
    parameters = config.get("rope_parameters") or {}
    if "full_attention" in parameters:
        full, local = parameters["full_attention"], parameters.get("sliding_attention") or {}
        return (
            (float(full.get("rope_theta") or 1e6), full),
            (float(local.get("rope_theta") or 1e4), local),
        )
    full_theta = float(config.get("rope_theta") or 1e6)
    local_theta = float(config.get("rope_local_base_freq") or 1e4)
    return (full_theta, config.get("rope_scaling")), (local_theta, None)
