"""The database behind a ledger's URL: connections for writing, and whether its schema is ours.

Writes go through the drivers themselves (sqlite3, psycopg), in SQL that both databases read: an API
server that meters imports neither SQLAlchemy nor alembic (0.5 s of start, 30 MB), unless the schema
must be made or changed.

What survives: SQLite in WAL mode with `synchronous=FULL` waits for the disk at every commit, so a
committed record survives kill -9 and the loss of power (`NORMAL` would survive the first only).
PostgreSQL waits too, unless `synchronous_commit` is off: then it is put on for our sessions.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

REVISIONS = ("0001", "0002", "0003", "0004")
"""Every revision of the schema, oldest first; the last one is what this code reads and writes."""

BUSY_S = 5.0
"""How long a statement waits for other writers before it fails."""
CONNECT_S = 5
_MARK = "?"


class DatabaseUnavailableError(Exception):
    """The database cannot be reached or cannot write now; the same may work later."""


class DataRefusedError(Exception):
    """The database is well and does not take these values, now or later."""


class Database:
    """A ledger's address.

    Args:
        url: `sqlite:///relative/path`, `sqlite:////absolute/path`, a path, or
            `postgresql://user:password@host/name` (`postgresql+psycopg://` is the same).

    Raises:
        ConfigError: another scheme, or no path.
    """

    def __init__(self, url: str) -> None:
        scheme, separator, rest = url.partition("://")
        self.path: Path | None = None
        self._dsn = ""
        if not separator or scheme in ("sqlite", "sqlite+pysqlite"):
            path = unquote(rest.removeprefix("/").partition("?")[0]) if separator else url
            if path in ("", ":memory:") or (separator and not rest.startswith("/")):
                raise ConfigError(
                    f"the ledger {url!r} names no file: write sqlite:///ledger.db, or "
                    "sqlite:////var/lib/octavo/ledger.db for an absolute path"
                )
            self.path = Path(path).expanduser().absolute()
        elif scheme in ("postgresql", "postgres", "postgresql+psycopg"):
            self._dsn = f"postgresql://{rest}"
        else:
            raise ConfigError(
                f"the ledger {self.redact(url)!r} is neither sqlite:///FILE nor postgresql://HOST/NAME"
            )

    @staticmethod
    def redact(url: str) -> str:
        """The URL without its password."""
        with contextlib.suppress(ValueError):
            if password := urlsplit(url).password:
                return url.replace(f":{password}@", ":***@")
        return url

    @property
    def name(self) -> str:
        """For messages and logs: the file, or the URL without its password."""
        return str(self.path) if self.path is not None else self.redact(self._dsn)

    @property
    def dsn(self) -> str:
        """PostgreSQL's `postgresql://...`, password included; empty for SQLite."""
        return self._dsn

    def connect(self) -> Connection:
        """A new connection; may be used by one thread at a time. The caller closes it.

        Raises:
            DatabaseUnavailableError: it cannot be reached.
            ConfigError: PostgreSQL's driver is not installed.
        """
        if self.path is None:
            return Connection(self._connect_pg())
        raw = self._connect_sqlite()
        return Connection(raw, self._file())

    def is_replaced(self, connection: Connection) -> bool:
        """Whether the file at our path is another than the one that the connection has open.

        Who writes on into a file that was deleted or moved away writes for nobody.
        """
        return self.path is not None and connection.file != self._file()

    def _file(self) -> tuple[int, int] | None:
        assert self.path is not None
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino

    def _connect_sqlite(self) -> Any:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            raw = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
        except (OSError, sqlite3.Error) as exc:
            raise DatabaseUnavailableError(f"{self.path}: {exc}") from exc
        try:
            prepare_sqlite(raw)
        except sqlite3.Error as exc:
            raw.close()
            raise DatabaseUnavailableError(f"{self.path}: {exc}") from exc
        return raw

    def _connect_pg(self) -> Any:
        try:
            import psycopg
        except ImportError as exc:
            raise ConfigError(
                "a ledger in PostgreSQL needs its driver: pip install 'octavo[postgres]'"
            ) from exc
        try:
            raw = psycopg.connect(self._dsn, autocommit=True, **PG_OPTIONS)
        except psycopg.ProgrammingError as exc:
            raise ConfigError(f"the ledger {self.name}: {exc}") from exc
        except psycopg.Error as exc:
            raise DatabaseUnavailableError(f"{self.name}: {exc}") from exc
        return raw


PG_OPTIONS: dict[str, Any] = {
    "connect_timeout": CONNECT_S,
    "application_name": "octavo-ledger",
    # A server that vanished without a word is noticed within seconds, not after two hours.
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}


def prepare_sqlite(raw: Any) -> None:
    """Set what every SQLite connection of a ledger needs. Takes a sqlite3 connection."""
    raw.execute(f"PRAGMA busy_timeout={int(BUSY_S * 1000)}").fetchall()
    use_wal(raw)
    for pragma in (
        "synchronous=FULL",
        "journal_size_limit=67108864",  # a write-ahead log that a burst blew up shrinks again
    ):
        raw.execute(f"PRAGMA {pragma}").fetchall()


