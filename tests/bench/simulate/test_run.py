from __future__ import annotations

import numpy as np
import pytest

from octavo.bench.simulate.fairness import jain_index, max_min_shares
from octavo.bench.simulate.record import GapHistogram, Samples
from octavo.bench.simulate.report import PolicyReport, summarize
from octavo.bench.simulate.trace import Synthetic, Tenant, Trace, make_trace
from tests.bench.simulate.helpers import cost, simulate, spec


def report(load: Synthetic, policy: str = "fcfs", **settings: object) -> PolicyReport:
    simulation = simulate(load, policy=policy, **settings)
    return summarize(simulation, policy=policy, slo_ms={"ttft": 100.0}, simulated_in_s=0.0)


def test_one_request_by_hand() -> None:
    """A prefill and nine decodes: ten tokens, at the times that the cost model says."""
    simulation = simulate(spec(1, "100", "10"))
    model, record = cost(), simulation.record
    first = model.device_s(100, 1, 1, 0, 0, [(0, 100)])
    decodes = [model.device_s(1, 1, 1, context, 0, []) for context in range(101, 110)]
    assert record.first_s[0] == pytest.approx(first)
    assert record.last_s[0] == pytest.approx(first + sum(decodes))
    assert record.gaps.num == 9
    result = summarize(simulation, policy="fcfs", slo_ms={}, simulated_in_s=0.0)
    assert result.tpot_ms is not None
    assert result.tpot_ms.mean == pytest.approx(sum(decodes) / 9 * 1000)
    assert result.output_tokens_per_s == pytest.approx(10 / (first + sum(decodes)))
    assert result.goodput is None
    assert result.jain_index is None


def test_every_token_is_counted() -> None:
    load = spec(300, "5:400", "1:100", arrivals="poisson", rate=50.0)
    simulation = simulate(load)
    trace, stats = simulation.trace, simulation.stats
    assert not np.isnan(simulation.record.last_s).any()
    assert stats.num_generation_tokens == trace.output_len.sum()
    assert stats.num_prompt_tokens == trace.input_len.sum()
    assert simulation.record.gaps.num == (trace.output_len - 1).sum()
    assert (simulation.record.first_s >= simulation.record.sent_s).all()


def test_refused_requests_are_told_apart() -> None:
    result = report(spec(10, "100", "5"), num_kv_blocks=4)
    assert (result.num_completed, result.num_refused) == (0, 10)
    assert "does not fit the KV cache of 64 tokens" in result.refusal
    assert result.ttft_ms is None


def test_a_small_cache_preempts_and_ends_all() -> None:
    result = report(spec(100, "100", "100"), num_kv_blocks=200)
    assert result.num_preemptions > 0
    assert result.num_completed == 100
    assert result.kv_usage_max > 0.95


def test_goodput_and_queue_under_load() -> None:
    light = report(spec(200, "200", "50", arrivals="poisson", rate=5.0))
    heavy = report(spec(2000, "200", "50", arrivals="poisson", rate=500.0), max_num_seqs=64)
    assert light.goodput is not None
    assert heavy.goodput is not None
    assert light.goodput.share == 1.0
    assert heavy.goodput.share < 0.3
    assert light.queue_max == 0
    # Little's law, of those that wait: mean queue = rate x mean wait.
    assert heavy.ttft_ms is not None
    assert heavy.queue_mean == pytest.approx(
        heavy.requests_per_s * heavy.ttft_ms.mean / 1000, rel=0.1
    )


def test_priorities_are_served_first() -> None:
    tenants = (Tenant("now", 1, 0), Tenant("later", 4, 1))
    load = spec(600, "200", "100", arrivals="poisson", rate=200.0, tenants=tenants)
    p99 = {}
    for policy in ("fcfs", "priority"):
        result = report(load, policy, max_num_seqs=64)
        p99[policy] = {t.name: t.ttft_ms.p99 for t in result.tenants if t.ttft_ms}
    assert p99["priority"]["now"] < p99["fcfs"]["now"] / 5
    assert p99["priority"]["later"] > p99["priority"]["now"] * 5


