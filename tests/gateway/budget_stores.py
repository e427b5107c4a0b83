"""Stores of budgets of every kind, for tests: opened and closed in one event loop."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from octavo.gateway.budgets_redis import RedisStore
from octavo.gateway.budgets_sql import SqlStore
from octavo.gateway.budgets_store import MemoryStore
from octavo.gateway.config_budgets import Budget, BudgetsSection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo.gateway.budgets_store import Store

CENT = 10**7
"""Nano-units."""


def open_store(kind: str, url: str = "", *, timeout_s: float = 10.0) -> Store:
    """A store that nobody has used."""
    if kind == "memory":
        return MemoryStore()
    if kind == "redis":
        return RedisStore(url, "test", timeout_s=timeout_s)
    return SqlStore(url)


@asynccontextmanager
async def opened(kind: str, url: str = "") -> AsyncIterator[Store]:
    """A store, closed at the end."""
    store = open_store(kind, url)
    try:
        yield store
    finally:
        await store.close()


def section_of(*, name: str = "b", cents: int = 100, **fields: Any) -> BudgetsSection:
    """One budget in money, for all, unless told otherwise; other fields are the section's."""
    budget = {"cost": Decimal(cents).scaleb(-2), "per": (), **fields.pop("budget", {})}
    return BudgetsSection(
        rules={name: Budget(**budget)}, **{"timeout_s": 20.0, "lease_s": 600.0, **fields}
    )


async def until(condition: Any, timeout_s: float = 10.0) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
