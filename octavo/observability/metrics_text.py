"""Metric families as Prometheus reads them: its text format 0.0.4, or OpenMetrics 1.0.

`prometheus_client` sorts labels and escapes names anew for every sample, which costs more than the
5 ms that a scrape may take; here the text before a value is made once. Which format is asked for,
and what the library knows of the process, is still the library's.

Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and
https://prometheus.io/docs/specs/om/open_metrics_spec/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from octavo.observability.histogram import Histogram

    Labels: TypeAlias = tuple[tuple[str, str], ...]
    Value: TypeAlias = float | Histogram | tuple[int, float]

OPEN_METRICS_END = "# EOF\n"


class Family(NamedTuple):
    """What one name tells.

    Attributes:
        name: without the `_total` of a counter's samples.
        text: what it is.
        points: values by labels; a summary's are a count and a sum.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram", "summary"]
    text: str
    points: Sequence[tuple[Labels, Value]]


class Renderer:
    """Writes families.

    Args:
        labels: those of every sample.
    """

    def __init__(self, labels: Labels) -> None:
        self._labels = labels
        self._before: dict[tuple[str, Labels], str] = {}
        self._before_buckets: dict[tuple[str, Labels], list[str]] = {}

    def render(self, families: Iterable[Family], *, is_open_metrics: bool) -> str:
        """The families' lines, without an end mark."""
        parts: list[str] = []
        for name, kind, text, points in families:
            sample_name = f"{name}_total" if kind == "counter" else name
            title = name if is_open_metrics else sample_name
            parts.append(f"# HELP {title} {_escape(text)}\n# TYPE {title} {kind}\n")
            for labels, value in points:
                if isinstance(value, int | float):
                    before = self._before.get((sample_name, labels))
                    if before is None:
                        before = self._start(sample_name, labels)
                        self._before[sample_name, labels] = before
                    parts.append(f"{before}{value}\n")
                elif isinstance(value, tuple):
                    parts += [
                        f"{self._start(f'{name}_{what}', labels)}{part}\n"
                        for what, part in zip(("count", "sum"), value, strict=True)
                    ]
                else:
                    self._histogram(parts, name, labels, value)
        return "".join(parts)

    def _histogram(self, parts: list[str], name: str, labels: Labels, histogram: Histogram) -> None:
        starts = self._before_buckets.get((name, labels))
        if starts is None:
            bounds = [*(str(float(bound)) for bound in histogram.bounds), "+Inf"]
            starts = [self._start(f"{name}_bucket", (*labels, ("le", le))) for le in bounds]
            starts += [self._start(f"{name}_{what}", labels) for what in ("count", "sum")]
            self._before_buckets[name, labels] = starts
        counts = histogram.cumulative()
        values = (*counts, counts[-1], histogram.sum)
        parts += [f"{before}{value}\n" for before, value in zip(starts, values, strict=True)]

    def _start(self, name: str, labels: Labels) -> str:
        """A sample's line up to its value."""
        inside = ",".join(f'{key}="{_escape_label(v)}"' for key, v in (*self._labels, *labels))
        return f"{name}{{{inside}}} " if inside else f"{name} "


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _escape_label(value: str) -> str:
    return _escape(value).replace('"', r"\"")
