"""Who sends when, and the front end between the clients and the engine.

Knows times and indices of requests, nothing of the engine. Times are seconds.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.bench.simulate.hardware import Host
    from octavo.bench.simulate.record import Record
    from octavo.bench.simulate.trace import Trace


class FrontEnd:
    """One thing at a time: a request in, or the outputs of a step out; see `hardware.Host`.

    Attributes:
        free_s: when it is done with all that it was given.
    """

    def __init__(self, host: Host) -> None:
        self.free_s = 0.0
        self._host = host

    def take_in(self, sent_s: float) -> float:
        """When a request reaches the engine."""
        self.free_s = max(self.free_s, sent_s) + self._host.request_us * 1e-6
        return self.free_s + self._host.latency_us * 1e-6

    def carry_out(self, end_s: float, num_outputs: int) -> float:
        """When the clients see the tokens of a step that ended."""
        if not num_outputs:
            return end_s
        host = self._host
        busy_s = (host.output_us + host.token_us * num_outputs) * 1e-6
        self.free_s = max(self.free_s, end_s) + busy_s
        return self.free_s


class Clients:
    """Send the requests of a trace: at their times, and no sooner than what they wait for.

    Args:
        trace: the requests.
        front_end: what they go through.
        record: gets the times of sending.
    """

    def __init__(self, trace: Trace, front_end: FrontEnd, record: Record) -> None:
        self._trace, self._front_end, self._record = trace, front_end, record
        self._events: list[tuple[float, int]] = []
        self._ready: deque[tuple[float, int]] = deque()
        after = trace.after
        self._turn_after: dict[int, int] = {}
        if after is None:
            self._pending = deque(range(len(trace)))
        else:
            self._turn_after = {
                int(before): turn for turn, before in enumerate(after) if before >= 0
            }
            self._pending = deque(turn for turn, before in enumerate(after) if before < 0)
        for _ in range(trace.concurrency or len(self._pending)):
            self._send_next(0.0)

    def is_due(self, now: float) -> bool:
        """Whether `take` would change anything."""
        return bool(
            (self._events and self._events[0][0] <= now)
            or (self._ready and self._ready[0][0] <= now)
        )

    def take(self, now: float) -> list[int]:
        """Requests that reach the engine by now."""
        events, ready = self._events, self._ready
        while events and events[0][0] <= now:
            sent, index = heappop(events)
            self._record.sent_s[index] = sent
            ready.append((self._front_end.take_in(sent), index))
        taken: list[int] = []
        while ready and ready[0][0] <= now:
            taken.append(ready.popleft()[1])
        return taken

    def next_s(self) -> float | None:
        """When something happens next; None: nothing will, unless a request ends."""
        times = [queue[0][0] for queue in (self._events, self._ready) if queue]
        return min(times) if times else None

    def ended(self, index: int, now: float) -> None:
        """A request ended: the session's next turn, or the loop's next request, goes out."""
        turn = self._turn_after.pop(index, None)
        if turn is not None:
            assert self._trace.think_s is not None
            heappush(self._events, (now + float(self._trace.think_s[turn]), turn))
        elif self._trace.concurrency is not None:
            self._send_next(now)

    def _send_next(self, now: float) -> None:
        if self._pending:
            index = self._pending.popleft()
            heappush(self._events, (max(float(self._trace.arrival_s[index]), now), index))
