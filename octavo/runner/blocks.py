"""Which layers keep a checkpoint's blocks, and which have their weights decoded.

Settled by names and formats before any weight is read, once the whole table is known: a layer of
several projections keeps blocks only if its method can keep all of them.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.quant.method import BlockMethod, StoredBlocks
from octavo.weights.checkpoint import BlockTensor
from octavo.weights.gguf_blocks import dequantize
from octavo.weights.group_tensor import GroupTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from octavo.models.base import LoadableModel
    from octavo.weights.checkpoint import Checkpoint

logger = logging.getLogger("octavo")

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
    tensors: tuple[BlockTensor, ...]
    num_bytes: int


def settle_layers(model: LoadableModel, checkpoint: Checkpoint) -> list[KeptLayer]:
    """The layers that keep blocks; all others whose weights are open are allocated."""
    waiting = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, Layer) and isinstance(module.method, BlockMethod)
    }
    found: dict[str, dict[int, tuple[str, BlockTensor]]] = {path: {} for path in waiting}
    if waiting and checkpoint.has_weights and checkpoint.has_blocks:
        is_gguf = checkpoint.format == "gguf"
        for stored in checkpoint.tensors():
            place = _place(model, stored.name, is_gguf=is_gguf)
            if place is not None and place[0] in found and isinstance(stored, BlockTensor):
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


def log_decoded(model: LoadableModel, checkpoint: Checkpoint, kept: list[KeptLayer]) -> None:
    """One line on weights that the checkpoint has as integers in groups and no layer keeps so."""
    methods = [getattr(module, "method", None) for module in model.modules()]
    if not any(isinstance(method, BlockMethod) for method in methods):
        return
    kept_ids = {id(tensor) for layer in kept for tensor in layer.tensors}
    stored: Iterator[object] = checkpoint.tensors()
    groups = [tensor for tensor in stored if isinstance(tensor, GroupTensor)]
    beside = "multiplied together with such a layer"
    reasons = Counter(
        tensor.why_not_blocks or beside for tensor in groups if id(tensor) not in kept_ids
    )
    if reasons:
        listed = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common())
        logger.warning(
            "%d of %d quantized weights are decoded: %s", reasons.total(), len(groups), listed
        )


def keep_job(model: LoadableModel, kept: KeptLayer, *, is_gguf: bool) -> Callable[[], None]:
    """What reads one layer's blocks into it; may run in any thread."""
    return partial(_keep, model, kept, is_gguf=is_gguf)


def _place(model: LoadableModel, stored_name: str, *, is_gguf: bool) -> tuple[str, int, str] | None:
    """(module, part, Hugging Face name) of a weight, as `loader` finds it; None for others."""
    translated = model.gguf.translate(stored_name) if is_gguf else stored_name
    if translated is None or (model.is_tied and translated == "lm_head.weight"):
        return None
    name = model.rename(translated)
    if name is None or not name.endswith(".weight"):
        return None
    parent, _, last = name.removesuffix(".weight").rpartition(".")
    packed, part = model.packed.get(last, (last, 0))
    return f"{parent}.{packed}" if parent else packed, part, name


def _kept(layer: Layer, found: dict[int, tuple[str, BlockTensor]]) -> KeptLayer | None:
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


def _decode(tensor: BlockTensor) -> torch.Tensor:
    """What the blocks say, float32: scales are rounded as in the blocks that kernels would keep."""
    return torch.from_numpy(dequantize(tensor.packed(), tensor.dtype)).view(tensor.shape)


def _keep(model: LoadableModel, kept: KeptLayer, *, is_gguf: bool) -> None:
    parts = []
    for name, tensor in zip(kept.names, kept.tensors, strict=True):
        num_rows, num_cols = tensor.shape
        rows = torch.arange(num_rows, device="cpu")
        order = model.from_gguf(name, rows) if is_gguf else rows
        is_plain = torch.equal(order, rows)
        parts.append(
            StoredBlocks(
                block_format=tensor.dtype,
                shape=(num_rows, num_cols),
                stored=tensor.packed,
                decoded=partial(_decode, tensor),
                order=None if is_plain else order,
            )
        )
    method = kept.layer.method
    assert isinstance(method, BlockMethod)
    kept.layer.keep_blocks(method.keep(parts))
