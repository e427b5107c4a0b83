"""Requests between the reader of the socket and those who wait for their outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.engine.output import merge_deltas
from octavo.types import Delta, Pooled

if TYPE_CHECKING:
    import asyncio

    from octavo.engine.messages import PoolingOutput, TokenOutput
    from octavo.engine.output import OutputProcessor
    from octavo.types import FinishReason


class PendingStream:
    """One request's deltas, for the reader of the generator."""

    __slots__ = ("_loop", "_pending", "_waiter", "processor", "request_id")

    def __init__(
        self, request_id: str, processor: OutputProcessor, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.request_id = request_id
        self.processor = processor
        self._loop = loop
        self._pending: list[Delta] = []  # bounded by the length of the output
        self._waiter: asyncio.Future[None] | None = None

    def push(self, output: TokenOutput) -> None:
        """Take the engine's next output."""
        self._put(self.processor.push(output))

    def end(self, reason: FinishReason, error: str | None = None) -> None:
        """End it from this side."""
        self._put(self.processor.end(reason, error))

    def fail(self, error: str) -> None:
        """End it with an error that the processor had no part in."""
        self._put(Delta(finish_reason="error", error=error))

    async def next(self) -> Delta:
        """All that has come since the last call, at least one delta's worth, as one."""
        if not self._pending:
            self._waiter = self._loop.create_future()
            await self._waiter
        deltas, self._pending = self._pending, []
        return merge_deltas(deltas)

    def _put(self, delta: Delta) -> None:
        self._pending.append(delta)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


class PendingVector:
    """One answer, once. What comes after it is dropped."""

    __slots__ = ("_future", "request_id")

    def __init__(self, request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.request_id = request_id
        self._future: asyncio.Future[Pooled] = loop.create_future()

    def push(self, output: PoolingOutput) -> None:
        """Take the engine's answer."""
        self._set(
            Pooled(
                vector=output.vector,
                finish_reason=output.finish_reason,
                error=output.error,
                charge=output.charge,
            )
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
