"""Budgets: ceilings in money, tokens and device time, reserved before anything is sent.

A call's worst case is held in all budgets that it counts to, or in none, in one step that no other
request can come between; at its end it counts what it used. So a hard budget is never overspent,
whatever runs at the same time, and a request is refused only where its own worst case does not fit
beside what is spent and held. What it counts belongs to the period in which it was reserved, even
if it ends after that.

Where is counted: `budgets_store`, `budgets_sql`, `budgets_redis`. Who is told: `budgets_alerts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import time
from typing import TYPE_CHECKING, Any

from octavo.errors import BudgetExceededError, ConfigError, EngineUnavailableError
from octavo.gateway.budgets_alerts import BudgetAlerts
from octavo.gateway.budgets_answers import refusal, row_of
from octavo.gateway.budgets_scope import ceiling_of, holds, period_of, scope_of
from octavo.gateway.budgets_store import NOTHING, BudgetStoreError, MemoryStore
from octavo.gateway.model import Amount
from octavo.ledger.record import NANO

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from octavo.gateway.budgets_scope import Ceiling
    from octavo.gateway.budgets_store import Standing, Store, Taking
    from octavo.gateway.config_budgets import Budget, BudgetsSection
    from octavo.gateway.model import Call

logger = logging.getLogger("octavo.gateway")

MAX_AMOUNT = 2**53
"""Of one request, in every unit: 9 million of the currency, 104 days of a device."""

MAX_KNOWN = 10_000
"""Callers whose budgets are remembered."""

MAX_ROWS = 1000
"""Of one budget in `state`."""

RETRY_S = 0.5
"""How often a store that failed is asked again."""

_RENEW_BATCH = 500


class BudgetsUnavailableError(EngineUnavailableError):
    """Budgets cannot be counted now, and the configuration says to refuse then."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"Budgets cannot be counted now: {why}", code="budgets_unavailable", retry_after_s=2
        )


class BudgetReservation:
    """What budgets hold for one call; see `seams.Reservation`.

    Attributes:
        held_id: names it in the store.
        ceilings: of the budgets.
        amount: held in each.
        was_reserved: the store said that it holds it.
    """

    __slots__ = ("_book", "amount", "ceilings", "held_id", "was_reserved")

    def __init__(
        self,
        book: BudgetBook | None,
        held_id: str,
        ceilings: Sequence[Ceiling],
        amount: Amount,
        *,
        was_reserved: bool,
    ) -> None:
        self._book = book
        self.held_id = held_id
        self.ceilings = ceilings
        self.amount = amount
        self.was_reserved = was_reserved

    @property
    def left_nano(self) -> int | None:
        """What the call may cost in all, nano-units: what was reserved; None: no hard budget has a
        ceiling in money.
        """
        if any(c.is_hard and c.cost_nano is not None for c in self.ceilings):
            return self.amount.cost_nano
        return None

    async def settle(self, used: Amount) -> None:
        """The call has ended and used this much; only the first call counts. Never fails: what the
        store does not take now is kept and tried again. Who is cancelled meanwhile has settled.
        """
        book, self._book = self._book, None
        if book is not None:
            await book.settle(self, used)


class _Unsettled:
    """What the store has not taken yet."""

    __slots__ = ("ceilings", "held_id", "used", "was_reserved")

    def __init__(
        self, held_id: str, ceilings: Sequence[Ceiling], used: Amount, was_reserved: bool
    ) -> None:
        self.held_id = held_id
        self.ceilings = ceilings
        self.used = used
        self.was_reserved = was_reserved


