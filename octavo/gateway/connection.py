"""One HTTP/1.1 connection to a backend: requests one after another, each answer as it comes.

A protocol of asyncio over httptools' parser. A call costs 30 µs of processor time, and 190 µs with
aiohttp's client; it also tells what a retry must know, whether a byte of the answer had come. No
redirects, cookies, proxies or compression. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import httptools

from octavo.errors import UpstreamError

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_HEAD_BYTES = 64 * 1024
MAX_WAITING_BYTES = 256 * 1024
"""Of a body that nobody has taken yet: beyond that the backend must wait."""

Headers = list[tuple[bytes, bytes]]


class Connection(asyncio.Protocol):
    """A connection of one exchange at a time: `send`, `head`, `piece` until it gives nothing, and
    then `send` again where `is_reusable`.

    Args:
        name: of the backend, for messages.
        lost: called once, when the connection is gone.

    Attributes:
        status, headers: of the answer, names in lower case; after `head`.
        has_answer: bytes of the answer have come.
        is_reusable: the answer is whole, and the backend keeps the connection.
        idle_since: reading of the loop's clock, for whoever keeps connections.
        num_exchanges: that were begun.
    """

    __slots__ = (
        "_armed",
        "_error",
        "_expires",
        "_has_excess",
        "_has_head",
        "_has_length",
        "_head_len",
        "_idle_s",
        "_is_complete",
        "_is_exchanging",
        "_is_paused",
        "_limit",
        "_loop",
        "_lost",
        "_name",
        "_num_waiting",
        "_parser",
        "_pieces",
        "_timer",
        "_transport",
        "_waiter",
        "_waits_for",
        "has_answer",
        "headers",
        "idle_since",
        "is_reusable",
        "num_exchanges",
        "status",
    )

    def __init__(self, name: str, lost: Callable[[Connection], None]) -> None:
        self._name = name
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_exchanging = self._is_paused = False
        self._armed = 0.0
        self.num_exchanges = 0
        self.idle_since = 0.0
        self.is_reusable = True
        self._pieces: list[bytes] = []

    @property
    def is_open(self) -> bool:
        """Whether something can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, message: bytes, body: bytes, *, limit_s: float) -> None:
        """Begin an exchange.

        Args:
            message: the request's head, with its empty line.
            body: what follows it.
            limit_s: for the whole of it, whatever comes.
        """
        assert not self._is_exchanging
        assert self._transport is not None
        self._parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: Headers = []
        self.has_answer = self.is_reusable = self._is_complete = False
        self._has_head = self._has_length = self._has_excess = False
        self._head_len = self._num_waiting = 0
        self._pieces.clear()
        self._error: UpstreamError | None = None
        self._is_exchanging = True
        self.num_exchanges += 1
        self._idle_s = 0.0
        self._waits_for = "an answer"
        self._limit = self._expires = self._loop.time() + limit_s
        self._arm()
        if self._transport.is_closing():
            self._fail("closed the connection before it answered")
        elif len(body) < MAX_HEAD_BYTES:
            self._transport.write(message + body)
        else:
            self._transport.writelines((message, body))

    def expect(self, within_s: float, what: str) -> None:
        """From now on, what is waited for must come within this time, however much else comes."""
        self._waits_for = what
        self._idle_s = 0.0
        self._expires = min(self._limit, self._loop.time() + within_s)
        if self._expires < self._armed:
            self._arm()

    def expect_each(self, idle_s: float, what: str) -> None:
        """From now on, each piece must come within this time after the one before."""
        self.expect(idle_s, what)
        self._idle_s = idle_s

    async def head(self) -> None:
        """Wait for the status and the headers.

        Raises:
            UpstreamError: they do not come, or what comes is not HTTP.
        """
        while not self._has_head:
            await self._wait()

    async def piece(self) -> bytes:
        """Wait for what has come of the body since the last call; empty: that was all.

        Raises:
            UpstreamError: the answer breaks off, or nothing comes for too long.
        """
        while not self._pieces:
            if self._is_complete:
                return b""
            await self._wait()
        pieces = self._pieces
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._num_waiting = 0
        if self._is_paused:
            self._is_paused = False
            if self._idle_s:
                # While the backend had to wait, its silence was ours
                self._expires = min(self._limit, self._loop.time() + self._idle_s)
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()
        return data

    async def body(self, max_bytes: int) -> bytes:
        """Wait for the whole body.

        Raises:
            UpstreamError: as `piece`, or it is longer.
        """
        data = await self.piece()
        if self._is_complete and not self._pieces and len(data) <= max_bytes:
            return data
        pieces = [data]
        num_bytes = len(data)
        while num_bytes <= max_bytes:
            data = await self.piece()
            if not data:
                return b"".join(pieces)
            pieces.append(data)
            num_bytes += len(data)
        what = f"backend {self._name} sent more than {max_bytes} bytes"
        raise UpstreamError(what, code="upstream_garbage")

    def finish(self) -> None:
        """The exchange is over; a connection whose answer is not whole is closed."""
        self._is_exchanging = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._pieces.clear()
        if not self.is_reusable:
            self.abort()

    def abort(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        assert self._waiter is None
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._armed = self._expires
        self._timer = self._loop.call_at(self._armed, self._on_time)

    def _on_time(self) -> None:
        """Look whether the time was moved since: moving the timer for each piece costs more."""
        self._timer = None
        if self._is_complete:
            return  # it is whole; its reader may take his time
        now = self._loop.time()
        if self._is_paused and self._idle_s and now < self._limit:
            self._expires = min(self._limit, now + self._idle_s)
        if now < self._expires:
            self._arm()
            return
        what = "the end of its answer" if self._expires >= self._limit else self._waits_for
        self._fail(f"did not send {what} in time", status=504, code="upstream_timeout")

    def _fail(self, what: str, *, status: int = 502, code: str = "upstream_broken") -> None:
        if self._is_exchanging and self._error is None and not self._is_complete:
            self._error = UpstreamError(f"backend {self._name} {what}", status=status, code=code)
        self.is_reusable = False
        self.abort()
        self._wake()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        """Parse what has come."""
        if not self._is_exchanging or self._is_complete:
            self.is_reusable = False
            self.abort()  # bytes that nobody asked for
            return
        self.has_answer = True
        if self._idle_s:
            self._expires = min(self._limit, self._loop.time() + self._idle_s)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail("sent what is not HTTP", code="upstream_garbage")
            return
        if self._has_excess:
            self.is_reusable = False
        if not self._has_head:
            self._head_len += len(data)
            if self._head_len > MAX_HEAD_BYTES:
                self._fail("sent headers without end", code="upstream_garbage")
            return
        is_too_much = self._num_waiting > MAX_WAITING_BYTES and not self._is_complete
        if is_too_much and not self._is_paused:
            self._is_paused = True
            assert self._transport is not None
            self._transport.pause_reading()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what goes on."""
        if self._is_exchanging and not self._is_complete:
            if exc is None and self._has_head and not self._has_length:
                self._is_complete = True  # a body without a length ends with its connection
                self._wake()
            elif self.has_answer:
                self._fail("broke off its answer")
            else:
                self._fail("closed the connection before it answered")
        self.is_reusable = False
        self._lost(self)

    # httptools

    def on_message_begin(self) -> None:
        """An answer begins."""
        if self._is_complete:
            self._has_excess = True  # an answer that nobody asked for: it belongs to no request

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header."""
        if self._is_complete:
            return  # a second answer: see `on_message_begin`
        name = name.lower()
        if name in (b"content-length", b"transfer-encoding"):
            self._has_length = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head is whole."""
        if self._is_complete:
            return
        status = self._parser.get_status_code()
        if status >= 200:
            self._has_head = True
            self.status = status
        else:  # 100 Continue and its like
            self.headers.clear()
            self._has_length = False

    def on_body(self, data: bytes) -> None:
        """Keep a piece."""
        if self._is_complete:
            return
        self._pieces.append(data)
        self._num_waiting += len(data)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        if self._has_head and not self._is_complete:
            self._is_complete = True
            self.is_reusable = self._parser.should_keep_alive()

    def header(self, name: bytes) -> bytes:
        """A header of the answer; empty: it has none."""
        for known, value in self.headers:
            if known == name:
                return value
        return b""
