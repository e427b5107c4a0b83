"""Counts budgets in the ledger's database, so that several gateway processes count together.

One thread has the one connection. It takes all that waits, locks the counters that are concerned
(SQLite: the whole database, `BEGIN IMMEDIATE`; PostgreSQL: their rows, always in the same order, so
that no two gateways wait for each other), does the arithmetic of `budgets_store.Books`, writes, and
commits once: what many requests wait for costs one write to the disk. The event loop never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from octavo.gateway.budgets_store import FORGET_NS, Books, BudgetStoreError, Held, Standing, Taking
from octavo.gateway.model import Amount
from octavo.ledger.database import (
    Database,
    DatabaseUnavailableError,
    DataRefusedError,
    ensure_schema,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from octavo.gateway.budgets_scope import Ceiling, CounterKey
    from octavo.ledger.database import Connection

MAX_BATCH = 256
"""Operations of one transaction."""

MAX_EXPIRED = 1000
"""Reservations that one transaction ends."""

KEEP_NS = 400 * FORGET_NS
"""How long counters are kept after their period began; those of `total` stay."""

_AMOUNTS = ("cost_nano", "num_tokens", "device_ns")
_RESERVED = ("reserved_cost_nano", "reserved_tokens", "reserved_device_ns")
_COUNTER = ", ".join((*_AMOUNTS, *_RESERVED))
_OF_COUNTER = "budget = ? AND scope = ? AND period_start = ?"
_ADD_COUNTER = (
    f"INSERT INTO budget_counters (budget, scope, period_start, {_COUNTER}) "
    "VALUES (?, ?, ?, 0, 0, 0, 0, 0, 0) ON CONFLICT DO NOTHING"
)
_SET_COUNTER = (
    "UPDATE budget_counters SET "
    + ", ".join(f"{name} = ?" for name in (*_AMOUNTS, *_RESERVED))
    + f" WHERE {_OF_COUNTER}"
)
_ADD_HELD = (
    "INSERT INTO budget_reservations "
    f"(id, budget, scope, period_start, {', '.join(_AMOUNTS)}, expires_ns) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
)


class _Operation:
    """One thing to do in a transaction, and who waits for it.

    Attributes:
        keys: of counters to lock.
        held_ids: of reservations to read.
        work: with these in the books.
    """

    __slots__ = ("_future", "_loop", "held_ids", "keys", "work")

    def __init__(
        self,
        keys: Iterable[CounterKey],
        held_ids: Sequence[str],
        work: Callable[[Connection, Books], Any],
    ) -> None:
        self.keys = tuple(keys)
        self.held_ids = held_ids
        self.work = work
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[Any] = self._loop.create_future()

    async def done(self) -> Any:
        """What the work gives."""
        return await self._future

    def tell(self, result: Any, error: Exception | None = None) -> None:
        """Called by the thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended, and nobody waits
            self._loop.call_soon_threadsafe(self._tell, result, error)

    def _tell(self, result: Any, error: Exception | None) -> None:
        if self._future.done():  # cancelled
            return
        if error is not None:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)


