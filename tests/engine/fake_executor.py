"""A device without a model: rows, a block table per row, and one value per slot of the KV cache.

The value in a slot depends on its token and on every slot before it, as the row's block table
gives them, and so does each sampled token. A block that is shared wrongly, reused too early or
missing therefore gives other tokens than `expected_tokens`, which never looks at a slot.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np

from octavo.types import (
    EngineInfo,
    KVCacheLayout,
    PositionLogprobs,
    RowInit,
    StepMasks,
    StepPlan,
    StepResult,
    TokenLogprob,
    WorkModel,
)

MASK = 2**64 - 1


def _mix(state: int, value: int) -> int:
    state = (state ^ (value + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & MASK
    return state ^ (state >> 29)


def _sample(state: int, seed: int, position: int, vocab_size: int) -> int:
    content = b"%d %d %d" % (state, seed, position)
    return int.from_bytes(blake2b(content, digest_size=8).digest(), "little") % vocab_size


def _read(values: list[int]) -> int:
    state = 1
    for value in values:
        state = _mix(state, value)
    return state


def expected_tokens(prompt: list[int], seed: int, count: int, vocab_size: int = 1000) -> list[int]:
    """What a right engine makes of a prompt, end-of-sequence apart."""
    tokens, values = list(prompt), []
    for index in range(len(prompt) + count - 1):
        values.append(_mix(_read(values), tokens[index]))
        if index >= len(prompt) - 1:
            tokens.append(_sample(_read(values), seed, index + 1, vocab_size))
    return tokens[len(prompt) :]


def allowed_tokens(masks: StepMasks, vocab_size: int) -> dict[int, list[int]]:
    """Each masked row's tokens."""
    shape = (len(masks.rows), -(-vocab_size // 32) * 4)
    words = np.frombuffer(masks.bits, np.uint8).reshape(shape)
    bits = np.unpackbits(words, axis=1, bitorder="little")
    return {
        row: np.flatnonzero(row_bits).tolist()
        for row, row_bits in zip(masks.rows, bits, strict=True)
    }


@dataclass
class Row:
    init: RowInit
    tokens: list[int]
    blocks: list[int] = field(default_factory=list)
    num_computed: int = 0


class FakeExecutor:
    """An `Executor` that runs each step when it is submitted.

    Attributes:
        plans: every plan submitted.
        fail_steps: ids of steps that fail, after they spoilt what they wrote.
    """

    def __init__(
        self,
        *,
        num_blocks: int = 64,
        block_size: int = 4,
        max_num_seqs: int = 8,
        max_model_len: int = 64,
        vocab_size: int = 1000,
        work: WorkModel | None = None,
    ) -> None:
        self.info = EngineInfo(
            architecture="Fake",
            dtype="int",
            device="none",
            vocab_size=vocab_size,
            max_model_len=max_model_len,
            kv_cache=KVCacheLayout(num_blocks, block_size, 0),
            startup_s={},
            work=work,
        )
        self.block_size = block_size
        self.max_num_seqs = max_num_seqs
        self.slots: list[int | None] = [None] * (num_blocks * block_size)
        self.rows: dict[int, Row] = {}
        self.plans: list[StepPlan] = []
        self.fail_steps: set[int] = set()

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        self.plans.append(plan)
        future: Future[StepResult] = Future()
        if masks is None:
            self._finish(plan, StepMasks([], b""), future)
        else:

            def go_on(done: Future[StepMasks]) -> None:
                self._finish(plan, done.result(), future)

            masks.add_done_callback(go_on)
        return future

    def _finish(self, plan: StepPlan, masks: StepMasks, future: Future[StepResult]) -> None:
        sampled = self._run(plan, allowed_tokens(masks, self.info.vocab_size))
        told = self._prompt_logprobs(plan)
        if plan.step_id in self.fail_steps:
            for row in plan.rows:
                self.rows.pop(row, None)
            future.set_exception(RuntimeError("planted failure"))
        else:
            future.set_result(StepResult(plan.step_id, sampled, [], 1000, told))

    def _prompt_logprobs(self, plan: StepPlan) -> list[list[PositionLogprobs] | None]:
        """A token's log-probability is minus its position."""
        told: list[list[PositionLogprobs] | None] = []
        for row, begin, count in zip(
            plan.rows, plan.num_computed_tokens, plan.num_new_tokens, strict=True
        ):
            known = self.rows.get(row)  # none, if an earlier step failed and nobody knew
            if known is None or known.init.params.prompt_logprobs is None:
                told.append(None)
                continue
            init = known.init
            end = min(begin + count, init.num_prompt_tokens - 1)
            told.append(
                [
                    PositionLogprobs(TokenLogprob(init.token_ids[i], -float(i), 1), [])
                    for i in range(begin + 1, end + 1)
                ]
            )
        return told if any(entry is not None for entry in told) else []

    def close(self) -> None:
        self.rows.clear()

    def _run(self, plan: StepPlan, allowed: dict[int, list[int]]) -> list[int]:
        assert not plan.is_empty
        assert len(set(plan.rows)) == len(plan.rows)
        for init in plan.new_rows:
            assert 0 <= init.row < self.max_num_seqs
            assert init.row in plan.rows
            self.rows[init.row] = Row(init, list(init.token_ids))
        sampled: list[int] = []
        written: dict[int, int] = {}
        fails = plan.step_id in self.fail_steps
        for row_id, num_computed, num_new, samples, blocks in zip(
            plan.rows,
            plan.num_computed_tokens,
            plan.num_new_tokens,
            plan.samples,
            plan.new_block_ids,
            strict=True,
        ):
            row = self.rows.get(row_id)
            if row is None:
                # A step planned before the host knew that an earlier one had failed.
                sampled += [0] * samples
                continue
            is_new = any(init.row == row_id for init in plan.new_rows)
            assert is_new or num_computed == row.num_computed
            row.blocks += blocks
            end = num_computed + num_new
            assert num_new >= 1
            assert end <= len(row.tokens)
            assert samples == (end == len(row.tokens))
            for position in range(num_computed, end):
                slot = self._slot(row, position)
                assert written.setdefault(slot, row_id) == row_id, "two rows write one slot"
                value = _mix(self._state(row, position), row.tokens[position])
                self.slots[slot] = -1 if fails else value
            row.num_computed = end
            if samples:
                state = self._state(row, end)
                token = _sample(state, row.init.seed, end, self.info.vocab_size)
                if row_id in allowed:
                    token = allowed[row_id][token % len(allowed[row_id])]
                row.tokens.append(token)
                sampled.append(token)
        return sampled

    def _slot(self, row: Row, position: int) -> int:
        block, offset = divmod(position, self.block_size)
        return row.blocks[block] * self.block_size + offset

    def _state(self, row: Row, end: int) -> int:
        values = [self.slots[self._slot(row, position)] for position in range(end)]
        assert None not in values, "a slot is read before it is written"
        return _read([value for value in values if value is not None])
