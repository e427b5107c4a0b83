"""Kept batches. Each is run by one process at a time: the one that holds its lease."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from octavo.protocol.batches import Batch
from octavo.server.state.database import StateError

if TYPE_CHECKING:
    import sqlite3

    from octavo.server.state.database import StateFolder

MAX_BATCHES = 10_000
"""Ended ones go first when there are more."""

LEASE_S = 15.0
"""How long a process that says nothing keeps a batch from the others, seconds."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS batches (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    is_over INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT '',
    lease_until REAL NOT NULL DEFAULT 0,
    cancelling_at INTEGER,
    body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS open_batches ON batches (is_over, lease_until);
"""


class ClaimedBatch(msgspec.Struct, frozen=True):
    """A batch to run, and whose it is."""

    tenant: str
    batch: Batch


def _batch(body: bytes, cancelling_at: int | None, is_over: object) -> Batch:
    """A row as it is shown."""
    batch = msgspec.json.decode(body, type=Batch)
    batch.cancelling_at = cancelling_at
    if cancelling_at is not None and not is_over:
        batch.status = "cancelling"
    return batch


_COLUMNS = "body, cancelling_at, is_over"


def _find(connection: sqlite3.Connection, batch_id: str, tenant: str) -> Batch | None:
    """The tenant's batch with this id."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM batches WHERE id = ? AND tenant = ?", (batch_id, tenant)
    ).fetchone()
    return None if row is None else _batch(*row)


class BatchStore:
    """See the module.

    Args:
        folder: with the tables of `SCHEMA`.
        max_batches: bound of all tenants' batches together.
    """

    def __init__(self, folder: StateFolder, *, max_batches: int = MAX_BATCHES) -> None:
        self._folder = folder
        self._max_batches = max_batches

    async def add(self, batch: Batch, tenant: str) -> None:
        """Keep a new batch; some process will run it.

        Raises:
            StateError: there is no room, or no folder.
        """
        body = msgspec.json.encode(batch)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO batches (id, tenant, input_file_id, body) VALUES (?,?,?,?)",
                (batch.id, tenant, batch.input_file_id, body),
            )
            (num_batches,) = connection.execute("SELECT count(*) FROM batches").fetchone()
            if num_batches > self._max_batches:
                dropped = connection.execute(
                    "DELETE FROM batches WHERE rowid ="
                    " (SELECT rowid FROM batches WHERE is_over ORDER BY rowid LIMIT 1)"
                )
                if not dropped.rowcount:
                    raise StateError("The server has too many open batches", code="store_full")

        await self._folder.call(work)

    async def get(self, batch_id: str, tenant: str) -> Batch | None:
        """The tenant's batch with this id.

        Raises:
            StateError: see `StateFolder.call`.
        """
        return await self._folder.call(lambda connection: _find(connection, batch_id, tenant))

    async def page(self, tenant: str, *, after: str | None, limit: int) -> list[Batch] | None:
        """The tenant's batches, the newest first, `limit` of them; None: it has none `after`.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> list[Batch] | None:
            where, values = "tenant = ?", [tenant]
            if after is not None:
                if not connection.execute(
                    "SELECT 1 FROM batches WHERE id = ? AND tenant = ?", (after, tenant)
                ).fetchone():
                    return None
                where += " AND rowid < (SELECT rowid FROM batches WHERE id = ?)"
                values = [*values, after]
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM batches WHERE {where} ORDER BY rowid DESC LIMIT ?",
                (*values, limit),
            )
            return [_batch(*row) for row in rows]

        return await self._folder.call(work)

    async def cancel(self, batch_id: str, tenant: str) -> Batch | None:
        """Ask whoever runs it to stop; the batch as it is then. One that is over stays so.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> Batch | None:
            connection.execute(
                "UPDATE batches SET cancelling_at = coalesce(cancelling_at, ?)"
                " WHERE id = ? AND tenant = ? AND NOT is_over",
                (int(time.time()), batch_id, tenant),
            )
            return _find(connection, batch_id, tenant)

        return await self._folder.call(work)

    async def needs_file(self, file_id: str) -> bool:
        """Whether a batch that is not over reads the file.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute(
                "SELECT 1 FROM batches WHERE NOT is_over AND input_file_id = ?", (file_id,)
            ).fetchone()
            return row is not None

        return await self._folder.call(work)

    # For who runs them

    async def claim(self, owner: str) -> ClaimedBatch | None:
        """The oldest batch that nobody runs; it is the owner's from now on. None: there is none.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> ClaimedBatch | None:
            now = time.time()
            row = connection.execute(
                "UPDATE batches SET owner = ?, lease_until = ? WHERE rowid = (SELECT rowid FROM"
                " batches WHERE NOT is_over AND lease_until < ? ORDER BY rowid LIMIT 1)"
                f" RETURNING tenant, {_COLUMNS}",
                (owner, now + LEASE_S, now),
            ).fetchone()
            return None if row is None else ClaimedBatch(row[0], _batch(*row[1:]))

        return await self._folder.call(work)

    async def save(self, batch: Batch, owner: str, *, is_over: bool = False) -> bool:
        """News from the owner, which renew the lease; whether to go on: it is still the owner's,
        and nobody cancels it.

        Raises:
            StateError: see `StateFolder.call`.
        """
        body = msgspec.json.encode(batch)

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute(
                "UPDATE batches SET body = ?, is_over = ?, lease_until = ?"
                " WHERE id = ? AND owner = ? AND NOT is_over RETURNING cancelling_at",
                (body, is_over, time.time() + LEASE_S, batch.id, owner),
            ).fetchone()
            return row is not None and row[0] is None

        return await self._folder.call(work)

    async def is_cancelled(self, batch_id: str) -> bool:
        """Whether somebody asked to stop it.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> bool:
            row = connection.execute(
                "SELECT cancelling_at FROM batches WHERE id = ?", (batch_id,)
            ).fetchone()
            return row is not None and row[0] is not None

        return await self._folder.call(work)

    async def release(self, batch_id: str, owner: str) -> None:
        """Let others run it.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE batches SET lease_until = 0 WHERE id = ? AND owner = ?", (batch_id, owner)
            )

        await self._folder.call(work)
