"""What a simulation says: per policy and tenant, as values for JSON and as tables.

The JSON's shape is `SimulationReport`; its `schema` changes when a field's meaning does. Times are
milliseconds where the name says `_ms`, else seconds of virtual time unless it says otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from octavo.bench.report import Distribution, Goodput

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.console import Console
    from rich.table import Table

    from octavo.bench.simulate.record import GapHistogram, Record
    from octavo.bench.simulate.run import Simulation
    from octavo.bench.simulate.trace import Trace

SIMULATE_SCHEMA = "octavo.bench.simulate/1"
_MAX_TENANT_ROWS = 20


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
    served, asked = _contended(trace, record)
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
        jain_index=_fairness(served, asked) if len(tenants) > 1 else None,
        tenants=tenants if len(tenants) > 1 else [],
        samples=record.samples.rows,
        simulated_in_s=simulated_in_s,
    )


def jain_index(shares: NDArray[np.float64]) -> float:
    """(sum x)^2 / (n sum x^2): 1 when all shares are equal, 1/n when one has all (Jain, 1984)."""
    squares = float((shares**2).sum())
    return float(shares.sum()) ** 2 / (len(shares) * squares) if squares else 1.0


def _fairness(served: NDArray[np.float64], asked: NDArray[np.float64]) -> float:
    shares = max_min_shares(asked, float(served.sum()))
    return jain_index(served[shares > 0] / shares[shares > 0])


def max_min_shares(demands: NDArray[np.float64], capacity: float) -> NDArray[np.float64]:
    """What each gets when all get the same, but nobody more than asked for, of `capacity`."""
    shares = np.zeros(len(demands))
    left = capacity
    for place, index in enumerate(np.argsort(demands, kind="stable")):
        shares[index] = min(float(demands[index]), left / (len(demands) - place))
        left -= shares[index]
    return shares


def _contended(trace: Trace, record: Record) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Tokens a second that each tenant was served, and asked for, while all of them were sending.

    If they sent everything at once, while all of them had unfinished requests. A prompt's tokens
    count at its first token, the output's evenly from there to the last.
    """
    num = len(trace.tenants)
    done = ~np.isnan(record.last_s)
    owners = [done & (trace.tenant == tenant) for tenant in range(num)]
    active = [mine for mine in owners if mine.any()]
    served, asked = np.zeros(num), np.zeros(num)
    if not active:
        return served, asked
    sent, first, last = record.sent_s, record.first_s, record.last_s
    begin = max(float(sent[mine].min()) for mine in active)
    end = min(float(sent[mine].max()) for mine in active)
    if end <= begin:
        end = min(float(last[mine].max()) for mine in active)
    end = max(end, begin + 1e-9)
    for tenant, mine in enumerate(owners):
        tokens = trace.input_len[mine] + trace.output_len[mine]
        asked[tenant] = tokens[sent[mine] <= end].sum()
        begun = mine & (first >= begin) & (first <= end)
        overlap = np.minimum(last[mine], end) - np.maximum(first[mine], begin)
        share = np.clip(overlap / np.maximum(last[mine] - first[mine], 1e-9), 0.0, 1.0)
        served[tenant] = trace.input_len[begun].sum() + (trace.output_len[mine] * share).sum()
    return served / (end - begin), asked / (end - begin)


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


def print_report(report: SimulationReport, console: Console) -> None:
    """Print it for a reader: policies side by side, then tenants."""
    from rich.markup import escape

    setup = ", ".join(
        f"{name} {value}" for name, value in report.setup.items() if value is not None
    )
    console.print(escape(setup), highlight=False)
    console.print(
        f"{report.num_requests} requests, {report.num_kv_blocks} KV blocks\n", highlight=False
    )
    console.print(policy_table(report))
    if any(policy.tenants for policy in report.policies):
        console.print()
        console.print(tenant_table(report))
    for policy in report.policies:
        if policy.num_refused:
            text = f"{policy.policy}: refused {policy.num_refused} requests: {policy.refusal}"
            console.print(f"[yellow]note[/yellow] {escape(text)}", highlight=False)


def policy_table(report: SimulationReport) -> Table:
    """A column per policy."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("policy")
    for policy in report.policies:
        table.add_column(policy.policy, justify="right")
    for name, values in _rows(report).items():
        table.add_row(name, *values)
    return table


def tenant_table(report: SimulationReport) -> Table:
    """A row per tenant and policy; the largest tenants if there are many."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("tenant", "policy"):
        table.add_column(column)
    for column in (
        "requests",
        "output tokens",
        "tokens/s",
        "TTFT p50 ms",
        "TTFT p99 ms",
        "TPOT p99",
    ):
        table.add_column(column, justify="right")
    for policy in report.policies:
        tenants = sorted(policy.tenants, key=lambda t: -t.output_tokens)[:_MAX_TENANT_ROWS]
        for tenant in tenants:
            table.add_row(
                tenant.name,
                policy.policy,
                str(tenant.num_requests),
                str(tenant.output_tokens),
                f"{tenant.contended_tokens_per_s:.0f}",
                _ms(tenant.ttft_ms, "p50"),
                _ms(tenant.ttft_ms, "p99"),
                _ms(tenant.tpot_ms, "p99"),
            )
    return table


def _rows(report: SimulationReport) -> dict[str, list[str]]:
    policies = report.policies
    rows = {
        "duration, s": [f"{p.duration_s:.2f}" for p in policies],
        "requests/s": [f"{p.requests_per_s:.2f}" for p in policies],
        "output tokens/s": [f"{p.output_tokens_per_s:.1f}" for p in policies],
        "total tokens/s": [f"{p.total_tokens_per_s:.1f}" for p in policies],
    }
    for name in ("ttft", "itl", "tpot", "e2e"):
        for point in ("p50", "p90", "p99"):
            values = [_ms(getattr(p, f"{name}_ms"), point) for p in policies]
            rows[f"{name.upper()} {point}, ms"] = values
    if report.slo_ms:
        bounds = ", ".join(f"{name} <= {bound:g}" for name, bound in report.slo_ms.items())
        rows[f"goodput, requests/s ({bounds} ms)"] = [
            f"{p.goodput.requests_per_s:.2f} ({p.goodput.share:.1%})" if p.goodput else "-"
            for p in policies
        ]
    if any(p.prefix_hit_rate is not None for p in policies):
        rows["prefix hit rate"] = [_share(p.prefix_hit_rate) for p in policies]
    rows |= {
        "preemptions": [str(p.num_preemptions) for p in policies],
        "queue, mean / most": [f"{p.queue_mean:.1f} / {p.queue_max}" for p in policies],
        "running, mean": [f"{p.running_mean:.1f}" for p in policies],
        "KV usage, mean / most": [
            f"{p.kv_usage_mean:.1%} / {p.kv_usage_max:.1%}" for p in policies
        ],
        "device busy": [f"{p.device_busy:.1%}" for p in policies],
        "steps": [str(p.num_steps) for p in policies],
    }
    if any(p.jain_index is not None for p in policies):
        rows["Jain's index of tenants"] = [
            "-" if p.jain_index is None else f"{p.jain_index:.3f}" for p in policies
        ]
    rows["simulated in, s"] = [f"{p.simulated_in_s:.2f}" for p in policies]
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _ms(distribution: Distribution | None, point: str) -> str:
    return "-" if distribution is None else f"{getattr(distribution, point):.2f}"
