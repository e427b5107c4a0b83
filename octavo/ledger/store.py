"""A ledger: everything that is asked of it in one place.

`LedgerWriter` is what servers write through; this is for reports, imports, tools and tests.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Self

from octavo.ledger.database import Connection, Database, DatabaseUnavailableError, ensure_schema
from octavo.ledger.writes import insert_engine_time, insert_outcomes, insert_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from octavo.ledger.record import EngineTime, Outcome, UsageRecord


def open_ledger(url: str, *, create: bool = True) -> Ledger:
    """Open a ledger, made or brought to the newest schema where that is needed.

    Args:
        url: `sqlite:///FILE`, a path, or `postgresql://...`, as `Database` takes it.
        create: make the ledger where there is none.

    Raises:
        ConfigError: not such a URL; the schema is newer than this Octavo; or there is no ledger and
            none shall be made.
        DatabaseUnavailableError: the database cannot be reached.
    """
    database = Database(url)
    ensure_schema(database, create=create)
    return Ledger(database)


class Ledger:
    """An open ledger, for one thread at a time. Close it, or use it in a `with`.

    Every method may raise DatabaseUnavailableError.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None

    @property
    def name(self) -> str:
        """The file, or the URL without its password."""
        return self._database.name

    def add_usage(self, records: Sequence[UsageRecord]) -> None:
        """Keep records, all or none, on disk when this returns; known ids are left as they are."""
        with self._writing() as connection, connection.transaction():
            insert_usage(connection, records)

    def add_outcomes(self, outcomes: Sequence[Outcome]) -> None:
        """Keep outcomes, all or none, on disk when this returns; known ids are left as they are."""
        with self._writing() as connection, connection.transaction():
            insert_outcomes(connection, outcomes)

    def add_engine_time(self, times: Sequence[EngineTime]) -> None:
        """Keep device time; what the same server said about the same hour before is replaced."""
        with self._writing() as connection, connection.transaction():
            insert_engine_time(connection, times)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Connection]:
        if self._connection is None:
            self._connection = self._database.connect()
        try:
            yield self._connection
        except DatabaseUnavailableError:
            self.close()  # the next call tries a new one
            raise

    def close(self) -> None:
        """Give connections back."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
