"""Stored responses: found by id and tenant, bounded in number and bytes; the least used go first.

A response that runs in the background belongs to the process that runs it, for as long as that
says so every few seconds. Its stream's events are here too, so that any process can show them.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Literal

import msgspec

from octavo.server.state.database import StateError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from octavo.server.state.database import StateFolder

Life = Literal["runs", "over", "lost", "gone"]

MAX_RESPONSES = 20_000
MAX_BYTES = 512 * 1024**2

ALIVE_S = 30.0
"""A background response of which nobody said anything for so long is lost, seconds."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    previous_id TEXT,
    used REAL NOT NULL,
    num_bytes INTEGER NOT NULL,
    is_over INTEGER NOT NULL,
    alive_until REAL NOT NULL,
    is_cancelled INTEGER NOT NULL DEFAULT 0,
    has_events INTEGER NOT NULL,
    body BLOB NOT NULL,
    input BLOB NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS responses_by_use ON responses (is_over, used);
CREATE TABLE IF NOT EXISTS response_events (
    response_id TEXT NOT NULL,
    sequence_number INTEGER NOT NULL,
    event BLOB NOT NULL,
    PRIMARY KEY (response_id, sequence_number)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS totals (
    name TEXT PRIMARY KEY, num_rows INTEGER NOT NULL, num_bytes INTEGER NOT NULL
) WITHOUT ROWID;
INSERT OR IGNORE INTO totals VALUES ('responses', 0, 0);
CREATE TRIGGER IF NOT EXISTS responses_added AFTER INSERT ON responses BEGIN
    UPDATE totals SET num_rows = num_rows + 1, num_bytes = num_bytes + new.num_bytes
    WHERE name = 'responses';
END;
CREATE TRIGGER IF NOT EXISTS responses_changed AFTER UPDATE OF num_bytes ON responses BEGIN
    UPDATE totals SET num_bytes = num_bytes + new.num_bytes - old.num_bytes
    WHERE name = 'responses';
END;
CREATE TRIGGER IF NOT EXISTS responses_removed AFTER DELETE ON responses BEGIN
    UPDATE totals SET num_rows = num_rows - 1, num_bytes = num_bytes - old.num_bytes
    WHERE name = 'responses';
    DELETE FROM response_events WHERE response_id = old.id;
END;
"""


class StoredResponse(msgspec.Struct, frozen=True):
    """A row.

    Attributes:
        body: the response's JSON.
        input: the JSON of the list of its own input items.
        is_over: nothing will be added.
        is_lost: it is not over, but whoever ran it is gone.
        has_events: its stream's events are kept.
    """

    id: str
    previous_id: str | None
    body: bytes
    input: bytes
    is_over: bool
    is_lost: bool
    has_events: bool


_COLUMNS = "id, previous_id, body, input, is_over, alive_until, has_events"


def _stored(row: Sequence[object]) -> StoredResponse:
    response_id, previous, body, items, is_over, alive_until, has_events = row
    assert isinstance(response_id, str)
    assert isinstance(previous, str | None)
    assert isinstance(body, bytes)
    assert isinstance(items, bytes)
    assert isinstance(alive_until, float)
    is_lost = not is_over and alive_until < time.time()
    return StoredResponse(
        response_id, previous, body, items, bool(is_over), is_lost, bool(has_events)
    )


class ResponseStore:
    """See the module.

    Args:
        folder: with the tables of `SCHEMA`.
        max_responses, max_bytes: bounds. What runs in the background is never dropped for them.
    """

    def __init__(
        self, folder: StateFolder, *, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._folder = folder
        self._max_responses = max_responses
        self._max_bytes = max_bytes

    async def add(
        self,
        response_id: str,
        tenant: str,
        body: bytes,
        items: bytes,
        *,
        previous_id: str | None = None,
        is_over: bool = True,
        has_events: bool = False,
    ) -> None:
        """Keep a response.

        Args:
            response_id: new.
            tenant: whose it is.
            body: its JSON.
            items: the JSON of its input items.
            previous_id: the response that it goes on from.
            is_over: False: it runs in the background.
            has_events: events will be added.

        Raises:
            StateError: there is no room, or no folder.
        """
        now = time.time()
        num_bytes = len(body) + len(items)
        row = (response_id, tenant, previous_id, now, num_bytes, is_over, now + ALIVE_S)

        def work(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO responses (id, tenant, previous_id, used, num_bytes, is_over,"
                " alive_until, has_events, body, input) VALUES (?,?,?,?,?,?,?,?,?,?)",
                (*row, has_events, body, items),
            )
            self._keep_bounds(connection)

        await self._folder.call(work)

    def _keep_bounds(self, connection: sqlite3.Connection) -> None:
        """Drop what was not used for longest until the rest is within the bounds.

        Raises:
            StateError: what must be kept is not.
        """
        while True:
            num_rows, num_bytes = connection.execute(
                "SELECT num_rows, num_bytes FROM totals WHERE name = 'responses'"
            ).fetchone()
            if num_rows <= self._max_responses and num_bytes <= self._max_bytes:
                return
            dropped = connection.execute(
                "DELETE FROM responses WHERE id = (SELECT id FROM responses WHERE is_over"
                " OR alive_until < ? ORDER BY is_over DESC, used LIMIT 1)",
                (time.time(),),
            )
            if not dropped.rowcount:
                raise StateError(
                    "The store is full of responses that run in the background: wait for some of "
                    "them, or set store to false",
                    code="store_full",
                )

    async def get(self, response_id: str, tenant: str) -> StoredResponse | None:
        """The tenant's response with this id, which counts as used now.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> StoredResponse | None:
            row = connection.execute(
                f"UPDATE responses SET used = ? WHERE id = ? AND tenant = ? RETURNING {_COLUMNS}",
                (time.time(), response_id, tenant),
            ).fetchone()
            return None if row is None else _stored(row)

        return await self._folder.call(work)

    async def chain(self, response_id: str, tenant: str) -> list[StoredResponse]:
        """The response and those before it that it goes on from, the first one first.

        All count as used. The first one has a `previous_id` only where that one is gone; the list
        is empty where the last one is.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> list[StoredResponse]:
            found: list[StoredResponse] = []
            next_id: str | None = response_id
            now = time.time()
            while next_id is not None:
                row = connection.execute(
                    "UPDATE responses SET used = ? WHERE id = ? AND tenant = ?"
                    f" RETURNING {_COLUMNS}",
                    (now, next_id, tenant),
                ).fetchone()
                if row is None:
                    break
                found.append(_stored(row))
                next_id = found[-1].previous_id
            return found[::-1]

        return await self._folder.call(work)

    async def delete(self, response_id: str, tenant: str) -> bool:
        """Drop a response; whether it was there. One that runs is cancelled by that.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM responses WHERE id = ? AND tenant = ?", (response_id, tenant)
            )
            return bool(gone.rowcount)

        return await self._folder.call(work)

    async def ask_cancel(self, response_id: str) -> None:
        """Ask whoever runs it to stop.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE responses SET is_cancelled = 1 WHERE id = ?", (response_id,))

        await self._folder.call(work)

    async def update(
        self,
        response_id: str,
        *,
        body: bytes | None = None,
        is_over: bool = False,
        events: Sequence[tuple[int, bytes]] = (),
    ) -> bool:
        """News of a response that runs; whether it shall run on: nobody cancelled or deleted it.

        Args:
            response_id: of one that is not over.
            body: its JSON now; None: as it was.
            is_over: this is its end.
            events: of its stream, with their numbers.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> bool:
            added = sum(len(event) for _, event in events)
            row = connection.execute(
                "UPDATE responses SET alive_until = ?, is_over = ?, num_bytes = num_bytes + ?"
                " WHERE id = ? AND NOT is_over RETURNING is_cancelled",
                (time.time() + ALIVE_S, is_over, added, response_id),
            ).fetchone()
            if row is None:
                return False
            if body is not None:
                connection.execute(
                    "UPDATE responses SET num_bytes = num_bytes + ? - length(body), body = ?"
                    " WHERE id = ?",
                    (len(body), body, response_id),
                )
            connection.executemany(
                "INSERT INTO response_events VALUES (?, ?, ?)",
                [(response_id, number, event) for number, event in events],
            )
            if is_over:
                self._keep_bounds(connection)
            return not row[0]

        return await self._folder.call(work)

    async def life(self, response_id: str) -> Life:
        """How it is with a response: it runs, is over, is lost with whoever ran it, or is gone.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> Life:
            row = connection.execute(
                "SELECT is_over, alive_until FROM responses WHERE id = ?", (response_id,)
            ).fetchone()
            if row is None:
                return "gone"
            if row[0]:
                return "over"
            return "lost" if row[1] < time.time() else "runs"

        return await self._folder.call(work)

    async def events(self, response_id: str, after: int) -> list[tuple[int, bytes]]:
        """The events of a response's stream with numbers above `after`, in order.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> list[tuple[int, bytes]]:
            return connection.execute(
                "SELECT sequence_number, event FROM response_events WHERE response_id = ?"
                " AND sequence_number > ? ORDER BY sequence_number",
                (response_id, after),
            ).fetchall()

        return await self._folder.call(work)
