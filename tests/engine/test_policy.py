"""Who runs first, and what a flood does to others."""

from __future__ import annotations

from statistics import quantiles

import pytest

from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.policy import FairPolicy, FCFSPolicy, Policy, PriorityPolicy
from octavo.engine.request import Request, RequestStatus
from octavo.engine.scheduler import Scheduler
from octavo.types import SamplingParams, StepResult

PARAMS = SamplingParams(max_tokens=8)


def make(name: str, *, tenant: str = "", priority: int = 0, num_prompt: int = 8) -> Request:
    tokens = [hash(name) % 1000] * num_prompt
    return Request(name, tokens, PARAMS, seed=0, tenant=tenant, priority=priority)


def drain(policy: Policy) -> list[str]:
    order = []
    while (request := policy.peek()) is not None:
        assert policy.peek() is request
        policy.pop()
        policy.charge(request, request.num_prompt_tokens, 0)
        order.append(request.request_id)
    return order


def fill(policy: Policy, requests: list[Request]) -> Policy:
    for arrival, request in enumerate(requests):
        request.arrival = arrival
        policy.push(request)
    return policy


@pytest.mark.parametrize("policy", [FCFSPolicy(), PriorityPolicy(), FairPolicy()])
def test_equals_run_by_arrival_and_the_dead_never(policy: Policy) -> None:
    requests = [make(f"{i}") for i in range(500)]
    fill(policy, requests)
    for request in requests[::3]:
        request.status = RequestStatus.FINISHED
        policy.forget(request)
    preempted = policy.peek()
    assert preempted is not None
    policy.pop()
    policy.push(preempted)
    assert drain(policy) == [f"{i}" for i in range(500) if i % 3]


def test_aborted_requests_do_not_pile_up() -> None:
    policy = FCFSPolicy()
    fill(policy, [make("first")])
    for i in range(1000):
        request = make(f"{i}")
        request.arrival = i + 1
        policy.push(request)
        request.status = RequestStatus.FINISHED
        policy.forget(request)
    assert len(policy._heap) < 200


def test_priority_goes_before_arrival() -> None:
    policy = PriorityPolicy()
    fill(policy, [make("a", priority=1), make("b"), make("c", priority=-1), make("d")])
    assert drain(policy) == ["c", "b", "d", "a"]


def test_fair_takes_turns_by_tokens_not_by_requests() -> None:
    policy = FairPolicy()
    long = [make(f"long{i}", tenant="x", num_prompt=30) for i in range(2)]
    short = [make(f"short{i}", tenant="y", num_prompt=10) for i in range(6)]
    fill(policy, [*long, *short])
    assert drain(policy) == [
        "long0", "short0", "short1", "short2", "long1", "short3", "short4", "short5"
    ]  # fmt: skip


def test_a_newcomer_gets_rows_for_all_that_it_queues_up_to_its_share() -> None:
    policy = FairPolicy()
    running = [make(f"loud{i}", tenant="loud") for i in range(8)]
    for i, request in enumerate(running):
        request.num_computed_tokens = 10 * i
    queued = [make(f"quiet{i}", tenant="quiet") for i in range(9)]
    fill(policy, queued[:3])
    assert [r.request_id for r in policy.victims(queued[0], running)] == ["loud0", "loud1", "loud2"]
    policy = FairPolicy()
    fill(policy, queued)
    assert len(policy.victims(queued[0], running)) == 4
    running[4:] = [make(f"there{i}", tenant="quiet") for i in range(4)]
    assert policy.victims(queued[0], running) == []


def test_candidates_are_whoever_may_come_to_be_first() -> None:
    policy = FairPolicy()
    fill(policy, [make(f"{tenant}{i}", tenant=tenant) for i in range(2) for tenant in "xyz"])
    candidates = policy.candidates()
    assert [r.request_id for r in candidates] == ["x0", "y0", "z0"]
    for first, cost in zip(candidates, (1, 10, 100), strict=True):
        for other in candidates:
            policy.charge(other, 0 if other is first else cost, 0)
        assert policy.peek() is first
    assert FCFSPolicy().candidates() == []
    plain = FCFSPolicy()
    fill(plain, [make("a"), make("b")])
    assert plain.candidates() == [plain.peek()]


def test_a_pause_saves_up_nothing() -> None:
    policy = FairPolicy()
    busy = [make(f"busy{i}", tenant="x", num_prompt=10) for i in range(20)]
    fill(policy, busy)
    for _ in range(10):
        policy.charge(policy.peek() or busy[0], 10, 0)
        policy.pop()
    fill(policy, [make(f"back{i}", tenant="y", num_prompt=10) for i in range(3)])
    order = drain(policy)
    assert {name[:4] for name in order[:2]} == {"busy", "back"}
    assert {name[:4] for name in order[2:4]} == {"busy", "back"}


def test_counters_of_tenants_that_left_are_dropped() -> None:
    policy = FairPolicy()
    for i in range(20_000):
        request = make("r", tenant=f"t{i}")
        request.arrival = i
        policy.push(request)
        policy.pop()
    assert len(policy._counters) < 5000


def ttft_p99_of_the_quiet_tenant(policy: Policy, *, flood: bool) -> float:
    """Steps from arrival to first token."""
    scheduler = Scheduler(
        KVCacheManager(200, 8),
        max_num_seqs=8,
        max_num_batched_tokens=32,
        max_model_len=64,
        policy=policy,
    )
    arrived: dict[str, int] = {}
    first: dict[str, int] = {}
    for step in range(1500):
        if flood:
            scheduler.add(make(f"loud{step}", tenant="loud"))
        if step % 8 == 0:
            arrived[f"quiet{step}"] = step
            scheduler.add(make(f"quiet{step}", tenant="quiet"))
        plan = scheduler.plan()
        if plan.is_empty:
            continue
        result = StepResult(plan.step_id, [1] * sum(plan.samples), [], 0)
        for output in scheduler.update(plan, result):
            if output.request_id in arrived:
                first.setdefault(output.request_id, step)
    waits = [first.get(name, 1500) - step for name, step in arrived.items() if step < 1400]
    return quantiles(waits, n=100)[98]


def test_a_flood_of_one_tenant_leaves_the_other_its_share() -> None:
    alone = ttft_p99_of_the_quiet_tenant(FairPolicy(), flood=False)
    fair = ttft_p99_of_the_quiet_tenant(FairPolicy(), flood=True)
    fcfs = ttft_p99_of_the_quiet_tenant(FCFSPolicy(), flood=True)
    # It may have to wait for a row, which takes at most as long as a request.
    assert fair <= alone + PARAMS.max_tokens
    assert fcfs > 20 * fair
