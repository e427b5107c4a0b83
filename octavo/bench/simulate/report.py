"""What a simulation says: per policy and tenant, as values.

The JSON's shape is `SimulationReport`; its `schema` changes when a field's meaning does. Times are
milliseconds where the name says `_ms`, else seconds of virtual time unless it says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from octavo.bench.report import Distribution, Goodput
from octavo.bench.simulate.fairness import contended_service, fairness

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from octavo.bench.simulate.record import GapHistogram
    from octavo.bench.simulate.run import Simulation

SIMULATE_SCHEMA = "octavo.bench.simulate/1"


class TenantReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one tenant got.

    Attributes:
        contended_tokens_per_s: prompt and output tokens a second while all tenants were sending.
    """

    name: str
    num_requests: int
    output_tokens: int
    contended_tokens_per_s: float
    ttft_ms: Distribution | None
    tpot_ms: Distribution | None


class PolicyReport(msgspec.Struct, frozen=True, kw_only=True):
    """One policy over one trace.

    Attributes:
        duration_s: from the first arrival to the last token.
        num_completed, num_refused: requests that ended, and that could never run.
        refusal: the first refusal's reason.
        prefix_hit_rate: share of looked-up prompt tokens that were in the cache; None: not looked.
        queue_mean, queue_max, running_mean: requests, weighed by time.
        kv_usage_mean, kv_usage_max: share of blocks that requests held, by time in steps.
        device_busy: share of the time that the device computed.
        jain_index: of what tenants got while all were sending, each as a part of its max-min fair
            share: 1 when all got theirs; None for one tenant.
        samples: (time, running, waiting, KV usage), at most 2048 points.
        simulated_in_s: seconds of real time.
    """

    policy: str
    duration_s: float
    num_completed: int
    num_refused: int
    refusal: str
    input_tokens: int
    output_tokens: int
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    e2e_ms: Distribution | None
    goodput: Goodput | None
    num_steps: int
    num_preemptions: int
    prefix_hit_rate: float | None
    queue_mean: float
    queue_max: int
    running_mean: float
    kv_usage_mean: float
    kv_usage_max: float
    device_busy: float
    jain_index: float | None
    tenants: list[TenantReport]
    samples: list[tuple[float, int, int, float]]
    simulated_in_s: float


class SimulationReport(msgspec.Struct, frozen=True, kw_only=True):
    """All policies over one trace.

    Attributes:
        setup: the flags, resolved; enough to run it again.
        num_kv_blocks: what the engine had.
    """

    schema: str = SIMULATE_SCHEMA
    octavo_version: str
    created: str
    setup: dict[str, Any]
    num_requests: int
    num_kv_blocks: int
    slo_ms: dict[str, float]
    policies: list[PolicyReport]


def summarize(
    simulation: Simulation, *, policy: str, slo_ms: dict[str, float], simulated_in_s: float
) -> PolicyReport:
    """The report of a simulation that has run.

    Args:
        simulation: after `run`.
        policy: its name.
        slo_ms: bounds by metric (ttft, tpot, itl, e2e); empty: no goodput.
        simulated_in_s: how long that took.
    """
    trace, record, stats = simulation.trace, simulation.record, simulation.stats
    done = ~np.isnan(record.last_s)
    ttft = record.first_s - record.sent_s
    e2e = record.last_s - record.sent_s
    gaps = trace.output_len - 1
    tpot = np.where(gaps > 0, (record.last_s - record.first_s) / np.maximum(gaps, 1), np.nan)
    sent = record.sent_s[~np.isnan(record.sent_s)]
    begin = float(sent.min()) if len(sent) else 0.0
    duration = max(record.end_s - begin, 1e-12)
    num_done = int(done.sum())
    input_tokens = int(trace.input_len[done].sum())
    output_tokens = int(trace.output_len[done].sum())
    served, asked = contended_service(trace, record)
    tenants = [
        TenantReport(
            name=name,
            num_requests=int((mine := done & (trace.tenant == index)).sum()),
            output_tokens=int(trace.output_len[mine].sum()),
            contended_tokens_per_s=float(served[index]),
            ttft_ms=_distribution(ttft[mine]),
            tpot_ms=_distribution(tpot[mine]),
        )
        for index, name in enumerate(trace.tenants)
    ]
    queries = stats.prefix_cache_queries
    in_steps = max(record.step_s, 1e-12)
    goodput = None
    if slo_ms:
        values = {"ttft": ttft, "tpot": tpot, "itl": tpot, "e2e": e2e}
        met = done.copy()
        for name, bound in slo_ms.items():
            met &= np.nan_to_num(values[name], nan=0.0) * 1000 <= bound
        num_met = int(met.sum())
        goodput = Goodput(num_met, num_met / max(len(trace), 1), num_met / duration)
    return PolicyReport(
        policy=policy,
        duration_s=duration,
        num_completed=num_done,
        num_refused=record.num_refused,
        refusal=record.first_refusal,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        requests_per_s=num_done / duration,
        output_tokens_per_s=output_tokens / duration,
        total_tokens_per_s=(input_tokens + output_tokens) / duration,
        ttft_ms=_distribution(ttft[done]),
        itl_ms=_gaps(record.gaps),
        tpot_ms=_distribution(tpot[done]),
        e2e_ms=_distribution(e2e[done]),
        goodput=goodput,
        num_steps=stats.num_steps,
        num_preemptions=stats.num_preemptions,
        prefix_hit_rate=stats.prefix_cache_hits / queries if queries else None,
        queue_mean=record.waiting_s / duration,
        queue_max=record.max_waiting,
        running_mean=record.running_s / duration,
        kv_usage_mean=record.kv_usage_s / in_steps,
        kv_usage_max=record.max_kv_usage,
        device_busy=min(record.device_s / duration, 1.0),
        jain_index=fairness(served, asked) if len(tenants) > 1 else None,
        tenants=tenants if len(tenants) > 1 else [],
        samples=record.samples.rows,
        simulated_in_s=simulated_in_s,
    )


def _distribution(values: NDArray[np.float64]) -> Distribution | None:
    values = values[~np.isnan(values)] * 1000
    if not len(values):
        return None
    p50, p90, p95, p99 = (float(p) for p in np.percentile(values, (50, 90, 95, 99)))
    least, most = float(values.min()), float(values.max())
    return Distribution(len(values), float(values.mean()), least, p50, p90, p95, p99, most)


def _gaps(gaps: GapHistogram) -> Distribution | None:
    if not gaps.num:
        return None
    least, p50, p90, p95, p99, most = (gaps.percentile(p) * 1e3 for p in (0, 50, 90, 95, 99, 100))
    return Distribution(gaps.num, gaps.total_s / gaps.num * 1e3, least, p50, p90, p95, p99, most)
