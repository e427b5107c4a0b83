"""What dashboards are made of, and the PromQL and panels that they have in common."""

from __future__ import annotations

from typing import Literal, NamedTuple

Kind = Literal["timeseries", "stat", "heatmap", "bargauge"]


class Panel(NamedTuple):
    """One panel.

    Attributes:
        title: as shown.
        queries: PromQL to legend.
        unit: Grafana's name of it.
        text: what it tells, shown on hover.
        kind: how it is drawn.
        stacks: whether the lines lie on each other.
        width: of 24 columns.
        limits: value to colour, from where on; the first colour is green.
    """

    title: str
    queries: dict[str, str]
    unit: str = "short"
    text: str = ""
    kind: Kind = "timeseries"
    stacks: bool = False
    width: int = 8
    limits: dict[float, str] = {}


class Row(NamedTuple):
    """Panels under a title."""

    title: str
    panels: list[Panel]


class Variable(NamedTuple):
    """A choice at the top: the values that a label has."""

    name: str
    title: str
    query: str


OWN = '{model_name=~"$model_name",instance=~"$instance"}'
"""Selects what is chosen at the top."""


def selected(extra: str) -> str:
    """As `OWN`, with one more matcher."""
    return f"{OWN[:-1]},{extra}}}"


def rate(name: str, by: str = "", extra: str = "") -> str:
    """Sum of a counter's rate, by some labels."""
    labels = selected(extra) if extra else OWN
    group = f" by ({by}) " if by else ""
    return f"sum{group}(rate({name}{labels}[$__rate_interval]))"


def quantiles(name: str) -> dict[str, str]:
    """P50, P95 and P99 of a histogram, and its mean."""
    buckets = f"sum by (le) (rate({name}_bucket{OWN}[$__rate_interval]))"
    lines = {f"histogram_quantile({q}, {buckets})": f"P{int(q * 100)}" for q in (0.5, 0.95, 0.99)}
    return {**lines, mean(name): "mean"}


def mean(name: str) -> str:
    """Mean of a histogram's values."""
    return f"{rate(f'{name}_sum')} / {rate(f'{name}_count')}"


def heat(title: str, name: str, text: str) -> Panel:
    """A histogram over time."""
    query = f"sum by (le) (increase({name}_bucket{OWN}[$__rate_interval]))"
    return Panel(title, {query: "{{le}}"}, text=text, kind="heatmap", width=8)


DEVICES_TIME = Panel(
    "Devices' time",
    {rate("octavo:gpu_seconds_total", "bucket"): "{{bucket}}"},
    unit="percentunit",
    stacks=True,
    text="Seconds per second: the sum is the number of devices.",
)
