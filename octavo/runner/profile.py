"""Steps that nobody asked for: the largest one, whose memory is measured, and the first ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import torch

from octavo.layers.linear import Linear
from octavo.runner.prompt_logprobs import num_at_once
from octavo.types import MAX_LOGPROBS, RowInit, SamplingParams, StepPlan

if TYPE_CHECKING:
    from octavo.models.base import CausalModel

_PARAMS = SamplingParams(
    temperature=1.0, top_p=0.9, logprobs=MAX_LOGPROBS, prompt_logprobs=0, max_tokens=None
)
_PENALISING = msgspec.structs.replace(_PARAMS, repetition_penalty=1.1)


def random_step(num_rows: int, length: int, blocks_each: int) -> StepPlan:
    """A prefill of `length` tokens in each row, sampled in the ways that take most memory.

    Args:
        num_rows: of the batch, all new.
        length: tokens of each.
        blocks_each: KV blocks of each row, one row's after the other's.
    """
    rows = list(range(num_rows))
    return StepPlan(
        step_id=-1,
        new_rows=[
            RowInit(row, [0] * length, length, _PARAMS if row % 2 else _PENALISING, row, [])
            for row in rows
        ],
        rows=rows,
        num_computed_tokens=[0] * num_rows,
        num_new_tokens=[length] * num_rows,
        samples=[True] * num_rows,
        new_block_ids=[list(range(row * blocks_each, (row + 1) * blocks_each)) for row in rows],
    )


def count_step_bytes(model: CausalModel, num_rows: int, num_tokens: int) -> int:
    """What a step takes beside weights and cache, for allocators that keep no record.

    The largest tensors are counted: logits of every row twice (sampling sorts a copy), those of the
    prompts' positions that report at a time and as much again for keys in their order, and a
    layer's widest activations.
    """
    layers = (module for module in model.modules() if isinstance(module, Linear))
    widest = max(sum(layer.out_parts) for layer in layers)
    vocab_size = model.shape.vocab_size
    num_reporting = min(num_tokens, num_at_once(vocab_size, torch.device("cpu")))
    num_logits = max(2 * num_rows, 5 * num_reporting) * vocab_size
    return 4 * (num_logits + 4 * num_tokens * widest)
