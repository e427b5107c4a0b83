"""From a checkpoint's named tensors to a model's layers. Knows names, not kernels.

Where every tensor belongs is settled before the first one is read, so a checkpoint that does not
match its configuration is refused at once. Then a few threads read: plain tensors in chunks, into
the model's own memory or by way of a pinned buffer to the GPU; packed ones whole, dequantized, or
as blocks where a layer's method keeps them (`blocks.py`).
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from octavo.errors import CheckpointError
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.layers.norm import LayerNorm, RMSNorm
from octavo.runner.blocks import KeptLayer, keep_job, log_decoded, settle_layers
from octavo.weights.checkpoint import PlainTensor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from octavo.models.base import BuildContext, LoadableModel
    from octavo.weights.checkpoint import Checkpoint, StoredTensor

logger = logging.getLogger("octavo")

CHUNK_BYTES = 16 * 1024**2
DUMMY_SEED = 0

# Computed from the configuration, though some checkpoints store them.
_DERIVED = (".rotary_emb.inv_freq", ".attn.masked_bias", ".attn.bias")


def read_config(checkpoint: Checkpoint, model_class: type[LoadableModel]) -> Mapping[str, Any]:
    """The model's configuration in the words of a Hugging Face `config.json`."""
    if checkpoint.format == "gguf":
        names = {tensor.name for tensor in checkpoint.tensors()}
        return model_class.config_from_gguf(checkpoint.config, names)
    return checkpoint.config


def model_bytes(
    model_class: type[LoadableModel],
    config: Mapping[str, Any],
    context: BuildContext,
    checkpoint: Checkpoint,
) -> int:
    """Bytes that the model's weights will take, before any of them is allocated."""
    with torch.device("meta"):
        model = model_class(config, context)
    kept = settle_layers(model, checkpoint)
    dense = sum(tensor.nbytes for module in model.modules() for tensor in _tensors(module).values())
    return dense + sum(layer.num_bytes for layer in kept)


def load_weights(model: LoadableModel, checkpoint: Checkpoint, dtype: torch.dtype) -> float:
    """Fill every tensor of `model`; returns the seconds it took.

    Random numbers take the place of weights where the checkpoint was opened without them, and the
    log says so.

    Raises:
        CheckpointError: tensors are missing, unknown, or of the wrong shape.
    """
    begin = time.perf_counter()
    first = next(tensor for module in model.modules() for tensor in _tensors(module).values())
    device = first.device
    kept = settle_layers(model, checkpoint)
    if not checkpoint.has_weights:
        logger.warning(
            "--load-format dummy: the weights are random numbers and the outputs are noise; only "
            "speed and memory can be measured"
        )
        draw_weights(model, device)
    else:
        log_decoded(model, checkpoint, kept)
        jobs = _jobs(model, checkpoint, dtype, device, kept)
        num_threads = (
            8 if device.type == "cuda" else 2
        )  # a CPU's conversions have threads of their own
        with ThreadPoolExecutor(num_threads) as pool:
            for _ in pool.map(lambda job: job(), jobs):
                pass
    return time.perf_counter() - begin


def draw_weights(model: LoadableModel, device: torch.device) -> None:
    """Random weights, the same each time on one kind of device.

    Projections keep the size of what they project, on average; norms do nothing.
    """
    generator = torch.Generator(device).manual_seed(DUMMY_SEED)
    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.weight.fill_(1 - module.offset)
            continue
        if isinstance(module, LayerNorm):
            module.weight.fill_(1)
            module.bias.zero_()
            continue
        std = module.in_features**-0.5 if isinstance(module, Linear) else 0.02
        for tensor in _tensors(module).values():
            tensor.normal_(0, std, generator=generator)


def _jobs(
    model: LoadableModel,
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    device: torch.device,
    kept: list[KeptLayer],
) -> list[Callable[[], None]]:
    """What there is to read, in the order of the files; each job may run in any thread."""
    is_gguf = checkpoint.format == "gguf"
    kept_names = {name for layer in kept for name in layer.names}
    expected = _expected(model)
    missing = expected - kept_names
    copier = _Copier(device)
    jobs = [keep_job(model, layer, is_gguf=is_gguf) for layer in kept]
    for stored in checkpoint.tensors():
        where = f"{checkpoint.path}: {stored.name}"
        translated = model.gguf.translate(stored.name) if is_gguf else stored.name
        if translated is None:
            raise CheckpointError(f"{checkpoint.path}: unknown tensor {stored.name}")
        if translated.endswith(_DERIVED) or (model.is_tied and translated == "lm_head.weight"):
            continue
        name = model.rename(translated)
        if name is None:
            continue
        if name in kept_names:
            continue
        if checkpoint.has_blocks and name not in expected and _is_idle_bias(name, stored):
            continue
        if is_gguf and name in model.gguf.extra:
            model.load_extra(name, stored.load(torch.float32))
            continue
        target = _target(model, name, where)
        if target.shape != stored.shape:
            raise CheckpointError(
                f"tensor {where} has shape {tuple(stored.shape)}, "
                f"the configuration asks for {tuple(target.shape)}"
            )
        missing.discard(name)
        if isinstance(stored, PlainTensor) and target.is_contiguous():
            jobs += [partial(copier.copy, stored, *part) for part in _parts(stored, target)]
        else:
            convert = partial(model.from_gguf, name) if is_gguf else None
            jobs.append(partial(_copy_whole, stored, target, dtype, convert))
    if missing:
        some = ", ".join(sorted(missing)[:5])
        raise CheckpointError(
            f"{checkpoint.path}: {len(missing)} tensors are missing, such as {some}"
        )
    return jobs


