"""From a checkpoint's named tensors to a model's layers. Knows names, not kernels."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import torch

from octavo.errors import CheckpointError
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear, copy_checked
from octavo.layers.norm import RMSNorm

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.models.base import CausalModel
    from octavo.weights.checkpoint import Checkpoint, StoredTensor

# Computed from the configuration, though some checkpoints store them.
_DERIVED = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


def read_config(checkpoint: Checkpoint, model_class: type[CausalModel]) -> Mapping[str, Any]:
    """The model's configuration in the words of a Hugging Face `config.json`."""
    if checkpoint.format == "gguf":
        names = {tensor.name for tensor in checkpoint.tensors()}
        return model_class.config_from_gguf(checkpoint.config, names)
    return checkpoint.config


def load_weights(model: CausalModel, checkpoint: Checkpoint, dtype: torch.dtype) -> float:
    """Fill every tensor of `model`; returns the seconds it took.

    Tensors are read and dequantized in a few threads, each straight to the model's device.

    Raises:
        CheckpointError: tensors are missing, unknown, or of the wrong shape.
    """
    begin = time.perf_counter()
    is_gguf = checkpoint.format == "gguf"
    missing = _expected(model)

    def load(stored: StoredTensor) -> list[str]:
        name = model.gguf.translate(stored.name) if is_gguf else stored.name
        if name is None:
            raise CheckpointError(f"{checkpoint.path}: unknown tensor {stored.name}")
        if name.endswith(_DERIVED) or (model.is_tied and name == "lm_head.weight"):
            return []
        if name in model.gguf.extra:
            model.load_extra(name, stored.load(torch.float32))
            return []
        tensor = stored.load(dtype)
        if is_gguf:
            tensor = model.from_gguf(name, tensor)
        _place(model, name, tensor, f"{checkpoint.path}: {stored.name}")
        return [name]

    with ThreadPoolExecutor(max_workers=2) as pool:
        for names in pool.map(load, checkpoint.tensors()):
            missing.difference_update(names)
    if missing:
        some = ", ".join(sorted(missing)[:5])
        raise CheckpointError(
            f"{checkpoint.path}: {len(missing)} tensors are missing, such as {some}"
        )
    return time.perf_counter() - begin


def weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Bytes of all tensors once they are in `dtype`."""
    return sum(math.prod(tensor.shape) for tensor in checkpoint.tensors()) * dtype.itemsize


def _expected(model: CausalModel) -> set[str]:
    """Every tensor name, as Hugging Face spells it, that must come."""
    parts: dict[str, dict[int, str]] = {}
    for name, (packed, part) in model.packed.items():
        parts.setdefault(packed, {})[part] = name
    names = set()
    for path, module in model.named_modules():
        if isinstance(module, Linear):
            parent, _, last = path.rpartition(".")
            for kind, part in module.expected():
                own = parts.get(last, {}).get(part, last)
                names.add(f"{parent}.{own}.{kind}" if parent else f"{own}.{kind}")
        elif isinstance(module, Embedding | RMSNorm):
            names.add(f"{path}.weight")
    return names


def _place(model: CausalModel, name: str, tensor: torch.Tensor, where: str) -> None:
    path, _, kind = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    packed, part = model.packed.get(last, (last, 0))
    try:
        module = model.get_submodule(f"{parent}.{packed}" if parent else packed)
    except AttributeError:
        raise CheckpointError(f"{where}: the model has no such tensor") from None
    if isinstance(module, Linear) and kind in module.specs:
        module.load(kind, part, tensor, where)
    elif isinstance(module, Embedding | RMSNorm) and kind == "weight":
        copy_checked(module.weight, tensor, where)
    else:
        raise CheckpointError(f"{where}: the model has no such tensor")
