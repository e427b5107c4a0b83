"""An answer on its way to the client: a body at once, a stream's events as they came.

Events are written as bytes, those together that came together, past all layers: what is read of
them was read where they arrived. A stream that reaches its ceiling is ended, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, NamedTuple

from starlette.requests import ClientDisconnect

from octavo.gateway.cut import cut_events
from octavo.gateway.replay import batches_of, is_stream
from octavo.server.errors import as_request_error

if TYPE_CHECKING:
    from starlette.types import Send

    from octavo.gateway.model import Call, Status
    from octavo.gateway.seams import Outcome
    from octavo.server.dialect import Dialect
    from octavo.server.scope import Exchange

    Headers = list[tuple[bytes, bytes]]

COLON = 0x3A
"""Comments begin with it."""

MIN_TOKEN_BYTES = 2
"""Bytes of a stream that count for a token at the least, by the estimate (`sse_events`)."""

SEND_S = 60.0
"""A client that reads nothing for so long has gone, as far as we can tell: it must not hold a place
for ever."""

_STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Ceiling(NamedTuple):
    """Where a stream is cut: at the first of both.

    Attributes:
        max_output: tokens, by the estimate, which is rather too high.
        max_events: as each has a token at the least, but for a few.
    """

    max_output: int
    max_events: int


NO_CEILING = Ceiling(1 << 62, 1 << 62)


class Relay:
    """One answer's way. `run` it once.

    Args:
        call: what was asked.
        outcome: the answer; whoever made it closes it.
        exchange: of the HTTP request.
        dialect: of its route.
        headers: of the answer, besides its type and length.
        ceiling: where a stream is cut.

    Attributes:
        status: how it ended: `ok`, `over_budget`, `client_left` or `error`.
        reason: why it failed, or empty.
        is_started: the head has been sent.
    """

    def __init__(
        self,
        call: Call,
        outcome: Outcome,
        exchange: Exchange,
        dialect: Dialect,
        headers: Headers,
        ceiling: Ceiling = NO_CEILING,
    ) -> None:
        self._call = call
        self._outcome = outcome
        self._exchange = exchange
        self._dialect = dialect
        self._headers = headers
        self._ceiling = ceiling
        self.status: Status = "ok"
        self.reason = ""
        self.is_started = False

    async def run(self, send: Send) -> None:
        """Send all of it.

        Raises:
            UpstreamError: it broke off before the head was sent.
            ClientDisconnect: the client reads nothing any more.
        """
        outcome = self._outcome
        if is_stream(outcome):
            await self._stream(send)
            return
        body = await outcome.read()
        headers = [
            (b"content-type", (outcome.content_type or "application/json").encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
            *self._headers,
        ]
        self.is_started = True
        await send({"type": "http.response.start", "status": outcome.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def fail(self, error: Exception) -> None:
        """End a stream that has begun by telling of an error."""
        exc = as_request_error(error, self._exchange.request_id)
        self.status, self.reason = "error", exc.message
        await self._send(self._dialect.error_event(exc) + self._dialect.end, is_last=True)

    async def _stream(self, send: Send) -> None:
        max_output, max_events = self._ceiling
        write = self._exchange.write
        headers = [*_STREAM_HEADERS, *self._headers]
        self.is_started = True
        await send(
            {"type": "http.response.start", "status": self._outcome.status, "headers": headers}
        )
        first = b""
        num_events = num_bytes = 0
        check_at = max_output * MIN_TOKEN_BYTES
        try:
            async with contextlib.aclosing(batches_of(self._outcome)) as batches:
                async for batch in batches:
                    piece = batch[0] if len(batch) == 1 else b"".join(batch)
                    if not piece:
                        continue  # all of it was taken out
                    if not num_events:
                        first = batch[0]
                    if piece[0] != COLON:
                        num_events += len(batch)
                    num_bytes += len(piece)
                    if num_bytes > check_at or num_events > max_events:
                        left = max_output - self._outcome.tokens.output
                        if left <= 0 or num_events > max_events:
                            await self._cut(first, piece, batch[-1])
                            return
                        check_at = num_bytes + left * MIN_TOKEN_BYTES
                    if not write(piece):
                        await self._send(piece)
        except ClientDisconnect:
            raise
        except Exception as exc:
            await self.fail(exc)
            return
        await self._send(b"", is_last=True)

    async def _send(self, piece: bytes, *, is_last: bool = False) -> None:
        """Send a piece, and wait until the client has taken enough of those before it."""
        try:
            async with asyncio.timeout(SEND_S):
                await self._exchange.send(piece, is_last=is_last)
        except TimeoutError:
            self.status, self.reason = "client_left", "the client reads nothing any more"
            raise ClientDisconnect from None

    async def _cut(self, first: bytes, piece: bytes, last: bytes) -> None:
        """Pass on what is here, as it is paid for, and end the stream."""
        self.status, self.reason = "over_budget", "the stream has reached its ceiling"
        if not self._outcome.finish_reason:
            piece += cut_events(self._call, first, last, self._outcome.tokens.output)
        await self._send(piece, is_last=True)
