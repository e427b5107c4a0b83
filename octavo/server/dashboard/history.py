"""The last minutes of a server, read every two seconds from counters that are kept anyway.

Nothing here is told of a request or a token. Rates and quantiles come from differences of counters,
as Prometheus makes them: of all API servers, as the counters are.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.observability.metrics_buckets import E2E_BUCKETS, ITL_BUCKETS, TTFT_BUCKETS
from octavo.protocol.dashboard import DashboardSeries

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.observability.histogram import Histogram
    from octavo.observability.metrics_requests import RequestMetrics
    from octavo.types import EngineStats

STEP_S = 2.0
NUM_POINTS = 300
"""Ten minutes."""

RATE_STEPS = 5
WINDOW_STEPS = 30
"""Rates are taken over 10 seconds, quantiles over a minute."""


class Counts(NamedTuple):
    """A histogram at a moment: how many values are at most each bound, all of them, their sum."""

    cumulative: list[int]
    sum: float

    @classmethod
    def of(cls, histogram: Histogram) -> Counts:
        """A histogram as it is now."""
        return cls(histogram.cumulative(), histogram.sum)


class Reading(NamedTuple):
    """Counters and gauges at a moment.

    Attributes:
        at: `time.monotonic()`.
        time: seconds since 1970.
    """

    at: float
    time: float
    num_running: int
    num_waiting: int
    kv_usage: float
    num_prompt_tokens: int
    num_output_tokens: int
    num_preemptions: int
    prefix_queries: int
    prefix_hits: int
    num_devices: int
    wall_ns: int
    requests_ns: int
    ttft: Counts
    itl: Counts
    e2e: Counts

    @classmethod
    def of(cls, stats: EngineStats, requests: RequestMetrics, at: float, time: float) -> Reading:
        """What engine and server say now."""
        return cls(
            at,
            time,
            stats.num_running,
            stats.num_waiting,
            stats.kv_cache_usage,
            stats.num_prompt_tokens,
            stats.num_generation_tokens,
            stats.num_preemptions,
            stats.prefix_cache_queries,
            stats.prefix_cache_hits,
            stats.device_time.num_devices,
            stats.device_time.wall_ns,
            stats.device_time.requests_ns,
            Counts.of(requests.time_to_first_token),
            Counts.of(requests.inter_token_latency),
            Counts.of(requests.e2e_request_latency),
        )


class Point(NamedTuple):
    """A moment in the charts; see `DashboardSeries`."""

    times: float
    running: float | None
    waiting: float | None
    kv_usage: float | None
    prompt_rate: float | None
    output_rate: float | None
    request_rate: float | None
    device_busy: float | None
    ttft_p50: float | None
    ttft_p95: float | None
    itl_mean: float | None
    itl_p95: float | None
    e2e_p50: float | None
    e2e_p95: float | None
    prefix_hit_rate: float | None
    preemptions: float | None


class History:
    """See the module. It belongs to one thread."""

    def __init__(self) -> None:
        self._readings: deque[Reading] = deque(maxlen=WINDOW_STEPS + 1)
        self._points: deque[Point] = deque(maxlen=NUM_POINTS)

    @property
    def newest_at(self) -> float:
        """`time.monotonic()` of the last reading."""
        return self._readings[-1].at if self._readings else float("-inf")

    def add(self, reading: Reading) -> None:
        """Take a reading, later than the ones before."""
        self._readings.append(reading)
        readings = self._readings
        near = readings[max(0, len(readings) - 1 - RATE_STEPS)]
        point = _point(near, readings[0], reading)
        if point.device_busy is None and self._points and reading.num_running:
            point = point._replace(device_busy=self._points[-1].device_busy)  # within a long step
        rounded = (None if value is None else round(value, 5) for value in point)
        self._points.append(Point._make(rounded))

    def series(self) -> DashboardSeries:
        """All points, as columns."""
        columns: dict[str, Any] = {name: [] for name in Point._fields}
        for name, column in zip(Point._fields, zip(*self._points, strict=True), strict=False):
            columns[name] = list(column)
        return DashboardSeries(
            step_s=STEP_S,
            rate_s=RATE_STEPS * STEP_S,
            window_s=WINDOW_STEPS * STEP_S,
            ttft_bound=TTFT_BUCKETS[0],
            itl_bound=ITL_BUCKETS[0],
            **columns,
        )


def _point(near: Reading, far: Reading, now: Reading) -> Point:
    """What to draw for a moment.

    Args:
        near: what rates are taken since.
        far: what quantiles are taken since.
        now: the moment's.
    """
    seconds = now.at - near.at

    def rate(before: float, after: float) -> float | None:
        return _gain(before, after) / seconds if seconds > 0 else None

    ttft, itl, e2e = (
        _between(before, after)
        for before, after in ((far.ttft, now.ttft), (far.itl, now.itl), (far.e2e, now.e2e))
    )
    num_queries = _gain(far.prefix_queries, now.prefix_queries)
    num_hits = _gain(far.prefix_hits, now.prefix_hits)
    return Point(
        times=now.time,
        running=now.num_running,
        waiting=now.num_waiting,
        kv_usage=now.kv_usage,
        prompt_rate=rate(near.num_prompt_tokens, now.num_prompt_tokens),
        output_rate=rate(near.num_output_tokens, now.num_output_tokens),
        request_rate=rate(near.e2e.cumulative[-1], now.e2e.cumulative[-1]),
        device_busy=_busy(near, now),
        ttft_p50=quantile(TTFT_BUCKETS, ttft.cumulative, 0.5),
        ttft_p95=quantile(TTFT_BUCKETS, ttft.cumulative, 0.95),
        itl_mean=itl.sum / itl.cumulative[-1] if itl.cumulative[-1] else None,
        itl_p95=quantile(ITL_BUCKETS, itl.cumulative, 0.95),
        e2e_p50=quantile(E2E_BUCKETS, e2e.cumulative, 0.5),
        e2e_p95=quantile(E2E_BUCKETS, e2e.cumulative, 0.95),
        prefix_hit_rate=num_hits / num_queries if num_queries else None,
        preemptions=_gain(far.num_preemptions, now.num_preemptions),
    )


def _busy(near: Reading, now: Reading) -> float | None:
    """The share of time that devices worked for requests; None: not known.

    Engines tell at the end of a step, which may take longer than the window; and nothing while
    there are no requests, unless they are asked.
    """
    seconds, known = now.at - near.at, _gain(near.wall_ns, now.wall_ns) / 1e9
    if now.num_running:
        seconds = min(seconds, known)
    if not now.num_devices or seconds <= 0:
        return None
    spent = _gain(near.requests_ns, now.requests_ns) / 1e9 / now.num_devices
    return min(spent / seconds, 1.0)


def quantile(bounds: Sequence[float], cumulative: Sequence[int], q: float) -> float | None:
    """Estimate a quantile as Prometheus' `histogram_quantile` does, by a line within the bucket.

    Source: https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile

    Args:
        bounds: upper bounds of the buckets but the last one, which has none.
        cumulative: how many values are at most each bound, and all of them.
        q: 0 to 1.

    Returns:
        None: there are no values. The largest bound where the quantile lies above it.
    """
    total = cumulative[-1]
    if not total:
        return None
    rank = q * total
    index = bisect_left(cumulative, rank)
    if index >= len(bounds):
        return bounds[-1]
    low = bounds[index - 1] if index else 0.0
    below = cumulative[index - 1] if index else 0
    inside = cumulative[index] - below
    return low + (bounds[index] - low) * ((rank - below) / inside if inside else 0.0)


def _between(before: Counts, after: Counts) -> Counts:
    """What was counted between two moments."""
    return Counts(
        [max(b - a, 0) for a, b in zip(before.cumulative, after.cumulative, strict=True)],
        max(after.sum - before.sum, 0.0),
    )


def _gain(before: float, after: float) -> float:
    """By how much a counter rose; one that fell began anew, with an engine started again."""
    return after - before if after >= before else after