def _is_idle_bias(name: str, stored: StoredTensor) -> bool:
    """Whether it is a bias of zeros: AutoGPTQ gave one to layers that have none."""
    return name.endswith(".bias") and not stored.load(torch.float32).any()


def _copy_whole(
    stored: StoredTensor,
    target: torch.Tensor,
    dtype: torch.dtype,
    convert: Callable[[torch.Tensor], torch.Tensor] | None,
) -> None:
    tensor = stored.load(dtype)
    target.copy_(tensor if convert is None else convert(tensor))


def _parts(stored: PlainTensor, target: torch.Tensor) -> Iterator[tuple[torch.Tensor, int]]:
    """Runs of the target's elements, and which byte of the stored tensor each begins at."""
    item_bytes = _stored_dtype(stored).itemsize
    start = 0
    for run in torch.split(target.view(-1), CHUNK_BYTES // item_bytes):
        if run.numel():
            yield run, start
        start += run.numel() * item_bytes


class _Copier:
    """Reads runs of plain tensors to where they belong; each thread has a buffer of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._own = threading.local()

    def copy(self, stored: PlainTensor, target: torch.Tensor, start: int) -> None:
        """Fill `target`, a run of elements, from the stored tensor's byte `start` on."""
        dtype = _stored_dtype(stored)
        if self._device.type == "cpu" and dtype == target.dtype:
            stored.read_into(_bytes_of(target), start)
            return
        raw = self._buffer()[: target.numel() * dtype.itemsize]
        stored.read_into(_bytes_of(raw), start)
        source = raw.view(dtype)
        if dtype != target.dtype:
            source = source.to(self._device)  # a GPU converts faster
        target.copy_(source)  # returns when the buffer has been read

    def _buffer(self) -> torch.Tensor:
        buffer: torch.Tensor | None = getattr(self._own, "buffer", None)
        if buffer is None:
            is_cuda = self._device.type == "cuda"
            if is_cuda:  # pinning makes a context on the thread's current device
                torch.cuda.set_device(self._device)
            buffer = torch.empty(CHUNK_BYTES, dtype=torch.uint8, device="cpu", pin_memory=is_cuda)
            self._own.buffer = buffer
        return buffer


def _bytes_of(run: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor of one dimension, on the host."""
    memory: Any = run.view(torch.uint8).numpy()
    return memoryview(memory)


def _stored_dtype(stored: StoredTensor) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, stored.dtype)
    return dtype


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that a layer itself holds, by name."""
    if isinstance(module, Linear | Embedding):
        return module.tensors()
    if isinstance(module, RMSNorm):
        return {"weight": module.weight}
    if isinstance(module, LayerNorm):
        return {"weight": module.weight, "bias": module.bias}
    return {}


def _expected(model: LoadableModel) -> set[str]:
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
        else:
            own_kinds = ["weight"] if isinstance(module, Embedding) else _tensors(module)
            names.update(f"{path}.{kind}" for kind in own_kinds)
    return names


def _target(model: LoadableModel, name: str, where: str) -> torch.Tensor:
    """Where the tensor of this name, as Hugging Face spells it, belongs: a view.

    Raises:
        CheckpointError: nowhere.
    """
    path, _, kind = name.rpartition(".")
    parent, _, last = path.rpartition(".")
    packed, part = model.packed.get(last, (last, 0))
    try:
        module = model.get_submodule(f"{parent}.{packed}" if parent else packed)
    except AttributeError:
        raise CheckpointError(f"{where}: the model has no such tensor") from None
    tensors = _tensors(module)
    if kind not in tensors:
        raise CheckpointError(f"{where}: the model has no such tensor")
    return module.part(kind, part) if isinstance(module, Linear) else tensors[kind]
