"""Budgets: ceilings in money, tokens and device time, reserved before anything is sent.

A call's worst case is held in all budgets that it counts to, or in none, in one step that no other
request can come between; at its end it counts what it used. So a hard budget is never overspent,
whatever runs at the same time, and a request is refused only where its own worst case does not fit
beside what is spent and held. What it counts belongs to the period in which it was reserved, even
if it ends after that.

Where is counted: `budgets_store`, `budgets_sql`, `budgets_redis`. Who is told: `budgets_alerts`.
"""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

from octavo.errors import BudgetExceededError, ConfigError, EngineUnavailableError
from octavo.gateway.budgets_alerts import BudgetAlerts
from octavo.gateway.budgets_answers import refusal, row_of
from octavo.gateway.budgets_keeper import StoreKeeper
from octavo.gateway.budgets_scope import ceiling_of, holds, period_of, scope_of
from octavo.gateway.budgets_store import NOTHING, BudgetStoreError, MemoryStore
from octavo.gateway.model import Amount

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from octavo.gateway.budgets_scope import Ceiling
    from octavo.gateway.budgets_store import Standing, Store
    from octavo.gateway.config_budgets import Budget, BudgetsSection
    from octavo.gateway.model import Call

MAX_AMOUNT = 2**53
"""Of one request, in every unit: 9 million of the currency, 104 days of a device."""

MAX_KNOWN = 10_000
"""Callers whose budgets are remembered."""

MAX_ROWS = 1000
"""Of one budget in `state`."""


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
        keeper: asks the store.
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
        self.keeper = StoreKeeper(section, self.store, self._settled, wall_ns)
        self._currency = currency
        self._wall_ns = wall_ns
        self._ids = f"{os.getpid():x}-{os.urandom(6).hex()}-"
        self._numbers = itertools.count()
        self._known: dict[tuple[object, ...], tuple[tuple[str, Budget, str], ...]] = {}
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
        return self.keeper.is_down

    @property
    def num_unsettled(self) -> int:
        """Calls whose use the store has not taken yet."""
        return self.keeper.num_unsettled

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
        try:
            taking = await self.keeper.reserve(held_id, ceilings, amount)
        except BudgetStoreError as error:
            self._pass_without_store(held_id, ceilings, error)
            self.num_reserved += 1
            return BudgetReservation(self, held_id, ceilings, amount, was_reserved=False)
        if not taking.is_reserved:
            raise self._refusal(ceilings, taking.standings, amount)
        self.num_reserved += 1
        return BudgetReservation(self, held_id, ceilings, amount, was_reserved=True)

    async def settle(self, reservation: BudgetReservation, used: Amount) -> None:
        """See `BudgetReservation.settle`."""
        await self.keeper.settle(
            reservation.held_id,
            reservation.ceilings,
            _bounded(used),
            was_reserved=reservation.was_reserved,
        )

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
                rows = await self.keeper.rows(name, start_ns, MAX_ROWS)
            except BudgetStoreError:
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
        await self.keeper.close(timeout_s)
        await self.alerts.close()

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

    def _pass_without_store(
        self, held_id: str, ceilings: Sequence[Ceiling], error: BudgetStoreError
    ) -> None:
        """Return if a call may pass that cannot be counted now."""
        is_hard = any(ceiling.is_hard for ceiling in ceilings)
        if is_hard and self.section.on_failure == "refuse":
            self.keeper.undo(held_id, ceilings)
            raise BudgetsUnavailableError("their store does not answer") from error

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

    def _settled(self, ceilings: Sequence[Ceiling], standings: Sequence[Standing]) -> None:
        self.alerts.note(ceilings, standings, is_refused=False)


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
