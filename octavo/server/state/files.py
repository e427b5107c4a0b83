"""Kept files: their bytes in a folder, what is known of them in the database."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from typing import TYPE_CHECKING
from uuid import uuid4

from octavo.protocol.files import FileObject
from octavo.server.state.database import StateError, unavailable

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence
    from pathlib import Path

    from octavo.server.state.database import StateFolder

MAX_FILES = 10_000
MAX_BYTES = 16 * 1024**3
"""Of all files together. What is there is never dropped: more is refused."""

UPLOAD = "upload-"
"""How the names of scratch files begin that uploads make."""

STALE_S = 3600.0
"""Uploads that did not grow for so long are no more, seconds."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    id TEXT PRIMARY KEY,
    tenant TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    num_bytes INTEGER NOT NULL
);
"""

_COLUMNS = "id, created_at, filename, purpose, num_bytes"


def _file(row: Sequence[object]) -> FileObject:
    file_id, created_at, filename, purpose, num_bytes = row
    return FileObject(
        id=str(file_id),
        created_at=int(str(created_at)),
        filename=str(filename),
        purpose=str(purpose),
        bytes=int(str(num_bytes)),
    )


class FileStore:
    """See the module.

    Args:
        folder: with the tables of `SCHEMA`.
        max_files, max_bytes: bounds of all tenants' files together.
    """

    def __init__(
        self, folder: StateFolder, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES
    ) -> None:
        self._folder = folder
        self._max_files = max_files
        self._max_bytes = max_bytes

    def path(self, file_id: str) -> Path:
        """Where the bytes of a file are; the id is one of ours.

        Raises:
            OSError: there is no folder for them.
        """
        return self._subfolder("files") / file_id

    def scratch(self, name: str) -> Path:
        """Where a file grows that is not kept yet, on the same disk.

        Raises:
            OSError: there is no folder for it.
        """
        return self._subfolder("scratch") / name

    def sweep(self) -> None:
        """Remove what uploads left whose server was killed."""
        with contextlib.suppress(OSError):
            if not self._folder.has_database():
                return
            for path in self._subfolder("scratch").glob(f"{UPLOAD}*"):
                with contextlib.suppress(OSError):  # it may end just now
                    if path.stat().st_mtime < time.time() - STALE_S:
                        path.unlink()

    def _subfolder(self, name: str) -> Path:
        folder = self._folder.path / name
        folder.mkdir(mode=0o700, exist_ok=True)
        return folder

    async def keep(
        self,
        source: Path,
        tenant: str,
        *,
        filename: str,
        purpose: str,
        created_at: int,
        file_id: str = "",
    ) -> FileObject:
        """Keep a scratch file; it moves. The same id again is the same file.

        Raises:
            StateError: there is no room, or the folder failed; the scratch file is still there.
        """
        file_id = file_id or f"file-{uuid4().hex}"

        def work(connection: sqlite3.Connection) -> FileObject:
            target = self.path(file_id)
            if source.exists():
                with source.open("rb") as file:
                    os.fsync(file.fileno())
                num_bytes = source.stat().st_size
                self._check_room(connection, num_bytes)
                source.rename(target)
            num_bytes = target.stat().st_size
            row = (file_id, tenant, created_at, filename, purpose, num_bytes)
            connection.execute("INSERT OR IGNORE INTO files VALUES (?,?,?,?,?,?)", row)
            return _file((file_id, created_at, filename, purpose, num_bytes))

        return await self._folder.call(work)

    def _check_room(self, connection: sqlite3.Connection, num_bytes: int) -> None:
        num_files, total = connection.execute(
            "SELECT count(*), coalesce(sum(num_bytes), 0) FROM files"
        ).fetchone()
        if num_files >= self._max_files or total + num_bytes > self._max_bytes:
            raise StateError(
                "The server has no room for more files: delete some", code="store_full"
            )

    async def get(self, file_id: str, tenant: str) -> FileObject | None:
        """The tenant's file with this id.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> FileObject | None:
            row = connection.execute(
                f"SELECT {_COLUMNS} FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)
            ).fetchone()
            return None if row is None else _file(row)

        return await self._folder.call(work)

    async def page(
        self, tenant: str, *, purpose: str | None, after: str | None, limit: int, is_rising: bool
    ) -> list[FileObject] | None:
        """The tenant's files by age, `limit` of them; None: it has no file `after`.

        Raises:
            StateError: see `StateFolder.call`.
        """
        sign, order = (">", "ASC") if is_rising else ("<", "DESC")

        def work(connection: sqlite3.Connection) -> list[FileObject] | None:
            where, values = "tenant = ?", [tenant]
            if purpose is not None:
                where, values = f"{where} AND purpose = ?", [*values, purpose]
            if after is not None:
                if not connection.execute(
                    "SELECT 1 FROM files WHERE id = ? AND tenant = ?", (after, tenant)
                ).fetchone():
                    return None
                where += f" AND rowid {sign} (SELECT rowid FROM files WHERE id = ?)"
                values = [*values, after]
            rows = connection.execute(
                f"SELECT {_COLUMNS} FROM files WHERE {where} ORDER BY rowid {order} LIMIT ?",
                (*values, limit),
            )
            return [_file(row) for row in rows]

        return await self._folder.call(work)

    async def delete(self, file_id: str, tenant: str) -> bool:
        """Forget a file; whether it was there.

        Raises:
            StateError: see `StateFolder.call`.
        """

        def work(connection: sqlite3.Connection) -> bool:
            gone = connection.execute(
                "DELETE FROM files WHERE id = ? AND tenant = ?", (file_id, tenant)
            )
            if gone.rowcount:
                self.path(file_id).unlink(missing_ok=True)
            return bool(gone.rowcount)

        return await self._folder.call(work)


async def drop(path: Path) -> None:
    """Remove a scratch file, if it is there."""

    def work() -> None:
        with contextlib.suppress(OSError):
            path.unlink()

    await asyncio.to_thread(work)


async def scratch_file(files: FileStore, name: str) -> Path:
    """See `FileStore.scratch`, from an event loop.

    Raises:
        StateError: there is no folder for it.
    """
    try:
        return await asyncio.to_thread(files.scratch, name)
    except OSError as exc:
        raise unavailable(exc) from exc
