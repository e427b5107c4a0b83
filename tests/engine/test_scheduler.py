"""Single decisions of the scheduler, above all under pressure and with steps in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.policy import Policy, PriorityPolicy
from octavo.engine.request import Request, RequestStatus
from octavo.engine.scheduler import Scheduler
from octavo.errors import EngineError
from octavo.types import SamplingParams, StepResult
from tests.engine.fake_executor import FakeExecutor, expected_tokens

if TYPE_CHECKING:
    from octavo.engine.messages import TokenOutput
    from octavo.types import StepPlan


class Bench:
    """A scheduler and a device; steps run when they are planned, and are updated when asked."""

    def __init__(
        self,
        num_blocks: int,
        *,
        block_size: int = 1,
        budget: int = 100,
        max_num_seqs: int = 8,
        policy: Policy | None = None,
    ) -> None:
        self.executor = FakeExecutor(num_blocks=num_blocks, block_size=block_size)
        self.scheduler = Scheduler(
            KVCacheManager(num_blocks, block_size),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=64,
            policy=policy,
        )
        self.got: dict[str, list[int]] = {}

    def add(self, name: str, prompt: list[int], max_tokens: int = 8, priority: int = 0) -> Request:
        params = SamplingParams(max_tokens=max_tokens)
        request = Request(name, prompt, params, seed=1, priority=priority)
        self.scheduler.add(request)
        return request

    def plan(self) -> tuple[StepPlan, StepResult | None]:
        plan = self.scheduler.plan()
        self.scheduler.check_integrity()
        return plan, None if plan.is_empty else self.executor.submit(plan).result()

    def update(self, step: tuple[StepPlan, StepResult | None]) -> list[TokenOutput]:
        plan, result = step
        assert result is not None
        outputs = self.scheduler.update(plan, result)
        self.scheduler.check_integrity()
        for output in outputs:
            self.got.setdefault(output.request_id, []).extend(output.token_ids)
        return outputs

    def step(self) -> StepPlan:
        step = self.plan()
        self.update(step)
        return step[0]

    def finish(self, *requests: Request) -> None:
        while self.scheduler.has_work:
            self.step()
        for request in requests:
            prompt = request.token_ids[: request.num_prompt_tokens].tolist()
            # The cache may be too small for all of them.
            count = min(8, self.scheduler.kv_cache.num_tokens + 1 - len(prompt))
            assert self.got[request.request_id] == expected_tokens(prompt, 1, count)


def test_the_cheapest_of_the_later_requests_is_preempted() -> None:
    bench = Bench(13)
    first = bench.add("first", [1, 2, 3])
    short = bench.add("short", [4, 5])
    long = bench.add("long", [6, 7, 8, 9, 10])
    bench.step()
    bench.step()
    assert bench.scheduler.kv_cache.num_free_blocks == 0
    plan = bench.step()
    assert plan.rows == [first.row, long.row]
    assert (short.status, short.num_preemptions) == (RequestStatus.WAITING, 1)
    bench.finish(first, short, long)


def test_the_last_in_order_preempts_itself_rather_than_an_earlier_one() -> None:
    bench = Bench(9)
    first, last = bench.add("first", [1, 2, 3]), bench.add("last", [4, 5, 6, 7])
    bench.step()
    bench.step()
    plan = bench.step()
    assert plan.rows == [first.row]
    assert last.num_preemptions == 1
    bench.finish(first, last)
    assert first.num_preemptions == 0


def test_a_victim_in_the_midst_of_its_prompt_is_not_scheduled_too() -> None:
    bench = Bench(12, budget=3)
    decode, prompt = bench.add("decode", [1, 2]), bench.add("prompt", [3, 4, 5, 6, 7, 8, 9, 10])
    for _ in range(3):
        bench.step()
    assert prompt.num_computed_tokens == 5
    plan = bench.step()
    assert plan.num_new_tokens == [1]
    assert prompt.status is RequestStatus.WAITING
    bench.finish(decode, prompt)


def test_a_newcomer_leaves_each_running_request_a_block() -> None:
    bench = Bench(8)
    a = bench.add("a", [1, 2, 3])
    bench.step()
    b = bench.add("b", [4, 5, 6, 7])
    bench.step()
    # Four were free, and a needed one of them: three are not enough for b and one to spare.
    assert b.status is RequestStatus.WAITING
    assert b.num_preemptions == 0
    bench.finish(a, b)


def test_a_preempted_request_waits_for_its_token_in_flight() -> None:
    bench = Bench(9)
    first, last = bench.add("first", [1, 2, 3]), bench.add("last", [4, 5, 6, 7])
    bench.step()
    in_flight = bench.plan()
    preempting = bench.plan()
    assert last.status is RequestStatus.WAITING
    bench.scheduler.abort("first")
    assert bench.plan()[0].is_empty
    assert [output.request_id for output in bench.update(in_flight)] == ["last"]
    assert bench.update(preempting) == []
    plan = bench.step()
    assert plan.new_rows[0].token_ids == [4, 5, 6, 7, *bench.got["last"][:2]]
    assert first.status is RequestStatus.FINISHED
    bench.finish(last)


def test_a_result_from_before_a_preemption_commits_no_block() -> None:
    bench = Bench(10, budget=3)
    bench.add("decode", [1, 2])
    prompt = bench.add("prompt", [3, 4, 5, 6, 7, 8])
    bench.step()
    bench.step()
    in_flight = bench.plan()
    assert prompt.num_computed_tokens == 5
    preempting = bench.plan()
    assert prompt.status is RequestStatus.WAITING
    bench.scheduler.kv_cache.reset_prefix_cache()
    bench.scheduler.abort("decode")
    again = bench.plan()
    assert again[0].num_new_tokens == [3]
    bench.update(in_flight)
    bench.update(preempting)
    other = Request("other", [3, 4, 5, 6, 7, 8, 9], SamplingParams(), seed=0)
    assert bench.scheduler.kv_cache.find_prefix(other) == []
    bench.update(again)
    assert len(bench.scheduler.kv_cache.find_prefix(other)) == 3
    bench.finish(prompt)


def test_a_request_of_higher_priority_takes_blocks_from_a_lower_one() -> None:
    bench = Bench(11, policy=PriorityPolicy())
    low = bench.add("low", [1, 2, 3, 4], priority=1)
    bench.step()
    high = bench.add("high", [5, 6, 7], priority=0)
    while high.status is not RequestStatus.FINISHED:
        bench.step()
    assert (low.num_preemptions > 0, high.num_preemptions) == (True, 0)
    bench.finish(low, high)


def test_no_more_requests_run_than_the_budget_serves() -> None:
    bench = Bench(64, budget=3)
    requests = [bench.add(f"r{i}", [i]) for i in range(6)]
    bench.step()
    assert bench.step().num_new_tokens == [1, 1, 1]
    bench.finish(*requests)


@pytest.mark.parametrize(
    ("step_id", "token_ids"), [(1, [1]), (0, []), (0, [1, 2])], ids=["step", "few", "many"]
)
def test_a_result_that_is_not_the_plans_changes_nothing(step_id: int, token_ids: list[int]) -> None:
    bench = Bench(8)
    bench.add("a", [1, 2])
    plan = bench.scheduler.plan()
    with pytest.raises(EngineError, match="step 0 was answered"):
        bench.scheduler.update(plan, StepResult(step_id, token_ids, [], 0))
    outputs = bench.scheduler.fail(plan, "broken")
    assert [(o.finish_reason, o.error) for o in outputs] == [("error", "broken")]
    assert not bench.scheduler.has_work
    assert bench.scheduler.kv_cache.usage == 0
