"""Changed logits, masks and prompts' log-probabilities of queued steps against eager ones.

Without a GPU the kernels run in Triton's interpreter, and graphs are computations run anew. Steps
are launched before the tokens of those before them are known.
"""

from __future__ import annotations

from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from octavo.runner import changed_logits
from octavo.runner.device_step import DeferredStep
from octavo.runner.executor import StreamExecutor
from octavo.types import PositionLogprobs, SamplingParams, StepMasks, StepPlan, StepResult
from tests.runner.driver import Planner, make_init, make_masks
from tests.runner.test_queued_steps import HAS_GPU, SHAPES, make_runner

if TYPE_CHECKING:
    from octavo.runner.runner import ModelRunner
    from octavo.types import RowInit
    from tests.conftest import TinyLlama

VOCAB_SIZE = 384
ROWS = 5


@pytest.fixture(autouse=True)
def has_triton() -> None:
    # Older interpreters fail under numpy 2.4, which no longer makes numbers of arrays.
    pytest.importorskip("triton", minversion="3.8", reason="triton >= 3.8 is not installed")
    if HAS_GPU:
        pytest.skip("the kernels are compiled in this process")


def prompt_of(row: int) -> list[int]:
    tokens: list[int] = np.random.default_rng(row).integers(3, 300, 3 + row).tolist()
    return tokens


def inits(generated: dict[int, list[int]] | None = None) -> list[RowInit]:
    """Row 0 is free, the others change their logits in all ways."""
    greedy = {"temperature": 0.0, "max_tokens": None}
    all_params = [
        SamplingParams(**greedy, logprobs=1),
        SamplingParams(**greedy, repetition_penalty=1.4, frequency_penalty=0.3),
        SamplingParams(**greedy, presence_penalty=-1.5, logit_bias={9: 3.0, 500: 1.0}, logprobs=2),
        SamplingParams(**greedy, allowed_token_ids=[8, 9, 10, 11, 12], frequency_penalty=2.0),
        SamplingParams(**greedy, min_tokens=3, prompt_logprobs=3, presence_penalty=0.2),
    ]
    words = {3: [[8], [9, 10], [10, 9, 11], [4, 5, 6, 7, 8, 9]]}
    made = []
    for row, params in enumerate(all_params):
        prompt = prompt_of(row)
        tokens = prompt + (generated or {}).get(row, [])
        made.append(make_init(row, tokens, params, num_prompt_tokens=len(prompt),
                              bad_words=words.get(row, []), stop_token_ids=[13]))  # fmt: skip
    return made


def plans() -> list[tuple[StepPlan, StepMasks | None]]:
    """Prompts, some in parts; decodes, some under masks; two rows begin anew, as preempted ones."""
    planner = Planner(block_size=4, blocks_each=4)
    first, again = inits(), inits({1: [20, 21, 20], 4: [30, 13, 30]})
    masks: list[dict[int, Any]] = [
        {}, {0: [5, 6], 4: [13, 14, 30]}, {1: range(40, 90)}, {3: [9, 10], 1: [7]},
    ]  # fmt: skip
    steps: list[tuple[StepPlan, StepMasks | None]] = [
        (planner.plan({0: 3, 1: 4, 2: 2, 4: 4}, [first[i] for i in (0, 1, 2, 4)]), None),
        (planner.plan({0: 1, 1: 1, 2: 3, 3: 6, 4: 3}, [first[3]]), make_masks({1: [17]}, 384)),
    ]
    for mask in masks:
        allowed = {row: list(ids) for row, ids in sorted(mask.items())}
        steps.append((planner.plan(dict.fromkeys(range(ROWS), 1)), make_masks(allowed, 384)))
    steps.append((planner.plan({1: 7, 4: 4, 0: 1}, [again[1], again[4]]), None))
    steps.append((planner.plan({4: 6, 1: 1, 2: 1}), make_masks({4: [1, 2, 13]}, 384)))
    steps.append((planner.plan(dict.fromkeys(range(ROWS), 1)), None))
    return steps


