"""What a model family is to the rest of the house.

A family is one file: its configuration out of a Hugging Face `config.json` or GGUF metadata, its
layers, and how its checkpoints name tensors. Knows no files and no requests.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.models.gguf import (
    GGUF_KEYS,
    GGUFNames,
    gguf_rope_scaling,
    gguf_vocab_size,
    read_gguf,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from octavo.layers.batch import ForwardBatch
    from octavo.quant.method import LinearMethod

PACKED_LLAMA = {
    "q_proj": ("qkv_proj", 0),
    "k_proj": ("qkv_proj", 1),
    "v_proj": ("qkv_proj", 2),
    "gate_proj": ("gate_up_proj", 0),
    "up_proj": ("gate_up_proj", 1),
}


def require(config: Mapping[str, Any], key: str) -> Any:
    """A configuration's value.

    Raises:
        CheckpointError: there is none.
    """
    if config.get(key) is None:
        raise CheckpointError(f"the model's configuration has no {key!r}")
    return config[key]


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What engine and runner need to know of a model.

    Attributes:
        windows: sliding window of each layer, None for full attention; one entry per layer.
        max_position: most tokens that the model was made for.
        soft_cap: of attention logits, or None.
    """

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    windows: tuple[int | None, ...]
    soft_cap: float | None = None


@dataclass(frozen=True, slots=True)
class BuildContext:
    """How a model's layers are made.

    Attributes:
        dtype: computing precision.
        method: how linear layers keep their weights.
        max_len: longest sequence that will be run.
    """

    dtype: torch.dtype
    method: LinearMethod
    max_len: int


class LoadableModel(nn.Module):
    """What `runner.loader` fills: layers, and how checkpoints name their tensors.

    Class attributes:
        packed: how checkpoints' projections lie in packed layers: name to (packed name, part).
        gguf: translation of GGUF's names.

    Attributes:
        is_tied: whether the output layer is the embedding.
    """

    packed: ClassVar[Mapping[str, tuple[str, int]]] = {}
    gguf: ClassVar[GGUFNames]
    is_tied: bool = False

    @classmethod
    def config_from_gguf(
        cls, metadata: Mapping[str, Any], tensor_names: Collection[str]
    ) -> dict[str, Any]:
        """GGUF metadata in the words of a Hugging Face config.

        Raises:
            UnsupportedModelError: the family is not read from GGUF files.
        """
        raise UnsupportedModelError(
            f"{cls.__name__} is read from Hugging Face folders only, not from GGUF files"
        )

    def rename(self, name: str) -> str | None:
        """The model's name for a Hugging Face tensor; None for one that it does without."""
        return name

    def from_gguf(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A GGUF tensor, already under its Hugging Face name, in Hugging Face's layout.

        Weights of projections and embeddings are only ordered anew, by rows, so that this also
        orders the rows' numbers where blocks are kept.
        """
        return tensor

    def load_extra(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor that `gguf.extra` names."""
        raise NotImplementedError(name)


class CausalModel(LoadableModel):
    """A language model that predicts the next token; the base of every family.

    A subclass has `self.model`: embedding `embed_tokens`, layers, last norm; called with a batch it
    gives the hidden states [n, hidden] at the batch's logit indices. Layers take and give a pair
    (x, residual), see `layers.norm`.
    """

    packed: ClassVar[Mapping[str, tuple[str, int]]] = PACKED_LLAMA
    model: nn.Module
    logit_soft_cap: float | None = None

    @classmethod
    def config_from_gguf(
        cls, metadata: Mapping[str, Any], tensor_names: Collection[str]
    ) -> dict[str, Any]:
        """GGUF metadata in the words of a Hugging Face config."""
        config = read_gguf(metadata, GGUF_KEYS)
        config.setdefault("num_key_value_heads", config.get("num_attention_heads"))
        config["rope_scaling"] = gguf_rope_scaling(metadata)
        config["vocab_size"] = gguf_vocab_size(metadata)
        config["tie_word_embeddings"] = "output.weight" not in tensor_names
        return config

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape alone, before anything is allocated."""
        raise NotImplementedError

    def __init__(
        self, config: Mapping[str, Any], context: BuildContext, *, tied_by_default: bool = False
    ) -> None:
        """Allocate the output layer; a subclass then allocates `model`.

        Everything goes to torch's current default device.
        """
        super().__init__()
        self.shape = self.read_shape(config)
        self.is_tied = bool(config.get("tie_word_embeddings", tied_by_default))
        self._method = context.method
        self.lm_head: Linear | None = None
        if not self.is_tied:
            hidden = require(config, "hidden_size")
            self.lm_head = Linear(hidden, [self.shape.vocab_size], context.method)

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """Logits [n, vocab] at the batch's `logit_indices`, in the model's dtype."""
        return self.compute_logits(self.model(batch))

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Logits [m, vocab] of hidden states [m, hidden], in the model's dtype."""
        logits = self.uncapped_logits(hidden)
        if self.logit_soft_cap is not None:
            capped = torch.tanh(logits.float() / self.logit_soft_cap) * self.logit_soft_cap
            logits = capped.to(logits.dtype)
        return logits

    def uncapped_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output layer's product alone."""
        if self.lm_head is not None:
            logits: torch.Tensor = self.lm_head(hidden)
            return logits
        embedding = self.model.embed_tokens
        assert isinstance(embedding, Embedding)
        return self._method.apply(hidden, embedding.tensors(), None)
