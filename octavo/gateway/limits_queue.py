"""Who is next among requests that wait: fair between tenants, in order within one.

Pure: holds entries, and decides nothing but their order. The tenant that was served least, in
tokens, goes first; one that comes anew starts where the least served of those who wait stands, so
that nobody saves up turns. This is the virtual token counter of Sheng et al., "Fairness in Serving
Large Language Models", 2024, <https://arxiv.org/abs/2401.00588>: two tenants who both wait all the
time are served the same within twice the largest request.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator

T = TypeVar("T")

MAX_GONE = 1000
"""Tenants that wait no more and are surely remembered."""


class FairQueue(Generic[T]):
    """Entries of tenants."""

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}
        self._served: dict[str, float] = {}
        self._floor = 0.0
        self._len = 0

    def __len__(self) -> int:
        return self._len

    def num_of(self, tenant: str) -> int:
        """How many of a tenant's wait."""
        return len(self._waiting.get(tenant, ()))

    def push(self, tenant: str, entry: T) -> None:
        """Let an entry wait, behind its tenant's others."""
        if tenant not in self._waiting:
            start = min((self._served[name] for name in self._waiting), default=self._floor)
            self._served[tenant] = max(self._served.get(tenant, 0.0), start)
            self._waiting[tenant] = deque()
        self._waiting[tenant].append(entry)
        self._len += 1

    def remove(self, tenant: str, entry: T) -> bool:
        """Take an entry out that is not served; False: it does not wait."""
        line = self._waiting.get(tenant)
        if line is None or entry not in line:
            return False
        line.remove(entry)
        self._len -= 1
        self._tidy(tenant)
        return True

    def serve(self, tenant: str, entry: T, cost: float) -> bool:
        """Take an entry out that is served now, at this cost; False: it does not wait any more."""
        if entry not in self._waiting.get(tenant, ()):
            return False
        self._floor = max(self._floor, self._served[tenant])
        self._served[tenant] += cost
        return self.remove(tenant, entry)

    def in_turn(self) -> Iterator[tuple[str, T]]:
        """All that wait, in the order in which they may be served as things stand; `serve` and
        `remove` may be called of what was given, and `push` at any time.

        A tenant whose first entry is not served is asked for its next one, as that may wait for
        something else.
        """
        heap = [
            (self._served[name], order, name, iter(tuple(line)))
            for order, (name, line) in enumerate(self._waiting.items())
        ]
        heapq.heapify(heap)
        while heap:
            _, order, name, line = heap[0]
            entry = next(line, None)
            if entry is None:
                heapq.heappop(heap)
                continue
            yield name, entry
            # Served or not: where the tenant stands now.
            heapq.heapreplace(heap, (self._served.get(name, self._floor), order, name, line))

    def check_integrity(self) -> None:
        """Assert what holds between calls."""
        assert self._len == sum(map(len, self._waiting.values()))
        assert all(self._waiting.values())
        assert self._waiting.keys() <= self._served.keys()
        assert self._waiting or not self._served

    def _tidy(self, tenant: str) -> None:
        if self._waiting[tenant]:
            return
        del self._waiting[tenant]
        if not self._waiting:
            self._served.clear()
            self._floor = 0.0
        elif len(self._served) > 2 * (len(self._waiting) + MAX_GONE):
            # Those that were served most must not begin anew; others lose little by it.
            gone = self._served.keys() - self._waiting.keys()
            for name in sorted(gone, key=self._served.__getitem__)[:-MAX_GONE]:
                del self._served[name]
