"""Statistics of finished requests, and the report in JSON and as a table.

Knows nothing of how the requests were made. The JSON's shape is `ServeReport`; its `schema` changes
when a field's meaning does. Times in it are milliseconds where the name says `_ms`, else seconds.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console
    from rich.table import Table

    from octavo.bench.client import Outcome

SERVE_SCHEMA = "octavo.bench.serve/1"
CPU_SHARE_WARNING = 0.5
SLO_METRICS = ("ttft", "tpot", "itl", "e2e")


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Percentile of rising values, interpolated linearly between neighbours (numpy's default)."""
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


class Distribution(msgspec.Struct, frozen=True):
    """How a measure is distributed over the requests (or, for ITL, over all gaps)."""

    num: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float], scale: float = 1000.0) -> Distribution | None:
        """Of values times `scale` (1000 makes milliseconds of seconds); None without values."""
        if not values:
            return None
        ordered = sorted(value * scale for value in values)
        p50, p90, p95, p99 = (percentile(ordered, percent) for percent in (50, 90, 95, 99))
        mean = sum(ordered) / len(ordered)
        return cls(len(ordered), mean, ordered[0], p50, p90, p95, p99, ordered[-1])


class Goodput(msgspec.Struct, frozen=True):
    """Requests that met every bound: how many, what share of all that ended, how many a second."""

    num: int
    share: float
    requests_per_s: float


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """What was run; enough to run it again."""

    url: str
    endpoint: str
    model: str
    dataset: str
    prompt_format: str
    num_prompts: int
    input_len: str | None
    output_len: str
    prefix_len: int
    concurrency: int | None
    rate: float | None
    burstiness: float
    warmup: int
    ignore_eos: bool
    temperature: float
    seed: int
    extra_body: dict[str, Any]


class ServeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The result of `octavo bench serve`.

    Attributes:
        created: UTC, ISO 8601.
        duration_s: from the first request's start to the last one's end.
        num_completed, num_failed: requests that ended well and badly.
        num_cancelled: in flight or not begun when the run was interrupted.
        failures: reason to count.
        input_tokens, cached_tokens, output_tokens: of completed requests; `input_tokens` as the
            server counted, else as the prompts were made.
        counted_by: `usage` (the server's), `chunks` (ours: then tokens are a lower bound), `mixed`.
        itl_ms: over gaps between chunks that carry tokens.
        tpot_ms: (last token - first token) / (output tokens - 1), per request.
        send_lag_ms: how late requests left after their planned time; None for a closed loop.
        client_cpu_share: CPU seconds of this process per second, 1 is a whole core.
        slo_ms: the bounds that goodput is about.
        notes: what a reader must know to trust the numbers.
    """

    schema: str = SERVE_SCHEMA
    octavo_version: str
    created: str
    setup: Setup
    duration_s: float
    num_completed: int
    num_failed: int
    num_cancelled: int
    failures: dict[str, int]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    counted_by: str
    requests_per_s: float
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_ms: Distribution | None
    itl_ms: Distribution | None
    tpot_ms: Distribution | None
    e2e_ms: Distribution | None
    send_lag_ms: Distribution | None
    client_cpu_share: float
    slo_ms: dict[str, float]
    goodput: Goodput | None
    notes: list[str]


def parse_slo(text: str) -> dict[str, float]:
    """Bounds in milliseconds from `ttft:500,tpot:50`; metrics: ttft, tpot, itl (mean), e2e.

    Raises:
        ConfigError: an unknown metric, or a bound that is not a number above 0.
    """
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition(":")
        try:
            bound = float(value)
        except ValueError:
            bound = 0.0
        if name not in SLO_METRICS or not 0 < bound < float("inf"):
            raise ConfigError(
                f"--slo: {part.strip()!r} is not a bound: write ttft:500,tpot:50 (milliseconds; "
                f"metrics: {', '.join(SLO_METRICS)})"
            )
        bounds[name] = bound
    return bounds


def meets(outcome: Outcome, slo_ms: dict[str, float]) -> bool:
    """True when a completed request kept every bound; a metric that it does not have is kept."""
    gaps = outcome.itls
    values = {
        "ttft": outcome.ttft,
        "tpot": outcome.tpot or 0.0,
        "itl": sum(gaps) / len(gaps) if gaps else 0.0,
        "e2e": outcome.e2e,
    }
    return all(values[name] * 1000 <= bound for name, bound in slo_ms.items())


def summarize(
    setup: Setup,
    outcomes: Sequence[Outcome],
    *,
    version: str,
    created: str,
    made_input_tokens: int = 0,
    send_lags: Sequence[float] = (),
    cpu_s: float,
    slo_ms: dict[str, float],
    notes: Sequence[str] = (),
) -> ServeReport:
    """The report over every request that ended.

    Args:
        setup: what was run.
        outcomes: one per request that ended, in any order.
        version: Octavo's.
        created: UTC, ISO 8601.
        made_input_tokens: tokens that the completed prompts were made to have, for servers that do
            not count them.
        send_lags: seconds between planned and real sending, in an open loop.
        cpu_s: CPU seconds that this process used during the run.
        slo_ms: bounds for goodput; empty: none asked.
        notes: added before our own.
    """
    good = [outcome for outcome in outcomes if outcome.error is None]
    bad = [outcome.error for outcome in outcomes if outcome.error is not None]
    first = min((outcome.start for outcome in outcomes), default=0.0)
    duration = max((outcome.end for outcome in outcomes), default=0.0) - first
    per_s = 1 / duration if duration > 0 else 0.0
    input_tokens = sum(outcome.num_prompt_tokens for outcome in good) or made_input_tokens
    output_tokens = sum(outcome.num_output_tokens for outcome in good)
    num_chunks = sum(len(outcome.token_times) for outcome in good)
    counts = {outcome.has_usage for outcome in good}
    by = "mixed" if len(counts) == 2 else "usage" if counts != {False} else "chunks"
    num_met = sum(meets(outcome, slo_ms) for outcome in good)
    cached = sum(outcome.num_cached_tokens for outcome in good)
    cpu_share = cpu_s * per_s
    lines = list(notes)
    if by != "usage":
        lines.append("the server did not count tokens for every answer: chunks were counted")
    elif output_tokens > num_chunks * 1.02:
        lines.append(
            f"{output_tokens / num_chunks:.2f} tokens per chunk: ITL is the gap between chunks, "
            "TPOT is per token"
        )
    if cached:
        lines.append(
            f"{cached / max(input_tokens, 1):.0%} of the prompt tokens came from a prefix cache"
        )
    if cpu_share > CPU_SHARE_WARNING:
        lines.append(
            f"this client used {cpu_share:.0%} of a core: latencies may be its own, "
            "spread the load over several clients"
        )
    return ServeReport(
        octavo_version=version,
        created=created,
        setup=setup,
        duration_s=duration,
        num_completed=len(good),
        num_failed=len(bad),
        num_cancelled=setup.num_prompts - len(outcomes),
        failures=dict(Counter(bad).most_common()),
        input_tokens=input_tokens,
        cached_tokens=cached,
        output_tokens=output_tokens,
        counted_by=by,
        requests_per_s=len(good) * per_s,
        output_tokens_per_s=output_tokens * per_s,
        total_tokens_per_s=(input_tokens + output_tokens) * per_s,
        ttft_ms=Distribution.of([outcome.ttft for outcome in good]),
        itl_ms=Distribution.of([gap for outcome in good for gap in outcome.itls]),
        tpot_ms=Distribution.of([tpot for outcome in good if (tpot := outcome.tpot) is not None]),
        e2e_ms=Distribution.of([outcome.e2e for outcome in good]),
        send_lag_ms=Distribution.of(send_lags),
        client_cpu_share=cpu_share,
        slo_ms=slo_ms,
        goodput=Goodput(num_met, num_met / max(len(outcomes), 1), num_met * per_s)
        if slo_ms
        else None,
        notes=lines,
    )


def latency_table(report: ServeReport) -> Table:
    """The distributions, a row each."""
    from rich.table import Table

    table = Table(title_justify="left", box=None, pad_edge=False)
    table.add_column("milliseconds")
    for column in ("mean", "p50", "p90", "p95", "p99", "max"):
        table.add_column(column, justify="right")
    rows = {
        "time to first token (TTFT)": report.ttft_ms,
        "inter-token latency (ITL)": report.itl_ms,
        "time per output token (TPOT)": report.tpot_ms,
        "end to end (E2E)": report.e2e_ms,
        "send lag": report.send_lag_ms,
    }
    for name, d in rows.items():
        if d is not None:
            values = (d.mean, d.p50, d.p90, d.p95, d.p99, d.max)
            table.add_row(name, *(f"{value:.2f}" for value in values))
    return table


def print_report(report: ServeReport, console: Console) -> None:
    """Print it for a reader."""
    from rich.markup import escape

    setup = report.setup
    load = (
        f"{setup.rate:g} requests/s, burstiness {setup.burstiness:g}"
        if setup.rate is not None
        else "closed loop"
    )
    if setup.concurrency is not None:
        load += f", concurrency {setup.concurrency}"
    lengths = f"output {setup.output_len}"
    if setup.input_len is not None:
        lengths = f"input {setup.input_len}, {lengths}"
    if setup.prefix_len:
        lengths = f"prefix {setup.prefix_len}, {lengths}"
    console.print(
        escape(f"{setup.model} at {setup.url} ({setup.endpoint})\n")
        + escape(f"{load}; {setup.dataset}, {lengths}, seed {setup.seed}\n"),
        highlight=False,
    )
    figures = {
        "requests": f"{report.num_completed} completed, {report.num_failed} failed, "
        f"{report.num_cancelled} cancelled in {report.duration_s:.2f} s",
        "tokens": f"{report.input_tokens} in, {report.output_tokens} out "
        f"(counted by {report.counted_by})",
        "requests/s": f"{report.requests_per_s:.2f}",
        "output tokens/s": f"{report.output_tokens_per_s:.1f}",
        "total tokens/s": f"{report.total_tokens_per_s:.1f}",
    }
    if report.goodput is not None:
        bounds = ", ".join(f"{name} <= {bound:g} ms" for name, bound in report.slo_ms.items())
        figures["goodput"] = (
            f"{report.goodput.requests_per_s:.2f} requests/s "
            f"({report.goodput.share:.0%} kept {bounds})"
        )
    figures["client CPU"] = f"{report.client_cpu_share:.0%} of a core"
    for name, value in figures.items():
        console.print(f"{name:<16} {escape(value)}", highlight=False)
    console.print()
    console.print(latency_table(report))
    for reason, count in report.failures.items():
        console.print(f"[red]failed {count} x[/red] {escape(reason)}", highlight=False)
    for note in report.notes:
        console.print(f"[yellow]note[/yellow] {escape(note)}", highlight=False)
