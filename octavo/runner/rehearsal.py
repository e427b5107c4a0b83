"""A rehearsal of steps: every kernel that a step of this model may launch, launched for no request.

Inside `kernels.compile.Compiler.rehearse` that starts the compilation of all of them and runs none.
The model's own forward makes the launches, so a kernel of a layer cannot be forgotten here; those
that steps launch around the model are called by name. What requests for nothing but a temperature
launch comes first; no start has to wait for the rest.
"""

from __future__ import annotations

import importlib.util
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from octavo.attention.interface import BatchLayout
from octavo.kernels import compile_processes
from octavo.layers.batch import ForwardBatch
from octavo.layers.linear import Linear
from octavo.runner.options import num_cores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from octavo.attention.interface import AttentionBackend, AttentionSpec
    from octavo.kernels.compile import Compiler
    from octavo.models.base import CausalModel

NUM_TOKENS = (1, 16, 32, 64)
"""Sizes of a batch: steps of up to so many tokens may launch products that larger ones do not."""

_PROMPT_LEN = 256  # more than a tile's
_LONG_PROMPT_LEN = 2048  # of which tiles have many keys
_MOST_THREADS = 16


def start_compiler(device: torch.device) -> Compiler | None:
    """A compiler for the device, or None where kernels are not compiled."""
    if device.type != "cuda" or importlib.util.find_spec("triton") is None:
        compile_processes.drop()
        return None
    processes = compile_processes.take()
    from octavo.kernels.compile import Compiler

    return Compiler(device, min(num_cores(), _MOST_THREADS), processes)


@torch.inference_mode()
def rehearse_steps(
    model: CausalModel, backend: AttentionBackend, spec: AttentionSpec, max_len: int
) -> torch.Tensor:
    """Run steps of decodes, of several sizes, and of a prompt, and sample by temperature.

    Weights may be anything. Takes a KV cache of a few blocks, which the layers share, for as long
    as it runs.

    Args:
        model: on its device.
        backend: its attention.
        spec: of the backend.
        max_len: longest sequence that the model takes.

    Returns:
        Logits of the largest of them.
    """
    prompt_len = min(_PROMPT_LEN, max_len)
    cache = backend.allocate(spec, 1)
    with distinct_layers(model):
        for num_seqs, length in [(1, prompt_len), *((num_tokens, 1) for num_tokens in NUM_TOKENS)]:
            logits = _run(model, backend, spec, cache, num_seqs, length)
    if backend.fuses_rotary:
        _rehearse_around_the_model(logits)
    return logits


@torch.inference_mode()
def rehearse_rare(
    model: CausalModel,
    backend: AttentionBackend,
    spec: AttentionSpec,
    max_len: int,
    logits: torch.Tensor,
) -> None:
    """A prompt so long that attention may have a kernel for it, and whatever requests may ask for.

    Args:
        model: as above, and so are
        backend: its attention,
        spec: of the backend, and
        max_len: of the model.
        logits: what came of the steps above.
    """
    with distinct_layers(model):
        _run(model, backend, spec, backend.allocate(spec, 1), 1, min(_LONG_PROMPT_LEN, max_len))
    rehearse_special(logits, spec.block_size)


def _run(
    model: CausalModel,
    backend: AttentionBackend,
    spec: AttentionSpec,
    cache: torch.Tensor,
    num_seqs: int,
    length: int,
) -> torch.Tensor:
    """The logits of a step of equal sequences, whose layers share a cache of one block."""
    num_tokens = num_seqs * length
    layout = BatchLayout(
        query_starts=np.arange(num_seqs + 1) * length,
        context_lens=np.zeros(num_seqs, np.int64),
        block_tables=np.zeros((num_seqs, -(-length // spec.block_size)), np.int64),
    )
    batch = ForwardBatch(
        token_ids=torch.zeros(num_tokens, dtype=torch.int32, device=spec.device),
        positions=torch.from_numpy(layout.positions).to(spec.device),
        logit_indices=torch.arange(num_seqs, device=spec.device) * length,
        backend=backend,
        meta=backend.plan(spec, layout),
        kv_caches=[cache] * model.shape.num_layers,
    )
    logits: torch.Tensor = model(batch)
    return logits


@contextmanager
def distinct_layers(model: CausalModel) -> Iterator[None]:
    """The model with one layer of each kind: those left out would launch the same kernels again."""
    layers = model.model.layers
    if not isinstance(layers, nn.ModuleList):
        yield
        return
    kinds: dict[Any, nn.Module] = {}
    for window, layer in zip(model.shape.windows, layers, strict=True):
        kinds.setdefault((window, _kind_of(layer)), layer)
    model.model.layers = nn.ModuleList(kinds.values())
    try:
        yield
    finally:
        model.model.layers = layers


def _kind_of(layer: nn.Module) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """Of each part of a layer its name and class, and the sizes of a product."""
    return tuple(
        (
            name,
            type(part).__name__,
            (part.in_features, *part.out_parts) if isinstance(part, Linear) else (),
        )
        for name, part in layer.named_modules()
    )


def _rehearse_around_the_model(logits: torch.Tensor) -> None:
    """What `QueuedSteps` launches before the model and after it, whatever a request asks for."""
    from octavo.kernels.prepare import prepare
    from octavo.kernels.sampling import sample_plain
    from octavo.kernels.uniform import draw_uniform

    ids, floats = _vectors(logits)
    prepare(ids, ids, ids, ids, None, ids.view(1, -1))
    draw_uniform(ids.expand(2, -1), ids, floats)
    sample_plain(logits, floats, floats, ids, ids, ids)


@torch.inference_mode()
def rehearse_special(logits: torch.Tensor, block_size: int) -> None:
    """Launch what rows need that ask for more than a temperature, the most usual first.

    Args:
        logits: as the model makes them.
        block_size: tokens of a KV block.
    """
    from octavo.kernels.history_changes import Changed, History, ban_words, penalise, remember
    from octavo.kernels.logit_changes import add_values, copy_rows
    from octavo.kernels.logprobs import report_logprobs
    from octavo.kernels.sampling import sample_plain
    from octavo.kernels.truncated_sampling import sample_truncated

    ids, floats = _vectors(logits)
    sample_truncated(logits, floats, ids, floats, floats, floats, ids, ids, ids)
    report_logprobs(logits, ids, ids)
    # Rows whose logits are changed are sampled from a copy in float32.
    copy = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
    counts = torch.empty(logits.shape, dtype=torch.int32, device=logits.device)
    changed, history = Changed(ids, ids, ids, ids, ids), History(ids, ids.view(1, -1), block_size)
    copy_rows(logits, ids, ids, ids.view(1, -1), copy)
    remember(ids, ids, ids, ids, ids)
    add_values(ids, ids, floats, copy, 0)
    ban_words(ids.expand(3, -1), ids, changed, history, copy, 0)
    penalise(ids, floats.expand(3, -1), 1, changed, history, counts, copy, 0)
    sample_plain(copy, floats, floats, ids, ids, ids)
    sample_truncated(copy, floats, ids, floats, floats, floats, ids, ids, ids)


def _vectors(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An integer and a float32 number for each row."""
    ids = torch.zeros(len(logits), dtype=torch.int32, device=logits.device)
    return ids, torch.zeros(len(logits), device=logits.device)
