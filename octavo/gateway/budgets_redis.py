"""Counts budgets in Redis, so that several gateway processes count together.

One script reserves in all counters of a call or in none, and Redis runs scripts one at a time. All
keys have a hash tag, so that a cluster keeps them on one node. What Redis forgets is forgotten:
give it a disk (`appendonly yes`), or count budgets in the ledger's database.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from octavo.errors import ConfigError
from octavo.gateway.budgets_lua import EXPIRE, RENEW, RESERVE, SETTLE
from octavo.gateway.budgets_store import FORGET_NS, BudgetStoreError, Standing, Taking
from octavo.gateway.model import Amount
from octavo.ledger.record import NANO

if TYPE_CHECKING:
    from collections.abc import Awaitable, Sequence

    from octavo.gateway.budgets_scope import Ceiling

MAX_CONNECTIONS = 32
KEEP_S = 7 * 86_400
"""How long a counter is kept after its period, and a reservation after its end."""

_FORGET_MS = FORGET_NS // 10**6


class RedisStore:
    """Counts in Redis; see `budgets_store.Store`. Connects when it is first used.

    Args:
        url: `redis://host:port/0`, `rediss://` or `unix:///path`.
        prefix: of all keys.
        timeout_s: how long Redis may take.

    Raises:
        ConfigError: the URL is none of Redis, or its client library is not installed.
    """

    def __init__(self, url: str, prefix: str, *, timeout_s: float) -> None:
        self._address = url, prefix
        self._client, self._errors = _connect(url, timeout_s)
        self._reserve = self._client.register_script(RESERVE)
        self._settle = self._client.register_script(SETTLE)
        self._expire = self._client.register_script(EXPIRE)
        self._renew = self._client.register_script(RENEW)
        self._prefix = f"{{{prefix}}}:budget:"
        self._ends = f"{self._prefix}ends"

    def is_same(self, url: str, prefix: str) -> bool:
        """Whether this is what another configuration means."""
        return self._address == (url, prefix)

    async def reserve(
        self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount, expires_ns: int
    ) -> Taking:
        """See `Store`."""
        keys = [self._ends, f"{self._prefix}sum", self._held(held_id)]
        args: list[Any] = [held_id, expires_ns // 1000, KEEP_S * 1000, *_plain(amount)]
        for ceiling in ceilings:
            keys += self._keys(ceiling)
            bounds = (ceiling.cost_nano, ceiling.num_tokens, ceiling.device_ns)
            args += (int(ceiling.is_hard), *("" if b is None else b for b in bounds))
            args += (ceiling.scope, _keep_until(ceiling))
        is_reserved, values = await self._ask(self._reserve(keys=keys, args=args))
        return Taking(bool(is_reserved), _standings(values))

    async def settle(
        self,
        held_id: str,
        ceilings: Sequence[Ceiling],
        used: Amount,
        *,
        now_ns: int,
        was_reserved: bool,
    ) -> tuple[Standing, ...]:
        """See `Store`."""
        keys = [self._ends, self._held(held_id)]
        args: list[Any] = [held_id, int(was_reserved), _FORGET_MS, *_plain(used)]
        for ceiling in ceilings:
            keys += self._keys(ceiling)
            args += (ceiling.scope, _keep_until(ceiling))
        return _standings(await self._ask(self._settle(keys=keys, args=args)))

    async def renew(self, held_ids: Sequence[str], expires_ns: int) -> None:
        """See `Store`."""
        await self._ask(self._renew(keys=[self._ends], args=[expires_ns // 1000, *held_ids]))

    async def expire(self, now_ns: int, *, counts: bool) -> int:
        """See `Store`."""
        args = [now_ns // 1000, int(counts), self._held(""), _FORGET_MS]
        return int(await self._ask(self._expire(keys=[self._ends], args=args)))

    async def rows(self, budget: str, start_ns: int, limit: int) -> list[tuple[str, Standing]]:
        """See `Store`."""
        scopes = sorted(await self._ask(self._client.smembers(self._index(budget, start_ns))))
        rows: list[tuple[str, Standing]] = []
        for scope in scopes[:limit]:
            key = self._counter(budget, scope, start_ns)
            values = await self._ask(self._client.hmget(key, "c", "t", "d", "rc", "rt", "rd"))
            rows.append((scope, _standings([value or 0 for value in values])[0]))
        return rows

    async def claim(self, ceiling: Ceiling, threshold: str) -> bool:
        """See `Store`."""
        key = f"{self._counter(*ceiling.key)}:alerts"
        is_first = bool(await self._ask(self._client.sadd(key, threshold)))
        if is_first and (until := _keep_until(ceiling)):
            await self._ask(self._client.expireat(key, until))
        return is_first

    async def close(self) -> None:
        """See `Store`."""
        await self._client.aclose()

    async def _ask(self, command: Awaitable[Any]) -> Any:
        try:
            return await command
        except self._errors as error:
            raise BudgetStoreError(f"Redis: {error!r}") from None

    def _held(self, held_id: str) -> str:
        return f"{self._prefix}held:{held_id}"

    def _counter(self, budget: str, scope: str, start_ns: int) -> str:
        return f"{self._prefix}of:{quote(budget, safe='')}:{start_ns}:{scope}"

    def _index(self, budget: str, start_ns: int) -> str:
        return f"{self._prefix}all:{quote(budget, safe='')}:{start_ns}"

    def _keys(self, ceiling: Ceiling) -> tuple[str, str]:
        return self._counter(*ceiling.key), self._index(ceiling.budget, ceiling.start_ns)


def _keep_until(ceiling: Ceiling) -> int:
    """Seconds since 1970; 0: for good."""
    return 0 if ceiling.end_ns is None else ceiling.end_ns // NANO + KEEP_S


def _standings(values: Sequence[Any]) -> tuple[Standing, ...]:
    numbers = [int(value) for value in values]
    return tuple(
        Standing(Amount(*numbers[at : at + 3]), Amount(*numbers[at + 3 : at + 6]))
        for at in range(0, len(numbers), 6)
    )


def _plain(amount: Amount) -> tuple[int, int, int]:
    return amount.cost_nano, amount.num_tokens, amount.device_ns


def _connect(url: str, timeout_s: float) -> tuple[Any, tuple[type[BaseException], ...]]:
    """A client, and what it raises when Redis is not well."""
    if not url:
        raise ConfigError("budgets in Redis need its address: give redis_url")
    try:
        from redis.asyncio import BlockingConnectionPool, Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
    except ImportError as error:
        raise ConfigError(
            "budgets in Redis need its client library: pip install 'octavo[gateway]'"
        ) from error
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=timeout_s,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            decode_responses=True,
            retry=Retry(NoBackoff(), 1),  # the scripts know an id that was there before
        )
    except ValueError as error:
        raise ConfigError(f"redis_url: {error}") from None
    return Redis.from_pool(pool), (RedisError, OSError, asyncio.TimeoutError)
