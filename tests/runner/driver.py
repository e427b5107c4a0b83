"""Plans without a scheduler: a test says how each row's tokens are cut into steps."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np

from octavo.runner.masks import num_mask_words
from octavo.types import RowInit, SamplingParams, StepMasks, StepPlan

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def make_init(
    row: int,
    token_ids: Sequence[int],
    params: SamplingParams,
    *,
    num_prompt_tokens: int | None = None,
    seed: int = 0,
    bad_words: Sequence[Sequence[int]] = (),
    stop_token_ids: Sequence[int] = (),
) -> RowInit:
    """A row's beginning; without `num_prompt_tokens` all tokens are the prompt."""
    num = len(token_ids) if num_prompt_tokens is None else num_prompt_tokens
    words = [list(word) for word in bad_words]
    return RowInit(row, list(token_ids), num, params, seed, list(stop_token_ids), words)


class Planner:
    """Makes the plans of steps in order. Each row has blocks of its own, used again by its next
    owner.

    Args:
        block_size: tokens of a block.
        blocks_each: most blocks of a row.
    """

    def __init__(self, block_size: int, blocks_each: int) -> None:
        self._block_size, self._blocks_each = block_size, blocks_each
        self._step_ids = itertools.count()
        self._num_tokens: dict[int, int] = {}
        self._num_computed: dict[int, int] = {}
        self._num_blocks: dict[int, int] = {}

    def plan(self, counts: Mapping[int, int], new: Sequence[RowInit] = ()) -> StepPlan:
        """A step that computes so many tokens of each row; a row samples when none is left."""
        for init in new:
            self._num_tokens[init.row] = len(init.token_ids)
            self._num_computed[init.row] = self._num_blocks[init.row] = 0
        rows, samples, new_block_ids = list(counts), [], []
        computed = [self._num_computed[row] for row in rows]
        for row, num in counts.items():
            self._num_computed[row] += num
            ends = self._num_computed[row]
            assert ends <= self._num_tokens[row]
            samples.append(ends == self._num_tokens[row])
            self._num_tokens[row] += samples[-1]
            most = -(-ends // self._block_size)
            assert most <= self._blocks_each
            first = row * self._blocks_each
            new_block_ids.append(list(range(first + self._num_blocks[row], first + most)))
            self._num_blocks[row] = most
        return StepPlan(
            next(self._step_ids), list(new), rows, computed, list(counts.values()), samples,
            new_block_ids,
        )  # fmt: skip


def make_masks(allowed: Mapping[int, Sequence[int]], vocab_size: int) -> StepMasks:
    """The masks that allow each row these tokens, bit by bit as `StepMasks` has it."""
    words = np.zeros((len(allowed), num_mask_words(vocab_size)), np.uint32)
    for place, token_ids in enumerate(allowed.values()):
        for token_id in token_ids:
            words[place, token_id // 32] |= np.uint32(1 << token_id % 32)
    return StepMasks(list(allowed), words.tobytes())
