"""Counts budgets in the ledger's database, so that several gateway processes count together.

One thread has the one connection. It takes all that waits, locks the counters that are concerned
(SQLite: the whole database, `BEGIN IMMEDIATE`; PostgreSQL: their rows, always in the same order, so
that no two gateways wait for each other), does the arithmetic of `budgets_store.Books`, writes, and
commits once: what many requests wait for costs one write to the disk. The event loop never waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from octavo.gateway.budgets_store import FORGET_NS, BudgetStoreError
from octavo.gateway.budgets_tables import claim, find_expired, load, rows_of, save, sweep
from octavo.ledger.database import (
    Database,
    DatabaseUnavailableError,
    DataRefusedError,
    ensure_schema,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from octavo.gateway.budgets_scope import Ceiling, CounterKey
    from octavo.gateway.budgets_store import Books, Standing, Taking
    from octavo.gateway.model import Amount
    from octavo.ledger.database import Connection

MAX_BATCH = 256
"""Operations of one transaction."""


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
            (), (), lambda connection, _: find_expired(connection, now_ns)
        )
        held_ids = sorted({row[0] for row in found})

        def work(_: Connection, books: Books) -> int:
            return books.expire(list(books.held), now_ns, counts=counts)

        num: int = await self._do({row[1:] for row in found}, held_ids, work) if found else 0
        if now_ns - self._swept_ns > FORGET_NS:
            await self._do((), (), lambda connection, _: sweep(connection, now_ns))
            self._swept_ns = now_ns
        return num

    async def rows(self, budget: str, start_ns: int, limit: int) -> list[tuple[str, Standing]]:
        """See `Store`."""

        def work(connection: Connection, _: Books) -> list[tuple[str, Standing]]:
            return rows_of(connection, budget, start_ns, limit)

        found: list[tuple[str, Standing]] = await self._do((), (), work)
        return found

    async def claim(self, ceiling: Ceiling, threshold: str) -> bool:
        """See `Store`."""

        def work(connection: Connection, _: Books) -> bool:
            return claim(connection, ceiling.key, threshold)

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
            books = load(
                connection,
                (key for operation in batch for key in operation.keys),
                (held_id for operation in batch for held_id in operation.held_ids),
            )
            counters, held = dict(books.counters), dict(books.held)
            results = [operation.work(connection, books) for operation in batch]
            save(connection, books, counters, held)
        return results

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _keys(ceilings: Sequence[Ceiling]) -> list[CounterKey]:
    return [ceiling.key for ceiling in ceilings]
