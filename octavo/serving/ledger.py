"""A server's ledger: opened at start, fed with the engine's device time, closed at the end.

Records of requests come from `server.metering`. Where there are several API servers, each writes
its requests' records, and their parent the device time of the engine.
"""

from __future__ import annotations

import asyncio
import socket
import time
from typing import TYPE_CHECKING, Protocol
from uuid import uuid4

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from octavo.config import ServerConfig
    from octavo.ledger.writer import LedgerWriter
    from octavo.types import EngineStats

READ_S = 60.0
"""How often the engine's device time is read."""

ANSWER_S = 0.5
"""How long the engine gets to answer with its newest reading; an old one is taken up next time."""

POLL_S = 0.01

CLOSE_S = 5.0
"""How long the last records may take; those that the database has not taken then are spilled."""


def open_writer(config: ServerConfig, *, keeps_house: bool = True) -> LedgerWriter | None:
    """The writer of the ledger that the flags name, started; None: none is kept.

    Blocks for as long as the database takes. One on another machine that does not answer is no
    obstacle, as records are spilled until it does; a file that cannot be written is.

    Args:
        config: the server's.
        keeps_house: whether it deletes what is older than the retention: one of a server's does.

    Raises:
        ConfigError: the URL is none of a ledger, the file cannot be written, or a newer Octavo has
            written it.
    """
    if config.ledger is None:
        return None
    from octavo.ledger.database import Database, DatabaseUnavailableError
    from octavo.ledger.writer import LedgerWriter

    database = Database(config.ledger)
    if database.path is not None:
        try:
            database.connect().close()
        except DatabaseUnavailableError as exc:
            if "locked" not in str(exc):  # else it is in use, which passes
                raise ConfigError(
                    f"the ledger cannot be opened ({exc}): name another file or database by "
                    "--ledger, or keep no records of what requests cost by --ledger none"
                ) from None
    days = config.ledger_retention_days if keeps_house else None
    writer = LedgerWriter(config.ledger, retention_days=days)
    writer.start()
    return writer


class StatsSource(Protocol):
    """An engine, or a succession of them."""

    @property
    def stats(self) -> EngineStats:
        """The newest snapshot."""
        ...

    def ask_stats(self) -> None:
        """Make a newer one come soon."""
        ...


class DeviceTimes:
    """Writes where an engine's device time goes, hour by hour, into the ledger.

    Args:
        writer: of the ledger.
        config: has the price.
        engine: whose time it is.
    """

    def __init__(self, writer: LedgerWriter, config: ServerConfig, engine: StatsSource) -> None:
        self._writer = writer
        self._config = config
        self._engine = engine
        self._wall_ns = 0
        self._task: asyncio.Task[None] | None = None
        self._new_splitter()

    def start(self) -> None:
        """Read from time to time, from now on."""
        self._task = asyncio.ensure_future(self._run())

    async def stop(self) -> None:
        """Read once more, for the last time; the engine must still be there."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
            self._task = None
            await self.read()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(READ_S)
            await self.read()

    async def read(self) -> None:
        """Ask the engine, and write what it says."""
        before = self._engine.stats.device_time.wall_ns
        self._engine.ask_stats()
        deadline = time.monotonic() + ANSWER_S
        # The engine's client has no event for a snapshot: they come with every step.
        while self._engine.stats.device_time.wall_ns == before and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        reading = self._engine.stats.device_time
        if reading.wall_ns < self._wall_ns and reading.num_devices:
            self._new_splitter()  # another engine, in the place of one that failed
        self._wall_ns = reading.wall_ns or self._wall_ns
        for entry in self._splitter.add(time.time_ns(), reading):
            self._writer.put(entry)

    def _new_splitter(self) -> None:
        from octavo.ledger.device_time import DeviceTimeSplitter

        self._splitter = DeviceTimeSplitter(
            f"{socket.gethostname()}:{uuid4().hex[:12]}",
            self._config.hourly_rate_nano,
            self._config.currency,
        )
