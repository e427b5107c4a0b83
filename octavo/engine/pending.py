"""A request for a vector between the reader of the socket and the one who waits for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.types import Pooled

if TYPE_CHECKING:
    import asyncio

    from octavo.engine.messages import PoolingOutput
    from octavo.types import FinishReason


class PendingVector:
    """One answer, once. What comes after it is dropped."""

    __slots__ = ("_future", "request_id")

    def __init__(self, request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = request_id
        self._future: asyncio.Future[Pooled] = loop.create_future()

    def push(self, output: PoolingOutput) -> None:
        """Take the engine's answer."""
        self._set(
            Pooled(vector=output.vector, finish_reason=output.finish_reason, error=output.error)
        )

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """End it from this side."""
        self._set(Pooled(finish_reason=reason, error=error))

    async def wait(self) -> Pooled:
        """The answer, when it has come."""
        return await self._future

    def _set(self, pooled: Pooled) -> None:
        if not self._future.done():
            self._future.set_result(pooled)
