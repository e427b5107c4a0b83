"""A streamed response that is still an ordinary error until its first event."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import TYPE_CHECKING

from octavo.server.dialect import OPENAI
from octavo.server.errors import as_request_error
from octavo.server.http import until_disconnect
from octavo.server.scope import exchange_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

    from octavo.server.dialect import Dialect

_HEADERS = [
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Sends what a generator yields, as it comes, then the dialect's end.

    The generator is closed when it is exhausted, fails, or the client goes. If it fails before
    anything was sent, the exception leaves this call; later, an event that tells of the error
    comes before the end. While nothing comes, also before the first event, comments keep proxies
    from giving the stream up (`ServerConfig.sse_keep_alive`).

    Args:
        events: complete events; an item may hold several or none.
        dialect: the protocol's frame.
    """

    def __init__(self, events: AsyncGenerator[bytes, None], dialect: Dialect = OPENAI) -> None:
        self._events = events
        self._dialect = dialect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as the response of one request whose body has been read."""
        stream = _Stream(self._events, scope, send, self._dialect)
        interval: float = scope["app"].context.config.sse_keep_alive
        if not self._dialect.keep_alive:
            interval = 0.0
        await until_disconnect(
            receive, stream.send_all(), tick=stream.break_silence, tick_s=interval
        )


class _Stream:
    """One stream on the wire."""

    def __init__(
        self, events: AsyncGenerator[bytes, None], scope: Scope, send: Send, dialect: Dialect
    ) -> None:
        self._events = events
        self._dialect = dialect
        self._exchange = exchange_of(scope)
        self._send_start = send
        self._starting = asyncio.Lock()
        self._num_sent = 0
        self._num_seen = 0
        self._is_started = False
        self._is_sending = False  # a slow reader makes `send` wait: that is no silence of ours

    async def send_all(self) -> None:
        """All events, and the end."""
        write = self._exchange.write
        end = self._dialect.end
        async with aclosing(self._events) as events:
            try:
                async for chunk in events:
                    if not self._is_started:
                        await self._start()
                    if chunk:
                        self._num_sent += 1
                        if not write(chunk):
                            await self._send(chunk)
            except Exception as exc:
                if not self._is_started:
                    raise
                error = as_request_error(exc, self._exchange.request_id)
                end = self._dialect.error_event(error) + end
            await self._start()
            self._num_sent += 1
            await self._send(end, is_last=True)

    async def break_silence(self) -> None:
        """Send a comment if nothing was sent since the last call."""
        is_silent = self._num_sent == self._num_seen and not self._is_sending
        self._num_seen = self._num_sent
        if not is_silent:
            return
        await self._start()
        if self._num_sent == self._num_seen:  # nothing came while we waited
            await self._exchange.send(self._dialect.keep_alive)

    async def _send(self, piece: bytes, *, is_last: bool = False) -> None:
        self._is_sending = True
        await self._exchange.send(piece, is_last=is_last)
        self._is_sending = False

    async def _start(self) -> None:
        async with self._starting:  # the events and the silence may both be the first
            if not self._is_started:
                headers = [(b"content-type", self._dialect.media_type.encode()), *_HEADERS]
                if self._dialect.id_header:
                    request_id = self._exchange.request_id.encode("ascii")
                    headers.append((self._dialect.id_header.encode(), request_id))
                start = {"type": "http.response.start", "status": 200, "headers": headers}
                await self._send_start(start)
                self._is_started = True
