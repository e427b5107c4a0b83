"""Where a device's time went: laid out along the host's clock, so that no moment counts twice.

Steps end in the order in which they were launched, and a device runs one at a time. All that is
known of one is when the host launched it, when the host saw its end, and how long the device says
that it took, by a clock of its own. So each step's work is laid into the time between its launch
and its end as early as it fits, behind the step before it, and cut where the device's clock claims
more than there was. What lies between steps goes to what the host was at then.

Knows no requests and reads no clock. Times are nanoseconds of a monotonic clock.
"""

from __future__ import annotations

from collections import deque
from enum import IntEnum


class Activity(IntEnum):
    """What the host is at: the bucket of time in which no step runs. See `types.DeviceTime`."""

    STARTUP = 0
    IDLE = 1
    SCHEDULER = 2
    MESSAGES = 3
    LAUNCH = 4
    GRAMMAR = 5
    FAILED = 6


class DeviceTimeline:
    """See the module.

    Args:
        now_ns: begin; the device starts up.

    Attributes:
        begin_ns: when the time began.
        buckets_ns: by `Activity`. With all that `end` returned, and the time since `settled_ns`,
            they add up to the time since `begin_ns`.
        settled_ns: all time before it is accounted for.
    """

    def __init__(self, now_ns: int) -> None:
        self.begin_ns = self.settled_ns = now_ns
        self.buckets_ns = [0] * len(Activity)
        # When the host turned to what; the first no later than `settled_ns`, the others after it.
        self._turns: deque[tuple[int, Activity]] = deque([(now_ns, Activity.STARTUP)])
        self._launched: deque[int] = deque()

    @property
    def activity(self) -> Activity:
        """What the host is at."""
        return self._turns[-1][1]

    @property
    def num_in_flight(self) -> int:
        """Steps that were launched and have not ended."""
        return len(self._launched)

    def turn_to(self, activity: Activity, now_ns: int) -> None:
        """The host turns to something else, or stays at what it is at."""
        if activity is self._turns[-1][1]:
            return
        if not self._launched:
            self._settle(now_ns)
            self._turns.clear()
        self._turns.append((now_ns, activity))

    def extend_back(self, began_ns: int) -> None:
        """The device was ours already since then, and was starting up."""
        if began_ns < self.begin_ns:
            self.buckets_ns[Activity.STARTUP] += self.begin_ns - began_ns
            self.begin_ns = began_ns

    def rename(self, activity: Activity) -> None:
        """What the host is at, and was since its last turn, is something else."""
        self._turns[-1] = (self._turns[-1][0], activity)

    def launch(self, now_ns: int) -> None:
        """A step was launched."""
        if not self._launched:
            self._settle(now_ns)
        self._launched.append(now_ns)

    def end(self, device_ns: int, waited_ns: int, now_ns: int) -> int:
        """The oldest step in flight has ended.

        Args:
            device_ns: how long it took, by the device's clock; less is counted if there was less.
            waited_ns: how much of that the device waited for masks.
            now_ns: when the host saw it.

        Returns:
            How long the device worked for it.
        """
        launched = self._launched.popleft()
        if launched > self.settled_ns:
            self._settle(launched)
        took = max(min(device_ns, now_ns - self.settled_ns), 0)
        waited = min(waited_ns, took)
        self.buckets_ns[Activity.GRAMMAR] += waited
        self._skip(self.settled_ns + took)
        self._settle_gap(now_ns)
        return took - waited

    def fail(self, now_ns: int) -> None:
        """The oldest step in flight has failed: nobody knows how long it took."""
        launched = self._launched.popleft()
        if launched > self.settled_ns:
            self._settle(launched)
        if now_ns > self.settled_ns:
            self.buckets_ns[Activity.FAILED] += now_ns - self.settled_ns
            self._skip(now_ns)

    def settle(self, now_ns: int) -> None:
        """Account for all time until now, unless steps are in flight."""
        if not self._launched:
            self._settle(now_ns)

    def _settle_gap(self, now_ns: int) -> None:
        """No step ran from `settled_ns` until the next was launched, or until now."""
        until = min(self._launched[0], now_ns) if self._launched else now_ns
        if until > self.settled_ns:
            self._settle(until)

    def _settle(self, until_ns: int) -> None:
        """No step ran from `settled_ns` until then."""
        turns, buckets = self._turns, self.buckets_ns
        while len(turns) > 1 and turns[1][0] <= until_ns:
            begin = self.settled_ns
            self.settled_ns = max(turns[1][0], begin)
            buckets[turns[0][1]] += self.settled_ns - begin
            turns.popleft()
        buckets[turns[0][1]] += until_ns - self.settled_ns
        self.settled_ns = until_ns

    def _skip(self, until_ns: int) -> None:
        """A step ran until then."""
        turns = self._turns
        while len(turns) > 1 and turns[1][0] <= until_ns:
            turns.popleft()
        self.settled_ns = until_ns
