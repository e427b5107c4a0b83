"""SQLAlchemy's engine for a ledger, with our settings of the connections."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from octavo.errors import ConfigError
from octavo.ledger.database import PG_OPTIONS, Database, prepare_sqlite

if TYPE_CHECKING:
    from collections.abc import Iterator

_READS = "ledger_reads"


def make_engine(database: Database) -> sa.Engine:
    """An engine whose transactions begin when SQLAlchemy's do. The caller disposes of it.

    Raises:
        ConfigError: PostgreSQL's driver is not installed.
    """
    if database.path is None:
        try:
            url = sa.make_url(database.dsn).set(drivername="postgresql+psycopg")
            return sa.create_engine(url, connect_args=PG_OPTIONS)
        except ImportError as exc:
            raise ConfigError(
                "a ledger in PostgreSQL needs its driver: pip install 'octavo[postgres]'"
            ) from exc
    url = sa.URL.create("sqlite", database=str(database.path))
    engine = sa.create_engine(url, poolclass=sa.NullPool)

    @sa.event.listens_for(engine, "connect")
    def prepare(raw: Any, _record: Any) -> None:
        # The driver's own habit of opening transactions leaves out schema changes.
        raw.isolation_level = None
        prepare_sqlite(raw)

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        # A transaction for reading sees what was there when it first read, and waits for nobody.
        reads = connection.get_execution_options().get(_READS, False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


@contextlib.contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A transaction whose view of the database does not move."""
    level = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
    with engine.connect() as plain:
        connection = plain.execution_options(**{_READS: True}, **level)
        with connection.begin():
            yield connection
