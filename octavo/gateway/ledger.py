"""What a gateway keeps: its ledger's writer and keys, opened at its start and closed at its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from octavo.errors import ConfigError
from octavo.gateway.absent import NoRecords
from octavo.gateway.records import GatewayRecords

if TYPE_CHECKING:
    from octavo.gateway.config import GatewayConfig
    from octavo.gateway.key_store import KeyStore
    from octavo.gateway.seams import Records
    from octavo.ledger.writer import LedgerWriter

CLOSE_S = 5.0
"""How long the last records may take; those that the database has not taken then are spilled."""


class Ledger:
    """What a gateway keeps in its ledger's database; open while it lives.

    Args:
        config: names it.
    """

    def __init__(self, config: GatewayConfig) -> None:
        self.url = "" if config.ledger.url is None else config.ledger.url.reveal()
        self.writer: LedgerWriter | None = None
        self.keys: KeyStore | None = None
        self._is_started = False
        if not self.url:
            return
        from octavo.gateway.key_store import KeyStore
        from octavo.ledger.writer import LedgerWriter

        self.writer = LedgerWriter(self.url, retention_days=config.ledger.retention_days)
        self.keys = KeyStore(self.url)

    def records(self, config: GatewayConfig) -> Records:
        """What keeps attempts at a configuration's backends."""
        if self.writer is None:
            return NoRecords()
        return GatewayRecords(self.writer.put, config.backends)

    async def start(self) -> None:
        """Bring the database to the newest schema, and begin to write. One on another machine that
        does not answer is no obstacle, as records are spilled until it does.

        Raises:
            ConfigError: a file that cannot be written, a newer Octavo's schema, a missing driver.
        """
        if self.writer is not None:
            await asyncio.to_thread(self._check_file)
            await asyncio.to_thread(self.writer.start)
            self._is_started = True

    def _check_file(self) -> None:
        from octavo.ledger.database import Database, DatabaseUnavailableError

        database = Database(self.url)
        if database.path is None:
            return
        try:
            database.connect().close()
        except DatabaseUnavailableError as exc:
            if "locked" not in str(exc):  # else it is in use, which passes
                raise ConfigError(
                    f"the ledger cannot be opened ({exc}): name another file or database in "
                    "ledger.url, or leave it out"
                ) from None

    async def close(self) -> None:
        """Let the last records out, for a bounded time."""
        if self.writer is not None and self._is_started:
            await asyncio.to_thread(self.writer.close, CLOSE_S)
        if self.keys is not None:
            await asyncio.to_thread(self.keys.close)
