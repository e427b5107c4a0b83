"""Runs alembic's revisions on a ledger. Imported only where a schema must be made or changed."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext

from octavo.ledger.database import Database, DatabaseUnavailableError, check_known
from octavo.ledger.engine import make_engine

_LOCK = 0x0C7A_0001
"""PostgreSQL's advisory lock that is held by who migrates a ledger."""


def upgrade(database: Database, revision: str = "head") -> None:
    """Bring the schema to a revision, all or nothing; others who try wait, and find it done.

    Raises:
        ConfigError: the schema is newer than this Octavo.
        DatabaseUnavailableError: the database cannot be reached, or another migration holds it.
    """
    engine = make_engine(database)
    try:
        # SQLite's transactions for writing exclude each other; PostgreSQL needs a lock of our own.
        with engine.begin() as connection:
            if database.path is None:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
            check_known(database, MigrationContext.configure(connection).get_current_revision())
            config = Config()
            config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
            config.set_main_option("path_separator", "os")
            config.attributes["connection"] = connection
            command.upgrade(config, revision)
    except sa.exc.DBAPIError as exc:
        raise DatabaseUnavailableError(f"{database.name}: {exc.orig}") from exc
    finally:
        engine.dispose()
