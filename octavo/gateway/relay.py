"""An answer on its way to the client: a body at once, a stream's events as they came.

Events are written as bytes, those together that came together, past all layers: what is read of
them was read where they arrived. A stream that reaches its ceiling is ended, and says so.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.requests import ClientDisconnect

from octavo.gateway.cut import cut_events
from octavo.gateway.keep_alive import KeepAlive
from octavo.gateway.replay import batches_of, is_stream
from octavo.gateway.reply_errors import refusal_of
from octavo.gateway.sse_events import event_with_cost
from octavo.gateway.usage_cost import with_cost
from octavo.server.errors import as_request_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping, Sequence

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
    """One answer's way. `run` it once; `stop` it, whatever happened.

    Args:
        call: what was asked.
        exchange: of the HTTP request.
        dialect: of its route.
        send: of ASGI.

    Attributes:
        status: how it ended: `ok`, `over_budget`, `client_left` or `error`.
        reason: why it failed, or empty.
        is_started: the head has been sent.
    """

    def __init__(self, call: Call, exchange: Exchange, dialect: Dialect, send: Send) -> None:
        self._call = call
        self._exchange = exchange
        self._dialect = dialect
        self._send_head = send
        self._early: Headers = []
        self._keep_alive = KeepAlive(self._live, 0.0)
        self.status: Status = "error"
        self.reason = "the answer was not passed on"
        self.is_started = False

    def wait(self, headers: Headers, interval_s: float) -> None:
        """There will be a stream: keep its client's patience from now on, until `stop`. The first
        sign of life sends the head: what fails after it is told by an event.

        Args:
            headers: that are known before there is an answer.
            interval_s: of silence before a sign of life; 0: none.
        """
        self._early = headers
        if interval_s and self._dialect.keep_alive:
            self._keep_alive = KeepAlive(self._live, interval_s)

    async def run(
        self,
        outcome: Outcome,
        headers: Headers,
        ceiling: Ceiling = NO_CEILING,
        cost: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Send all of an answer.

        Args:
            outcome: the answer; whoever made it closes it.
            headers: besides its type and length.
            ceiling: where a stream is cut.
            cost: for its usage, asked when that is here; None: it tells none.

        Raises:
            UpstreamError: it broke off before the head was sent.
            ClientDisconnect: the client reads nothing any more.
        """
        if is_stream(outcome):
            await self._keep_alive.settle()
            await self._stream(outcome, headers, ceiling, cost)
            return
        body = await outcome.read()
        await self._keep_alive.stop()
        if self.is_started:  # as a stream
            await self.fail(refusal_of(outcome.target.backend, outcome.status, body))
            return
        if cost is not None:
            body = with_cost(self._call.route, body, cost())
        headers = [
            (b"content-type", (outcome.content_type or "application/json").encode("latin-1")),
            (b"content-length", b"%d" % len(body)),
            *headers,
        ]
        self._begin_well()
        start = {"type": "http.response.start", "status": outcome.status, "headers": headers}
        await self._send_head(start)
        await self._send_head({"type": "http.response.body", "body": body})

    async def fail(self, error: Exception) -> None:
        """End a stream that has begun by telling of an error."""
        exc = as_request_error(error, self._exchange.request_id)
        self.status, self.reason = "error", exc.message
        await self._end(self._dialect.error_event(exc) + self._dialect.end)

    async def stop(self) -> None:
        """Give no more signs of life."""
        await self._keep_alive.stop()

    def _begin_well(self) -> None:
        self.status, self.reason = "ok", ""
        self.is_started = True

    async def _live(self) -> None:
        if not self.is_started:
            await self._start(200, self._early)
        await self._send(self._dialect.keep_alive)

    async def _start(self, status: int, headers: Headers) -> None:
        self.is_started = True
        headers = [*_STREAM_HEADERS, *headers]
        await self._send_head({"type": "http.response.start", "status": status, "headers": headers})

    async def _stream(
        self,
        outcome: Outcome,
        headers: Headers,
        ceiling: Ceiling,
        cost: Callable[[], Mapping[str, Any]] | None,
    ) -> None:
        max_output, max_events = ceiling
        write = self._exchange.write
        keep_alive = self._keep_alive
        if not self.is_started:
            keep_alive.is_sending = True
            await self._start(outcome.status, headers)
            keep_alive.is_sending = False
        self._begin_well()
        first = b""
        num_events = num_bytes = 0
        check_at = max_output * MIN_TOKEN_BYTES
        shown = batches_of(outcome)
        if cost is not None:
            shown = self._with_cost(outcome, cost)
        try:
            async with contextlib.aclosing(shown) as batches:
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
                        left = max_output - outcome.tokens.output
                        if left <= 0 or num_events > max_events:
                            await self._cut(outcome, first, piece, batch[-1])
                            return
                        check_at = num_bytes + left * MIN_TOKEN_BYTES
                    keep_alive.num_sent += 1
                    if not write(piece):
                        keep_alive.is_sending = True
                        await self._send(piece)
                        keep_alive.is_sending = False
        except ClientDisconnect:
            raise
        except Exception as exc:
            await self.fail(exc)
            return
        await self._end(b"")

    async def _with_cost(
        self, outcome: Outcome, cost: Callable[[], Mapping[str, Any]]
    ) -> AsyncGenerator[Sequence[bytes], None]:
        """The events; the last usage tells the cost."""
        route = self._call.route
        async with contextlib.aclosing(batches_of(outcome)) as batches:
            async for batch in batches:
                if outcome.finish_reason:
                    told = cost()
                    batch = [event_with_cost(route, event, told) for event in batch]
                yield batch

    async def _send(self, piece: bytes, *, is_last: bool = False) -> None:
        """Send a piece, and wait until the client has taken enough of those before it."""
        try:
            async with asyncio.timeout(SEND_S):
                await self._exchange.send(piece, is_last=is_last)
        except TimeoutError:
            self.status, self.reason = "client_left", "the client reads nothing any more"
            raise ClientDisconnect from None

    async def _end(self, piece: bytes) -> None:
        """Send the last piece."""
        await self._keep_alive.stop()
        await self._send(piece, is_last=True)

    async def _cut(self, outcome: Outcome, first: bytes, piece: bytes, last: bytes) -> None:
        """Pass on what is here, as it is paid for, and end the stream."""
        self.status, self.reason = "over_budget", "the stream has reached its ceiling"
        if not outcome.finish_reason:
            piece += cut_events(self._call, first, last, outcome.tokens.output)
        await self._end(piece)
