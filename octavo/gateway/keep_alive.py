"""Signs of life for the client of a stream while there is nothing else to send, so that no proxy
gives it up: a judge takes its time, or a backend has not begun.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class KeepAlive:
    """Says something whenever nothing was sent for a while. A stream that flows costs a timer.

    Needs a running loop. `stop` must be called.

    Args:
        say: sends a sign of life; never runs twice at a time.
        interval_s: of silence; 0: it stays silent.

    Attributes:
        num_sent: to be raised by whoever sends something.
        is_sending: somebody is about it: a reader that is slow is no silence of ours.
    """

    __slots__ = (
        "_interval_s",
        "_num_seen",
        "_say",
        "_task",
        "_timer",
        "is_sending",
        "num_sent",
    )

    def __init__(self, say: Callable[[], Awaitable[None]], interval_s: float) -> None:
        self.num_sent = 0
        self.is_sending = False
        self._say = say
        self._interval_s = interval_s
        self._num_seen = 0
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._wait()

    async def settle(self) -> None:
        """Wait until what is being said is said; raises what that raised."""
        if self._task is not None:
            await self._task

    async def stop(self) -> None:
        """Say nothing more, from when this returns."""
        self._interval_s = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        await self.settle()

    def _wait(self) -> None:
        if self._interval_s:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(self._interval_s, self._tick)

    def _tick(self) -> None:
        if self.is_sending or self.num_sent != self._num_seen:
            self._num_seen = self.num_sent
            self._wait()
        else:
            self._task = asyncio.ensure_future(self._break_silence())

    async def _break_silence(self) -> None:
        await self._say()
        self._wait()
