"""What crosses from host to device for a step, and back: ints and lists, never tensors.

Knows rows, not requests: what a row is for is the scheduler's.
"""

from __future__ import annotations

import msgspec

from octavo.types.outputs import PositionLogprobs
from octavo.types.sampling import SamplingParams


class RowInit(msgspec.Struct, array_like=True):
    """State that the device must have before a request's first step, or its first after preemption.

    Attributes:
        row: place in the device's request table, 0..max_num_seqs - 1.
        token_ids: every token known so far (the prompt, and what was generated before preemption).
        num_prompt_tokens: how many of them are the prompt.
        params: how to sample.
        seed: the seed in force, the caller's or one drawn at admission; never None.
        stop_token_ids: every id that ends the request (for masking under `min_tokens`).
        bad_words_token_ids: token sequences that must not be completed, of `bad_words`.
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    stop_token_ids: list[int]
    bad_words_token_ids: list[list[int]] = []


class StepPlan(msgspec.Struct, array_like=True):
    """One step, as counts and ids: what the scheduler decided and all that the device needs.

    The four parallel lists hold one entry per scheduled request, in batch order. Token values that
    the device sampled itself are not in here: it has them, so a plan can be made before they reach
    the host.

    Attributes:
        step_id: rises by one with each plan.
        new_rows: rows to (re)initialise before the step.
        rows: the scheduled rows.
        num_computed_tokens: tokens whose KV is already in the cache.
        num_new_tokens: tokens to compute now, >= 1; they are the next ones of the row.
        samples: whether the last of them is the row's last known token, so that one is sampled.
        new_block_ids: blocks appended to the row's block table before the step.
    """

    step_id: int
    new_rows: list[RowInit]
    rows: list[int]
    num_computed_tokens: list[int]
    num_new_tokens: list[int]
    samples: list[bool]
    new_block_ids: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(self.num_new_tokens)

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to run."""
        return not self.rows


class StepMasks(msgspec.Struct, array_like=True):
    """Which tokens the constrained rows of a step may get.

    Attributes:
        rows: some of the plan's rows, of those that sample, in plan order.
        bits: for each of them ceil(vocabulary / 32) words, uint32 in this machine's byte order; bit
            i % 32 of word i // 32 says whether token i is allowed. Each row allows at least one.
    """

    rows: list[int]
    bits: bytes


class StepResult(msgspec.Struct, array_like=True):
    """What a step produced.

    Attributes:
        step_id: the plan's.
        token_ids: one sampled token per scheduled request whose `samples` is true, in plan order.
        logprobs: parallel to `token_ids`; an entry is None where the request asked for none.
            The list is empty when nobody asked.
        device_ns: duration of the step on the device, nanoseconds.
        prompt_logprobs: parallel to the plan's rows: of those that ask for it, what the step
            computed of their prompt's tokens (`SamplingParams.prompt_logprobs`), in order, the
            prompt's first token left out; None for the others. Empty when nobody asked.
        waited_ns: how much of `device_ns` the device waited for masks.
    """

    step_id: int
    token_ids: list[int]
    logprobs: list[PositionLogprobs | None]
    device_ns: int
    prompt_logprobs: list[list[PositionLogprobs] | None] = []
    waited_ns: int = 0
