"""What a model's tokens cost the device: the data that the engine's meter goes by."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

import torch

from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.runner.devices import find_device
from octavo.types import AttentionWork, WorkModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.attention.interface import AttentionSpec
    from octavo.models.base import LoadableModel, ModelShape

NUM_ROWS = 64
"""Of the product by which a device's rate of operations is measured."""

NUM_TRIES = 3


def work_model(
    model: LoadableModel, shape: ModelShape, spec: AttentionSpec, *, is_causal: bool = True
) -> WorkModel:
    """A loaded model's work, at the rates of the device that it lies on.

    Args:
        model: with its weights.
        shape: the model's.
        spec: of its attention.
        is_causal: whether tokens look at those before them only.
    """
    head = _output_layer(model)
    linears = [m for m in model.modules() if isinstance(m, Linear) and m is not head]
    num_macs = sum(layer.in_features * sum(layer.out_parts) for layer in linears)
    widths = sum(layer.in_features + sum(layer.out_parts) for layer in linears)
    kept = 2 * spec.num_kv_heads * spec.head_dim * spec.stored_dtype.itemsize
    flops_per_s, bytes_per_s = _rates(linears, head, spec)
    return WorkModel(
        flops_per_token=2.0 * num_macs,
        flops_per_sample=0.0 if head is None else 2.0 * shape.vocab_size * _width(head),
        bytes_per_token=float(widths * spec.dtype.itemsize),
        weight_bytes=float(sum(map(_num_bytes, linears))),
        head_weight_bytes=0.0 if head is None else float(_num_bytes(head)),
        attention=tuple(
            AttentionWork(4.0 * count * spec.num_heads * spec.head_dim, float(count * kept), window)
            for window, count in Counter(shape.windows).items()
        ),
        is_causal=is_causal,
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
    )


def _output_layer(model: LoadableModel) -> Linear | Embedding | None:
    """What logits are made with, where the model makes some."""
    for name, module in model.named_modules():
        if name == "lm_head" and isinstance(module, Linear):
            return module
    if not model.is_tied:
        return None
    return next((m for m in model.modules() if isinstance(m, Embedding)), None)


def _width(layer: Linear | Embedding) -> int:
    return layer.in_features if isinstance(layer, Linear) else layer.size


def _num_bytes(layer: Linear | Embedding) -> int:
    return sum(tensor.nbytes for tensor in layer.tensors().values())


def _rates(
    linears: list[Linear], head: Linear | Embedding | None, spec: AttentionSpec
) -> tuple[float, float]:
    """Operations and bytes per second: of a GPU that is known by name, or measured.

    What is measured is what the model's steps do most: a product of several rows by its largest
    layer, and a look at each byte of its largest weight.
    """
    if spec.device.type == "cuda":
        known = find_device(torch.cuda.get_device_name(spec.device))
        if known is not None:
            return known.gemm_tflops["bf16"] * 1e12, known.gemm_read_gb_s * 1e9
    layer = max(linears, key=lambda each: each.in_features * sum(each.out_parts))
    flops = 2.0 * NUM_ROWS * layer.in_features * sum(layer.out_parts)
    x = torch.ones(NUM_ROWS, layer.in_features, dtype=spec.dtype, device=spec.device)
    weights = [t for each in (layer, head) if each is not None for t in each.tensors().values()]
    largest = max(weights, key=lambda tensor: tensor.nbytes).reshape(-1).view(torch.uint8)
    words = largest[: largest.nbytes // 4 * 4].view(torch.int32)
    compute_s = _fastest(lambda: layer(x), spec.device)
    return flops / compute_s, words.nbytes / _fastest(words.max, spec.device)


@torch.inference_mode()
def _fastest(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of some runs."""
    times: list[float] = []
    for _ in range(NUM_TRIES):
        begin = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begin)
    return max(min(times), 1e-9)
