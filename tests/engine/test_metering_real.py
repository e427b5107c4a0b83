"""The meter beside a real model, on the host's own clock: the sum is exact whatever happens."""

from __future__ import annotations

from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo import LLM
from octavo.config import EngineConfig
from octavo.engine.core import EngineCore
from octavo.engine.messages import AddPooling, AddRequest
from octavo.engine.pooling import PoolingCore
from octavo.runner.executor import make_executor
from octavo.types import Charge, EngineStats, PoolingParams, SamplingParams
from octavo.weights.open import open_checkpoint
from tests.engine.fake_core import FAKE_WORK
from tests.engine.fake_pooling import FakePoolingExecutor
from tests.engine.test_constraints import CountingGrammars, make_core
from tests.engine.test_constraints import request as bound_request
from tests.engine.test_metering import total_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from octavo.types import StepMasks, StepPlan, StepResult
    from tests.conftest import TinyLlama

EOS = 3


class Faulty:
    """An executor whose chosen steps fail when they have run."""

    def __init__(self, executor: Any) -> None:
        self.executor, self.info = executor, executor.info
        self.token_budget, self.max_num_seqs = executor.token_budget, executor.max_num_seqs
        self.num_steps_ahead = executor.num_steps_ahead
        self.fail_at: set[int] = set()

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        future = self.executor.submit(plan, masks)
        if plan.step_id not in self.fail_at:
            return future
        future.exception()
        failed: Future[StepResult] = Future()
        failed.set_exception(RuntimeError("planted in a real step"))
        return failed

    def close(self) -> None:
        self.executor.close()


@pytest.fixture(params=[False, True], ids=["in step", "ahead"])
def executor(request: pytest.FixtureRequest, tiny_llama: TinyLlama) -> Iterator[Faulty]:
    path = tiny_llama()
    config = EngineConfig(
        model=str(path),
        device="cpu",
        kv_cache_memory=2**16,
        block_size=4,
        max_num_seqs=6,
        max_num_batched_tokens=48,
        num_threads=1,
        async_scheduling=request.param,
        max_model_len=96,
    )
    checkpoint = open_checkpoint(path)
    made = Faulty(make_executor(config, checkpoint))
    checkpoint.close()
    yield made
    made.close()


def check(stats: EngineStats) -> None:
    time = stats.device_time
    assert time.num_devices == 1
    assert total_of(time) - time.wall_ns == 0
    buckets = msgspec.structs.asdict(time)
    assert min(buckets.values()) >= 0


def test_all_time_is_somewhere_whatever_happens(executor: Faulty) -> None:
    core = EngineCore.from_config(executor, EngineConfig(model=""))
    core.ready(0)
    charges: dict[str, Charge] = {}
    prefix = list(range(10, 34))
    executor.fail_at = {40}
    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        for output in core.step():
            if output.finish_reason is not None:
                assert output.charge is not None
                assert charges.setdefault(output.request_id, output.charge) is output.charge
        for name, charge in core.take_charges():
            assert charges.setdefault(name, charge) is charge
        check(core.stats)
        num_steps += 1

    def add(name: str, prompt: list[int], max_tokens: int) -> None:
        params = SamplingParams(max_tokens=max_tokens, seed=1, ignore_eos=True)
        core.add(AddRequest(name, prompt, params, [EOS]))

    for index in range(12):
        add(f"r{index}", [*prefix, 40 + index], 50)
    for _ in range(6):
        step()
    core.abort(["r1", "r11"])
    for index in range(12, 16):
        add(f"r{index}", [50 + index], 20)
    while core.has_work:
        step()
    stats = core.stats
    time = stats.device_time
    assert set(charges) == {f"r{index}" for index in range(16)}
    assert sum(charge.total_ns for charge in charges.values()) == time.requests_ns
    assert stats.num_preemptions > 0
    assert stats.prefix_cache_hits > 0
    assert any(charge.waste_ns for charge in charges.values())
    assert charges["r11"] == Charge()  # it had waited
    assert charges["r1"].total_ns > 0
    assert time.failed_ns > 0
    assert time.startup_ns > 0
    assert (time.run_ahead_ns > 0) == (executor.num_steps_ahead > 0)  # behind the failed step
    assert time.requests_ns > 0.2 * (time.wall_ns - time.startup_ns - time.idle_ns)


