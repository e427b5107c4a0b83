"""Llama 2 and 3.x, and models laid out like them (SmolLM2).

Families that differ in biases, windows or norms of queries and keys are subclasses with a file of
their own.
"""

from __future__ import annotations

from dataclasses import dataclass
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
    from collections.abc import Mapping

    from octavo.layers.batch import ForwardBatch
    from octavo.layers.rotary import Rope


@dataclass(frozen=True, slots=True)
class AttentionOptions:
    """What families laid out like Llama differ in.

    Attributes:
        qkv_bias, o_bias: of the projections.
        has_qk_norm: queries and keys are normalized head by head.
    """

    qkv_bias: bool = False
    o_bias: bool = False
    has_qk_norm: bool = False


class LlamaLayer(nn.Module):
    """One decoder layer, normalized before each half."""

    def __init__(
        self,
        config: Mapping[str, Any],
        shape: ModelShape,
        options: AttentionOptions,
        index: int,
        rotary: Rotary,
        context: BuildContext,
    ) -> None:
        super().__init__()
        hidden, eps = require(config, "hidden_size"), require(config, "rms_norm_eps")
        method, dtype = context.method, context.dtype

        def head_norm() -> RMSNorm | None:
            return RMSNorm(shape.head_dim, eps, dtype) if options.has_qk_norm else None

        self.input_layernorm = RMSNorm(hidden, eps, dtype)
        self.self_attn = SelfAttention(
            index,
            hidden,
            shape.num_heads,
            shape.num_kv_heads,
            rotary,
            method,
            dtype,
            qkv_bias=options.qkv_bias,
            o_bias=options.o_bias,
            q_norm=head_norm(),
            k_norm=head_norm(),
            window=shape.windows[index],
        )
        self.post_attention_layernorm = RMSNorm(hidden, eps, dtype)
        self.mlp = MLP(
            hidden,
            require(config, "intermediate_size"),
            config.get("hidden_act", "silu"),
            method,
            dtype,
            bias=bool(config.get("mlp_bias")),
        )

    def forward(
        self, x: torch.Tensor, residual: torch.Tensor | None, rope: Rope | None, batch: ForwardBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[t, hidden] each; see `layers.norm` for the pair."""
        x, residual = self.input_layernorm.add(x, residual)
        x = self.self_attn(x, rope, batch)
        x, residual = self.post_attention_layernorm.add(x, residual)
        return self.mlp(x), residual


class LlamaModel(nn.Module):
    """Embedding, layers and the last norm."""

    def __init__(
        self,
        config: Mapping[str, Any],
        shape: ModelShape,
        options: AttentionOptions,
        context: BuildContext,
    ) -> None:
        super().__init__()
        hidden = require(config, "hidden_size")
        self.embed_tokens = Embedding(
            shape.vocab_size, hidden, context.dtype, method=context.method
        )
        theta, scaling = rope_of(config)
        self.rotary = Rotary(shape.head_dim, context.max_len, theta, scaling)
        self.layers = nn.ModuleList(
            LlamaLayer(config, shape, options, index, self.rotary, context)
            for index in range(shape.num_layers)
        )
        self.norm = RMSNorm(hidden, require(config, "rms_norm_eps"), context.dtype)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states at the batch's logit indices, [n, hidden]."""
        x: torch.Tensor = self.embed_tokens(batch.token_ids)
        residual: torch.Tensor | None = None
        rope = self.rotary(batch)
        for layer in self.layers:
            x, residual = layer(x, residual, rope, batch)
        assert residual is not None
        return self.norm.add(batch.select(x), batch.select(residual))[0]


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

    @classmethod
    def attention_options(cls, config: Mapping[str, Any]) -> AttentionOptions:
        """Where a subclass says how its attention differs."""
        bias = bool(config.get("attention_bias"))
        return AttentionOptions(qkv_bias=bias, o_bias=bias)

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__(config, context)
        self.model = LlamaModel(config, self.shape, self.attention_options(config), context)

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
