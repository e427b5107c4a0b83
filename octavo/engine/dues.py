"""Which requests' charges a client still waits for, and who is told of them.

A request is charged once: in its last output where the engine ended it, and by itself, later, where
it was ended from this side. Knows nothing of messages, streams or how charges come about.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from octavo.types import Charge

if TYPE_CHECKING:
    from collections.abc import Callable

logger = logging.getLogger("octavo.engine")

_NOTHING = Charge()


class Dues:
    """See the module.

    Attributes:
        listener: called once for each request, see `EngineClient.listen_for_charges`.
        is_metered: whether the engine tells charges of requests that it was told to forget.
    """

    def __init__(self) -> None:
        self.listener: Callable[[str, Charge], None] | None = None
        self.is_metered = False
        self._open: dict[str, str] = {}
        self._is_empty = asyncio.Event()
        self._is_empty.set()

    def __len__(self) -> int:
        """Requests whose charge has not come."""
        return len(self._open)

    def open(self, engine_id: str, request_id: str) -> None:
        """A request was sent to the engine, under an id of its own."""
        self._open[engine_id] = request_id
        self._is_empty.clear()

    def settle(self, engine_id: str, charge: Charge | None) -> None:
        """A charge has come, or none will. Only the first word counts."""
        request_id = self._open.pop(engine_id, None)
        if not self._open:
            self._is_empty.set()
        if request_id is None or self.listener is None:
            return
        try:
            self.listener(request_id, charge or _NOTHING)
        except Exception:  # it must not stop the other requests' outputs
            logger.exception("request %s: its charge was not taken", request_id)

    def leave(self, engine_id: str) -> None:
        """The engine was told to forget the request: where it meters, the charge comes later."""
        if not self.is_metered:
            self.settle(engine_id, None)

    async def all_settled(self, timeout_s: float) -> None:
        """Wait until all charges have come, or for so many seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._is_empty.wait()

    def settle_all(self) -> None:
        """The engine has ended: no charge will come any more."""
        for engine_id in list(self._open):
            self.settle(engine_id, None)
