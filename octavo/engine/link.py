"""One of several API servers' hold on an engine that its parent started.

What `AsyncEngine` asks of a process it asks of this too, but only the parent can start or end the
engine, or tell that it has ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from octavo.engine.channel import ClientChannel
from octavo.engine.client import AsyncEngine
from octavo.engine.messages import ClientGone, Hello, Ping

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.engine.channel import Channel
    from octavo.engine.messages import FromEngine, ToEngine

LAST_MESSAGES_S = 0.2
"""How long the last messages may take to leave."""


class EngineHandle(Protocol):
    """What `AsyncEngine` asks of a running engine process."""

    @property
    def channel(self) -> Channel[FromEngine, ToEngine]:
        """Our end."""
        ...

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """Call `on_exit` with the exit code when the process has ended, if we get to know."""
        ...

    def forget_address(self) -> None:
        """The engine is connected."""
        ...

    def kill(self) -> None:
        """End the process at once."""
        ...

    def stop(self, timeout_s: float) -> int:
        """Wait for the end and free everything."""
        ...


class EngineLink:
    """See the module.

    Args:
        address: the engine's address for API servers.
        name: ours, which no API server ever had before.

    Attributes:
        channel: our end.
    """

    def __init__(self, address: str, name: str) -> None:
        self.channel = ClientChannel(address, name)
        self.channel.send(Hello())

    def watch(self, on_exit: Callable[[int], None]) -> None:
        """Nothing: the parent tells."""

    def forget_address(self) -> None:
        """Nothing: the address is the parent's."""

    def kill(self) -> None:
        """Nothing: the parent has its own watch."""

    def stop(self, timeout_s: float) -> int:
        """Let go of the engine, which goes on."""
        self.channel.close(linger_s=min(timeout_s, LAST_MESSAGES_S))
        return 0


class EngineMonitor(AsyncEngine):
    """The engine as the parent of several API servers sees it: sends no requests, but asks whether
    it lives.

    Every look at `is_stuck` that finds no question open asks one. The engine's loop answers between
    two steps, so that the wait for an answer is the time of the step that runs.
    """

    _asked_at: float | None = None

    @property
    def stalled_s(self) -> float:
        """Seconds since a question that was not answered; 0.0 while none is open."""
        if self._asked_at is None or self._last_message_at >= self._asked_at:
            return 0.0
        return time.monotonic() - self._asked_at

    @property
    def is_stuck(self) -> bool:
        """Whether it has not answered for longer than the watchdog lets it."""
        is_stuck = super().is_stuck
        if self.stalled_s == 0.0:
            self._asked_at = time.monotonic()
            self._send(Ping())
        return is_stuck

    def forget_client(self, name: str) -> None:
        """Tell the engine that an API server has ended: its requests end too."""
        self._send(ClientGone(name))
