"""The writing thread's connection: made when needed, and anew after trouble, ever less often."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.ledger.database import Connection, Database, DatabaseUnavailableError, ensure_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

_FIRST_RETRY_S = 0.2
_MAX_RETRY_S = 5.0


class Sink:
    """A connection to a database that may go and come back. For one thread at a time.

    Args:
        database: to connect to.

    Attributes:
        asked_since: since when an answer is waited for, on the monotonic clock; 0: none is. Other
            threads may read it.
        num_returns: how many times the database came back.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._connection: Connection | None = None
        self._retry_s = 0.0
        self._retry_at = 0.0
        self.asked_since = 0.0
        self.num_returns = 0

    @property
    def is_down(self) -> bool:
        """It did not answer when it was last asked."""
        return self._retry_s > 0

    @property
    def is_due(self) -> bool:
        """It is up, or it is time to ask again."""
        return time.monotonic() >= self._retry_at

    @contextlib.contextmanager
    def asking(self) -> Iterator[Connection]:
        """The connection, for one transaction.

        Raises:
            DatabaseUnavailableError: it cannot be made, or the body raised it.
        """
        self.asked_since = time.monotonic()
        try:
            if self._connection is not None and self._database.is_replaced(self._connection):
                self.disconnect()
            if self._connection is None:
                try:
                    ensure_schema(self._database)
                except ConfigError as exc:
                    raise DatabaseUnavailableError(str(exc)) from exc
                self._connection = self._database.connect()
            yield self._connection
        except DatabaseUnavailableError:
            self.fall_back()
            raise
        finally:
            self.asked_since = 0.0
        if self.is_down:
            self._retry_s = self._retry_at = 0.0
            self.num_returns += 1

    def fall_back(self) -> None:
        """Note that the database is away; it is due again after a while."""
        self.disconnect()
        self._retry_s = min(_MAX_RETRY_S, max(_FIRST_RETRY_S, 2 * self._retry_s))
        self._retry_at = time.monotonic() + self._retry_s

    def disconnect(self) -> None:
        """Give the connection back; the next use makes another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
