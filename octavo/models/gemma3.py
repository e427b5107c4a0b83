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

from octavo.layers.embedding import Embedding
from octavo.layers.mlp import MLP
from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import Rotary
from octavo.layers.self_attention import SelfAttention
from octavo.models.base import BuildContext, CausalModel, ModelShape, require
from octavo.models.gguf import LLAMA_BLOCK_NAMES, GGUFNames

if TYPE_CHECKING:
    from octavo.layers.batch import ForwardBatch
    from octavo.layers.rotary import Rope


class Gemma3Layer(nn.Module):
    """One decoder layer, normalized before and after each half."""

    def __init__(
        self,
        config: Mapping[str, Any],
        shape: ModelShape,
        index: int,
        rotary: Rotary,
        context: BuildContext,
    ) -> None:
        super().__init__()
        hidden, eps = require(config, "hidden_size"), require(config, "rms_norm_eps")
        method, dtype = context.method, context.dtype
        bias = bool(config.get("attention_bias"))

        def norm(size: int) -> RMSNorm:
            return RMSNorm(size, eps, dtype, offset=1.0)

        self.input_layernorm = norm(hidden)
        self.self_attn = SelfAttention(
            index,
            hidden,
            shape.num_heads,
            shape.num_kv_heads,
            rotary,
            method,
            dtype,
            qkv_bias=bias,
            o_bias=bias,
            q_norm=norm(shape.head_dim),
            k_norm=norm(shape.head_dim),
            scale=float(config.get("query_pre_attn_scalar", 256)) ** -0.5,
            window=shape.windows[index],
        )
        self.is_local = shape.windows[index] is not None
        self.post_attention_layernorm = norm(hidden)
        self.pre_feedforward_layernorm = norm(hidden)
        activation = config.get("hidden_activation") or "gelu_pytorch_tanh"
        self.mlp = MLP(hidden, require(config, "intermediate_size"), activation, method, dtype)
        self.post_feedforward_layernorm = norm(hidden)

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, rope: Rope | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[t, hidden] each; see `layers.norm` for the pair."""
        x, residual = self.input_layernorm.add(x, residual)
        x = self.post_attention_layernorm(self.self_attn(x, rope, batch))
        x, residual = self.pre_feedforward_layernorm.add(x, residual)
        return self.post_feedforward_layernorm(self.mlp(x)), residual


class Gemma3Model(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: Mapping[str, Any], shape: ModelShape, context: BuildContext) -> None:
        super().__init__()
        hidden = require(config, "hidden_size")
        self.embed_tokens = Embedding(
            shape.vocab_size,
            hidden,
            context.dtype,
            scale=float(hidden) ** 0.5,
            method=context.method,
        )
        global_rope, local_rope = _ropes(config)
        self.rotary = Rotary(shape.head_dim, context.max_len, *global_rope)
        self.rotary_local = Rotary(shape.head_dim, context.max_len, *local_rope)
        self.layers = nn.ModuleList(
            Gemma3Layer(
                config, shape, index, self.rotary if window is None else self.rotary_local, context
            )
            for index, window in enumerate(shape.windows)
        )
        self.norm = RMSNorm(hidden, require(config, "rms_norm_eps"), context.dtype, offset=1.0)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states at the batch's logit indices, [n, hidden]."""
        x: torch.Tensor = self.embed_tokens(batch.token_ids)
        residual: torch.Tensor | None = None
        rope, rope_local = self.rotary(batch), self.rotary_local(batch)
        for layer in self.layers:
            x, residual = layer(x, residual, rope_local if layer.is_local else rope, batch)
        assert residual is not None
        return self.norm.add(batch.select(x), batch.select(residual))[0]


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
        self.model = Gemma3Model(config, self.shape, context)
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
