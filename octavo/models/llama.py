"""Llama 2 and 3.x, and models laid out like them (SmolLM2).

Shapes: t tokens, h query heads, k KV heads, d head dimension.
"""

from __future__ import annotations

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
    from collections.abc import Mapping

    from octavo.layers.batch import ForwardBatch


class LlamaAttention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, config: Mapping[str, Any], index: int, context: BuildContext) -> None:
        super().__init__()
        shape = LlamaForCausalLM.read_shape(config)
        self.num_heads, self.num_kv_heads = shape.num_heads, shape.num_kv_heads
        self.head_dim = shape.head_dim
        hidden = require(config, "hidden_size")
        bias = bool(config.get("attention_bias"))
        parts = [n * self.head_dim for n in (self.num_heads, *[self.num_kv_heads] * 2)]
        method, dtype = context.method, context.dtype
        self.qkv_proj = Linear(hidden, parts, method, bias=bias, dtype=dtype)
        self.o_proj = Linear(parts[0], [hidden], method, bias=bias, dtype=dtype)
        self.attention = Attention(index, self.head_dim**-0.5, shape.windows[index])

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], batch: ForwardBatch
    ) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        num_tokens, heads, kv_heads = x.shape[0], self.num_heads, self.num_kv_heads
        qkv_tjd = self.qkv_proj(x).view(num_tokens, heads + 2 * kv_heads, self.head_dim)
        # Queries and keys turn by the same angles, so both are rotated in one go.
        qk_tjd = rotate(qkv_tjd[:, : heads + kv_heads], *rope)
        out_thd = self.attention(
            qk_tjd[:, :heads], qk_tjd[:, heads:], qkv_tjd[:, heads + kv_heads :], batch
        )
        out: torch.Tensor = self.o_proj(out_thd.reshape(num_tokens, -1))
        return out


class LlamaLayer(nn.Module):
    """One decoder layer, normalized before each half."""

    def __init__(self, config: Mapping[str, Any], index: int, context: BuildContext) -> None:
        super().__init__()
        hidden, eps = require(config, "hidden_size"), require(config, "rms_norm_eps")
        self.input_layernorm = RMSNorm(hidden, eps, context.dtype)
        self.self_attn = LlamaAttention(config, index, context)
        self.post_attention_layernorm = RMSNorm(hidden, eps, context.dtype)
        self.mlp = MLP(
            hidden,
            require(config, "intermediate_size"),
            config.get("hidden_act", "silu"),
            context.method,
            context.dtype,
            bias=bool(config.get("mlp_bias")),
        )

    def forward(
        self, x: torch.Tensor, rope: tuple[torch.Tensor, torch.Tensor], batch: ForwardBatch
    ) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), rope, batch)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class LlamaModel(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__()
        shape = LlamaForCausalLM.read_shape(config)
        hidden = require(config, "hidden_size")
        self.embed_tokens = Embedding(shape.vocab_size, hidden, context.dtype)
        self.layers = nn.ModuleList(
            LlamaLayer(config, index, context) for index in range(shape.num_layers)
        )
        self.norm = RMSNorm(hidden, require(config, "rms_norm_eps"), context.dtype)
        theta, scaling = rope_of(config)
        self.rotary = Rotary(shape.head_dim, context.max_len, theta, scaling)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states at the batch's logit indices, [n, hidden]."""
        x = self.embed_tokens(batch.token_ids)
        rope = self.rotary(batch.positions)
        for layer in self.layers:
            x = layer(x, rope, batch)
        out: torch.Tensor = self.norm(x.index_select(0, batch.logit_indices))
        return out


class LlamaForCausalLM(CausalModel):
    """See the module, and `models.base.CausalModel`."""

    gguf: ClassVar[GGUFNames] = GGUFNames(
        block=LLAMA_BLOCK_NAMES, extra=frozenset({"rope_freqs.weight"})
    )

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `CausalModel`."""
        num_heads = require(config, "num_attention_heads")
        num_layers = require(config, "num_hidden_layers")
        return ModelShape(
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=config.get("num_key_value_heads") or num_heads,
            head_dim=config.get("head_dim") or require(config, "hidden_size") // num_heads,
            vocab_size=require(config, "vocab_size"),
            max_position=config.get("max_position_embeddings") or 2048,
            windows=(None,) * num_layers,
        )

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__(config, context)
        self.model = LlamaModel(config, context)

    def from_gguf(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """GGUF's Llama interleaves the rotated pairs of q and k; undo it.

        Rows (head, pair, half) become (head, half, pair).
        """
        heads = {"q_proj": self.shape.num_heads, "k_proj": self.shape.num_kv_heads}
        for projection, num_heads in heads.items():
            if f".{projection}." in name:
                pairs = tensor.view(num_heads, -1, 2, *tensor.shape[1:])
                return pairs.transpose(1, 2).reshape(tensor.shape)
        return tensor

    def load_extra(self, name: str, tensor: torch.Tensor) -> None:
        """Take `rope_freqs.weight`: factors that llama3 scaling amounts to."""
        assert name == "rope_freqs.weight"
        model = self.model
        assert isinstance(model, LlamaModel)
        model.rotary.divide_frequencies(tensor)


def rope_of(config: Mapping[str, Any]) -> tuple[float, Mapping[str, Any] | None]:
    """Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling`.

    llama3 scaling without its own original context takes the model's.
    """
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or config.get("rope_theta") or 10000.0
    scaling = dict(parameters)
    scaling.setdefault("original_max_position_embeddings", config.get("max_position_embeddings"))
    return float(theta), scaling
