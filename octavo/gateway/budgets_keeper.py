"""Between budgets and what counts them: a store that is slow, gone, or back again.

What was used is kept here until the store has taken it, whatever happens; an answer that was lost
is asked for again. For one id the same is said each time, so that the order in which a store hears
of it does not matter.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from octavo.gateway.budgets_store import NOTHING, BudgetStoreError, MemoryStore
from octavo.ledger.record import NANO

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Sequence

    from octavo.gateway.budgets_scope import Ceiling
    from octavo.gateway.budgets_store import Standing, Store, Taking
    from octavo.gateway.config_budgets import BudgetsSection
    from octavo.gateway.model import Amount

logger = logging.getLogger("octavo.gateway")

RETRY_S = 0.5
"""How often a store that failed is asked again."""

_RENEW_BATCH = 500
_SETTLE_BATCH = 64


class _Unsettled(NamedTuple):
    """What the store has not taken yet."""

    held_id: str
    ceilings: Sequence[Ceiling]
    used: Amount
    was_reserved: bool


class StoreKeeper:
    """Asks a store for budgets. Belongs to one event loop.

    Args:
        section: of the configuration.
        store: counts.
        settled: told of counters and how they stand after what they count has changed.
        wall_ns: nanoseconds since 1970.

    Attributes:
        num_expired: reservations of gateways that went away.
        num_failures: what the store did not answer.
    """

    def __init__(
        self,
        section: BudgetsSection,
        store: Store,
        settled: Callable[[Sequence[Ceiling], Sequence[Standing]], None],
        wall_ns: Callable[[], int],
    ) -> None:
        self.num_expired = 0
        self.num_failures = 0
        self._section = section
        self._store = store
        self._settled = settled
        self._wall_ns = wall_ns
        self._is_local = isinstance(store, MemoryStore)
        self._live: set[str] = set()
        self._unsettled: dict[str, _Unsettled] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewal: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None

    @property
    def is_down(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._recovery is not None

    @property
    def num_unsettled(self) -> int:
        """Reservations whose end the store has not taken yet."""
        return len(self._unsettled)

    async def reserve(self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount) -> Taking:
        """See `Store`; what is reserved is renewed until it is settled.

        Raises:
            BudgetStoreError: the store does not answer, or did not when it was last asked. It may
                hold the reservation all the same: end it, by `settle` or `undo`.
        """
        if self._renewal is None:
            self._renewal = asyncio.create_task(self._keep())
        if self._is_local:
            taking = await self._store.reserve(held_id, ceilings, amount, self._expires_ns())
            if taking.is_reserved:
                self._live.add(held_id)
            return taking
        if self.is_down:
            raise BudgetStoreError("it did not answer before")
        try:
            async with self._in_time():
                taking = await self._store.reserve(held_id, ceilings, amount, self._expires_ns())
        except asyncio.CancelledError:
            self.undo(held_id, ceilings)
            raise
        except BudgetStoreError as error:
            self._failed(error)
            raise
        if taking.is_reserved:
            self._live.add(held_id)
        return taking

    async def settle(
        self, held_id: str, ceilings: Sequence[Ceiling], used: Amount, *, was_reserved: bool
    ) -> None:
        """See `Store`. Never fails: what the store does not take now it is given later."""
        self._live.discard(held_id)
        item = self._unsettled[held_id] = _Unsettled(held_id, ceilings, used, was_reserved)
        if self._is_local:
            await self._settle(item)
        elif not self.is_down:
            await asyncio.shield(self._spawn(self._settle_or_keep(item)))

    def undo(self, held_id: str, ceilings: Sequence[Ceiling]) -> None:
        """End a reservation that the store may hold or not; nothing was used."""
        item = self._unsettled[held_id] = _Unsettled(held_id, ceilings, NOTHING, False)
        if not self.is_down:
            self._spawn(self._settle_or_keep(item))

    async def rows(self, budget: str, start_ns: int, limit: int) -> list[tuple[str, Standing]]:
        """See `Store`.

        Raises:
            BudgetStoreError: the store does not answer.
        """
        try:
            async with self._in_time():
                return await self._store.rows(budget, start_ns, limit)
        except BudgetStoreError as error:
            self._failed(error)
            raise

    async def close(self, timeout_s: float) -> None:
        """Settle what has not been, for so long, and stop. What is reserved ends by its lease."""
        for task in (self._renewal, self._recovery):
            if task is not None:
                task.cancel()
                await asyncio.wait((task,))
        self._renewal = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._tasks)
                while self._unsettled:
                    try:
                        await self._settle_all()
                    except BudgetStoreError:
                        await asyncio.sleep(RETRY_S)
        self._recovery = None
        for item in self._unsettled.values():
            logger.error(
                "not counted, as the budgets' store does not answer: %s of %s",
                item.used,
                [f"{ceiling.budget} {ceiling.scope}" for ceiling in item.ceilings],
            )

    async def _settle(self, item: _Unsettled) -> None:
        standings = await self._store.settle(
            item.held_id,
            item.ceilings,
            item.used,
            now_ns=self._wall_ns(),
            was_reserved=item.was_reserved,
        )
        if self._unsettled.pop(item.held_id, None) is not None:
            self._settled(item.ceilings, standings)

    async def _settle_or_keep(self, item: _Unsettled) -> None:
        try:
            async with self._in_time():
                await self._settle(item)
        except BudgetStoreError as error:
            self._failed(error)

    async def _settle_all(self) -> None:
        items = list(self._unsettled.values())
        for at in range(0, len(items), _SETTLE_BATCH):
            async with self._in_time():
                await asyncio.gather(*map(self._settle, items[at : at + _SETTLE_BATCH]))

    async def _keep(self) -> None:
        """Renew what is held, and end what nobody renews."""
        while True:
            await asyncio.sleep(self._section.lease_s / 3)
            if self.is_down:
                continue
            try:
                await self._renew()
                async with self._in_time():
                    counts = self._section.when_lost == "count"
                    num = await self._store.expire(self._wall_ns(), counts=counts)
            except BudgetStoreError as error:
                self._failed(error)
                continue
            self.num_expired += num
            if num:
                logger.warning("%d reservations of budgets were not renewed, and end", num)

    async def _renew(self) -> None:
        held_ids = sorted(self._live)
        for at in range(0, len(held_ids), _RENEW_BATCH):
            async with self._in_time():
                some = held_ids[at : at + _RENEW_BATCH]
                await self._store.renew(some, self._expires_ns())

    def _failed(self, error: BudgetStoreError) -> None:
        self.num_failures += 1
        if self._recovery is None:
            what = "are refused" if self._section.on_failure == "refuse" else "pass"
            logger.warning("budgets cannot be counted, and requests %s: %s", what, error)
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Ask the store until it is back, and give it what it has missed."""
        since = time.monotonic()
        while True:
            await asyncio.sleep(RETRY_S)
            with contextlib.suppress(BudgetStoreError):
                async with self._in_time():
                    await self._store.rows("", 0, 1)
                while self._unsettled:
                    await self._settle_all()
                await self._renew()
                break
        self._recovery = None
        logger.warning("budgets are counted again after %.1f s", time.monotonic() - since)
        for item in list(self._unsettled.values()):  # that ended meanwhile
            self._spawn(self._settle_or_keep(item))

    def _expires_ns(self) -> int:
        return self._wall_ns() + int(self._section.lease_s * NANO)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """A store that takes too long has failed.

        Raises:
            BudgetStoreError: it has.
        """
        try:
            async with asyncio.timeout(self._section.timeout_s):
                yield
        except TimeoutError:
            raise BudgetStoreError(f"no answer in {self._section.timeout_s:g} s") from None

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
