"""Which layers keep a GGUF file's blocks, and which have their weights decoded.

Settled by names and formats before anything is read, once the whole file's table is known: a layer
of several projections keeps blocks only if its method can keep all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.quant.method import BlockMethod, StoredBlocks
from octavo.weights.gguf import GGUFTensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.models.base import LoadableModel
    from octavo.weights.checkpoint import Checkpoint

Layer = Linear | Embedding


@dataclass(frozen=True, slots=True)
class KeptLayer:
    """A layer that keeps blocks.

    Attributes:
        layer: takes them.
        names: of its weights, as Hugging Face spells them, part by part.
        tensors: the same as they are stored.
        num_bytes: that it will take.
    """

    layer: Layer
    names: tuple[str, ...]
    tensors: tuple[GGUFTensor, ...]
    num_bytes: int


def settle_layers(model: LoadableModel, checkpoint: Checkpoint) -> list[KeptLayer]:
    """The layers that keep blocks; all others whose weights are open are allocated."""
    waiting = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Layer) and isinstance(module.method, BlockMethod)
    }
    found: dict[str, dict[int, tuple[str, GGUFTensor]]] = {path: {} for path in waiting}
    if waiting and checkpoint.has_weights and checkpoint.format == "gguf":
        for stored in checkpoint.tensors():
            place = _place(model, stored.name)
            if place is not None and place[0] in found and isinstance(stored, GGUFTensor):
                path, index, name = place
                found[path][index] = (name, stored)
    kept = []
    for path, layer in waiting.items():
        own = _kept(layer, found[path])
        if own is None:
            layer.allocate()
        else:
            kept.append(own)
    return kept


def keep_job(model: LoadableModel, kept: KeptLayer) -> Callable[[], None]:
    """What reads one layer's blocks into it; may run in any thread."""
    return partial(_keep, model, kept)


def _place(model: LoadableModel, stored_name: str) -> tuple[str, int, str] | None:
    """(module, part, Hugging Face name) of a weight, as `loader` finds it; None for others."""
    translated = model.gguf.translate(stored_name)
    if translated is None or (model.is_tied and translated == "lm_head.weight"):
        return None
    name = model.rename(translated)
    if name is None or not name.endswith(".weight"):
        return None
    parent, _, last = name.removesuffix(".weight").rpartition(".")
    packed, part = model.packed.get(last, (last, 0))
    return f"{parent}.{packed}" if parent else packed, part, name


def _kept(layer: Layer, found: dict[int, tuple[str, GGUFTensor]]) -> KeptLayer | None:
    """The layer with its tensors, if all are there, of the right shape, and can be kept."""
    method = layer.method
    assert isinstance(method, BlockMethod)
    if isinstance(layer, Linear):
        shapes = [(num_rows, layer.in_features) for num_rows in layer.out_parts]
    else:
        shapes = [(layer.num_rows, layer.size)]
    if sorted(found) != list(range(len(shapes))):
        return None
    names, tensors = zip(*(found[part] for part in range(len(shapes))), strict=True)
    if [tensor.shape for tensor in tensors] != shapes:
        return None  # the loader refuses it, and says why
    num_bytes = method.block_bytes([tensor.dtype for tensor in tensors], shapes)
    return KeptLayer(layer, names, tensors, num_bytes) if num_bytes else None


def _keep(model: LoadableModel, kept: KeptLayer) -> None:
    parts = []
    for name, tensor in zip(kept.names, kept.tensors, strict=True):
        num_rows, num_cols = tensor.shape
        rows = torch.arange(num_rows, device="cpu")
        order = model.from_gguf(name, rows)
        is_plain = torch.equal(order, rows)
        parts.append(
            StoredBlocks(
                block_format=tensor.dtype,
                shape=(num_rows, num_cols),
                stored=tensor.packed,
                decoded=partial(tensor.load, torch.float32),
                order=None if is_plain else order,
            )
        )
    method = kept.layer.method
    assert isinstance(method, BlockMethod)
    kept.layer.keep_blocks(method.keep(parts))
