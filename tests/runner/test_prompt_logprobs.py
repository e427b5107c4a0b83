"""Log-probabilities of prompts against transformers' logits, however the prompts are cut."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from octavo.config import EngineConfig
from octavo.runner import prompt_logprobs
from octavo.runner.runner import ModelRunner
from octavo.types import PositionLogprobs, SamplingParams
from octavo.weights.open import open_checkpoint
from tests.runner.driver import Planner, make_init

if TYPE_CHECKING:
    from octavo.types import RowInit, StepResult
    from tests.conftest import TinyLlama

BLOCK_SIZE, BLOCKS_EACH = 4, 8
PROMPTS = [np.random.default_rng(seed).integers(3, 380, n).tolist()
           for seed, n in enumerate([13, 1, 2, 21])]  # fmt: skip
ASKED = [2, 5, 0, 20]


@pytest.fixture(scope="module")
def runner(tiny_llama: TinyLlama) -> ModelRunner:
    path = tiny_llama()
    config = EngineConfig(
        model=str(path), device="cpu", kv_cache_memory=2**20, max_num_seqs=4,
        max_num_batched_tokens=64, block_size=BLOCK_SIZE, num_threads=1,
    )  # fmt: skip
    checkpoint = open_checkpoint(path)
    made = ModelRunner(config, checkpoint)
    checkpoint.close()
    return made


@pytest.fixture(scope="module")
def expected(tiny_llama: TinyLlama) -> list[torch.Tensor]:
    """Log-softmax of each prompt's logits."""
    model = AutoModelForCausalLM.from_pretrained(tiny_llama(), dtype=torch.float32)
    with torch.inference_mode():
        return [torch.log_softmax(model(torch.tensor([p])).logits[0], dim=-1) for p in PROMPTS]


def init_of(row: int, generated: int = 0) -> RowInit:
    params = SamplingParams(temperature=0.0, prompt_logprobs=ASKED[row])
    tokens = PROMPTS[row] + [7] * generated
    return make_init(row, tokens, params, num_prompt_tokens=len(PROMPTS[row]))


def check(row: int, entries: list[PositionLogprobs], expected: torch.Tensor) -> None:
    prompt = PROMPTS[row]
    assert len(entries) == len(prompt) - 1
    for entry, token, logprobs in zip(entries, prompt[1:], expected, strict=False):
        assert entry.sampled.token_id == token
        assert entry.sampled.logprob == pytest.approx(logprobs[token].item(), abs=1e-3)
        higher = int((logprobs > logprobs[token] + 1e-4).sum())
        assert higher < entry.sampled.rank <= 1 + int((logprobs > logprobs[token] - 1e-4).sum())
        top = logprobs.topk(ASKED[row]).values.tolist()
        assert [one.logprob for one in entry.top] == pytest.approx(top, abs=1e-3)
        for one in entry.top:
            assert one.logprob == pytest.approx(logprobs[one.token_id].item(), abs=1e-3)


class Collected:
    """What steps report, by row."""

    def __init__(self) -> None:
        self.entries: dict[int, list[PositionLogprobs]] = {row: [] for row in range(len(PROMPTS))}

    def take(self, rows: list[int], result: StepResult) -> None:
        if not result.prompt_logprobs:
            return
        for row, entries in zip(rows, result.prompt_logprobs, strict=True):
            self.entries[row] += entries or []


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.data())
def test_all_chunkings(
    runner: ModelRunner, expected: list[torch.Tensor], monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:  # fmt: skip
    """Steps mix prompts with each other and with rows that go on; pieces may be of any size."""
    monkeypatch.setattr(prompt_logprobs, "MOST_POSITIONS", data.draw(st.sampled_from([1, 3, 256])))
    planner, collected = Planner(BLOCK_SIZE, BLOCKS_EACH), Collected()
    left = {row: len(prompt) for row, prompt in enumerate(PROMPTS)}
    new, step = set(left), 0
    delays = data.draw(st.tuples(*[st.integers(0, 2)] * len(PROMPTS)))
    while any(left.values()):
        counts = {}
        for row, num in left.items():
            if num == 0:
                counts[row] = 1  # a decode
            elif step >= delays[row]:
                left[row] = data.draw(st.integers(0, num - 1))
                counts[row] = num - left[row]
        step += 1
        if not counts:
            continue
        plan = planner.plan(counts, [init_of(row) for row in sorted(new & counts.keys())])
        new -= counts.keys()
        collected.take(plan.rows, runner.execute(plan))
    for row, entries in collected.entries.items():
        check(row, entries, expected[row])


def test_a_preempted_row_reports_its_prompt_again(
    runner: ModelRunner, expected: list[torch.Tensor]
) -> None:
    """And nothing of what it had generated."""
    planner, collected = Planner(BLOCK_SIZE, BLOCKS_EACH), Collected()
    new = [init_of(0, generated=6)]
    for num, first in ((10, new), (7, []), (2, []), (1, [])):
        plan = planner.plan({0: num}, first)
        result = runner.execute(plan)
        collected.take(plan.rows, result)
        if num < 7:
            assert result.prompt_logprobs == []
    check(0, collected.entries[0], expected[0])


def test_tokens_are_what_they_are_without(runner: ModelRunner) -> None:
    planner = Planner(BLOCK_SIZE, BLOCKS_EACH)
    asking = [init_of(row) for row in range(4)]
    counts = {row: len(prompt) for row, prompt in enumerate(PROMPTS)}
    with_reports = runner.execute(planner.plan(counts, asking))
    greedy = SamplingParams(temperature=0.0)
    plain = [make_init(row, prompt, greedy) for row, prompt in enumerate(PROMPTS)]
    without = runner.execute(planner.plan(counts, plain))
    assert with_reports.token_ids == without.token_ids
    assert without.prompt_logprobs == []
    assert [entries is None for entries in with_reports.prompt_logprobs] == [
        False, True, False, False,
    ]  # fmt: skip


def test_only_those_who_ask_are_reported(runner: ModelRunner) -> None:
    """A row forgets that its last owner asked."""
    planner = Planner(BLOCK_SIZE, BLOCKS_EACH)
    quiet = make_init(0, PROMPTS[0], SamplingParams(temperature=0.0))
    counts = {0: 13, 3: 5}
    result = runner.execute(planner.plan(counts, [quiet, init_of(3)]))
    assert result.prompt_logprobs[0] is None
    assert len(result.prompt_logprobs[1] or []) == 5
    assert len(result.token_ids) == 1


@pytest.mark.parametrize(("vocab_size", "device"), [(384, "cpu"), (262_144, "cpu"),
                                                   (131_072, "cuda"), (10**8, "cuda")])  # fmt: skip
def test_the_logits_of_a_piece_are_bounded(vocab_size: int, device: str) -> None:
    num = prompt_logprobs.num_at_once(vocab_size, torch.device(device))
    assert 1 <= num <= prompt_logprobs.MOST_POSITIONS
    assert num == 1 or num * vocab_size <= prompt_logprobs.MOST_LOGITS
