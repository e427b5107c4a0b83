"""What budgets have spent and hold: the arithmetic, which every store shares, and the store of one
process.

A reservation is known by its id. Whatever is done twice, or in another order than it was meant,
because an answer of the store was lost, counts once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from octavo.gateway.model import Amount
from octavo.ledger.record import NANO

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from octavo.gateway.budgets_scope import Ceiling, CounterKey

NOTHING = Amount()
FORGET_NS = 24 * 3600 * NANO
"""How long an id is known after its end: nothing is tried again after that."""


class BudgetStoreError(Exception):
    """The store does not answer or cannot write; whether it did what was asked is not known."""


class Standing(NamedTuple):
    """How one counter stands."""

    used: Amount = NOTHING
    reserved: Amount = NOTHING

    def moved(self, used: Amount, reserved: Amount) -> Standing:
        """With these on top; nothing falls below 0, not even after a store was set back."""
        return Standing(_above_zero(self.used + used), _above_zero(self.reserved + reserved))


class Held(NamedTuple):
    """A reservation, in all its budgets.

    Attributes:
        keys: of the counters.
        amount: reserved in each; once it has ended, what it counts there.
        expires_ns: nanoseconds since 1970. Above 0: it ends then if nobody renews it. Below: it has
            ended, and its id may be forgotten at the time without its sign.
    """

    keys: tuple[CounterKey, ...]
    amount: Amount
    expires_ns: int

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.expires_ns > 0


class Taking(NamedTuple):
    """What came of reserving.

    Attributes:
        is_reserved: in all budgets; else in none.
        standings: of the counters, in the order of the ceilings, after that.
    """

    is_reserved: bool
    standings: tuple[Standing, ...]


class Store(Protocol):
    """Counts. Every method but `close` may raise BudgetStoreError."""

    async def reserve(
        self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount, expires_ns: int
    ) -> Taking:
        """Hold an amount in all counters if it fits into every hard one, else in none."""
        ...

    async def settle(
        self,
        held_id: str,
        ceilings: Sequence[Ceiling],
        used: Amount,
        *,
        now_ns: int,
        was_reserved: bool,
    ) -> tuple[Standing, ...]:
        """End a reservation: it counts this much.

        Args:
            held_id: whose.
            ceilings: of its counters.
            used: in each.
            now_ns: nanoseconds since 1970.
            was_reserved: the store said that it holds it, so that not to find it means that it has
                been settled; else it may or may not, and counts all the same.
        """
        ...

    async def renew(self, held_ids: Sequence[str], expires_ns: int) -> None:
        """Let reservations end later, those that have not ended."""
        ...

    async def expire(self, now_ns: int, *, counts: bool) -> int:
        """End what nobody renewed; how many these are.

        Args:
            now_ns: nanoseconds since 1970.
            counts: as spent, else as not spent.
        """
        ...

    async def rows(self, budget: str, start_ns: int, limit: int) -> list[tuple[str, Standing]]:
        """The counters of a budget's period: whom they are for, and how they stand."""
        ...

    async def claim(self, ceiling: Ceiling, threshold: str) -> bool:
        """Whether a threshold of a counter is told of for the first time, to whoever asks first."""
        ...

    async def close(self) -> None:
        """Free connections and threads."""
        ...