class SqlStore:
    """Counts in a database; see `budgets_store.Store`. Connects when it is first used.

    Args:
        url: of the ledger, as `ledger.database.Database` takes it.

    Raises:
        ConfigError: it is none.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._database = Database(url)
        self._connection: Connection | None = None
        self._waiting: deque[_Operation] = deque()
        self._came = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._swept_ns = 0

    async def reserve(
        self, held_id: str, ceilings: Sequence[Ceiling], amount: Amount, expires_ns: int
    ) -> Taking:
        """See `Store`."""

        def work(_: Connection, books: Books) -> Taking:
            return books.reserve(held_id, ceilings, amount, expires_ns)

        taking: Taking = await self._do(_keys(ceilings), (held_id,), work)
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

        def work(_: Connection, books: Books) -> tuple[Standing, ...]:
            return books.settle(held_id, ceilings, used, now_ns=now_ns, was_reserved=was_reserved)

        standings: tuple[Standing, ...] = await self._do(_keys(ceilings), (held_id,), work)
        return standings

    async def renew(self, held_ids: Sequence[str], expires_ns: int) -> None:
        """See `Store`."""

        def work(connection: Connection, _: Books) -> None:
            connection.execute_many(
                "UPDATE budget_reservations SET expires_ns = ? WHERE id = ? AND expires_ns > 0",
                [(expires_ns, held_id) for held_id in sorted(held_ids)],
            )

        await self._do((), (), work)

    async def expire(self, now_ns: int, *, counts: bool) -> int:
        """See `Store`. Counters of periods that are long over are deleted, too."""
        found: list[tuple[Any, ...]] = await self._do(
            (), (), functools.partial(_find_expired, now_ns=now_ns)
        )
        held_ids = sorted({row[0] for row in found})

        def work(_: Connection, books: Books) -> int:
            return books.expire(list(books.held), now_ns, counts=counts)

        num: int = await self._do({row[1:] for row in found}, held_ids, work) if found else 0
        if now_ns - self._swept_ns > FORGET_NS:
            await self._do((), (), functools.partial(_sweep, before_ns=now_ns - KEEP_NS))
            self._swept_ns = now_ns
        return num

    async def rows(self, budget: str, start_ns: int, limit: int) -> list[tuple[str, Standing]]:
        """See `Store`."""

        def work(connection: Connection, _: Books) -> list[tuple[str, Standing]]:
            rows = connection.rows(
                f"SELECT scope, {_COUNTER} FROM budget_counters "
                "WHERE budget = ? AND period_start = ? ORDER BY scope LIMIT ?",
                (budget, start_ns, limit),
            )
            return [(row[0], _standing(row[1:])) for row in rows]

        found: list[tuple[str, Standing]] = await self._do((), (), work)
        return found

    async def claim(self, ceiling: Ceiling, threshold: str) -> bool:
        """See `Store`."""

        def work(connection: Connection, _: Books) -> bool:
            return bool(
                connection.execute(
                    "INSERT INTO budget_alerts (budget, scope, period_start, threshold) "
                    "VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    (*ceiling.key, threshold),
                )
            )

        is_first: bool = await self._do((), (), work)
        return is_first

    async def close(self) -> None:
        """See `Store`. What waits is done first."""
        with self._came:
            self._is_closed = True
            self._came.notify()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)

    async def _do(
        self,
        keys: Iterable[CounterKey],
        held_ids: Sequence[str],
        work: Callable[[Connection, Books], Any],
    ) -> Any:
        operation = _Operation(keys, held_ids, work)
        with self._came:
            if self._is_closed:
                raise BudgetStoreError("the store is closed")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="budgets", daemon=True)
                self._thread.start()
            self._waiting.append(operation)
            self._came.notify()
        return await operation.done()

    # The thread.

    def _run(self) -> None:
        while True:
            with self._came:
                while not self._waiting and not self._is_closed:
                    self._came.wait()
                if not self._waiting:
                    break
                num = min(len(self._waiting), MAX_BATCH)
                batch = [self._waiting.popleft() for _ in range(num)]
            self._do_batch(batch)
        self._disconnect()

    def _do_batch(self, batch: Sequence[_Operation]) -> None:
        try:
            try:
                results = self._transact(batch)
            except DatabaseUnavailableError:
                # The connection may have been the fault. What was committed is not done again.
                self._disconnect()
                results = self._transact(batch)
        except Exception as exc:
            self._disconnect()
            if isinstance(exc, DataRefusedError) and len(batch) > 1:
                for operation in batch:
                    self._do_batch([operation])
                return
            for operation in batch:
                operation.tell(None, BudgetStoreError(str(exc)))
            return
        for operation, result in zip(batch, results, strict=True):
            operation.tell(result)

    def _transact(self, batch: Sequence[_Operation]) -> list[Any]:
        connection = self._connection
        if connection is not None and self._database.is_replaced(connection):
            self._disconnect()
            connection = None
        if connection is None:
            ensure_schema(self._database)
            connection = self._connection = self._database.connect()
        with connection.transaction():
            books = _load(connection, batch)
            counters, held = dict(books.counters), dict(books.held)
            results = [operation.work(connection, books) for operation in batch]
            _save(connection, books, counters, held)
        return results

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _keys(ceilings: Sequence[Ceiling]) -> list[CounterKey]:
    return [ceiling.key for ceiling in ceilings]


def _load(connection: Connection, batch: Sequence[_Operation]) -> Books:
    """Lock and read the counters of a batch, and read its reservations.

    Whoever changes a reservation has its counters locked.
    """
    books = Books()
    keys = sorted({key for operation in batch for key in operation.keys})
    if keys and not connection.is_sqlite:
        connection.execute_many(_ADD_COUNTER, keys)
    lock = "" if connection.is_sqlite else " FOR UPDATE"
    for key in keys:
        rows = connection.rows(
            f"SELECT {_COUNTER} FROM budget_counters WHERE {_OF_COUNTER}{lock}", key
        )
        if rows:
            books.counters[key] = _standing(rows[0])
    held_ids = sorted({held_id for operation in batch for held_id in operation.held_ids})
    for at in range(0, len(held_ids), MAX_BATCH):
        some = held_ids[at : at + MAX_BATCH]
        rows = connection.rows(
            f"SELECT id, budget, scope, period_start, {', '.join(_AMOUNTS)}, expires_ns "
            f"FROM budget_reservations WHERE id IN ({', '.join('?' * len(some))})",
            some,
        )
        for held_id, budget, scope, start_ns, cost, tokens, device, expires_ns in rows:
            before = books.held.get(held_id)
            own = (*(before.keys if before is not None else ()), (budget, scope, start_ns))
            books.held[held_id] = Held(own, Amount(cost, tokens, device), expires_ns)
    return books


def _save(
    connection: Connection,
    books: Books,
    counters: dict[CounterKey, Standing],
    held: dict[str, Held],
) -> None:
    """Write what differs from how it was read."""
    changed = {k: s for k, s in sorted(books.counters.items()) if counters.get(k) != s}
    if changed:
        if connection.is_sqlite:
            connection.execute_many(_ADD_COUNTER, [key for key in changed if key not in counters])
        connection.execute_many(
            _SET_COUNTER,
            [(*_plain(s.used), *_plain(s.reserved), *key) for key, s in changed.items()],
        )
    gone = [(held_id,) for held_id, one in held.items() if books.held.get(held_id) != one]
    if gone:
        connection.execute_many("DELETE FROM budget_reservations WHERE id = ?", gone)
    new = [
        (held_id, *key, *_plain(one.amount), one.expires_ns)
        for held_id, one in books.held.items()
        if held.get(held_id) != one
        for key in one.keys
    ]
    if new:
        connection.execute_many(_ADD_HELD, new)


def _find_expired(connection: Connection, _: Books, *, now_ns: int) -> list[tuple[Any, ...]]:
    """Reservations to be ended or forgotten, with their counters; whole ones."""
    ids = connection.rows(
        "SELECT DISTINCT id FROM budget_reservations "
        "WHERE expires_ns > 0 AND expires_ns <= ? OR expires_ns <= 0 AND expires_ns >= ? "
        f"ORDER BY id LIMIT {MAX_EXPIRED}",
        (now_ns, -now_ns),
    )
    rows: list[tuple[Any, ...]] = []
    for (held_id,) in ids:
        rows += connection.rows(
            "SELECT id, budget, scope, period_start FROM budget_reservations WHERE id = ?",
            (held_id,),
        )
    return rows


def _sweep(connection: Connection, _: Books, *, before_ns: int) -> None:
    for table in ("budget_counters", "budget_alerts"):
        connection.execute(
            f"DELETE FROM {table} WHERE period_start > 0 AND period_start < ?", (before_ns,)
        )


def _standing(row: Sequence[int]) -> Standing:
    return Standing(Amount(*row[:3]), Amount(*row[3:]))


def _plain(amount: Amount) -> tuple[int, int, int]:
    return amount.cost_nano, amount.num_tokens, amount.device_ns
