"""What is written down while a simulation runs: times per request, gaps, and samples over time.

Times are seconds. Gaps between tokens go into a histogram of 0.5 % wide classes: a simulation has
hundreds of millions of them.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST_S = 1e-6
_RATIO = log(1.005)
_NUM_CLASSES = 4200  # up to about 1000 s
_MAX_SAMPLES = 2048


class GapHistogram:
    """Gaps between a request's tokens, counted in classes of a constant ratio."""

    def __init__(self) -> None:
        self.counts = np.zeros(_NUM_CLASSES, dtype=np.int64)
        self.total_s = 0.0

    def add(self, gap_s: float, count: int) -> None:
        """`count` gaps of one length."""
        place = int(log(max(gap_s, _LEAST_S) / _LEAST_S) / _RATIO)
        self.counts[min(place, _NUM_CLASSES - 1)] += count
        self.total_s += gap_s * count

    def add_all(self, gaps_s: NDArray[np.float64]) -> None:
        """One gap of each length."""
        places = np.log(np.maximum(gaps_s, _LEAST_S) / _LEAST_S) / _RATIO
        np.add.at(self.counts, np.minimum(places.astype(np.int64), _NUM_CLASSES - 1), 1)
        self.total_s += float(gaps_s.sum())

    @property
    def num(self) -> int:
        """Gaps in all."""
        return int(self.counts.sum())

    def percentile(self, percent: float) -> float:
        """Seconds, in the middle of the class where the percentile lies."""
        ranks = np.cumsum(self.counts)
        place = int(np.searchsorted(ranks, percent / 100 * ranks[-1], side="left"))
        return float(_LEAST_S * np.exp((place + 0.5) * _RATIO))


class Samples:
    """The engine's state over time, at most 2048 points: every second one goes when it is full.

    Attributes:
        rows: (time, running, waiting, share of KV blocks in use).
    """

    def __init__(self) -> None:
        self.rows: list[tuple[float, int, int, float]] = []
        self._interval = 0.0
        self._due = 0.0

    def is_due(self, now: float) -> bool:
        """Whether `add` would keep a point of this time."""
        return now >= self._due

    def add(self, now: float, num_running: int, num_waiting: int, kv_usage: float) -> None:
        """Keep a point."""
        self.rows.append((now, num_running, num_waiting, kv_usage))
        if len(self.rows) >= _MAX_SAMPLES:
            self.rows = self.rows[::2]
            self._interval = now / len(self.rows)
        self._due = now + self._interval


class Record:
    """Times of every request by its index; NaN where it did not come to that.

    Attributes:
        sent_s: when the client sent it.
        first_s, last_s: when its first and last token reached the client.
        cached: prompt tokens from the prefix cache.
        preemptions: how often it lost its blocks.
        gaps: between tokens, over all requests.
        samples: the engine's state over time.
        num_refused, first_refusal: requests that could never run.
        device_s, step_s: time on the device, and in steps (the larger of device and host).
        waiting_s, running_s, kv_usage_s: integrals over the time in steps of requests and of the
            share of KV blocks in use.
        max_waiting, max_kv_usage: the most of them.
        end_s: when the last token reached its client.
    """

    def __init__(self, num_requests: int) -> None:
        self.sent_s = np.full(num_requests, np.nan)
        self.first_s = np.full(num_requests, np.nan)
        self.last_s = np.full(num_requests, np.nan)
        self.cached = np.zeros(num_requests, dtype=np.int64)
        self.preemptions = np.zeros(num_requests, dtype=np.int32)
        self.gaps = GapHistogram()
        self.samples = Samples()
        self.num_refused = 0
        self.first_refusal = ""
        self.device_s = 0.0
        self.max_waiting = 0
        self.max_kv_usage = 0.0
        self.step_s = 0.0
        self.waiting_s = 0.0
        self.running_s = 0.0
        self.kv_usage_s = 0.0
        self.end_s = 0.0

    def add_step(
        self, begin: float, duration: float, num_running: int, num_waiting: int, kv_usage: float
    ) -> None:
        """Weigh the state in which a step was planned by the step's duration."""
        self.step_s += duration
        self.running_s += num_running * duration
        self.waiting_s += num_waiting * duration
        self.kv_usage_s += kv_usage * duration
        self.max_waiting = max(self.max_waiting, num_waiting)
        self.max_kv_usage = max(self.max_kv_usage, kv_usage)
        if self.samples.is_due(begin):
            self.samples.add(begin, num_running, num_waiting, kv_usage)
