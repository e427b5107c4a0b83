"""A circuit breaker: a backend that fails gets no requests for a while, then one, to see. Pure.

    closed    requests pass, failures are counted; too many: open
    open      none pass until some time is over; each time in a row is twice as long
    half-open one passes: if it is well, closed; if not, open

Time is handed in. Source: M. Nygard, Release It!, 2nd edition (2018), chapter 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from octavo.gateway.config_backends import BreakerRule

State = Literal["closed", "open", "half_open"]

NUM_SLICES = 10
"""Of the window: what is counted is forgotten by slices."""


class Breaker:
    """One backend's.

    Args:
        rule: when to open, and how long for.

    Attributes:
        num_opened: how often it opened, for metrics.
    """

    __slots__ = (
        "_failed",
        "_is_tried",
        "_is_tripped",
        "_num_in_row",
        "_open_until",
        "_rule",
        "_slice",
        "_slice_s",
        "_tried_until",
        "_well",
        "num_opened",
    )

    def __init__(self, rule: BreakerRule) -> None:
        self._rule = rule
        self._slice_s = rule.window / NUM_SLICES
        self._slice = 0
        self._well = [0] * NUM_SLICES
        self._failed = [0] * NUM_SLICES
        self._is_tripped = False
        self._open_until = 0.0
        self._num_in_row = 0
        self._is_tried = False
        self._tried_until = 0.0
        self.num_opened = 0

    def state(self, now: float) -> State:
        """How it stands."""
        if not self._is_tripped:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a request may pass; changes nothing."""
        if not self._is_tripped:
            return True
        return now >= self._open_until and not (self._is_tried and now < self._tried_until)

    def begin(self, now: float) -> bool:
        """A request wants to pass; True: it may, and `succeed`, `fail` or `drop` follows."""
        if not self._is_tripped:
            return True
        if not self.allows(now):
            return False
        # Should nobody ever tell what became of it, another one may try after the longest time
        self._is_tried = True
        self._tried_until = now + self._rule.max_open
        return True

    def succeed(self, now: float) -> None:
        """A request that passed was answered."""
        if self._is_tripped:
            if now < self._open_until:
                return  # it was sent before the breaker opened: old news
            self._close()
        self._advance(now)
        self._well[self._slice % NUM_SLICES] += 1

    def fail(self, now: float) -> None:
        """A request that passed failed by the backend's fault."""
        if self._is_tripped:
            if now >= self._open_until:
                self._open(now)
            return
        self._advance(now)
        self._failed[self._slice % NUM_SLICES] += 1
        num_failed = sum(self._failed)
        if num_failed >= self._rule.failures:
            num_all = num_failed + sum(self._well)
            if num_failed >= self._rule.ratio * num_all:
                self._open(now)

    def drop(self) -> None:
        """A request that passed says nothing of the backend: its client went, or it was busy."""
        self._is_tried = False

    def recover(self, now: float) -> None:
        """The backend is said to be well again: the next request may try, however long was left."""
        if self._is_tripped and now < self._open_until:
            self._open_until = now
            self._is_tried = False

    def retry_after_s(self, now: float) -> float:
        """Seconds until a request may pass; 0: it may now."""
        if not self._is_tripped:
            return 0.0
        return max(0.0, self._open_until - now)

    def _open(self, now: float) -> None:
        rule = self._rule
        self._is_tripped = True
        self._is_tried = False
        self._open_until = now + min(rule.max_open, rule.open * 2.0 ** min(self._num_in_row, 32))
        self._num_in_row += 1
        self.num_opened += 1

    def _close(self) -> None:
        self._is_tripped = self._is_tried = False
        self._num_in_row = 0
        self._well = [0] * NUM_SLICES
        self._failed = [0] * NUM_SLICES

    def _advance(self, now: float) -> None:
        """Forget the slices that are older than the window."""
        current = int(now / self._slice_s)
        passed = current - self._slice
        if passed > 0:
            for index in range(min(passed, NUM_SLICES)):
                self._well[(current - index) % NUM_SLICES] = 0
                self._failed[(current - index) % NUM_SLICES] = 0
            self._slice = current
