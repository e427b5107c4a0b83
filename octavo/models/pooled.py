"""What a model is that texts are pooled with: hidden states of whole texts, and a head over them.

Encoders are such models by themselves (`bert.py`); a decoder becomes one without its output layer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, cast

from octavo.models.base import BuildContext, CausalModel, LoadableModel, ModelShape

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import torch

    from octavo.layers.batch import ForwardBatch


class PooledModel(LoadableModel):
    """A model whose hidden states are wanted; the base of encoders.

    Class attributes:
        is_causal: whether a token sees only itself and those before it.

    Attributes:
        shape: as of any model.
        hidden_size: of a hidden state.
        num_labels: of its head; 0: it has none.
        num_token_types: how many kinds of texts a token may belong to.
    """

    is_causal: ClassVar[bool] = False
    shape: ModelShape
    hidden_size: int
    num_labels: int = 0
    num_token_types: int = 1

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """The shape alone, before anything is allocated."""
        raise NotImplementedError

    def hidden_states(self, batch: ForwardBatch) -> torch.Tensor:
        """Hidden states [t, hidden] of all tokens, after the last norm."""
        raise NotImplementedError

    def logits(self, first_nd: torch.Tensor) -> torch.Tensor:
        """The head's logits [n, labels] from the texts' first hidden states [n, hidden]."""
        raise NotImplementedError


class PooledDecoder(PooledModel):
    """A decoder without its output layer. Make a class of it with `pooled_decoder`.

    Checkpoints made for embedding (Qwen3-Embedding) leave `model.` out of the names of tensors.
    """

    is_causal: ClassVar[bool] = True
    decoder: ClassVar[type[CausalModel]]

    @classmethod
    def config_from_gguf(
        cls, metadata: Mapping[str, Any], tensor_names: Collection[str]
    ) -> dict[str, Any]:
        """See `LoadableModel`."""
        return cls.decoder.config_from_gguf(metadata, tensor_names)

    @classmethod
    def read_shape(cls, config: Mapping[str, Any]) -> ModelShape:
        """See `PooledModel`."""
        return cls.decoder.read_shape(config)

    def __init__(self, config: Mapping[str, Any], context: BuildContext) -> None:
        super().__init__()
        # As if tied, so that no output layer is allocated.
        whole = self.decoder({**config, "tie_word_embeddings": True}, context)
        self._translate = whole.from_gguf
        self._load_extra = whole.load_extra
        self.model = whole.model
        self.shape = whole.shape
        self.hidden_size = int(config["hidden_size"])

    def rename(self, name: str) -> str | None:
        """See `LoadableModel`: the output layer is left out."""
        if name.startswith("lm_head."):
            return None
        has_place = name.startswith("model.") or name in self.gguf.extra
        return name if has_place else f"model.{name}"

    def from_gguf(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """See `LoadableModel`."""
        return self._translate(name, tensor)

    def load_extra(self, name: str, tensor: torch.Tensor) -> None:
        """See `LoadableModel`."""
        self._load_extra(name, tensor)

    def hidden_states(self, batch: ForwardBatch) -> torch.Tensor:
        """See `PooledModel`."""
        return cast("torch.Tensor", self.model(batch))


def pooled_decoder(family: type[CausalModel]) -> type[PooledDecoder]:
    """The class of a decoder family's embedding models."""
    attributes = {
        "__doc__": f"`{family.__name__}` without its output layer.",
        "decoder": family,
        "packed": family.packed,
        "gguf": family.gguf,
    }
    return type(f"Pooled{family.__name__}", (PooledDecoder,), attributes)
