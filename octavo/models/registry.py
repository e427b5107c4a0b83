"""Which class serves which architecture: one line per family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from octavo.models.base import CausalModel
    from octavo.models.pooled import PooledModel

_FAMILIES = {
    # Names in config.json's `architectures` and in GGUF's `general.architecture`.
    ("LlamaForCausalLM", "llama"): "octavo.models.llama:LlamaForCausalLM",
    ("Gemma3ForCausalLM", "gemma3"): "octavo.models.gemma3:Gemma3ForCausalLM",
    ("Qwen2ForCausalLM", "qwen2"): "octavo.models.qwen2:Qwen2ForCausalLM",
    ("Qwen3ForCausalLM", "qwen3"): "octavo.models.qwen3:Qwen3ForCausalLM",
    ("MistralForCausalLM",): "octavo.models.mistral:MistralForCausalLM",
}

_ENCODERS = {
    ("BertModel", "BertForMaskedLM"): "octavo.models.bert:BertModel",
    ("BertForSequenceClassification",): "octavo.models.bert:BertForSequenceClassification",
    ("RobertaModel", "RobertaForMaskedLM", "XLMRobertaModel", "XLMRobertaForMaskedLM"): (
        "octavo.models.bert:RobertaModel"
    ),
    ("RobertaForSequenceClassification", "XLMRobertaForSequenceClassification"): (
        "octavo.models.bert:RobertaForSequenceClassification"
    ),
}
"""Models that only pool."""

_BARE = {f"{name}Model": f"{name}ForCausalLM" for name in ("Llama", "Qwen2", "Qwen3", "Mistral")}
"""Decoders that were saved without an output layer."""


def is_classifier(architecture: str) -> bool:
    """Whether an architecture gives probabilities of labels."""
    return architecture.endswith("ForSequenceClassification")


def only_pools(architecture: str) -> bool:
    """Whether a model of this architecture cannot generate."""
    return architecture in _BARE or any(architecture in names for names in _ENCODERS)


def find_pooled_class(architecture: str) -> type[PooledModel]:
    """The class that pools texts with a checkpoint of this architecture.

    Raises:
        UnsupportedModelError: there is none.
    """
    for names, target in _ENCODERS.items():
        if architecture in names:
            found: type[PooledModel] = _load(target)
            return found
    from octavo.models.pooled import pooled_decoder

    return pooled_decoder(find_model_class(_BARE.get(architecture, architecture)))


def find_model_class(architecture: str) -> type[CausalModel]:
    """The class that generates with a checkpoint of this architecture.

    Raises:
        UnsupportedModelError: there is none.
    """
    if only_pools(architecture):
        raise UnsupportedModelError(
            f"{architecture} makes vectors, not text: serve it with `octavo serve`, "
            "and ask /v1/embeddings or /rerank"
        )
    for names, target in _FAMILIES.items():
        if architecture in names:
            found: type[CausalModel] = _load(target)
            return found
    known = ", ".join(name for names in (*_FAMILIES, *_ENCODERS, tuple(_BARE)) for name in names)
    raise UnsupportedModelError(f"architecture {architecture!r} is not supported (known: {known})")


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
