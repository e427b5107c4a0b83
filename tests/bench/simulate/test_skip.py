"""Passing over steps that only decode changes nothing: times, counters and blocks are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.bench.simulate.scheduler import DecodeRun
from octavo.bench.simulate.trace import Synthetic, Tenant, Trace, make_trace
from tests.bench.simulate.helpers import simulate, spec

if TYPE_CHECKING:
    from octavo.bench.simulate.run import Simulation
    from octavo.types import StepPlan


def state(simulation: Simulation) -> dict[str, Any]:
    record, pool = simulation.record, simulation.kv_cache.pool
    return {
        "times": [record.sent_s.tolist(), record.first_s.tolist(), record.last_s.tolist()],
        "cached": record.cached.tolist(),
        "preemptions": record.preemptions.tolist(),
        "gaps": record.gaps.counts.tolist(),
        "integrals": [record.device_s, record.waiting_s, record.running_s, record.kv_usage_s],
        "most": [record.max_waiting, record.max_kv_usage],
        "samples": record.samples.rows,
        "end": record.end_s,
        "stats": simulation.stats,
        "free blocks": pool.free_list(),
        "cached blocks": pool.block_of,
    }


def count_skipped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    skipped: list[int] = []
    real = DecodeRun.finish

    def finish(run: DecodeRun, in_flight: list[StepPlan]) -> None:
        skipped.append(run._num_steps)
        real(run, in_flight)

    monkeypatch.setattr(DecodeRun, "finish", finish)
    return skipped


def check(trace: Trace | Synthetic, **options: Any) -> Simulation:
    slow = simulate(trace, skip=False, **options)
    fast = simulate(trace, skip=True, **options)
    for name, value in state(slow).items():
        got = state(fast)[name]
        if name in ("times", "integrals", "samples"):
            assert np.array_equal(np.array(got), np.array(value), equal_nan=True), name
        else:
            assert got == value, name
    return fast


@pytest.mark.parametrize("ahead", [False, True])
def test_a_batch_to_its_end(ahead: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = count_skipped(monkeypatch)
    simulation = check(spec(32, "5:200", "1:300"), async_scheduling=ahead)
    assert sum(skipped) > simulation.stats.num_steps / 2
    assert simulation.stats.num_generation_tokens == simulation.trace.output_len.sum()


def test_arrivals_interrupt_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = count_skipped(monkeypatch)
    check(spec(60, "lognormal:100:1:1:800", "1:200", arrivals="poisson", rate=4.0))
    assert len(skipped) > 20


@pytest.mark.parametrize("policy", ["fcfs", "priority", "fair"])
def test_a_cache_that_is_too_small(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = count_skipped(monkeypatch)
    tenants = (Tenant("a", 1, 1), Tenant("b", 3))
    load = spec(80, "5:200", "50:300", arrivals="poisson", rate=30.0, tenants=tenants)
    simulation = check(load, policy=policy, num_kv_blocks=60, max_num_seqs=16)
    assert simulation.stats.num_preemptions > 10
    assert skipped


@pytest.mark.parametrize("policy", ["fcfs", "fair"])
def test_sessions_with_a_prefix_cache(policy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped = count_skipped(monkeypatch)
    sessions = spec(
        60, "5:50", "20:90", turns=4, think_s=0.2, num_prefixes=2, prefix_len=100,
        arrivals="poisson", rate=4.0,
    )  # fmt: skip
    roomy = check(sessions, policy=policy)
    assert roomy.stats.prefix_cache_hits > roomy.stats.prefix_cache_queries / 2
    tight = check(sessions, policy=policy, num_kv_blocks=80)
    assert tight.stats.prefix_cache_hits < roomy.stats.prefix_cache_hits
    assert skipped


def test_a_front_end_that_falls_behind() -> None:
    check(spec(60, "5:200", "1:200", concurrency=20), host="vllm-http")


def test_service_alone_may_cost_a_request_its_row() -> None:
    """A tenant without one comes to be first while the other's requests decode."""
    tenants = (Tenant("a", 1.0, 2), Tenant("b", 2.0))
    load = spec(19, "1:60", "1:80", arrivals="at-once", seed=0, tenants=tenants)
    simulation = check(
        make_trace(load), policy="fair", block_size=1, num_kv_blocks=40, max_num_seqs=3,
        max_num_batched_tokens=64,
    )  # fmt: skip
    assert simulation.stats.num_preemptions


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    num_requests=st.integers(1, 25),
    block_size=st.sampled_from([1, 2, 7, 16]),
    tokens=st.integers(40, 600),
    max_num_seqs=st.sampled_from([1, 3, 64]),
    budget=st.sampled_from([5, 64, 8192]),
    policy=st.sampled_from(["fcfs", "priority", "fair"]),
    rate=st.sampled_from([0.0, 3.0, 200.0]),
    prefix=st.sampled_from([0, 9, 40]),
    turns=st.integers(1, 3),
    host=st.sampled_from(["ideal", "vllm-http"]),
    ahead=st.booleans(),
)
def test_whatever_comes(
    seed: int, num_requests: int, block_size: int, tokens: int, max_num_seqs: int, budget: int,
    policy: str, rate: float, prefix: int, turns: int, host: str, ahead: bool,
) -> None:  # fmt: skip
    load = spec(
        num_requests, "1:60", "1:80", arrivals="poisson" if rate else "at-once", rate=rate,
        num_prefixes=2, prefix_len=prefix, turns=turns, seed=seed,
        tenants=(Tenant("a", 1.0, 2), Tenant("b", 2.0)),
    )  # fmt: skip
    trace = make_trace(load)
    simulation = check(
        trace, policy=policy, host=host, block_size=block_size,
        num_kv_blocks=-(-tokens // block_size), max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget, async_scheduling=ahead,
    )  # fmt: skip
    ended = int((~np.isnan(simulation.record.last_s)).sum())
    assert ended + simulation.record.num_refused == len(trace)
