"""Writes entries to a ledger beside the work of serving: `put` never waits for disk or database.

One thread gathers batches and commits them. What it cannot commit goes into a spill file
(`spill.py`), which it reads in again when the database is back; another thread spills what waits
when the first is held up. An entry is *durable* once it is committed or in the spill file, both of
them on disk. Both may happen to one entry, as after kill -9 between the commit and the file's
deletion: ids see to it that it counts once.

The same thread keeps the hourly sums and prunes, in small pieces between batches.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
import time
from itertools import islice
from typing import TYPE_CHECKING

from octavo.config import default_home
from octavo.ledger.database import Database, DatabaseUnavailableError, ensure_schema
from octavo.ledger.queue import Batch, EntryQueue
from octavo.ledger.rollup import prune, roll_up
from octavo.ledger.sink import Sink
from octavo.ledger.spill import SpillFile, find_spills
from octavo.ledger.writes import insert

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from octavo.ledger.record import Entry

logger = logging.getLogger("octavo.ledger")

DAY_NS = 86_400 * 10**9
_AWAY = "the ledger cannot be written, and records are kept in a spill file"
_FULL = "the ledger's spill file takes no more, and records wait in memory"
_PAUSE_S = 0.2
_SLOW_S = 1.0
_ROLL_UP_S = 30.0
_PRUNE_S = 600.0
_ADOPT_S = 60.0


class LedgerWriter:
    """Writes to one ledger from one process.

    Args:
        url: of the ledger, as `Database` takes it.
        max_queue_len: more waiting entries than this are spilled. Ten times as many are the most
            that memory holds: beyond them, when not even the spill file takes any, entries are
            lost and counted.
        batch_size: entries per transaction.
        batch_s: how long the first entry of a batch may wait for others.
        retention_days: raw records are deleted this long after their hour, hourly sums stay; None:
            they are kept.
        spill_folder: where spill files are made; None: beside a SQLite file, else `OCTAVO_HOME`.
        on_durable: called with entries once they are durable, in a thread of the writer; it must
            not block and not raise.

    Raises:
        ConfigError: the URL is none of a ledger.
    """

    def __init__(
        self,
        url: str,
        *,
        max_queue_len: int = 10_000,
        batch_size: int = 500,
        batch_s: float = 0.05,
        retention_days: float | None = None,
        spill_folder: Path | None = None,
        on_durable: Callable[[Sequence[Entry]], None] | None = None,
    ) -> None:
        self._database = Database(url)
        if self._database.path is not None:
            folder, stem = self._database.path.parent, self._database.path.name
        else:
            digest = hashlib.sha256(self._database.name.encode()).hexdigest()[:12]
            folder, stem = default_home(), f"ledger-{digest}"
        self._stem = (spill_folder or folder) / stem
        self._batch_size = batch_size
        self._batch_s = batch_s
        self._retention_days = retention_days
        self._on_durable = on_durable
        self._queue = EntryQueue(batch_size, max_queue_len, 10 * max_queue_len)
        self._threads = [
            threading.Thread(target=target, name=name, daemon=True)
            for target, name in ((self._write, "ledger"), (self._overflow, "ledger-overflow"))
        ]
        self._counts = threading.Lock()
        self.num_written = 0
        """Entries that were committed, those that were spilled before included."""
        self.num_spilled = 0
        """Entries that went into a spill file."""
        self.num_lost = 0
        """Entries that are nowhere: no room on any disk, or values that no database takes."""
        self._sink = Sink(self._database)
        self._spill: SpillFile | None = None
        self._spill_lock = threading.Lock()
        self._handed_back: Batch | None = None
        # Of the writing thread alone.
        self._reading: Iterator[None] | None = None
        self._adopt_at = 0.0
        self._roll_up_at = 0.0
        self._prune_at = 0.0
        self._num_returns = 0
        self._warned_at = -1e9

    @property
    def num_waiting(self) -> int:
        """Entries in the queue."""
        return len(self._queue)

    @property
    def is_down(self) -> bool:
        """Whether the database did not answer when it was last asked."""
        return self._sink.is_down

    def start(self) -> None:
        """Make or bring the ledger to the newest schema, and begin to write.

        A database that cannot be reached is waited for: entries are spilled until then.

        Raises:
            ConfigError: the schema is newer than this Octavo, or a driver is missing.
        """
        try:
            ensure_schema(self._database)
        except DatabaseUnavailableError as exc:
            self._sink.fall_back()
            self._warn(_AWAY, exc)
        for thread in self._threads:
            thread.start()

    def put(self, entry: Entry) -> None:
        """Take an entry; never blocks and never fails. Any thread may call."""
        if not self._queue.put(entry):
            self._lose([entry], "the queue is full and no disk takes more, or it is closed")

    async def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was put before is durable; False: that takes longer."""
        return await asyncio.to_thread(self.wait_durable, timeout_s)

    def wait_durable(self, timeout_s: float = 10.0) -> bool:
        """As `flush`, for threads."""
        return self._queue.wait_settled(timeout_s)

    def close(self, timeout_s: float = 10.0) -> None:
        """Make all that waits durable and stop; what the database is too slow for is spilled."""
        self._queue.close()
        end = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(max(0.0, end - time.monotonic()))
        left = self._queue.unsettled()
        while (batch := self._queue.take(self._batch_size, 0, 0)) is not None:
            left.append(batch)
        for batch in left:
            try:
                self._spill_entries(batch.entries)
            except OSError as exc:
                self._lose(batch.entries, exc)
            self._queue.settle(batch)
        with self._spill_lock:
            if self._spill is not None:
                self._spill.close()
                self._spill = None

    # The writing thread.

    def _write(self) -> None:
        while True:
            try:
                if not self._step():
                    break
            except Exception:
                logger.exception("the ledger's writer failed, and goes on")
                time.sleep(1.0)
        self._sink.disconnect()

    def _step(self) -> bool:
        """One batch, and a piece of what else there is to do; False: closed, and all done."""
        batch, is_back = self._handed_back, self._handed_back is not None
        if batch is None:
            wait_s = 0.5 if self._reading is None else 0.0
            batch = self._queue.take(self._batch_size, wait_s, self._batch_s)
        if batch is not None:
            self._keep(batch)
            if is_back:
                self._handed_back = None
        if self._queue.is_closed:
            return batch is not None
        if self._sink.is_due:
            try:
                self._work_beside()
            except DatabaseUnavailableError as exc:
                self._reading = None
                self._warn(_AWAY, exc)
        return True

    def _keep(self, batch: Batch) -> None:
        """Make a batch durable, however long that takes; not once closed."""
        while True:
            try:
                if self._sink.is_due:
                    self._commit(batch.entries)
                    self._tell(batch.entries)
                else:
                    self._spill_entries(batch.entries)
                break
            except DatabaseUnavailableError as exc:
                self._reading = None
                self._warn(_AWAY, exc)
            except OSError as exc:
                self._warn(_FULL, exc)
                if self._queue.is_closed:
                    return  # `close` has the last word
                time.sleep(_PAUSE_S)
        self._queue.settle(batch)

    def _commit(self, entries: Sequence[Entry]) -> None:
        """Insert entries, and one by one where the database refuses some of them."""
        try:
            with self._sink.asking() as connection, connection.transaction():
                insert(connection, entries)
        except DatabaseUnavailableError:
            raise
        except Exception as exc:
            if len(entries) == 1:
                self._lose(entries, exc)
                return
            for entry in entries:
                self._commit([entry])
            return
        self._count(num_written=len(entries))

    def _work_beside(self) -> None:
        now = time.monotonic()
        if self._num_returns != self._sink.num_returns:
            self._num_returns = self._sink.num_returns
            self._adopt_at = now
            logger.info("the ledger %s takes records again", self._database.name)
        if self._reading is not None:
            if next(self._reading, self) is self:
                self._reading = None
        elif self._spill is not None or now >= self._adopt_at:
            self._adopt_at = now + _ADOPT_S
            self._reading = self._read_spills()
        if now >= self._roll_up_at:
            with self._sink.asking() as connection:
                if not roll_up(connection):
                    self._roll_up_at = now + _ROLL_UP_S
        if self._retention_days is not None and now >= self._prune_at:
            before_ns = time.time_ns() - int(self._retention_days * DAY_NS)
            with self._sink.asking() as connection:
                if not prune(connection, before_ns):
                    self._prune_at = now + _PRUNE_S

    def _read_spills(self) -> Iterator[None]:
        """Read in all spill files that no living process holds, batch by batch."""
        with self._spill_lock:
            if self._spill is not None:
                self._spill.close()
                self._spill = None
        for spill in find_spills(self._stem):
            entries = spill.entries()
            while batch := list(islice(entries, self._batch_size)):
                self._commit(batch)
                yield
            spill.remove()

    # The other thread.

    def _overflow(self) -> None:
        while not self._queue.is_closed:
            since = self._sink.asked_since
            if since and time.monotonic() - since > _SLOW_S:
                batch = self._queue.take(self._batch_size, _SLOW_S / 4, 0)
            else:
                batch = self._queue.take_at_alarm(_SLOW_S / 4, self._batch_size)
            if batch is None:
                continue
            try:
                self._spill_entries(batch.entries)
                self._queue.settle(batch)
            except OSError as exc:
                self._warn(_FULL, exc)
                # The database may be back before there is room on the disk.
                self._handed_back = batch
                while self._handed_back is not None and not self._queue.is_closed:
                    time.sleep(_PAUSE_S)

    # Both.

    def _spill_entries(self, entries: Sequence[Entry]) -> None:
        with self._spill_lock:
            if self._spill is None:
                self._spill = SpillFile(self._stem)
            self._spill.append(entries)
        self._count(num_spilled=len(entries))
        self._tell(entries)

    def _tell(self, entries: Sequence[Entry]) -> None:
        if self._on_durable is not None:
            self._on_durable(entries)

    def _count(self, *, num_written: int = 0, num_spilled: int = 0, num_lost: int = 0) -> None:
        with self._counts:
            self.num_written += num_written
            self.num_spilled += num_spilled
            self.num_lost += num_lost

    def _lose(self, entries: Sequence[Entry], why: object) -> None:
        self._count(num_lost=len(entries))
        self._warn(f"{len(entries)} records are lost, {self.num_lost} since the start", why)

    def _warn(self, what: str, why: object) -> None:
        if time.monotonic() - self._warned_at > 10:
            self._warned_at = time.monotonic()
            logger.warning("%s: %s", what, why)
