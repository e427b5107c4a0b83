"""Limits: requests and tokens per minute, and requests at a time, per key, tenant, feature.

Which limits hold for a call, letting it in or making it wait or refusing it, and what clients are
told of it. Where is counted: `limits_store` and `limits_redis`. Who is next: `limits_queue`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from typing import TYPE_CHECKING

from octavo.gateway.limits_answers import refusal
from octavo.gateway.limits_permit import FREE, RatePermit, undo
from octavo.gateway.limits_queue import FairQueue
from octavo.gateway.limits_scope import holds, reserve_of, subject_of
from octavo.gateway.limits_store import (
    NO_WAIT,
    Counter,
    LimitsUnavailableError,
    MemoryStore,
    Standing,
    Store,
    Taking,
    counter_of,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.errors import RateLimitedError
    from octavo.gateway.config_limits import Limit, LimitsSection
    from octavo.gateway.model import Call

logger = logging.getLogger("octavo.gateway")

MAX_KNOWN = 10_000
"""Callers whose limits are remembered, and counters that `state` tells of."""


class _Waiter:
    """A call that waits for its turn."""

    __slots__ = ("answer", "counters", "tokens")

    def __init__(self, counters: Sequence[Counter], tokens: Sequence[int]) -> None:
        self.counters = counters
        self.tokens = tokens
        self.answer: asyncio.Future[Taking] = asyncio.get_running_loop().create_future()


class RateLimits:
    """Lets calls in; implements `seams.Limits`.

    Args:
        section: of the configuration.
        store: counts; None: a new one in memory. A reload gives the old one's `store` on, so that
            what was counted stays.
    """

    def __init__(self, section: LimitsSection, store: Store | None = None) -> None:
        self._rules = section.rules
        self.store = store if store is not None else MemoryStore()
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._blocked: set[Counter] = set()
        self._wake = asyncio.Event()
        self.store.listeners.append(self._wake.set)
        self._server: asyncio.Task[None] | None = None
        self._known: dict[tuple[object, ...], tuple[tuple[Counter, Limit], ...]] = {}
        self._counters: dict[tuple[str, tuple[str, ...]], Counter] = {}
        self._warned: set[str] = set()
        self.num_admitted = 0
        self.num_queued = 0
        """Calls that had to wait, whatever became of them."""
        self.num_refused: dict[str, int] = dict.fromkeys(section.rules, 0)
        """Per limit: calls that got a 429 by it."""

    @property
    def num_waiting(self) -> int:
        """Calls in the queue."""
        return len(self._queue)

    async def admit(self, call: Call) -> RatePermit:
        """Let a call in, after waiting its turn where all limits in its way say to queue.

        Raises:
            RateLimitedError: 429; says which limit, and when to come again.
            LimitsUnavailableError: 503; Redis is gone, and the configuration says to refuse then.
        """
        holding = self._holding(call)
        if not holding:
            self.num_admitted += 1
            return FREE
        counters = [counter for counter, _ in holding]
        tokens = [reserve_of(call, limit) for _, limit in holding]
        if not self._queue or self._blocked.isdisjoint(counters):
            taking = await self.store.take(counters, tokens)
            if taking.is_taken:
                self.num_admitted += 1
                return RatePermit(counters, tokens, taking)
        else:
            # Others wait for the same: who comes now does not go before them.
            taking = Taking(False, await self.store.look(counters))
        taking = await self._wait(call, holding, tokens, taking.standings)
        self.num_admitted += 1
        return RatePermit(counters, tokens, taking)

    async def state(self) -> list[dict[str, object]]:
        """How the counters stand that calls were counted to lately, those in use first."""
        counters = list(self._counters.values())
        standings = await self.store.look(counters)
        both = sorted(zip(counters, standings, strict=True), key=lambda pair: -pair[1].running)
        return [self._row(counter, standing) for counter, standing in both]

    async def close(self) -> None:
        """Refuse who waits; the store stays open, as another may go on with it."""
        self.store.listeners.remove(self._wake.set)
        server, self._server = self._server, None
        if server is not None:
            server.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await server
        for tenant, waiter in list(self._queue.in_turn()):
            self._queue.remove(tenant, waiter)
            if not waiter.answer.done():
                waiter.answer.set_exception(LimitsUnavailableError("the gateway stops"))

    # Which limits hold.

    def _holding(self, call: Call) -> tuple[tuple[Counter, Limit], ...]:
        key = call.key
        who = (key.key_id, key.limits, call.tenant, key.team, call.feature, call.model, call.route)
        holding = self._known.get(who)
        if holding is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
                self._counters.clear()
                self._warned.clear()
            self._warn_of_unknown(call)
            holding = self._known[who] = tuple(
                (self._counter(name, limit, call), limit)
                for name, limit in self._rules.items()
                if holds(name, limit, call)
            )
        return holding

    def _warn_of_unknown(self, call: Call) -> None:
        """A key of the ledger may name what the configuration has no longer."""
        unknown = [name for name in call.key.limits if name not in self._rules]
        if unknown and call.key.key_id not in self._warned:
            self._warned.add(call.key.key_id)
            names = ", ".join(unknown)
            logger.warning("key %s names limits that are not there: %s", call.key.key_id, names)

    def _counter(self, name: str, limit: Limit, call: Call) -> Counter:
        counter = counter_of(name, limit, subject_of(limit, call))
        return self._counters.setdefault(counter.key, counter)

    def _row(self, counter: Counter, standing: Standing) -> dict[str, object]:
        limit = self._rules[counter.rule]
        row: dict[str, object] = {
            "limit": counter.rule,
            "subject": dict(zip(limit.per, counter.subject, strict=True)),
        }
        if counter.requests_rate:
            row["requests_per_minute"] = limit.requests_per_minute
            row["requests_left"] = max(0, math.floor(standing.requests))
        if counter.tokens_rate:
            row["tokens_per_minute"] = limit.tokens_per_minute
            row["tokens_left"] = math.floor(standing.tokens)
        if counter.concurrency:
            row["concurrency"] = limit.concurrency
            row["running"] = standing.running
        return row

    # Waiting.

    async def _wait(
        self,
        call: Call,
        holding: Sequence[tuple[Counter, Limit]],
        tokens: Sequence[int],
        standings: Sequence[Standing],
    ) -> Taking:
        """Wait for a turn; what was taken then.

        Args:
            call: does not fit now, or others wait for the same.
            holding: the limits that hold for it.
            tokens: that it needs of each.
            standings: as they are without it.
        """
        counters = [counter for counter, _ in holding]
        waits = [s.waits(c, n) for c, s, n in zip(counters, standings, tokens, strict=True)]
        in_way = [
            limit
            for (counter, limit), wait in zip(holding, waits, strict=True)
            if wait != NO_WAIT or counter in self._blocked
        ]
        tenant = call.tenant or call.key.key_id
        queue_s = min((limit.queue_s for limit in in_way), default=0.0)
        max_len = min((limit.max_queue_len for limit in in_way), default=0)
        is_never = any(math.isinf(tokens_wait) for _, tokens_wait, _ in waits)
        if is_never or queue_s <= 0 or self._queue.num_of(tenant) >= max_len:
            raise self._refusal(counters, standings, tokens)
        waiter = _Waiter(counters, tokens)
        self._queue.push(tenant, waiter)
        self.num_queued += 1
        self._wake.set()
        if self._server is None:
            self._server = asyncio.create_task(self._serve())
        try:
            await asyncio.wait((waiter.answer,), timeout=queue_s)
        except asyncio.CancelledError:
            if waiter.answer.done() and waiter.answer.exception() is None:
                await undo(waiter.answer.result(), counters, tokens)
            raise
        finally:
            is_answered = waiter.answer.done()
            waiter.answer.cancel()
            if self._queue.remove(tenant, waiter):
                self._wake.set()  # who waited behind it may be next
        if is_answered:
            return waiter.answer.result()
        standings = await self.store.look(counters)
        raise self._refusal(counters, standings, tokens, waited_s=queue_s)

    def _refusal(
        self,
        counters: Sequence[Counter],
        standings: Sequence[Standing],
        tokens: Sequence[int],
        waited_s: float = 0.0,
    ) -> RateLimitedError:
        counter, error = refusal(counters, standings, tokens, waited_s=waited_s)
        self.num_refused[counter.rule] += 1
        return error

    async def _serve(self) -> None:
        """Let in who waits, until nobody does."""
        try:
            while self._queue:
                self._wake.clear()
                wait_s = await self._serve_once()
                if self._queue:
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(wait_s):
                            await self._wake.wait()
        finally:
            self._server = None
            self._blocked = set()

    async def _serve_once(self) -> float | None:
        """Let in all that fit, in fair order. Who does not fit keeps what it lacks from those
        behind it, and nothing else.

        Returns:
            Seconds until the next may fit; None: when something is given back.
        """
        blocked: set[Counter] = set()
        next_s = math.inf
        for tenant, waiter in self._queue.in_turn():
            if waiter.answer.done() or not blocked.isdisjoint(waiter.counters):
                continue
            try:
                taking = await self.store.take(waiter.counters, waiter.tokens)
            except LimitsUnavailableError as error:
                if not waiter.answer.done():
                    waiter.answer.set_exception(error)
                self._queue.remove(tenant, waiter)
                continue
            if taking.is_taken:
                cost = max(waiter.tokens, default=0)
                if waiter.answer.done() or not self._queue.serve(tenant, waiter, max(1, cost)):
                    await undo(taking, waiter.counters, waiter.tokens)
                else:
                    waiter.answer.set_result(taking)
                continue
            fits_s = 0.0
            for counter, standing, amount in zip(
                waiter.counters, taking.standings, waiter.tokens, strict=True
            ):
                wait = standing.waits(counter, amount)
                if wait != NO_WAIT:
                    blocked.add(counter)
                    place_s = 0.0 if wait[2] else self.store.place_poll_s
                    fits_s = max(fits_s, wait[0], wait[1], place_s)
            next_s = min(next_s, fits_s)
        self._blocked = blocked
        return None if math.isinf(next_s) else max(next_s, 0.001)


def open_limits(
    section: LimitsSection, redis_url: str = "", previous: RateLimits | None = None
) -> RateLimits:
    """Limits as the configuration has them. Connects to nothing yet.

    Args:
        section: of the configuration.
        redis_url: `redis://host:port/0`, `rediss://` or `unix:///path`; for `store: redis`.
        previous: of the configuration before a reload: what it counted stays counted.

    Raises:
        ConfigError: the store is Redis, and there is no URL or no client library.
    """
    kept = previous.store if previous is not None else None
    if section.store == "memory":
        return RateLimits(section, kept if isinstance(kept, MemoryStore) else MemoryStore())
    from octavo.gateway.limits_redis import RedisSettings, RedisStore

    settings = RedisSettings(
        redis_url, section.redis_prefix, section.when_redis_fails, section.redis_timeout_s
    )
    if isinstance(kept, RedisStore) and kept.settings == settings:
        return RateLimits(section, kept)
    return RateLimits(section, RedisStore(settings))
