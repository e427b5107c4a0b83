"""A token bucket whose reservations can be given back without letting more through than it says.

Pure: the caller tells the time. `limits_redis` has the same arithmetic in Lua; tests compare both.

What a request reserved and did not use comes back at its end. To add it to the level would be
wrong: while the request ran, the bucket refilled, perhaps to the brim, and what it would have
refilled without the reservation was never lost. So the bucket is set to where it would stand had
the request taken only what it used: the level rises by the unused part, but by no more than the
least room that was above the level since the reservation (one-sided reflection: Harrison, Brownian
Motion and Stochastic Flow Systems, 1985, section 2.2). Then the bucket's law holds for what was
used, however long requests run: in any T seconds at most capacity + rate x T.
"""

from __future__ import annotations

from bisect import bisect_right

EPSILON = 1e-6
"""Of a token: what rounding may take from a level."""

MAX_PEAKS = 64
"""Peaks of the level that are remembered; older ones are joined, to the bucket's side."""


class TokenBucket:
    """One bucket; full at first.

    Args:
        rate: tokens per second, more than 0.
        capacity: what it holds.
        now: seconds, on a clock that does not go back.
    """

    __slots__ = ("_num_held", "_peak_marks", "_peaks", "_seq", "_time", "capacity", "level", "rate")

    def __init__(self, rate: float, capacity: float, now: float) -> None:
        self.rate = rate
        self.capacity = capacity
        self.level = capacity
        """Tokens there, as of the last call; below 0 after a request that used more than it had
        reserved."""
        self._time = now
        self._seq = 0
        self._num_held = 0
        # The level just before a taking, each lower than those before it: what was in between is
        # no highest level of any time up to now.
        self._peak_marks: list[int] = []
        self._peaks: list[float] = []

    def refill(self, now: float) -> float:
        """The level now."""
        if now > self._time:
            self.level = min(self.capacity, self.level + self.rate * (now - self._time))
            self._time = now
        return self.level

    def take(self, amount: float, now: float) -> int:
        """Take, whether or not there is enough (see `refill`); give back by the mark, once."""
        self._note_peak(self.refill(now))
        self.level -= amount
        self._num_held += 1
        return self._seq

    def give_back(self, mark: int, unused: float, now: float) -> None:
        """End what `take` began.

        Args:
            mark: of the taking.
            unused: of what was taken; negative: so much more was used.
            now: seconds.
        """
        level = self.refill(now)
        self._num_held -= 1
        if unused < 0:
            self._note_peak(level)
            self.level = level + unused
        elif unused > 0:
            first = bisect_right(self._peak_marks, mark)
            highest = self._peaks[first] if first < len(self._peaks) else level
            rise = min(unused, self.capacity - highest)
            for index in range(first, len(self._peaks)):
                self._peaks[index] += rise
            self.level = level + min(unused, self.capacity - max(highest, level))
            # Peaks before it did not rise, and may be lower now.
            last = first
            while first and last < len(self._peaks) and self._peaks[first - 1] <= self._peaks[last]:
                first -= 1
            del self._peaks[first:last], self._peak_marks[first:last]
        if not self._num_held:
            self._peak_marks.clear()
            self._peaks.clear()

    def _note_peak(self, level: float) -> None:
        """Remember the level, before something is taken."""
        self._seq += 1
        marks, peaks = self._peak_marks, self._peaks
        while peaks and peaks[-1] <= level:
            peaks.pop()
            marks.pop()
        peaks.append(level)
        marks.append(self._seq)
        if len(peaks) > MAX_PEAKS:
            del peaks[1], marks[0]

    def resize(self, rate: float, capacity: float, now: float) -> None:
        """Go on with another size; what is missing to full stays missing."""
        self.level = self.refill(now) + capacity - self.capacity
        self._peaks = [peak + capacity - self.capacity for peak in self._peaks]
        self.rate, self.capacity = rate, capacity

    def is_idle(self, now: float) -> bool:
        """Whether it is as good as a new one."""
        return not self._num_held and self.refill(now) >= self.capacity

    def check_integrity(self) -> None:
        """Assert what holds after every call."""
        assert self._num_held >= 0
        assert self.level <= self.capacity + EPSILON
        assert len(self._peaks) == len(self._peak_marks) <= MAX_PEAKS
        drops = zip(self._peaks, self._peaks[1:], strict=False)
        assert all(older >= newer - EPSILON for older, newer in drops)
        assert self._peak_marks == sorted(set(self._peak_marks))
        assert all(peak <= self.capacity + EPSILON for peak in self._peaks)