class BudgetBook:
    """All budgets of a configuration; implements `seams.Budgets`. Belongs to one event loop.

    Args:
        section: of the configuration.
        store: counts; None: a new one in memory. A reload gives the old one's `store` on.
        currency: for messages.
        wall_ns: nanoseconds since 1970.

    Attributes:
        alerts: tell of thresholds.
        num_reserved: calls that got a reservation.
        num_refused: per budget, calls that got a 429 by it.
        num_expired: reservations of gateways that went away.
        num_failures: what the store did not answer.
    """

    def __init__(
        self,
        section: BudgetsSection,
        store: Store | None = None,
        *,
        currency: str = "USD",
        wall_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.section = section
        self.store: Store = store if store is not None else MemoryStore()
        self.alerts = BudgetAlerts(section, self.store, currency=currency)
        self.num_reserved = 0
        self.num_refused = dict.fromkeys(section.rules, 0)
        self.num_expired = 0
        self.num_failures = 0
        self._currency = currency
        self._wall_ns = wall_ns
        self._is_local = isinstance(self.store, MemoryStore)
        self._ids = f"{os.getpid():x}-{os.urandom(6).hex()}-"
        self._numbers = itertools.count()
        self._known: dict[tuple[object, ...], tuple[tuple[str, Budget, str], ...]] = {}
        self._live: dict[str, BudgetReservation] = {}
        self._unsettled: dict[str, _Unsettled] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._recovery: asyncio.Task[None] | None = None
        self._tag_names = sorted(
            {tag for budget in section.rules.values() for tag in budget.tags}
            | {
                name.removeprefix("tag:")
                for budget in section.rules.values()
                for name in budget.per
                if name.startswith("tag:")
            }
        )

    @property
    def is_down(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._recovery is not None

    @property
    def num_unsettled(self) -> int:
        """Calls whose use the store has not taken yet."""
        return len(self._unsettled)

    async def reserve(self, call: Call, worst: Amount | None) -> BudgetReservation:
        """Hold the worst case in every budget that the call counts to, or in none.

        Args:
            call: who asks, and what for.
            worst: the most that it can use; None: a price is not known.

        Raises:
            BudgetExceededError: 429; says which budget, and when its period ends. Also where a hard
                budget holds and the price is not known.
            BudgetsUnavailableError: 503; the store is gone, and the configuration says to refuse.
        """
        ceilings = self.ceilings(call)
        if not ceilings:
            return BudgetReservation(None, "", (), worst or NOTHING, was_reserved=False)
        if worst is None:
            self._refuse_unpriced(ceilings)
            worst = NOTHING
        amount = _bounded(worst)
        held_id = f"{self._ids}{next(self._numbers):x}"
        if self._keeper is None:
            self._keeper = asyncio.create_task(self._keep())
        try:
            taking = await self._reserve(held_id, ceilings, amount)
        except BudgetStoreError as error:
            return self._without_store(held_id, ceilings, amount, error)
        if not taking.is_reserved:
            raise self._refusal(ceilings, taking.standings, amount)
        self.num_reserved += 1
        reservation = BudgetReservation(self, held_id, ceilings, amount, was_reserved=True)
        self._live[held_id] = reservation
        return reservation

    async def settle(self, reservation: BudgetReservation, used: Amount) -> None:
        """See `BudgetReservation.settle`."""
        self._live.pop(reservation.held_id, None)
        item = _Unsettled(
            reservation.held_id, reservation.ceilings, _bounded(used), reservation.was_reserved
        )
        self._unsettled[item.held_id] = item
        if self._is_local:
            await self._settle(item)
        elif not self.is_down:
            await asyncio.shield(self._spawn(self._settle_or_keep(item)))

    async def state(self) -> list[dict[str, object]]:
        """How the budgets of the current periods stand, the most used first.

        Raises:
            BudgetsUnavailableError: the store does not answer.
        """
        now_ns = self._wall_ns()
        found: list[tuple[float, dict[str, object]]] = []
        for name, budget in self.section.rules.items():
            start_ns, _ = period_of(budget.period, now_ns)
            try:
                async with self._in_time():
                    rows = await self.store.rows(name, start_ns, MAX_ROWS)
            except BudgetStoreError as error:
                self._failed(error)
                raise BudgetsUnavailableError("their store does not answer") from None
            for scope, standing in rows:
                ceiling = ceiling_of(name, budget, scope, now_ns)
                row = row_of(ceiling, budget.period, standing, self._currency)
                found.append((ceiling.part(standing.used + standing.reserved), row))
        return [row for _, row in sorted(found, key=lambda pair: -pair[0])]

    async def close(self, timeout_s: float = 5.0) -> None:
        """Settle what has not been, and stop. The store stays open, as another may go on with it;
        so do reservations that were not settled: they end by their lease.
        """
        for task in (self._keeper, self._recovery):
            if task is not None:
                task.cancel()
        self._keeper = self._recovery = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._tasks, return_exceptions=True)
                while self._unsettled:
                    try:
                        await self._settle_all()
                    except BudgetStoreError:
                        await asyncio.sleep(RETRY_S)
        await self.alerts.close()
        for item in self._unsettled.values():
            logger.error(
                "not counted, as the budgets' store does not answer: %s of %s",
                item.used,
                [f"{ceiling.budget} {ceiling.scope}" for ceiling in item.ceilings],
            )

    def ceilings(self, call: Call) -> tuple[Ceiling, ...]:
        """The budgets that hold for a call, in their current periods."""
        rules = self.section.rules
        if not rules:
            return ()
        key = call.key
        tags = tuple(call.tags.get(name, "") for name in self._tag_names)
        who = (key.key_id, key.budgets, key.team, call.tenant, call.feature, call.model, tags)
        holding = self._known.get(who)
        if holding is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            holding = self._known[who] = tuple(
                (name, budget, scope_of(budget, call))
                for name, budget in rules.items()
                if holds(name, budget, call)
            )
        now_ns = self._wall_ns()
        return tuple(ceiling_of(name, budget, scope, now_ns) for name, budget, scope in holding)

    # Reserving.

    async def _reserve(self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount) -> Taking:
        """Ask the store.

        Raises:
            BudgetStoreError: it does not answer, or did not when it was last asked.
        """
        expires_ns = self._wall_ns() + int(self.section.lease_s * NANO)
        if self._is_local:
            return await self.store.reserve(held_id, ceilings, amount, expires_ns)
        if self.is_down:
            raise BudgetStoreError("it did not answer before")
        try:
            async with self._in_time():
                return await self.store.reserve(held_id, ceilings, amount, expires_ns)
        except asyncio.CancelledError:
            # The store may hold it all the same.
            item = self._unsettled[held_id] = _Unsettled(held_id, ceilings, NOTHING, False)
            self._spawn(self._settle_or_keep(item))
            raise
        except BudgetStoreError as error:
            self._unsettled[held_id] = _Unsettled(held_id, ceilings, NOTHING, False)
            self._failed(error)
            raise

    def _without_store(
        self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount, error: BudgetStoreError
    ) -> BudgetReservation:
        is_hard = any(ceiling.is_hard for ceiling in ceilings)
        if is_hard and self.section.on_failure == "refuse":
            raise BudgetsUnavailableError("their store does not answer") from error
        self.num_reserved += 1
        return BudgetReservation(self, held_id, ceilings, amount, was_reserved=False)

    def _refuse_unpriced(self, ceilings: Sequence[Ceiling]) -> None:
        for ceiling in ceilings:
            if ceiling.is_hard:
                self.num_refused[ceiling.budget] += 1
                raise BudgetExceededError(
                    f"The budget {ceiling.budget!r} lets nothing through whose price is not known: "
                    "give the model a price in the gateway's configuration, or ask for another",
                    code="price_unknown",
                )

    def _refusal(
        self, ceilings: Sequence[Ceiling], standings: Sequence[Standing], amount: Amount
    ) -> BudgetExceededError:
        ceiling, standing, error = refusal(
            ceilings, standings, amount, currency=self._currency, now_ns=self._wall_ns()
        )
        self.num_refused[ceiling.budget] += 1
        if ceiling.fits(amount):  # one that never fits says nothing of the budget
            self.alerts.note((ceiling,), (standing,), is_refused=True)
        return error

    # Settling.

    async def _settle(self, item: _Unsettled) -> None:
        standings = await self.store.settle(
            item.held_id,
            item.ceilings,
            item.used,
            now_ns=self._wall_ns(),
            was_reserved=item.was_reserved,
        )
        if self._unsettled.get(item.held_id) is item:
            del self._unsettled[item.held_id]
        self.alerts.note(item.ceilings, standings, is_refused=False)

    async def _settle_or_keep(self, item: _Unsettled) -> None:
        try:
            async with self._in_time():
                await self._settle(item)
        except BudgetStoreError as error:
            self._failed(error)

    async def _settle_all(self) -> None:
        for item in list(self._unsettled.values()):
            async with self._in_time():
                await self._settle(item)

    @contextlib.asynccontextmanager
    async def _in_time(self) -> Any:
        """A store that takes too long has failed."""
        try:
            async with asyncio.timeout(self.section.timeout_s):
                yield
        except TimeoutError:
            raise BudgetStoreError(f"no answer within {self.section.timeout_s:g} s") from None

    def _spawn(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # Beside requests.

    async def _keep(self) -> None:
        """Renew what is held, and end what nobody renews."""
        while True:
            await asyncio.sleep(self.section.lease_s / 3)
            if self.is_down:
                continue
            try:
                await self._renew()
                async with self._in_time():
                    counts = self.section.when_lost == "count"
                    num = await self.store.expire(self._wall_ns(), counts=counts)
            except BudgetStoreError as error:
                self._failed(error)
                continue
            self.num_expired += num
            if num:
                logger.warning("%d reservations of budgets were not renewed, and end", num)

    async def _renew(self) -> None:
        held_ids = [held_id for held_id, one in self._live.items() if one.was_reserved]
        for at in range(0, len(held_ids), _RENEW_BATCH):
            expires_ns = self._wall_ns() + int(self.section.lease_s * NANO)
            async with self._in_time():
                await self.store.renew(held_ids[at : at + _RENEW_BATCH], expires_ns)

    def _failed(self, error: BudgetStoreError) -> None:
        self.num_failures += 1
        if self._recovery is None:
            what = "are refused" if self.section.on_failure == "refuse" else "pass"
            logger.warning("budgets cannot be counted, and requests %s: %s", what, error)
            self._recovery = asyncio.create_task(self._recover())

    async def _recover(self) -> None:
        """Ask the store until it is back, and give it what it has missed."""
        since = time.monotonic()
        while True:
            await asyncio.sleep(RETRY_S)
            try:
                await self._settle_all()
                await self._renew()
                async with self._in_time():
                    await self.store.rows("", 0, 1)
            except BudgetStoreError:
                continue
            break
        self._recovery = None
        logger.warning("budgets are counted again after %.1f s", time.monotonic() - since)
        for item in list(self._unsettled.values()):
            self._spawn(self._settle_or_keep(item))


def open_budgets(
    section: BudgetsSection,
    *,
    ledger_url: str = "",
    redis_url: str = "",
    currency: str = "USD",
    previous: BudgetBook | None = None,
) -> BudgetBook:
    """Budgets as the configuration has them. Connects to nothing yet.

    Args:
        section: of the configuration.
        ledger_url: for `store: ledger`.
        redis_url: for `store: redis`.
        currency: of the backends' prices.
        previous: of the configuration before a reload: what it counted stays counted, and it goes
            on to settle what it has reserved.

    Raises:
        ConfigError: the store's address is missing or wrong, or its client library is.
    """
    return BudgetBook(
        section, _open_store(section, ledger_url, redis_url, previous), currency=currency
    )


def _open_store(
    section: BudgetsSection, ledger_url: str, redis_url: str, previous: BudgetBook | None
) -> Store:
    kept = previous.store if previous is not None else None
    if section.store == "memory":
        return kept if isinstance(kept, MemoryStore) else MemoryStore()
    if section.store == "ledger":
        from octavo.gateway.budgets_sql import SqlStore

        if not ledger_url:
            raise ConfigError("budgets in the ledger need its address: give ledger.url")
        if isinstance(kept, SqlStore) and kept.url == ledger_url:
            return kept
        return SqlStore(ledger_url)
    from octavo.gateway.budgets_redis import RedisStore

    if isinstance(kept, RedisStore) and kept.is_same(redis_url, section.redis_prefix):
        return kept
    return RedisStore(redis_url, section.redis_prefix, timeout_s=section.timeout_s)


def _bounded(amount: Amount) -> Amount:
    """An amount that every store can hold."""
    return Amount(
        min(max(0, amount.cost_nano), MAX_AMOUNT),
        min(max(0, amount.num_tokens), MAX_AMOUNT),
        min(max(0, amount.device_ns), MAX_AMOUNT),
    )
