"""The event loop of a serving process, and the signals that end it. Knows no engine."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


def new_loop() -> asyncio.AbstractEventLoop:
    """A loop of the fastest kind at hand."""
    try:
        import uvloop
    except ImportError:  # not made for every platform
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def first_of(*futures: asyncio.Future[Any], timeout_s: float | None = None) -> None:
    """Wait until one of them is done, whatever its result, or time is up."""
    await asyncio.wait(futures, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)


class Signals:
    """Requests to end, as futures of the running loop: the first one, and the second.

    Args:
        numbers: the signals that are such requests.
    """

    def __init__(self, numbers: Iterable[int] = (signal.SIGINT, signal.SIGTERM)) -> None:
        loop = asyncio.get_running_loop()
        self.first: asyncio.Future[int] = loop.create_future()
        self.second: asyncio.Future[int] = loop.create_future()
        for signum in numbers:
            loop.add_signal_handler(signum, self.on_signal, int(signum))

    def on_signal(self, signum: int) -> None:
        """One came."""
        if self.first.done():
            self.end_at_once(signum)
        self.begin(signum)

    def begin(self, signum: int) -> None:
        """As if one had come, if none has."""
        if not self.first.done():
            self.first.set_result(signum)

    def end_at_once(self, signum: int) -> None:
        """As if two had come."""
        self.begin(signum)
        if not self.second.done():
            self.second.set_result(signum)
