"""A simulation's report as tables for a terminal: policies side by side, then tenants."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from octavo.bench.report import Distribution
    from octavo.bench.simulate.report import SimulationReport

_MAX_TENANT_ROWS = 20


def print_report(report: SimulationReport, console: Console) -> None:
    """Print it for a reader: policies side by side, then tenants."""
    from rich.markup import escape

    shown = {name: value for name, value in report.setup.items() if name != "load"}
    setup = ", ".join(f"{name} {value}" for name, value in shown.items() if value is not None)
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
