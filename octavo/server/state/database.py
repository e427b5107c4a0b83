"""The folder and the SQLite database in which API servers keep what outlives a request.

Several processes may have it open: SQLite locks it for each transaction. Every call runs in a
thread of the folder's own, so that neither the event loop nor other threads' work waits for a disk.
What goes wrong becomes a 503 that says so;
the next call tries again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import tempfile
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from octavo.errors import RequestError
from octavo.ledger.database import use_wal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("octavo.server")

_T = TypeVar("_T")

FILE_NAME = "state.db"

BUSY_S = 10.0
"""How long a transaction waits for another process's, seconds."""


class StateError(RequestError):
    """The state's folder cannot be read or written now."""

    status = 503
    type = "service_unavailable_error"


def unavailable(error: Exception) -> StateError:
    """The answer to a failure of the folder or the database; the log has the details."""
    logger.error("the state's folder failed: %s", error)
    reason = error.strerror if isinstance(error, OSError) else str(error)
    return StateError(
        f"The server cannot keep or read what is stored ({reason}): its operator can mend or "
        "replace the folder of --state-dir",
        code="store_unavailable",
    )


class StateFolder:
    """See the module. Nothing is touched before the first use.

    Args:
        folder: must exist; None: a temporary one of this object's, removed when it is gone.
        schema: SQL that makes the tables, where they are not there.
    """

    def __init__(self, folder: str | None, schema: str) -> None:
        self._given = folder
        self._schema = schema
        self._path: Path | None = None
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "octavo-state")  # starts with the first call

    @property
    def path(self) -> Path:
        """The folder.

        Raises:
            OSError: it cannot be made.
        """
        if self._path is None:
            if self._given is None:
                self._path = Path(tempfile.mkdtemp(prefix="octavo-state-"))
                weakref.finalize(self, shutil.rmtree, self._path, ignore_errors=True)
            else:
                self._path = Path(self._given)
        return self._path

    def has_database(self) -> bool:
        """Whether anybody keeps anything in a given folder, or did; without making it."""
        folder = self._path or self._given
        return folder is not None and (Path(folder) / FILE_NAME).exists()

    async def call(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """What `work` returns, run in a thread within one transaction.

        Raises:
            StateError: the folder or the database failed; nothing of the transaction is kept.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.call_now, work)

    def call_now(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """The same, in this thread.

        Raises:
            StateError: see `call`.
        """
        try:
            with self._lock, self._transaction() as connection:
                return work(connection)
        except (sqlite3.Error, OSError) as exc:
            raise unavailable(exc) from exc

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._connection is None:
            self._connection = self._open()
        connection = self._connection
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except BaseException as exc:
            with contextlib.suppress(sqlite3.Error):
                connection.execute("ROLLBACK")
            if isinstance(exc, sqlite3.Error):  # a full disk may be free by then, a file replaced
                connection.close()
                self._connection = None
            raise

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path / FILE_NAME, timeout=BUSY_S, isolation_level=None, check_same_thread=False
        )
        weakref.finalize(self, connection.close)
        try:
            connection.execute(f"PRAGMA busy_timeout = {int(BUSY_S * 1000)}")
            use_wal(connection)  # several processes may do this at once
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.executescript(self._schema)
        except BaseException:
            connection.close()
            raise
        return connection
