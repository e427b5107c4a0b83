"""In which order waiting requests run: the seam for scheduling policies.

A policy holds the waiting requests and orders them. It knows nothing of blocks, rows or steps.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Protocol

from octavo.engine.request import RequestStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.engine.request import Request
    from octavo.types import SchedulingPolicy

Key = tuple[int, int]
"""Where a request stands: smaller runs earlier. Unique, and constant for a request's life."""

_MIN_DEAD = 64
_MAX_IDLE_TENANTS = 4096


class Policy(Protocol):
    """What the scheduler asks of a policy.

    Attributes:
        counts_service: whether `charge` wants to be called; not doing so saves time per token.
    """

    counts_service: bool

    def key(self, request: Request) -> Key:
        """Rank among running requests too: a request never preempts one of a smaller key."""
        ...

    def push(self, request: Request) -> None:
        """Hold a waiting request, new or preempted."""
        ...

    def peek(self) -> Request | None:
        """The request to run next, or None; finished ones (aborted while waiting) never."""
        ...

    def candidates(self) -> list[Request]:
        """Those that `peek` may come to return by what running requests are charged."""
        ...

    def pop(self) -> None:
        """Let go of the one that `peek` returned."""
        ...

    def forget(self, request: Request) -> None:
        """A held request was aborted; its status says so already."""
        ...

    def victims(self, waiting: Request, running: Sequence[Request]) -> list[Request]:
        """Who gives up a row, now that none is free, for `waiting`, which is next to run, and for
        those behind it.
        """
        ...

    def charge(self, request: Request, num_input_tokens: int, num_output_tokens: int) -> None:
        """The request was served: prompt tokens computed, tokens sampled."""
        ...


class FCFSPolicy:
    """First come, first served: by arrival, whatever happened to a request since.

    A heap; an aborted request stays in it until it comes to the top, or until half of it is such.
    """

    counts_service = False

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

    def candidates(self) -> list[Request]:
        """Service changes nothing here."""
        request = self.peek()
        return [] if request is None else [request]

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

    def charge(self, request: Request, num_input_tokens: int, num_output_tokens: int) -> None:
        """Service changes nothing here."""

    def victims(self, waiting: Request, running: Sequence[Request]) -> list[Request]:
        """Nobody gives up a row."""
        return []

    def __len__(self) -> int:
        """How many requests are held."""
        return len(self._heap) - self._num_dead


class PriorityPolicy(FCFSPolicy):
    """Lower `priority` first, then by arrival; may preempt running requests of higher value."""

    def key(self, request: Request) -> Key:
        """Rank by priority, then arrival."""
        return (request.priority, request.arrival)


def make_policy(name: SchedulingPolicy) -> Policy:
    """The policy of this name, without requests."""
    policies: dict[SchedulingPolicy, Callable[[], Policy]] = {
        "fcfs": FCFSPolicy,
        "priority": PriorityPolicy,
        "fair": FairPolicy,
    }
    return policies[name]()


class FairPolicy:
    """The tenant that got the least service so far first; within a tenant first come, first served.

    The virtual token counter of "Fairness in Serving Large Language Models" (OSDI '24): each tenant
    has a counter of its weighted tokens. One that comes back after a pause is lifted to the least
    counter of those that queue, so that nobody saves up a right to flood. Tokens found in the
    prefix cache cost nothing, nor does what a preemption makes the engine compute again.

    Args:
        input_weight, output_weight: cost of a prompt token computed and of a token sampled.
    """

    counts_service = True

    def __init__(self, *, input_weight: float = 1.0, output_weight: float = 2.0) -> None:
        self._weights = (input_weight, output_weight)
        self._counters: dict[str, float] = {}
        # Tenants with held requests; a queue of dead ones alone goes when `peek` meets it.
        self._queues: dict[str, FCFSPolicy] = {}
        # The counter of the tenant served last: where one starts when nobody queues.
        self._floor = 0.0

    def key(self, request: Request) -> Key:
        """Rank by arrival: fairness decides who starts, not who is thrown out."""
        return (0, request.arrival)

    def push(self, request: Request) -> None:
        """Linear in tenants that queue, for the first request of one; else logarithmic."""
        tenant, counters = request.tenant, self._counters
        if tenant not in self._queues:
            floor = min((counters[other] for other in self._queues), default=self._floor)
            counters[tenant] = max(counters.get(tenant, 0.0), floor)
            self._queues[tenant] = FCFSPolicy()
            if len(counters) > _MAX_IDLE_TENANTS + len(self._queues):
                # Those at or below the floor would be lifted to it anyway.
                self._counters = {
                    name: count
                    for name, count in counters.items()
                    if count > floor or name in self._queues
                }
        self._queues[tenant].push(request)

    def peek(self) -> Request | None:
        """Linear in tenants that queue."""
        while self._queues:
            tenant = min(self._queues, key=self._counters.__getitem__)
            request = self._queues[tenant].peek()
            if request is not None:
                self._floor = self._counters[tenant]
                return request
            del self._queues[tenant]
        return None

    def candidates(self) -> list[Request]:
        """The first of each tenant that queues."""
        return [r for queue in self._queues.values() if (r := queue.peek()) is not None]

    def pop(self) -> None:
        """Linear in tenants that queue."""
        request = self.peek()
        assert request is not None
        self._queues[request.tenant].pop()
        # So that a tenant without held requests counts as one that left the queue.
        if self._queues[request.tenant].peek() is None:
            del self._queues[request.tenant]

    def forget(self, request: Request) -> None:
        """Constant time, amortised."""
        if request.tenant in self._queues:
            self._queues[request.tenant].forget(request)

    def victims(self, waiting: Request, running: Sequence[Request]) -> list[Request]:
        """The cheapest requests of tenants with more than their share of rows, for one with less.

        All rows are taken, and each tenant that runs or queues has an equal share of them. Without
        this, a tenant that comes into a flood would wait until the flood's requests end. Each
        victim brings two tenants nearer to their shares, so it comes to an end; and what the
        victim computed is mostly found in the prefix cache when it starts again.
        """
        rows: dict[str, int] = {}
        for request in running:
            rows[request.tenant] = rows.get(request.tenant, 0) + 1
        share = len(running) / len(self._queues.keys() | rows.keys())
        num_missing = int(share) - rows.get(waiting.tenant, 0)
        num_wanted = min(num_missing, len(self._queues[waiting.tenant]))
        victims: list[Request] = []
        if num_wanted > 0:
            for request in sorted(running, key=lambda r: r.num_computed_tokens):
                if rows[request.tenant] > share:
                    rows[request.tenant] -= 1
                    victims.append(request)
                    if len(victims) == num_wanted:
                        break
        return victims

    def charge(self, request: Request, num_input_tokens: int, num_output_tokens: int) -> None:
        """Constant time."""
        cost = num_input_tokens * self._weights[0] + num_output_tokens * self._weights[1]
        self._counters[request.tenant] = self._counters.get(request.tenant, self._floor) + cost
