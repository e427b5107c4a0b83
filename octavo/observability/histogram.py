"""A histogram cheap enough to be fed with every token.

Not safe for threads: one event loop both observes and exposes. Several processes may keep one
together, each in cells of its own (see `board`). `prometheus_client`'s own class
takes a lock and walks its buckets at each observation, several times per token.
"""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate
from typing import TYPE_CHECKING

from octavo.observability.board import private_cells

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.observability.board import Cells


class Histogram:
    """Counts of observations by upper bound, and their sum.

    Args:
        bounds: upper bounds (inclusive) in rising order, without infinity.
        rows: `num_cells(bounds)` cells per process, ours first: we count in ours, and read the sum
            of all. None: there is only us.
    """

    __slots__ = ("_cells", "_rows", "bounds")

    def __init__(self, bounds: Sequence[float], rows: Sequence[Cells] | None = None) -> None:
        assert list(bounds) == sorted(set(bounds))
        self.bounds = tuple(bounds)
        if rows is None:
            rows = [private_cells(self.num_cells(bounds))]
        self._rows = rows
        self._cells = rows[0]

    @staticmethod
    def num_cells(bounds: Sequence[float]) -> int:
        """How many cells a process needs: one a bucket, and the sum."""
        return len(bounds) + 2

    def observe(self, value: float, times: int = 1) -> None:
        """Count a value, `times` times."""
        cells = self._cells
        cells[bisect_left(self.bounds, value)] += times
        cells[-1] += value * times

    @property
    def count(self) -> int:
        """Observations so far."""
        return self.cumulative()[-1]

    @property
    def sum(self) -> float:
        """Sum of all values so far."""
        return float(sum(cells[-1] for cells in self._rows))

    def cumulative(self) -> list[int]:
        """How many values are at most each bound, in order; the last is the count."""
        if len(self._rows) == 1:
            counts = list(self._cells)
        else:
            counts = list(map(sum, zip(*self._rows, strict=True)))
        return [int(total) for total in accumulate(counts[:-1])]

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative counts by `le`, `+Inf` last, as Prometheus exposes them."""
        names = [*(str(float(bound)) for bound in self.bounds), "+Inf"]
        return [(name, float(total)) for name, total in zip(names, self.cumulative(), strict=True)]
