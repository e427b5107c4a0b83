"""Where limits are counted: what a store is asked, and the one in this process's memory.

A request counts to several limits at once. A store takes what it needs of all of them, or nothing.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, NamedTuple, Protocol

from octavo.errors import EngineUnavailableError
from octavo.gateway.limits_bucket import EPSILON, TokenBucket

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.gateway.config_limits import Limit

MAX_IDLE = 10_000
"""Counters in memory, when those that are as good as new are first forgotten."""


NO_WAIT = (0.0, 0.0, True)
"""What `Standing.waits` says of a call that fits."""


class LimitsUnavailableError(EngineUnavailableError):
    """Limits cannot be counted now, and the configuration says to refuse then."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"Limits cannot be counted now: {why}", code="limits_unavailable", retry_after_s=2
        )


class Counter(NamedTuple):
    """What is counted together: a limit, and whom it is counted for.

    Attributes:
        rule: the limit's name.
        subject: the values that it is counted by, in the order of the limit's `per`.
        requests_rate, tokens_rate: per second; 0: no such limit.
        requests_cap, tokens_cap: what the buckets hold.
        concurrency: requests at a time; 0: no such limit.
    """

    rule: str
    subject: tuple[str, ...]
    requests_rate: float
    requests_cap: float
    tokens_rate: float
    tokens_cap: float
    concurrency: int

    @property
    def key(self) -> tuple[str, tuple[str, ...]]:
        """The same for the same counter, whatever its limits are now."""
        return self.rule, self.subject


def counter_of(rule: str, limit: Limit, subject: tuple[str, ...]) -> Counter:
    """The counter of one subject of a limit."""
    per_second = [(rate or 0) / 60 for rate in (limit.requests_per_minute, limit.tokens_per_minute)]
    return Counter(
        rule,
        subject,
        per_second[0],
        per_second[0] * limit.burst_s,
        per_second[1],
        per_second[1] * limit.burst_s,
        limit.concurrency or 0,
    )


class Standing(NamedTuple):
    """How a counter stands.

    Attributes:
        requests: left in the bucket of requests.
        tokens: left in the bucket of tokens.
        running: requests that are in.
    """

    requests: float
    tokens: float
    running: int

    def waits(self, counter: Counter, tokens: int) -> tuple[float, float, bool]:
        """What a request waits for that needs so many tokens.

        Returns:
            Seconds until the bucket of requests has one, and until that of tokens has enough (0:
            now; infinity: never), and whether there is a place.
        """
        requests_wait = tokens_wait = 0.0
        if counter.requests_rate and self.requests < 1 - EPSILON:
            requests_wait = (1 - self.requests) / counter.requests_rate
        if counter.tokens_rate and self.tokens < tokens - EPSILON:
            is_possible = tokens <= counter.tokens_cap + EPSILON
            missing = tokens - self.tokens
            tokens_wait = missing / counter.tokens_rate if is_possible else math.inf
        return requests_wait, tokens_wait, not 0 < counter.concurrency <= self.running


class Taking(NamedTuple):
    """What came of asking a store.

    Attributes:
        is_taken: everything was taken; else nothing.
        standings: per counter, after it.
        marks: per counter, of its buckets of requests and tokens: to give back by.
        permit: names the place that is held; empty: it has no name.
        store: that took it, and takes it back.
    """

    is_taken: bool
    standings: tuple[Standing, ...]
    marks: tuple[tuple[int, int], ...] = ()
    permit: str = ""
    store: Store | None = None