def test_a_library_call_tells_what_each_prompt_cost(tiny_llama: TinyLlama) -> None:
    options: dict[str, Any] = {"kv_cache_memory": 2**20, "num_threads": 1, "device": "cpu"}
    prompts: Any = [{"prompt_token_ids": [5 + n] * (1 + 20 * n)} for n in range(3)]
    stops = SamplingParams(max_tokens=12, seed=1, temperature=1.0, stop=["a", "e", "1", "t", "i"])
    llm = LLM(str(tiny_llama()), async_scheduling=True, **options)
    outputs = llm.generate(prompts, SamplingParams(max_tokens=6, ignore_eos=True))
    outputs += llm.generate(prompts * 3, stops)
    charges = [output.charge for output in outputs]
    assert all(charge is not None and charge.total_ns > 0 for charge in charges)
    assert sum(c.total_ns for c in charges if c) == llm.stats.device_time.requests_ns
    assert charges[0] is not None
    assert charges[0].prefill_ns < charges[2].prefill_ns  # type: ignore[union-attr]
    *_, last = llm.stream(prompts[0], SamplingParams(max_tokens=4, ignore_eos=True))
    assert last.charge is not None
    check(llm.stats)
    llm.close()

    llm = LLM(str(tiny_llama()), metering=False, **options)
    [output] = llm.generate(prompts[:1], SamplingParams(max_tokens=2))
    assert output.charge is None
    assert llm.info.work is None
    assert llm.stats.device_time.num_devices == 0
    llm.close()


def test_vectors_are_metered_alike() -> None:
    executor = FakePoolingExecutor(step_s=0.001)
    executor.info = msgspec.structs.replace(executor.info, work=FAKE_WORK)
    core = PoolingCore(executor)
    core.ready(0)
    for index in range(20):
        core.add(AddPooling(f"r{index}", [1] * (1 + index % 6), PoolingParams()))
    core.add(AddPooling("fails", [13], PoolingParams()))
    core.abort(["r3", "unknown"])
    check(core.stats)
    assert core.take_charges() == [("r3", Charge())]
    charges: dict[str, Charge | None] = {}
    while core.has_work:
        for output in core.step():
            charges[output.request_id] = output.charge
        check(core.stats)
    assert len(charges) == 20
    assert charges["fails"] == Charge()
    paid = [charge for charge in charges.values() if charge and charge.total_ns]
    assert all(charge.decode_ns == charge.waste_ns == 0 for charge in paid)
    time = core.stats.device_time
    assert sum(charge.total_ns for charge in paid) == time.requests_ns > 0
    assert time.failed_ns > 500_000


@pytest.mark.parametrize("model", ["minilm_path", "gemma_path"])
def test_the_work_of_real_models_is_that_of_their_shapes(
    model: str, request: pytest.FixtureRequest
) -> None:
    """Against the sizes that the models' authors publish."""
    from octavo.runner.pooling import PoolingRunner
    from octavo.runner.runner import ModelRunner
    from octavo.runner.tasks import is_pooled

    path: Path = request.getfixturevalue(model)
    config = EngineConfig(model=str(path), device="cpu", num_threads=1)
    if model == "gemma_path":
        config = msgspec.structs.replace(
            config, kv_cache_memory=2**24, load_format="decoded", dtype="float32"
        )
    checkpoint = open_checkpoint(path)
    kind = PoolingRunner if is_pooled(config, checkpoint) else ModelRunner
    work = kind(config, checkpoint).info.work
    checkpoint.close()
    assert work is not None
    body, head = work.flops_per_token / 2e6, work.flops_per_sample / 2e6
    if model == "minilm_path":  # 6 layers of 384, 22.7 M in all, 11.9 M of them embeddings
        assert (round(body, 1), head, work.is_causal) == (10.6, 0, False)
    else:  # 100 M in transformer blocks, 168 M in embeddings
        assert (round(body), round(head)) == (100, 168)
        assert {kind.window for kind in work.attention} == {None, 512}
        assert sum(kind.bytes_per_token for kind in work.attention) == 18 * 2 * 256 * 4
    assert work.flops_per_s > 1e9
    assert work.bytes_per_s > 1e8


@pytest.mark.parametrize("ahead", [0, 1])
def test_bound_outputs_are_metered_and_their_waits_have_a_bucket(ahead: int) -> None:
    """Ends that grammars bring, grammars that fail, and aborts while one is compiled."""
    grammars = CountingGrammars()
    core = make_core(ahead, grammars, work=FAKE_WORK)
    for index in range(8):
        core.add(bound_request(f"b{index}", [index, 2, 3], 20, choice=["3"]))
        core.add(bound_request(f"f{index}", [index, 2, 3], 5))
    core.add(bound_request("fails", [1], 20, choice=["9", "2"]))
    core.add(bound_request("wrong", [1], 20, regex="("))
    core.step()
    check(core.stats)
    grammars.gate.clear()
    core.add(bound_request("gone", [1], 20, choice=["3"]))
    core.abort(["gone", "f0"])
    grammars.gate.set()
    charges: dict[str, Charge | None] = {}
    while core.has_work:
        for output in core.step():
            if output.finish_reason is not None:
                assert output.request_id not in charges
                charges[output.request_id] = output.charge
        check(core.stats)
    core.close()
    aborted = dict(core.take_charges())
    assert set(aborted) == {"gone", "f0"}
    assert aborted["gone"] == charges["wrong"] == Charge()
    assert len(charges) == 17
    time = core.stats.device_time
    paid = [*charges.values(), *aborted.values()]
    assert sum(charge.total_ns for charge in paid if charge) == time.requests_ns
    assert time.grammar_ns > 0
    assert time.run_ahead_ns > 0  # a grammar fails when its step is planned already