def use_wal(raw: Any) -> None:
    """Switch to write-ahead logging, which waits for other writers as statements do.

    SQLite itself does not wait here: the switch turns a read lock into an exclusive one, and where
    another process is about to write, waiting with a read lock in hand could be a deadlock, so it
    fails at once. Nothing is held after that, and asking again is safe.

    Args:
        raw: a sqlite3 connection.

    Raises:
        sqlite3.OperationalError: others keep it from that for longer than `BUSY_S`.
    """
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            raw.execute("PRAGMA journal_mode=WAL").fetchall()
        except sqlite3.OperationalError as exc:
            if "locked" not in str(exc) or time.monotonic() > deadline:
                raise
        else:
            return
        time.sleep(0.01)


class Connection:
    """One connection through the driver. Statements mark their parameters by `?`.

    Every method raises DatabaseUnavailableError when the database is gone, busy or full, and
    DataRefusedError when it does not take the values.
    """

    def __init__(self, raw: Any, file: tuple[int, int] | None = None) -> None:
        self._raw = raw
        self.file = file
        self.is_sqlite = isinstance(raw, sqlite3.Connection)
        if not self.is_sqlite:
            with self._errors():
                # Less than `on` may lose what was acknowledged; more is the administrator's choice.
                if self.rows("SHOW synchronous_commit") == [("off",)]:
                    self.execute("SET synchronous_commit = on")
                self.execute("SET statement_timeout = '60s'")
                self.execute(f"SET lock_timeout = '{int(BUSY_S)}s'")

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Run one statement; the number of rows that it changed."""
        with self._errors():
            return int(self._raw.execute(self._marked(sql), parameters).rowcount)

    def rows(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run one query; all its rows."""
        with self._errors():
            return list(self._raw.execute(self._marked(sql), parameters).fetchall())

    def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run one statement for every row of parameters."""
        with self._errors():
            self._raw.cursor().executemany(self._marked(sql), rows)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing. SQLite's writers wait here for each other, PostgreSQL's do not."""
        self.execute("BEGIN IMMEDIATE" if self.is_sqlite else "BEGIN")
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception):
                self._raw.execute("ROLLBACK")
            raise
        try:
            self.execute("COMMIT")
        except BaseException:
            # After a COMMIT that failed for want of room SQLite still holds the transaction.
            with contextlib.suppress(Exception):
                self._raw.execute("ROLLBACK")
            raise

    def close(self) -> None:
        """Give the connection back; never fails."""
        with contextlib.suppress(Exception):
            self._raw.close()

    def _marked(self, sql: str) -> str:
        return sql if self.is_sqlite else sql.replace(_MARK, "%s")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            # The driver's own names (PEP 249) are the same in both.
            kinds = {kind.__name__ for kind in type(exc).__mro__}
            if kinds & {"DataError", "IntegrityError"} or isinstance(exc, OverflowError):
                raise DataRefusedError(str(exc)) from exc
            if kinds & {"Error", "OSError"}:
                raise DatabaseUnavailableError(str(exc)) from exc
            raise


def revision_of(connection: Connection) -> str | None:
    """The schema's revision; None: there is no ledger in this database yet."""
    if connection.is_sqlite:
        found = connection.rows("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'")
    else:
        found = connection.rows("SELECT 1 WHERE to_regclass('alembic_version') IS NOT NULL")
    rows = connection.rows("SELECT version_num FROM alembic_version") if found else []
    return str(rows[0][0]) if rows else None


def ensure_schema(database: Database, *, create: bool = True) -> None:
    """Bring the schema to the newest revision; costs one query when it is there already.

    Args:
        database: whose.
        create: make the ledger where there is none.

    Raises:
        ConfigError: the schema is newer than this Octavo, or there is no ledger and none shall be
            made.
        DatabaseUnavailableError: the database cannot be reached.
    """
    if not create and database.path is not None and not database.path.exists():
        raise ConfigError(f"there is no ledger {database.name}: name one that a server has written")
    connection = database.connect()
    try:
        revision = revision_of(connection)
    finally:
        connection.close()
    if revision == REVISIONS[-1]:
        return
    if revision is None and not create:
        raise ConfigError(
            f"there is no ledger in {database.name}: name one that a server has written"
        )
    check_known(database, revision)
    from octavo.ledger.migrate import upgrade

    upgrade(database)


def check_known(database: Database, revision: str | None) -> None:
    """Refuse a schema that this code does not know.

    Raises:
        ConfigError: it is newer.
    """
    if revision is not None and revision not in REVISIONS:
        raise ConfigError(
            f"a newer Octavo has written the ledger {database.name}: its schema is {revision}, and "
            f"this Octavo knows {REVISIONS[-1]} at most. Upgrade Octavo, or name another ledger"
        )
