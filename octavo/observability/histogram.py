"""A histogram cheap enough to be fed with every token.

Not safe for threads: one event loop both observes and exposes. `prometheus_client`'s own class
takes a lock and walks its buckets at each observation, several times per token.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Histogram:
    """Counts of observations by upper bound, and their sum.

    Args:
        bounds: upper bounds (inclusive) in rising order, without infinity.
    """

    __slots__ = ("_bounds", "_counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        assert list(bounds) == sorted(set(bounds))
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """Observations so far."""
        return sum(self._counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by `le`, `+Inf` last, as Prometheus exposes them."""
        total = 0
        result: list[tuple[str, float]] = []
        names = [*(str(float(bound)) for bound in self._bounds), "+Inf"]
        for name, count in zip(names, self._counts, strict=True):
            total += count
            result.append((name, float(total)))
        return result
