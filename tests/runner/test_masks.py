"""Masks of constrained rows, on their way from whoever sets them to the sampler."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.config import EngineConfig
from octavo.runner.device_step import DeferredStep, DeviceStep, HostMark
from octavo.runner.executor import InProcessExecutor, StreamExecutor, ThreadExecutor
from octavo.runner.masks import is_forbidden, mask_of, read_masks
from octavo.runner.runner import ModelRunner
from octavo.runner.sampler import SamplerRows, sample
from octavo.types import SamplingParams, StepMasks
from octavo.weights.open import open_checkpoint
from tests.runner.driver import Planner, make_init, make_masks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from octavo.types import StepPlan
    from tests.conftest import TinyLlama

VOCAB_SIZE = 384


@pytest.fixture(params=["in process", "thread"])
def executor(request: pytest.FixtureRequest, tiny_llama: TinyLlama) -> Iterator[Any]:
    path = tiny_llama()
    config = EngineConfig(
        model=str(path), device="cpu", kv_cache_memory=2**20, max_num_seqs=4,
        max_num_batched_tokens=64, block_size=4, num_threads=1,
    )  # fmt: skip
    checkpoint = open_checkpoint(path)
    if request.param == "thread":
        made: Any = ThreadExecutor(config, checkpoint)
    else:
        made = InProcessExecutor(ModelRunner(config, checkpoint))
    checkpoint.close()
    yield made
    made.close()


def done(masks: StepMasks) -> Future[StepMasks]:
    future: Future[StepMasks] = Future()
    future.set_result(masks)
    return future


@settings(deadline=None)
@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 100))
def test_bits_are_tokens(allowed: set[int], vocab_size: int) -> None:
    inside = sorted(token for token in allowed if token < vocab_size)
    masks = make_masks({7: inside, 3: [0]}, vocab_size)
    found = read_masks(masks, np.array([3, 5, 7]), vocab_size)
    assert found.keys() == {0, 2}
    forbidden = is_forbidden(found[2], vocab_size)
    assert np.flatnonzero(~forbidden).tolist() == inside
    assert np.array_equal(mask_of(np.array(sorted(allowed)), vocab_size), found[2])


def test_masks_of_rows_that_do_not_sample_are_left_out() -> None:
    masks = make_masks({1: [0], 2: [5]}, 10)
    assert read_masks(masks, np.array([2]), 10).keys() == {0}
    assert read_masks(masks, np.array([], np.int64), 10) == {}
    assert read_masks(None, np.array([1]), 10) == {}


def test_masks_of_another_vocabulary_are_refused() -> None:
    masks = make_masks({1: [0], 2: [5]}, 64)
    with pytest.raises(ValueError, match="2 rows for a vocabulary of 65 have 24 bytes, not 16"):
        read_masks(masks, np.array([1, 2]), 65)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_free_rows_get_what_they_would_get_alone(data: st.DataObject) -> None:
    """And no masked token is ever sampled, however the constrained rows sample."""
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, logprobs=2),
        SamplingParams(temperature=1.0, top_k=3),
        SamplingParams(temperature=2.0, top_p=0.5),
        SamplingParams(temperature=0.5, min_p=0.2, presence_penalty=1.0),
    ]
    chosen = data.draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=6))
    allowed: dict[int, list[int]] = {}
    for row in range(len(chosen)):
        if data.draw(st.booleans()):
            allowed[row] = sorted(data.draw(st.sets(st.integers(0, 40), min_size=1)))
    n = len(chosen)
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    logits = torch.randn(n, 41, generator=generator) * 3
    state = SamplerRows(n)
    tokens = np.zeros((n, 8), np.int32)
    for row, params in enumerate(chosen):
        state.set(row, make_init(row, [1, 2], params, seed=row))
    rows, positions = np.arange(n), np.full(n, 2)
    masks = read_masks(make_masks(allowed, 41), rows, 41)
    got = sample(logits.clone(), rows, positions, state, tokens, masks)
    free = sample(logits.clone(), rows, positions, state, tokens)
    for row in range(n):
        token = int(got.token_ids[row])
        if row not in allowed:
            assert token == free.token_ids[row]
            continue
        assert token in allowed[row]
        if chosen[row].temperature == 0:
            assert token == max(allowed[row], key=lambda t, row=row: logits[row, t].item())
        if chosen[row].logprobs is not None:
            entry = got.logprobs[row]
            assert entry is not None
            raw = torch.log_softmax(logits[row], dim=-1)
            assert entry.sampled.logprob == pytest.approx(raw[token].item(), abs=1e-5)


def test_masks_may_come_after_submit(executor: Any) -> None:
    """The thread waits for them after the forward pass; in process they are there before."""
    planner = Planner(block_size=4, blocks_each=8)
    greedy = SamplingParams(temperature=0.0, max_tokens=None)
    prompts = [[5, 9, 11, 40], [8, 3]]
    inits = [make_init(row, prompt, greedy) for row, prompt in enumerate(prompts)]
    allowed = {1: [7, 200, 383]}
    free = executor.submit(planner.plan({0: 4, 1: 2}, inits)).result()
    masks: Future[StepMasks] = Future()
    plan = planner.plan({0: 4, 1: 2}, inits)
    if isinstance(executor, InProcessExecutor):
        masks.set_result(make_masks(allowed, VOCAB_SIZE))
    step = executor.submit(plan, masks)
    if not masks.done():
        assert not step.done()
        masks.set_result(make_masks(allowed, VOCAB_SIZE))
    result = step.result(timeout=60)
    assert result.token_ids[0] == free.token_ids[0]
    assert result.token_ids[1] in allowed[1]
    # The sampled token is what the next step goes on with.
    after = executor.submit(planner.plan({0: 1, 1: 1})).result()
    prompts[1].append(result.token_ids[1])
    again = executor.submit(planner.plan({1: 3}, [make_init(1, prompts[1], greedy)])).result()
    assert after.token_ids[1] == again.token_ids[0]


@pytest.mark.parametrize("cancels", [False, True])
def test_failed_masks_fail_their_step_alone(executor: Any, cancels: bool) -> None:
    planner = Planner(block_size=4, blocks_each=8)
    init = make_init(0, [5, 9, 11], SamplingParams(temperature=0.0))
    expected = executor.submit(planner.plan({0: 3}, [init])).result().token_ids
    masks: Future[StepMasks] = Future()
    if cancels:
        masks.cancel()
    else:
        masks.set_exception(RuntimeError("planted"))
    step = executor.submit(planner.plan({0: 3}, [init]), masks)
    with pytest.raises(CancelledError if cancels else RuntimeError):
        step.result(timeout=60)
    executor.submit(planner.plan({0: 3}, [init])).result()
    assert executor.submit(planner.plan({0: 3}, [init])).result().token_ids == expected


def test_closing_does_not_wait_for_masks_that_nobody_sets(tiny_llama: TinyLlama) -> None:
    path = tiny_llama()
    config = EngineConfig(model=str(path), device="cpu", kv_cache_memory=2**20, num_threads=1)
    checkpoint = open_checkpoint(path)
    executor = ThreadExecutor(config, checkpoint)
    checkpoint.close()
    init = make_init(0, [5, 9], SamplingParams())
    step = executor.submit(Planner(16, 1).plan({0: 2}, [init]), Future())
    closing = threading.Thread(target=executor.close)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()
    with pytest.raises(CancelledError):
        step.result(timeout=0)


class FakeRunner:
    """Launches steps as a device with a queue does."""

    info = None
    token_budget = max_num_seqs = 1
    device = torch.device("cpu")

    def __init__(self, finish: Callable[[StepMasks], None]) -> None:
        self._finish = finish

    def launch(self, plan: StepPlan, masks: Future[StepMasks]) -> DeferredStep:
        def finish(found: StepMasks) -> DeviceStep:
            self._finish(found)
            return DeviceStep(plan.step_id, HostMark(), HostMark())

        return DeferredStep(masks, finish)


def test_a_queued_step_goes_on_in_the_thread_that_sets_its_masks() -> None:
    seen: list[tuple[StepMasks, int]] = []
    runner = FakeRunner(lambda masks: seen.append((masks, threading.get_ident())))
    executor = StreamExecutor(runner)  # type: ignore[arg-type]
    masks: Future[StepMasks] = Future()
    step = executor.submit(Planner(4, 1).plan({}), masks)
    assert seen == []
    one = make_masks({0: [1]}, 8)
    masks.set_result(one)
    assert seen == [(one, threading.get_ident())]
    assert step.result().step_id == 0


@pytest.mark.parametrize("where", ["masks", "cancelled", "sampling"])
def test_a_queued_step_fails_with_its_masks(where: str) -> None:
    def fail(masks: StepMasks) -> None:
        raise RuntimeError("planted")

    executor = StreamExecutor(FakeRunner(fail))  # type: ignore[arg-type]
    masks: Future[StepMasks] = Future()
    step = executor.submit(Planner(4, 1).plan({}), masks)
    if where == "masks":
        masks.set_exception(RuntimeError("planted"))
    elif where == "cancelled":
        masks.cancel()
    else:
        masks.set_result(make_masks({}, 8))
    with pytest.raises(CancelledError if where == "cancelled" else RuntimeError):
        step.result()


def test_the_device_tells_how_long_it_waited() -> None:
    paused = HostMark()
    time.sleep(0.01)
    resumed = HostMark()
    step = DeviceStep(1, paused, HostMark(), waited=(paused, resumed)).result()
    assert 10_000_000 <= step.waited_ns <= step.device_ns
    assert DeviceStep(1, paused, resumed).result().waited_ns == 0


def test_done_masks_need_no_waiting(executor: Any) -> None:
    planner = Planner(block_size=4, blocks_each=8)
    init = make_init(2, [5, 9, 11], SamplingParams(temperature=1.0))
    for token in (3, 380):
        masks = done(make_masks({2: [token]}, VOCAB_SIZE))
        step = executor.submit(planner.plan({2: 3}, [init]), masks)
        assert step.result(timeout=60).token_ids == [token]
