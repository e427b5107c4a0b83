"""A model on the CPU, and steps of it that a test lays out itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from octavo.config import EngineConfig
from octavo.layers.batch import ForwardBatch
from octavo.runner.runner import ModelRunner
from octavo.weights.open import open_checkpoint

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.attention.interface import BatchLayout


def load_runner(path: Path, **options: Any) -> ModelRunner:
    """With two threads; `options` are fields of `EngineConfig`."""
    checkpoint = open_checkpoint(path)
    runner = ModelRunner(
        EngineConfig(model=str(path), device="cpu", num_threads=2, **options), checkpoint
    )
    checkpoint.close()
    return runner


def load_real_runner(path: Path) -> ModelRunner:
    """Of a real model, with room for four short sequences."""
    return load_runner(path, max_model_len=256, max_num_seqs=4, kv_cache_memory=32 * 1024**2)


def batch_of(runner: ModelRunner, layout: BatchLayout, token_ids: torch.Tensor) -> ForwardBatch:
    """A step over the runner's cache; logits are of each sequence's last token."""
    last = torch.from_numpy(layout.query_starts[1:] - 1)
    return ForwardBatch(
        token_ids, torch.from_numpy(layout.positions), last,
        runner.backend, runner.backend.plan(runner.spec, layout), runner.kv_caches,
    )  # fmt: skip
