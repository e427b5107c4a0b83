"""Which class serves which architecture: one line per family."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from octavo.errors import UnsupportedModelError

if TYPE_CHECKING:
    from octavo.models.base import CausalModel

_FAMILIES = {
    # Names in config.json's `architectures` and in GGUF's `general.architecture`.
    ("LlamaForCausalLM", "llama"): "octavo.models.llama:LlamaForCausalLM",
    ("Gemma3ForCausalLM", "gemma3"): "octavo.models.gemma3:Gemma3ForCausalLM",
    ("Qwen2ForCausalLM", "qwen2"): "octavo.models.qwen2:Qwen2ForCausalLM",
    ("Qwen3ForCausalLM", "qwen3"): "octavo.models.qwen3:Qwen3ForCausalLM",
    ("MistralForCausalLM",): "octavo.models.mistral:MistralForCausalLM",
}


def find_model_class(architecture: str) -> type[CausalModel]:
    """The class for a checkpoint's architecture.

    Raises:
        UnsupportedModelError: there is none.
    """
    for names, target in _FAMILIES.items():
        if architecture in names:
            module, _, name = target.partition(":")
            found: type[CausalModel] = getattr(import_module(module), name)
            return found
    known = ", ".join(name for names in _FAMILIES for name in names)
    raise UnsupportedModelError(f"architecture {architecture!r} is not supported (known: {known})")
