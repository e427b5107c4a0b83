"""In which order waiting requests run: the seam for scheduling policies.

A policy holds the waiting requests and orders them. It knows nothing of blocks, rows or steps.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol

from octavo.engine.request import RequestStatus

if TYPE_CHECKING:
    from octavo.engine.request import Request

Key = tuple[int, int]
"""Where a request stands: smaller runs earlier. Unique, and constant for a request's life."""

_MIN_DEAD = 64


class Policy(Protocol):
    """What the scheduler asks of a policy."""

    def key(self, request: Request) -> Key:
        """Rank among running requests too: a request never preempts one of a smaller key."""
        ...

    def push(self, request: Request) -> None:
        """Hold a waiting request, new or preempted."""
        ...

    def peek(self) -> Request | None:
        """The request to run next, or None; finished ones (aborted while waiting) never."""
        ...

    def pop(self) -> None:
        """Let go of the one that `peek` returned."""
        ...

    def forget(self, request: Request) -> None:
        """A held request was aborted; its status says so already."""
        ...


class FCFSPolicy:
    """First come, first served: by arrival, whatever happened to a request since.

    A heap; an aborted request stays in it until it comes to the top, or until half of it is such.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[Key, Request]] = []
        self._num_dead = 0

    def key(self, request: Request) -> Key:
        """Rank by arrival."""
        return (0, request.arrival)

    def push(self, request: Request) -> None:
        """Logarithmic time."""
        heappush(self._heap, (self.key(request), request))

    def peek(self) -> Request | None:
        """Constant time, amortised."""
        heap = self._heap
        while heap:
            request = heap[0][1]
            if request.status is not RequestStatus.FINISHED:
                return request
            heappop(heap)
            self._num_dead -= 1
        return None

    def pop(self) -> None:
        """Logarithmic time."""
        heappop(self._heap)

    def forget(self, request: Request) -> None:
        """Constant time, amortised."""
        self._num_dead += 1
        if self._num_dead >= _MIN_DEAD and 2 * self._num_dead > len(self._heap):
            self._heap = [e for e in self._heap if e[1].status is not RequestStatus.FINISHED]
            heapify(self._heap)
            self._num_dead = 0


class PriorityPolicy(FCFSPolicy):
    """Lower `priority` first, then by arrival; may preempt running requests of higher value."""

    def key(self, request: Request) -> Key:
        """Rank by priority, then arrival."""
        return (request.priority, request.arrival)
