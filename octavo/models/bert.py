"""BERT (Devlin et al. 2018, arXiv:1810.04805) and RoBERTa (arXiv:1907.11692, XLM-R likewise):
encoders whose every token sees the whole text.

Layers normalize after each half. RoBERTa counts positions from behind the padding's id. A
classifier reads the first token's hidden state. Shapes: t tokens, h heads, d head dimension.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from octavo.attention.interface import LayerAttention
from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.mlp import ACTIVATIONS
from octavo.layers.norm import LayerNorm
from octavo.models.base import BuildContext, ModelShape, require
from octavo.models.gguf import GGUFNames
from octavo.models.pooled import PooledModel

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.layers.batch import ForwardBatch

_ACTIVATIONS = {
    **ACTIVATIONS,
    "gelu_new": ACTIVATIONS["gelu_pytorch_tanh"],
    "relu": nn.functional.relu,
}

# Heads for guessing words, a pooler that only classifiers have, and constants.
_UNUSED = re.compile(r"(cls|lm_head|pooler)\..*|embeddings\.(position_ids|token_type_ids)")
_OLD_NORM = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}


class BertEmbeddings(nn.Module):
    """Words, positions and types of texts, summed and normalized."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext, offset: int) -> None:
        super().__init__()
        hidden, dtype = require(config, "hidden_size"), context.dtype
        self._offset = offset
        self.word_embeddings = Embedding(require(config, "vocab_size"), hidden, dtype)
        num_positions = require(config, "max_position_embeddings")
        self.position_embeddings = Embedding(num_positions, hidden, dtype)
        self.token_type_embeddings = Embedding(config.get("type_vocab_size", 2), hidden, dtype)
        self.LayerNorm = LayerNorm(hidden, config.get("layer_norm_eps", 1e-12), dtype)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden]."""
        x = self.word_embeddings(batch.token_ids)
        if batch.token_types is None:
            x = x + self.token_type_embeddings.weight[0]
        else:
            x = x + self.token_type_embeddings(batch.token_types)
        x = x + self.position_embeddings(batch.positions + self._offset)
        normalized: torch.Tensor = self.LayerNorm(x)
        return normalized


class _Dense(nn.Module):
    """A projection under the name that checkpoints have for it, and a norm where there is one."""

    def __init__(
        self, sizes: tuple[int, int], context: BuildContext, norm_eps: float | None = None
    ) -> None:
        super().__init__()
        rows, columns = sizes
        self.dense = Linear(rows, [columns], context.method, bias=True, dtype=context.dtype)
        if norm_eps is not None:
            self.LayerNorm = LayerNorm(columns, norm_eps, context.dtype)

    def add(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        """The norm of the projection of x plus the residual."""
        out: torch.Tensor = self.LayerNorm(self.dense(x).add_(residual))
        return out


class BertSelfAttention(nn.Module):
    """Queries, keys and values in one product, around the batch's attention."""

    def __init__(self, hidden: int, num_heads: int, context: BuildContext) -> None:
        super().__init__()
        self._num_heads = num_heads
        self._layer = LayerAttention((hidden // num_heads) ** -0.5)
        self.qkv = Linear(hidden, [hidden] * 3, context.method, bias=True, dtype=context.dtype)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        qkv = self.qkv(x).view(x.shape[0], 3, self._num_heads, -1)
        q_thd, k_thd, v_thd = qkv.unbind(1)
        cache = batch.kv_caches[0]
        out_thd = batch.backend.forward(self._layer, q_thd, k_thd, v_thd, cache, batch.meta)
        return out_thd.flatten(1)


class BertAttention(nn.Module):
    """Attention, its projection, and the norm after it."""

    def __init__(self, hidden: int, num_heads: int, eps: float, context: BuildContext) -> None:
        super().__init__()
        self.self = BertSelfAttention(hidden, num_heads, context)
        self.output = _Dense((hidden, hidden), context, eps)

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        return self.output.add(self.self(x, batch), x)


class BertLayer(nn.Module):
    """One encoder layer."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__()
        hidden, inner = require(config, "hidden_size"), require(config, "intermediate_size")
        eps = config.get("layer_norm_eps", 1e-12)
        self.attention = BertAttention(hidden, require(config, "num_attention_heads"), eps, context)
        self.intermediate = _Dense((hidden, inner), context)
        self.output = _Dense((inner, hidden), context, eps)
        self._activate = _activation(config.get("hidden_act") or "gelu")

    def forward(self, x: torch.Tensor, batch: ForwardBatch) -> torch.Tensor:
        """[t, hidden] to [t, hidden]."""
        x = self.attention(x, batch)
        return self.output.add(self._activate(self.intermediate.dense(x)), x)


class BertEncoder(nn.Module):
    """All layers."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__()
        num_layers = require(config, "num_hidden_layers")
        self.layer = nn.ModuleList(BertLayer(config, context) for _ in range(num_layers))


class BertModel(PooledModel):
    """See the module, and `models.pooled.PooledModel`."""

    packed: ClassVar[Mapping[str, tuple[str, int]]] = {
        "query": ("qkv", 0),
        "key": ("qkv", 1),
        "value": ("qkv", 2),
    }
    gguf: ClassVar[GGUFNames] = GGUFNames()
    counts_from_padding: ClassVar[bool] = False

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `PooledModel`.

        Raises:
            CheckpointError: the configuration makes no sense.
            UnsupportedModelError: positions are not embedded, or the encoder is a decoder's.
        """
        kind = config.get("position_embedding_type") or "absolute"
        if kind != "absolute" or config.get("is_decoder"):
            raise UnsupportedModelError(
                f"encoders with position_embedding_type {kind!r} or is_decoder are not supported"
            )
        heads, hidden = require(config, "num_attention_heads"), require(config, "hidden_size")
        if hidden % heads:
            raise CheckpointError(f"hidden_size {hidden} is no multiple of {heads} heads")
        num_layers = require(config, "num_hidden_layers")
        return ModelShape(
            num_layers=num_layers,
            num_heads=heads,
            num_kv_heads=heads,
            head_dim=hidden // heads,
            vocab_size=require(config, "vocab_size"),
            max_position=require(config, "max_position_embeddings") - cls._offset(config),
            windows=(None,) * num_layers,
        )

    @classmethod
    def _offset(cls, config: Mapping[str, Any]) -> int:
        """The first position."""
        if not cls.counts_from_padding:
            return 0
        padding = config.get("pad_token_id")
        return (1 if padding is None else int(padding)) + 1

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__()
        self.shape = self.read_shape(config)
        self.hidden_size = require(config, "hidden_size")
        self.num_token_types = config.get("type_vocab_size", 2)
        self.embeddings = BertEmbeddings(config, context, self._offset(config))
        self.encoder = BertEncoder(config, context)

    def rename(self, name: str) -> str | None:
        """See `LoadableModel`."""
        name = name.removeprefix("bert.").removeprefix("roberta.")
        if self.is_unused(name):
            return None
        for old, new in _OLD_NORM.items():
            if name.endswith(old):
                return name.removesuffix(old) + new
        return name

    def is_unused(self, name: str) -> bool:
        """Whether the model does without a tensor that checkpoints may have."""
        return _UNUSED.fullmatch(name) is not None

    def hidden_states(self, batch: ForwardBatch) -> torch.Tensor:
        """See `PooledModel`."""
        x: torch.Tensor = self.embeddings(batch)
        for layer in self.encoder.layer:
            x = layer(x, batch)
        return x


class RobertaModel(BertModel):
    """RoBERTa and XLM-RoBERTa."""

    counts_from_padding: ClassVar[bool] = True


class BertForSequenceClassification(BertModel):
    """BERT with its pooler and a layer of labels."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__(config, context)
        self.num_labels = num_labels_of(config)
        self.pooler = _Dense((self.hidden_size, self.hidden_size), context)
        self.classifier = Linear(
            self.hidden_size, [self.num_labels], context.method, bias=True, dtype=context.dtype
        )

    def is_unused(self, name: str) -> bool:
        """See `BertModel`; here the pooler is used."""
        return super().is_unused(name) and not name.startswith("pooler.")

    def logits(self, first_nd: torch.Tensor) -> torch.Tensor:
        """See `PooledModel`."""
        logits: torch.Tensor = self.classifier(torch.tanh(self.pooler.dense(first_nd)))
        return logits


class _RobertaHead(_Dense):
    """A dense layer and one of labels."""

    def __init__(self, hidden: int, num_labels: int, context: BuildContext) -> None:
        super().__init__((hidden, hidden), context)
        self.out_proj = Linear(hidden, [num_labels], context.method, bias=True, dtype=context.dtype)


class RobertaForSequenceClassification(RobertaModel):
    """RoBERTa or XLM-RoBERTa with a head of two layers."""

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__(config, context)
        self.num_labels = num_labels_of(config)
        self.classifier = _RobertaHead(self.hidden_size, self.num_labels, context)

    def logits(self, first_nd: torch.Tensor) -> torch.Tensor:
        """See `PooledModel`."""
        head = self.classifier
        logits: torch.Tensor = head.out_proj(torch.tanh(head.dense(first_nd)))
        return logits


def num_labels_of(config: Mapping[str, Any]) -> int:
    """How many labels a classifier's configuration has; transformers' default is 2."""
    labels = config.get("id2label")
    return len(labels) if labels else int(config.get("num_labels") or 2)


def _activation(name: str) -> Any:
    if name not in _ACTIVATIONS:
        raise CheckpointError(f"activation {name!r} is unknown")
    return _ACTIVATIONS[name]