class Books:
    """Counters and reservations, in memory; all of them, or those that a transaction has locked."""

    def __init__(self) -> None:
        self.counters: dict[CounterKey, Standing] = {}
        self.held: dict[str, Held] = {}

    def standings(self, ceilings: Sequence[Ceiling]) -> tuple[Standing, ...]:
        """How counters stand."""
        return tuple(self.counters.get(ceiling.key) or Standing() for ceiling in ceilings)

    def reserve(
        self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount, expires_ns: int
    ) -> Taking:
        """See `Store`."""
        before = self.held.get(held_id)
        standings = self.standings(ceilings)
        if before is not None:  # the answer to the first time was lost
            return Taking(before.is_live, standings)
        for ceiling, standing in zip(ceilings, standings, strict=True):
            if ceiling.is_hard and not ceiling.fits(standing.used + standing.reserved + amount):
                return Taking(False, standings)
        keys = tuple(ceiling.key for ceiling in ceilings)
        self.held[held_id] = Held(keys, amount, expires_ns)
        self._move(keys, NOTHING, amount)
        return Taking(True, self.standings(ceilings))

    def settle(
        self,
        held_id: str,
        ceilings: Sequence[Ceiling],
        used: Amount,
        *,
        now_ns: int,
        was_reserved: bool,
    ) -> tuple[Standing, ...]:
        """See `Store`."""
        held = self.held.get(held_id)
        keys = held.keys if held is not None else tuple(ceiling.key for ceiling in ceilings)
        if held is not None and held.is_live:
            self._move(keys, used, _minus(held.amount))
        elif held is not None:
            self._move(keys, used + _minus(held.amount), NOTHING)
        elif not was_reserved:
            self._move(keys, used, NOTHING)
        if not was_reserved:
            self.held[held_id] = Held(keys, used, -(now_ns + FORGET_NS))
        elif held is not None:
            del self.held[held_id]
        return self.standings(ceilings)

    def expire(self, held_ids: Collection[str], now_ns: int, *, counts: bool) -> int:
        """See `Store`; of these reservations."""
        num = 0
        for held_id in held_ids:
            held = self.held[held_id]
            if 0 < held.expires_ns <= now_ns:
                spent = held.amount if counts else NOTHING
                self._move(held.keys, spent, _minus(held.amount))
                self.held[held_id] = Held(held.keys, spent, -(now_ns + FORGET_NS))
                num += 1
            elif -now_ns <= held.expires_ns <= 0:
                del self.held[held_id]
        return num

    def _move(self, keys: Sequence[CounterKey], used: Amount, reserved: Amount) -> None:
        for key in keys:
            self.counters[key] = (self.counters.get(key) or Standing()).moved(used, reserved)


class MemoryStore:
    """Counts for one process; see `Store`. Never fails."""

    def __init__(self) -> None:
        self._books = Books()
        self._ends: dict[CounterKey, int] = {}
        self._claimed: set[tuple[CounterKey, str]] = set()

    async def reserve(
        self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount, expires_ns: int
    ) -> Taking:
        """See `Store`."""
        taking = self._books.reserve(held_id, ceilings, amount, expires_ns)
        if taking.is_reserved:
            self._note_ends(ceilings)
        return taking

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
        if not was_reserved:
            self._note_ends(ceilings)
        return self._books.settle(held_id, ceilings, used, now_ns=now_ns, was_reserved=was_reserved)

    async def renew(self, held_ids: Sequence[str], expires_ns: int) -> None:
        """See `Store`."""
        for held_id in held_ids:
            held = self._books.held.get(held_id)
            if held is not None and held.is_live:
                self._books.held[held_id] = held._replace(expires_ns=expires_ns)

    async def expire(self, now_ns: int, *, counts: bool) -> int:
        """See `Store`. What ended a day ago is forgotten, unless something is reserved in it."""
        num = self._books.expire(list(self._books.held), now_ns, counts=counts)
        for key in [key for key, end_ns in self._ends.items() if end_ns + FORGET_NS < now_ns]:
            if self._books.counters[key].reserved == NOTHING:
                del self._ends[key], self._books.counters[key]
                self._claimed = {claim for claim in self._claimed if claim[0] != key}
        return num

    async def rows(self, budget: str, start_ns: int, limit: int) -> list[tuple[str, Standing]]:
        """See `Store`."""
        found = [
            (key[1], standing)
            for key, standing in self._books.counters.items()
            if key[0] == budget and key[2] == start_ns
        ]
        return found[:limit]

    async def claim(self, ceiling: Ceiling, threshold: str) -> bool:
        """See `Store`."""
        claim = (ceiling.key, threshold)
        is_first = claim not in self._claimed
        self._claimed.add(claim)
        return is_first

    async def close(self) -> None:
        """See `Store`."""

    def _note_ends(self, ceilings: Sequence[Ceiling]) -> None:
        for ceiling in ceilings:
            if ceiling.end_ns is not None:
                self._ends[ceiling.key] = ceiling.end_ns


def _minus(amount: Amount) -> Amount:
    return Amount(-amount.cost_nano, -amount.num_tokens, -amount.device_ns)


def _above_zero(amount: Amount) -> Amount:
    cost, tokens, device = amount.cost_nano, amount.num_tokens, amount.device_ns
    if cost >= 0 and tokens >= 0 and device >= 0:
        return amount
    return Amount(max(0, cost), max(0, tokens), max(0, device))
