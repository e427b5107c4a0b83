"""Plots of a simulation, one PNG each; needs matplotlib (the `plots` extra)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.bench.report import Distribution
    from octavo.bench.simulate.report import SimulationReport

_POINTS = ("p50", "p90", "p95", "p99")
_COLORS = ("#20639b", "#d1495b", "#3c8d53")


def check_plots() -> None:
    """Raise `ConfigError` when plots could not be drawn."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ConfigError("--plots needs matplotlib: pip install 'octavo[plots]'") from None


def write_plots(report: SimulationReport, folder: Path) -> list[Path]:
    """`latency.png`, `timeline.png` and, with several tenants, `tenants.png`; returns the paths.

    Raises:
        ConfigError: the folder cannot be written.
    """
    from matplotlib.figure import Figure

    figures = {"latency": _latency(report, Figure), "timeline": _timeline(report, Figure)}
    if any(policy.tenants for policy in report.policies):
        figures["tenants"] = _tenants(report, Figure)
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            path = folder / f"{name}.png"
            figure.savefig(path, dpi=120)
            paths.append(path)
    except OSError as error:
        raise ConfigError(f"cannot write plots to {folder}: {error.strerror}") from None
    return paths


def _latency(report: SimulationReport, figure_type: Any) -> Any:
    """Percentiles of each measure, policies side by side."""
    figure = figure_type(figsize=(11, 3.4), layout="constrained")
    measures = ("ttft", "itl", "tpot", "e2e")
    width = 0.8 / len(report.policies)
    for axes, measure in zip(figure.subplots(1, len(measures)), measures, strict=True):
        for place, policy in enumerate(report.policies):
            distribution: Distribution | None = getattr(policy, f"{measure}_ms")
            if distribution is None:
                continue
            xs = [index + place * width for index in range(len(_POINTS))]
            values = [getattr(distribution, point) for point in _POINTS]
            axes.bar(xs, values, width, label=policy.policy, color=_COLORS[place % len(_COLORS)])
        middle = 0.4 - width / 2
        axes.set_xticks([index + middle for index in range(len(_POINTS))], _POINTS)
        axes.set_title(f"{measure.upper()}, ms")
        axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _timeline(report: SimulationReport, figure_type: Any) -> Any:
    """Running and waiting requests, and KV usage, over virtual time."""
    figure = figure_type(figsize=(11, 6), layout="constrained")
    rows = figure.subplots(3, 1, sharex=True)
    titles = ("running requests", "waiting requests", "KV blocks in use, %")
    for place, policy in enumerate(report.policies):
        times = [sample[0] for sample in policy.samples]
        for column, (axes, title) in enumerate(zip(rows, titles, strict=True), 1):
            scale = 100 if column == len(titles) else 1
            values = [sample[column] * scale for sample in policy.samples]
            color = _COLORS[place % len(_COLORS)]
            axes.plot(times, values, label=policy.policy, color=color, linewidth=1)
            axes.set_title(title, loc="left")
            axes.set_ylim(bottom=0)
    rows[-1].set_xlabel("seconds")
    rows[0].legend()
    return figure


def _tenants(report: SimulationReport, figure_type: Any) -> Any:
    """TTFT p99 per tenant, policies side by side."""
    figure = figure_type(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(report.policies)
    for place, policy in enumerate(report.policies):
        xs = [index + place * width for index in range(len(policy.tenants))]
        values = [tenant.ttft_ms.p99 if tenant.ttft_ms else 0.0 for tenant in policy.tenants]
        axes.bar(xs, values, width, label=policy.policy, color=_COLORS[place % len(_COLORS)])
    names = [tenant.name for tenant in report.policies[0].tenants]
    axes.set_xticks([index + 0.4 - width / 2 for index in range(len(names))], names)
    axes.set_title("TTFT p99 by tenant, ms")
    axes.set_yscale("log")
    axes.legend()
    return figure
