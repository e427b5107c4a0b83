"""Counts limits in Redis, so that several gateway processes count together.

One script takes from all counters of a call or from none; Redis runs scripts one at a time, and
tells the time in them, so that the gateways' clocks do not matter. The arithmetic is that of
`limits_bucket`.

A place of a concurrency limit is a lease that its gateway renews: those of one that was killed come
back by themselves. All keys have a hash tag, so that a cluster keeps them on one node, and end by
themselves when they are as good as new.

Without Redis (`when_redis_fails`) calls are refused, or each process counts for itself until it is
back. What a call took there comes back there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote

from octavo.errors import ConfigError
from octavo.gateway.limits_lua import GIVE_BACK, RENEW, TAKE
from octavo.gateway.limits_redis_line import ScriptLine
from octavo.gateway.limits_store import (
    Counter,
    LimitsUnavailableError,
    MemoryStore,
    Standing,
    Taking,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("octavo.gateway")

LEASE_S = 30.0
"""How long a place outlives its gateway."""

PROBE_S = 0.5
"""How often a Redis that failed is tried again."""

POLL_S = 0.05
MAX_CONNECTIONS = 4
_RENEW_BATCH = 500


class RedisSettings(NamedTuple):
    """Whose counters they are. Stores with equal settings are the same one.

    Attributes:
        url: `redis://host:port/0`, `rediss://` or `unix:///path`.
        prefix: of all keys.
        when_fails: what `when_redis_fails` says.
        timeout_s: how long Redis may take.
    """

    url: str
    prefix: str
    when_fails: Literal["open", "closed"]
    timeout_s: float


class RedisStore:
    """Counts in Redis; see `limits_store.Store`. Connects when it is first used.

    Args:
        settings: where, and what happens without it.
        lease_s: how long a place outlives its gateway.

    Raises:
        ConfigError: the URL is none of Redis, or its client library is not installed.
    """

    place_poll_s = POLL_S

    def __init__(self, settings: RedisSettings, *, lease_s: float = LEASE_S) -> None:
        self.settings = settings
        self.listeners: list[Callable[[], None]] = []
        self._memory = MemoryStore()
        self._memory.listeners = self.listeners
        self._lease_s = lease_s
        self._client, self._errors = _connect(settings)
        scripts = (TAKE, GIVE_BACK, RENEW)
        self._line = ScriptLine(self._client, scripts, settings.timeout_s, self._errors)
        self._prefix = f"{{{settings.prefix}}}:limit:"
        self._names = f"{os.getpid():x}-{os.urandom(6).hex()}-"
        self._numbers = itertools.count()
        self._places: dict[str, tuple[str, ...]] = {}
        self._renewer: asyncio.Task[None] | None = None
        self._prober: asyncio.Task[None] | None = None
        self.num_failures = 0
        """Commands that Redis did not answer."""

    @property
    def is_down(self) -> bool:
        """Whether Redis did not answer when it was last asked."""
        return self._prober is not None

    async def take(self, counters: Sequence[Counter], tokens: Sequence[int]) -> Taking:
        """See `Store`."""
        if self.is_down:
            return await self._without_redis(counters, tokens)
        permit = f"{self._names}{next(self._numbers):x}"
        asked = self._ask(permit, counters, tokens, "take")
        try:
            taking = self._taking(permit, await asyncio.shield(asked))
        except asyncio.CancelledError:
            # The script runs all the same.
            asked.add_done_callback(lambda done: self._undo(permit, done, counters, tokens))
            raise
        except self._errors as error:
            self._failed(error)
            return await self._without_redis(counters, tokens)
        if taking.is_taken:
            self._hold(taking.permit, counters)
        return taking

    async def give_back(
        self, taking: Taking, counters: Sequence[Counter], unused: Sequence[int], *, undo: bool
    ) -> None:
        """See `Store`. Without Redis time refills tokens, and places end with their lease."""
        if taking.store is self._memory:
            await self._memory.give_back(taking, counters, unused, undo=undo)
            return
        self._places.pop(taking.permit, None)
        self._return(taking, counters, unused, undo)

    async def look(self, counters: Sequence[Counter]) -> tuple[Standing, ...]:
        """See `Store`."""
        if self.is_down and self.settings.when_fails == "open":
            return await self._memory.look(counters)
        try:
            nothing = (0,) * len(counters)
            return self._taking("", await self._ask("", counters, nothing, "look")).standings
        except self._errors as error:
            self._failed(error)
            raise LimitsUnavailableError("Redis does not answer") from None

    async def close(self) -> None:
        """See `Store`."""
        tasks = [task for task in (self._renewer, self._prober) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._line.drain()
        await self._client.aclose()

    # Redis.

    def _ask(
        self, permit: str, counters: Sequence[Counter], tokens: Sequence[int], mode: str
    ) -> asyncio.Future[Any]:
        args: list[Any] = [permit, int(self._lease_s * 1e6), mode]
        for counter, amount in zip(counters, tokens, strict=True):
            args += (*counter[2:], amount)
        return self._line.ask(TAKE, self._keys(counters), args)

    def _taking(self, permit: str, answer: Sequence[Any]) -> Taking:
        is_taken, *rest = answer
        cells = [rest[at : at + 5] for at in range(0, len(rest), 5)]
        standings = tuple(Standing(float(r), float(k), running) for r, k, running, _, _ in cells)
        marks = tuple((request, token) for *_, request, token in cells)
        return Taking(bool(is_taken), standings, marks, permit, self)

    def _return(
        self, taking: Taking, counters: Sequence[Counter], unused: Sequence[int], undo: bool
    ) -> None:
        """Give back. It is not waited for: who asks from now on comes after it."""
        args: list[Any] = [taking.permit, int(undo)]
        for marks, amount in zip(taking.marks, unused, strict=True):
            args += (*marks, amount)
        asked = self._line.ask(GIVE_BACK, self._keys(counters), args)
        asked.add_done_callback(self._note)
        for listener in self.listeners:
            listener()

    def _note(self, asked: asyncio.Future[Any]) -> None:
        error = asked.exception()
        if error is not None:
            self._failed(error)

    def _undo(
        self,
        permit: str,
        asked: asyncio.Future[Any],
        counters: Sequence[Counter],
        tokens: Sequence[int],
    ) -> None:
        """Give back what was taken for somebody who has gone."""
        self._note(asked)
        if asked.exception() is None:
            taking = self._taking(permit, asked.result())
            if taking.is_taken:
                self._return(taking, counters, tokens, True)

    def _keys(self, counters: Sequence[Counter]) -> list[str]:
        keys: list[str] = []
        for counter in counters:
            subject = "/".join(quote(value, safe="") for value in counter.subject)
            name = f"{self._prefix}{quote(counter.rule, safe='')}:{subject}"
            keys += (name, f"{name}:places")
        return keys

    # Places.

    def _hold(self, permit: str, counters: Sequence[Counter]) -> None:
        held = [counter for counter in counters if counter.concurrency]
        if held:
            self._places[permit] = tuple(self._keys(held)[1::2])
            if self._renewer is None:
                self._renewer = asyncio.create_task(self._keep_places())

    async def _keep_places(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not self.is_down:
                with contextlib.suppress(*self._errors):
                    await self._renew_places()

    async def _renew_places(self) -> None:
        held = [(key, permit) for permit, keys in self._places.items() for key in keys]
        batches = [held[at : at + _RENEW_BATCH] for at in range(0, len(held), _RENEW_BATCH)]
        # All are asked at once: what is given back meanwhile comes after them.
        asked = [
            self._line.ask(
                RENEW,
                [key for key, _ in batch],
                [int(self._lease_s * 1e6), *(permit for _, permit in batch)],
            )
            for batch in batches
        ]
        for error in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    # Without Redis.

    async def _without_redis(self, counters: Sequence[Counter], tokens: Sequence[int]) -> Taking:
        if self.settings.when_fails == "closed":
            raise LimitsUnavailableError("Redis does not answer")
        return await self._memory.take(counters, tokens)

    def _failed(self, error: BaseException) -> None:
        self.num_failures += 1
        if self._prober is None:
            what = "are refused" if self.settings.when_fails == "closed" else "count per process"
            logger.warning("Redis does not answer, and limited requests %s: %r", what, error)
            self._prober = asyncio.create_task(self._probe())

    async def _probe(self) -> None:
        """Try Redis until it is back; it may have forgotten everything."""
        since = time.monotonic()
        while True:
            await asyncio.sleep(PROBE_S)
            with contextlib.suppress(*self._errors):
                async with asyncio.timeout(self.settings.timeout_s):
                    await self._client.ping()
                await self._renew_places()
                break
        self._prober = None
        logger.warning("Redis is back after %.1f s", time.monotonic() - since)
        for listener in self.listeners:
            listener()


def _connect(settings: RedisSettings) -> tuple[Any, tuple[type[BaseException], ...]]:
    """A client, and what it raises when Redis is not well."""
    if not settings.url:
        raise ConfigError("limits in Redis need its address: give redis_url")
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
    except ImportError as error:
        raise ConfigError(
            "limits in Redis need its client library: pip install 'octavo[gateway]'"
        ) from error
    try:
        pool = BlockingConnectionPool.from_url(
            settings.url,
            max_connections=MAX_CONNECTIONS,
            timeout=settings.timeout_s,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),  # a script that ran twice would count twice
        )
    except ValueError as error:
        raise ConfigError(f"redis_url: {error}") from None
    return Redis.from_pool(pool), (RedisError, OSError, TimeoutError)