def set_later(launched: Any, masks: Future[StepMasks] | None, found: StepMasks | None) -> Any:
    if masks is not None:
        assert isinstance(launched, DeferredStep)
        assert not launched.is_queued
        assert found is not None
        masks.set_result(found)
        assert launched.is_queued
    return launched


def rounded(result: StepResult) -> list[Any]:
    def entry(found: PositionLogprobs | None) -> Any:
        if found is None:
            return None
        every = [found.sampled, *found.top]
        return [(one.token_id, round(one.logprob, 3), one.rank) for one in every]

    return [
        result.token_ids,
        [entry(found) for found in result.logprobs],
        [found and [entry(each) for each in found] for found in result.prompt_logprobs],
    ]


def run_ahead(runner: ModelRunner) -> list[StepResult]:
    launched: list[Any] = []
    results: list[StepResult] = []
    for plan, found in plans():
        masks: Future[StepMasks] | None = None if found is None else Future()
        launched.append(set_later(runner.launch(plan, masks), masks, found))
        if len(launched) > 1:
            results.append(launched.pop(0).result())
    return results + [step.result() for step in launched]


@pytest.mark.parametrize("shapes", [(), SHAPES], ids=["kernel by kernel", "graphs"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_same_as_steps_that_are_waited_for(
    tiny_llama: TinyLlama, shapes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = make_runner(tiny_llama(), queued=False)
    expected = []
    for plan, found in plans():
        masks: Future[StepMasks] = Future()
        masks.set_result(found or make_masks({}, VOCAB_SIZE))
        expected.append(eager.execute(plan, masks))
    assert 17 in expected[1].token_ids
    assert expected[0].prompt_logprobs[3]
    assert expected[3].token_ids[4] in (14, 30)  # 13 would end it too early
    # Two rows at a time, so that there are several parts.
    monkeypatch.setattr(changed_logits, "MOST_LOGITS", 2 * VOCAB_SIZE)
    queued = make_runner(tiny_llama(), queued=True, shapes=shapes)
    assert [rounded(r) for r in run_ahead(queued)] == [rounded(r) for r in expected]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_random_rows_stay_within_their_masks_and_cost_the_others_nothing(
    tiny_llama: TinyLlama,
) -> None:
    runner = make_runner(tiny_llama(), queued=True, shapes=SHAPES)
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.6}, {}, {"top_k": 4}, {"presence_penalty": 1.0}]
    made = [
        make_init(row, prompt_of(row), SamplingParams(temperature=1.5, **kind), seed=row)
        for row, kind in enumerate(kinds)
    ]
    allowed = {2: [3, 300], 3: list(range(50, 60)), 4: [1, 2, 383]}
    counts = {row: len(prompt_of(row)) for row in range(ROWS)}
    results = []
    for mask in ({}, allowed):
        planner = Planner(block_size=4, blocks_each=4)
        masks: Future[StepMasks] = Future()
        masks.set_result(make_masks(mask, VOCAB_SIZE))
        results.append(runner.launch(planner.plan(counts, made), masks).result().token_ids)
    assert results[0][:2] == results[1][:2]
    for row, ids in allowed.items():
        assert results[1][row] in ids


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_failed_masks_fail_their_step_alone(tiny_llama: TinyLlama) -> None:
    runner = make_runner(tiny_llama(), queued=True, shapes=SHAPES)
    executor = StreamExecutor(runner)
    planner = Planner(block_size=4, blocks_each=4)
    init = make_init(0, prompt_of(0), SamplingParams(temperature=0.0, repetition_penalty=1.5))
    expected = executor.submit(planner.plan({0: 3}, [init])).result().token_ids
    masks: Future[StepMasks] = Future()
    failed = executor.submit(planner.plan({0: 3}, [init]), masks)
    masks.cancel()
    # Planned before the failure was known: what it computes is ignored.
    ignored = executor.submit(planner.plan({0: 1}))
    with pytest.raises(CancelledError):
        failed.result()
    ignored.result()
    assert executor.submit(planner.plan({0: 3}, [init])).result().token_ids == expected