def test_a_flooding_tenant_hurts_itself_alone_under_the_fair_policy() -> None:
    """A tenant beside one that keeps the server full, and beside one that sends thrice as much.

    The server does about 67 of these requests a second; the quiet tenant sends 10. The first ten
    seconds do not count: policies order those that wait, and a flood that finds an idle server
    takes every row at once, so that at first hardly any comes free.
    """
    chats = ("lognormal:220:1.0:16:2048", "lognormal:190:1.0:16:1024")

    def beside(other: float, policy: str) -> tuple[float, PolicyReport]:
        """The same quiet tenant each time: its p99 depends on its own bursts most of all."""
        parts = [
            make_trace(spec(int(40 * rate), *chats, arrivals="poisson", rate=rate, seed=seed))
            for rate, seed in ((10.0, 0), (other, 100))
        ]
        arrival_s = np.concatenate([part.arrival_s for part in parts])
        order = np.argsort(arrival_s, kind="stable")
        trace = Trace(
            arrival_s=arrival_s[order],
            input_len=np.concatenate([part.input_len for part in parts])[order],
            output_len=np.concatenate([part.output_len for part in parts])[order],
            tenant=np.repeat([0, 1], [len(part) for part in parts])[order],
            priority=np.zeros(len(order), dtype=np.int64),
            tenants=["quiet", "flood"],
        )
        simulation = simulate(trace, policy=policy, max_num_seqs=256)
        record = simulation.record
        quiet = (trace.tenant == 0) & (record.sent_s >= 10)
        p99 = float(np.percentile((record.first_s - record.sent_s)[quiet], 99))
        return p99, summarize(simulation, policy=policy, slo_ms={}, simulated_in_s=0.0)

    full_p99, _ = beside(65.0, "fair")
    flooded_p99, flooded = beside(195.0, "fair")
    contrast_p99, contrast = beside(195.0, "fcfs")
    assert flooded_p99 <= 1.5 * full_p99
    assert contrast_p99 > 100 * flooded_p99
    assert flooded.jain_index is not None
    assert contrast.jain_index is not None
    assert flooded.jain_index > 0.95 > contrast.jain_index
    assert flooded.output_tokens_per_s == pytest.approx(contrast.output_tokens_per_s, rel=0.02)


def test_fairness_figures() -> None:
    assert jain_index(np.array([3.0, 3.0, 3.0])) == pytest.approx(1.0)
    assert jain_index(np.array([1.0, 0.0, 0.0, 0.0])) == pytest.approx(0.25)
    assert max_min_shares(np.array([8.0, 1.0, 2.0]), 9.0).tolist() == [6.0, 1.0, 2.0]
    assert max_min_shares(np.array([8.0, 1.0, 8.0]), 9.0).tolist() == [4.0, 1.0, 4.0]


def test_gap_percentiles_are_those_of_numpy_within_a_class() -> None:
    gaps = np.random.default_rng(0).lognormal(-5, 1, 20_000)
    one, many = GapHistogram(), GapHistogram()
    many.add_all(gaps)
    for gap in gaps:
        one.add(float(gap), 1)
    assert (one.counts == many.counts).all()
    for percent in (1, 50, 90, 99, 100):
        expected = np.percentile(gaps, percent)
        assert many.percentile(percent) == pytest.approx(expected, rel=0.006)


def test_samples_stay_few() -> None:
    samples = Samples()
    for moment in range(50_000):
        if samples.is_due(float(moment)):
            samples.add(float(moment), 1, 2, 0.5)
    assert 500 <= len(samples.rows) <= 2048
    times = [row[0] for row in samples.rows]
    assert times == sorted(times)
    assert times[-1] > 49_000