class Store(Protocol):
    """Counts.

    Attributes:
        listeners: called when something was given back.
    """

    listeners: list[Callable[[], None]]

    @property
    def place_poll_s(self) -> float:
        """How often who waits for a place asks again, seconds: others may give one back; infinity:
        all that is given back is given back here.
        """
        ...

    async def take(self, counters: Sequence[Counter], tokens: Sequence[int]) -> Taking:
        """Take one request, its tokens and a place of every counter, or nothing at all. Who is
        cancelled while it waits has taken nothing.

        Raises:
            LimitsUnavailableError: it cannot be counted now.
        """
        ...

    async def give_back(
        self, taking: Taking, counters: Sequence[Counter], unused: Sequence[int], *, undo: bool
    ) -> None:
        """End what was taken, once; never fails.

        Args:
            taking: that took.
            counters: as they were taken of.
            unused: tokens per counter; negative: so many more were used.
            undo: the request never ran: it does not count either.
        """
        ...

    async def look(self, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """How counters stand; takes nothing.

        Raises:
            LimitsUnavailableError: that is not known now.
        """
        ...

    async def close(self) -> None:
        """End connections and background work."""
        ...


class _Cell:
    """One counter's state, whatever its limits are now: a reload may change them."""

    __slots__ = ("counter", "requests", "running", "tokens")

    def __init__(self) -> None:
        self.counter: Counter | None = None
        self.requests: TokenBucket | None = None
        self.tokens: TokenBucket | None = None
        self.running = 0

    def adopt(self, counter: Counter, now: float) -> None:
        """Go by these limits from now on."""
        self.counter = counter
        self.requests = _sized(self.requests, counter.requests_rate, counter.requests_cap, now)
        self.tokens = _sized(self.tokens, counter.tokens_rate, counter.tokens_cap, now)

    def take(self, counter: Counter, tokens: int, now: float) -> tuple[int, int]:
        """Take one request; its marks."""
        self.running += 1
        request = token = 0
        if counter.requests_rate and self.requests is not None:
            request = self.requests.take(1, now)
        if counter.tokens_rate and self.tokens is not None:
            token = self.tokens.take(tokens, now)
        return request, token

    def give_back(self, marks: tuple[int, int], unused: int, undo: bool, now: float) -> None:
        """End what `take` began."""
        self.running -= 1
        if marks[0] and self.requests is not None:
            self.requests.give_back(marks[0], 1 if undo else 0, now)
        if marks[1] and self.tokens is not None:
            self.tokens.give_back(marks[1], unused, now)

    def standing(self, now: float) -> Standing:
        requests = self.requests.refill(now) if self.requests is not None else 0.0
        tokens = self.tokens.refill(now) if self.tokens is not None else 0.0
        return Standing(requests, tokens, self.running)

    def is_idle(self, now: float) -> bool:
        buckets = (self.requests, self.tokens)
        return not self.running and all(b is None or b.is_idle(now) for b in buckets)


def _sized(
    bucket: TokenBucket | None, rate: float, capacity: float, now: float
) -> TokenBucket | None:
    if not rate:
        return bucket  # what was taken of it may still come back
    if bucket is None:
        return TokenBucket(rate, capacity, now)
    bucket.resize(rate, capacity, now)
    return bucket


class MemoryStore:
    """Counts in this process; never suspends, so that no other task comes between.

    Args:
        clock: seconds; does not go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.listeners: list[Callable[[], None]] = []
        self._clock = clock
        self._cells: dict[tuple[str, tuple[str, ...]], _Cell] = {}
        self._forget_at = MAX_IDLE

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def place_poll_s(self) -> float:
        """See `Store`."""
        return math.inf

    async def take(self, counters: Sequence[Counter], tokens: Sequence[int]) -> Taking:
        """See `Store`."""
        now = self._clock()
        cells = [self._cell(counter, now) for counter in counters]
        standings = [cell.standing(now) for cell in cells]
        for counter, standing, amount in zip(counters, standings, tokens, strict=True):
            if standing.waits(counter, amount) != NO_WAIT:
                return Taking(False, tuple(standings))
        marks = tuple(
            cell.take(counter, amount, now)
            for cell, counter, amount in zip(cells, counters, tokens, strict=True)
        )
        return Taking(True, tuple(cell.standing(now) for cell in cells), marks, store=self)

    async def give_back(
        self, taking: Taking, counters: Sequence[Counter], unused: Sequence[int], *, undo: bool
    ) -> None:
        """See `Store`."""
        now = self._clock()
        for counter, marks, amount in zip(counters, taking.marks, unused, strict=True):
            self._cells[counter.key].give_back(marks, amount, undo, now)
        for listener in self.listeners:
            listener()

    async def look(self, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """See `Store`."""
        now = self._clock()
        standings = []
        for counter in counters:
            cell = self._cells.get(counter.key)
            full = Standing(counter.requests_cap, counter.tokens_cap, 0)
            standings.append(full if cell is None else cell.standing(now))
        return tuple(standings)

    async def close(self) -> None:
        """See `Store`."""

    def check_integrity(self) -> None:
        """Assert what holds between calls."""
        for cell in self._cells.values():
            for bucket in (cell.requests, cell.tokens):
                if bucket is not None:
                    bucket.check_integrity()
            assert cell.running >= 0

    def _cell(self, counter: Counter, now: float) -> _Cell:
        cell = self._cells.get(counter.key)
        if cell is None:
            if len(self._cells) >= self._forget_at:
                self._cells = {k: kept for k, kept in self._cells.items() if not kept.is_idle(now)}
                self._forget_at = max(MAX_IDLE, 2 * len(self._cells))
            cell = self._cells[counter.key] = _Cell()
        if cell.counter is not counter:
            cell.adopt(counter, now)
        return cell
