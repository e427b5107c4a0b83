"""Steps that nobody asked for: the largest one, whose memory is measured, and the first ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.layers.linear import Linear
from octavo.types import RowInit, SamplingParams, StepPlan

if TYPE_CHECKING:
    from octavo.models.base import CausalModel

_SORTED = SamplingParams(temperature=1.0, top_p=0.9, max_tokens=None)
_UNSORTED = SamplingParams(temperature=1.0, min_p=0.1, max_tokens=None)


def random_step(num_rows: int, length: int, blocks_each: int, num_sorted: int) -> StepPlan:
    """A prefill of `length` tokens in each row, sampled at random, with truncation.

    Args:
        num_rows: of the batch, all new.
        length: tokens of each.
        blocks_each: KV blocks of each row, one row's after the other's.
        num_sorted: rows whose sampling sorts the vocabulary.
    """
    rows = list(range(num_rows))
    return StepPlan(
        step_id=-1,
        new_rows=[
            RowInit(row, [0] * length, length, _SORTED if row < num_sorted else _UNSORTED, row, [])
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

    The largest tensors are counted: logits of every row twice (sampling sorts a copy), and a
    layer's widest activations.
    """
    layers = (module for module in model.modules() if isinstance(module, Linear))
    widest = max(sum(layer.out_parts) for layer in layers)
    return 4 * (2 * num_rows * model.shape.vocab_size + 4 * num_tokens * widest)
