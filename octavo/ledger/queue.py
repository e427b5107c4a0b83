"""The bounded queue between who serves and who writes.

Entries are numbered in the order in which they come. Two threads may take from it, each a run of
numbers at a time, and say when these are settled (safe on disk, or lost); everything below the
lowest unsettled number is settled. Putting is never held up by a disk: the lock is held for a few
moves of memory only.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from itertools import islice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.ledger.record import Entry


class Batch:
    """A run of entries that one thread has taken and not settled yet.

    Args:
        first: number of the first one.
        entries: in order.
    """

    def __init__(self, first: int, entries: list[Entry]) -> None:
        self.first = first
        self.entries = entries


class EntryQueue:
    """Entries that wait.

    Args:
        batch_size: this many wake who waits for a batch.
        alarm_len: this many wake who waits for an alarm.
        max_len: more are not taken in.
    """

    def __init__(self, batch_size: int, alarm_len: int, max_len: int) -> None:
        self._batch_size = batch_size
        self._alarm_len = alarm_len
        self._max_len = max_len
        self._entries: deque[Entry] = deque()
        self._first = 0  # number of the first entry that waits
        self._taken: list[Batch] = []
        self._lock = threading.Lock()
        self._came = threading.Condition(self._lock)
        self._alarm = threading.Condition(self._lock)
        self._settled = threading.Condition(self._lock)
        self._is_closed = False

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def is_closed(self) -> bool:
        """No more come in."""
        return self._is_closed

    def put(self, entry: Entry) -> bool:
        """Take an entry in; False: there is no room, or the queue is closed."""
        with self._lock:
            num = len(self._entries)
            if num >= self._max_len or self._is_closed:
                return False
            self._entries.append(entry)
            if num == 0 or num + 1 == self._batch_size:
                self._came.notify()
            if num + 1 == self._alarm_len:
                self._alarm.notify()
            return True

    def take(self, max_num: int, wait_s: float, gather_s: float) -> Batch | None:
        """The next entries; None: there are none.

        Args:
            max_num: at most this many.
            wait_s: how long to wait for a first one.
            gather_s: how long to wait then for `batch_size` of them; not once closed.
        """
        with self._lock:
            if not self._entries and not self._is_closed and wait_s > 0:
                self._came.wait(wait_s)
            end = time.monotonic() + gather_s
            while 0 < len(self._entries) < self._batch_size and not self._is_closed:
                left = end - time.monotonic()
                if left <= 0 or not self._came.wait(left):
                    break
            return self._take(max_num)

    def take_at_alarm(self, wait_s: float, max_num: int) -> Batch | None:
        """Wait for the alarm; the entries that wait then, or None: they are fewer than that."""
        with self._lock:
            if len(self._entries) < self._alarm_len:
                self._alarm.wait(wait_s)
            return self._take(max_num) if len(self._entries) >= self._alarm_len else None

    def _take(self, max_num: int) -> Batch | None:
        entries = list(islice(self._entries, max_num))
        if not entries:
            return None
        for _ in entries:
            self._entries.popleft()
        batch = Batch(self._first, entries)
        self._first += len(entries)
        self._taken.append(batch)
        return batch

    def settle(self, batch: Batch) -> None:
        """The batch is on disk, or lost; once, or again without effect."""
        with self._lock:
            if batch in self._taken:
                self._taken.remove(batch)
            self._settled.notify_all()

    def wait_settled(self, timeout_s: float) -> bool:
        """Wait until all that was put before this call is settled; False: that takes longer."""
        with self._lock:
            end = self._first + len(self._entries)
            return self._settled.wait_for(
                lambda: min([self._first, *(batch.first for batch in self._taken)]) >= end,
                timeout_s,
            )

    def unsettled(self) -> list[Batch]:
        """What threads have taken and not settled."""
        with self._lock:
            return list(self._taken)

    def close(self) -> None:
        """Take no more in, and wake everyone."""
        with self._lock:
            self._is_closed = True
            self._came.notify_all()
            self._alarm.notify_all()
