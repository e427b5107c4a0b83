"""Sends items in batches from a thread of its own, and loses some rather than hold anybody up.

The SDK's processor of this kind neither counts what it drops nor ends within a given time. Knows
nothing of what it sends.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from threading import Event, Lock, Thread, get_ident
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

logger = logging.getLogger("octavo.telemetry")

REPORT_S = 60.0
"""At most one line about losses in so long, seconds."""

_T = TypeVar("_T")


class LastWords(logging.Handler):
    """Keeps the last thing that a library said in each thread, instead of logging all of it.

    A library that cannot reach a collector says so several times for every batch.
    """

    def __init__(self, logger_name: str) -> None:
        super().__init__(logging.WARNING)
        self._words: dict[int, str] = {}
        self._logger = logging.getLogger(logger_name)
        self._propagated = self._logger.propagate
        self._logger.addHandler(self)
        self._logger.propagate = False

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it."""
        self._words[get_ident()] = record.getMessage()

    def take(self) -> str:
        """What was last said in this thread since the last call; empty: nothing."""
        return self._words.pop(get_ident(), "")

    def close(self) -> None:
        """Let the library log as it did."""
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagated
        super().close()


class Sender(Generic[_T]):
    """See the module.

    Args:
        what: the items in the log, such as `spans`.
        export: sends a batch, in the thread; False, or an exception: it is lost.
        abort: makes a running `export` give up soon.
        words: why the last export failed.
        max_queue_len: items beyond it are dropped.
        batch_len: most items of a batch; one that is full is sent at once.
        interval_s: how often what there is is sent.
        poll: items that are made when their time has come, once every `interval_s` and at the end.

    Attributes:
        num_sent, num_dropped, num_failed: items that `export` took; that found the queue full; and
            that `export` did not take.
    """

    def __init__(
        self,
        what: str,
        export: Callable[[Sequence[_T]], bool],
        *,
        abort: Callable[[], object],
        words: Callable[[], str] = str,
        max_queue_len: int = 1,
        batch_len: int = 1,
        interval_s: float,
        poll: Callable[[], Sequence[_T]] = tuple,
    ) -> None:
        self.num_sent = self.num_dropped = self.num_failed = 0
        self._what = what
        self._export = export
        self._abort = abort
        self._words = words
        self._max_queue_len = max_queue_len
        self._batch_len = batch_len
        self._interval_s = interval_s
        self._poll = poll
        self._queue: deque[_T] = deque()
        self._wake = Event()
        self._closing = Lock()
        self._is_closed = False
        self._deadline = float("inf")
        self._reported_at = float("-inf")
        self._num_reported = 0
        self._thread = Thread(target=self._run, name=f"octavo-{what}", daemon=True)
        self._thread.start()

    def put(self, item: _T) -> None:
        """Send it some time, or drop it. Never waits. Of one thread's concern, the event loop's."""
        if len(self._queue) >= self._max_queue_len or self._is_closed:
            self.num_dropped += 1
            return
        self._queue.append(item)
        if len(self._queue) == self._batch_len:
            self._wake.set()

    def close(self, timeout_s: float) -> None:
        """Send what there is, and return after `timeout_s` at the latest. May be called again."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._deadline = time.monotonic() + timeout_s
        self._wake.set()
        self._thread.join(timeout_s)
        self._abort()
        self._report(is_last=True)

    def _run(self) -> None:
        due = time.monotonic() + self._interval_s
        while not self._is_closed:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            is_due = time.monotonic() >= due
            if is_due:
                due = time.monotonic() + self._interval_s
                self._queue.extend(self._poll())
            self._flush(0 if is_due else self._batch_len - 1)
            self._report()
        self._queue.extend(self._poll())
        self._flush(0)

    def _flush(self, num_kept: int) -> None:
        """Send batches until at most so many items are left."""
        while len(self._queue) > num_kept:
            if not self._send() and self._is_closed:
                return  # nobody is there, and there is no time to wait for somebody
            if time.monotonic() > self._deadline:
                return

    def _send(self) -> bool:
        num = min(self._batch_len, len(self._queue))
        batch = [self._queue.popleft() for _ in range(num)]
        try:
            is_sent, reason = self._export(batch), ""
        except Exception as exc:
            is_sent, reason = False, f"{type(exc).__name__}: {exc}"
        if is_sent:
            self.num_sent += num
            self._words()
            return True
        self.num_failed += num
        self._report(reason or self._words())
        return False

    def _report(self, reason: str = "", *, is_last: bool = False) -> None:
        """Tell of losses, seldom."""
        num_left = len(self._queue) if is_last else 0
        num_lost = self.num_dropped + self.num_failed + num_left
        now = time.monotonic()
        if num_lost == self._num_reported or (now - self._reported_at < REPORT_S and not is_last):
            return
        self._reported_at, self._num_reported = now, num_lost
        logger.warning(
            "%d %s lost so far: %d not taken by the collector, %d found the queue full, "
            "%d left at the end%s",
            num_lost,
            self._what,
            self.num_failed,
            self.num_dropped,
            num_left,
            f" (last reason: {reason[:300]})" if reason else "",
        )
