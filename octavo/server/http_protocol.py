"""What uvicorn's HTTP protocol leaves open: bounds on a request's head, errors in our shape, and a
short way for the events of streams.

The parser keeps an unfinished header in memory however long it grows, and waits for it however long
it takes; here both have an end.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from octavo.errors import InvalidRequestError, RequestError
from octavo.protocol.errors import ErrorBody
from octavo.server.scope import LEAVES, WRITE

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

HEAD_TIMEOUT_S = 30.0
"""A connection whose request's head is not complete after so long is closed, seconds."""

LINGER_S = 1.0
"""How long a refused client may go on sending before it is cut off, seconds. Closing at once, with
bytes of its unread, would make its system throw our answer away (RFC 9112, section 9.6)."""

MAX_HEADERS = 256
"""Most headers of a request."""


_UPGRADE = re.compile(rb"(\A|\r\n)upgrade(?=[ \t]*:)", re.IGNORECASE)
_NO_UPGRADE = b"xpgrade"
"""What we make of the field `Upgrade`, which we never follow. The parser would take what comes
after such a head for another protocol, and the body would be lost: Java's own client offers h2c
with every request on plain HTTP. An offer may be ignored (RFC 9110, section 7.8)."""


class HeadTooLargeError(RequestError):
    """The request's URL and headers are more than the server accepts."""

    status = 431


class BoundedProtocol(HttpToolsProtocol):
    """One connection. `max_header_bytes` is set on a subclass, see `bounded`."""

    max_header_bytes: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._is_in_head = False
        self._is_between = True  # no request has begun
        self._num_head_bytes = 0  # of the URL and of whole headers
        self._num_unfinished_bytes = 0  # read while the head was not complete
        self._num_headers = 0
        self._is_refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._leaves: set[Callable[[], object]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client came; it must send something."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client left."""
        super().connection_lost(exc)
        self._stop_timer()
        for tell in list(self._leaves):
            tell()

    def data_received(self, data: bytes) -> None:
        """Bytes came. A head that began before them and did not end yet grew by all of them."""
        if self._is_refused:
            return
        was_in_head = self._is_in_head
        if was_in_head or self._is_between:
            data = _without_upgrade(data)
        super().data_received(data)
        if was_in_head and self._is_in_head:
            # The parser tells of whole headers only; the rest of these bytes waits in it.
            self._num_unfinished_bytes += len(data)
            if self._is_head_too_large and not self._is_refused:
                self.send_400_response("")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._is_in_head = True
        self._is_between = False
        self._num_head_bytes = self._num_unfinished_bytes = self._num_headers = 0
        if self._head_timer is None:
            self._await_head()

    def on_url(self, url: bytes) -> None:
        """A piece of the URL."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A whole header. Those after a body are counted and dropped: who checked the head in
        front of us has not seen them (RFC 9110, section 6.5.1).
        """
        self._num_headers += 1
        self._count(len(name) + len(value) + 4)
        if self._is_in_head and name.lower() != _NO_UPGRADE:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is complete, and the application may begin."""
        self._is_in_head = False
        self._check_framing()
        self._stop_timer()
        super().on_headers_complete()
        write = functools.partial(_write, self.cycle)
        self.scope["extensions"] = {WRITE: write, LEAVES: self._leaves}  # type: ignore[dict-item]

    def on_message_complete(self) -> None:
        """The request is here, body included."""
        self._is_between = True
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request of HTTP, or too large a head, and close."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.close()  # an earlier answer is under way: nothing can come between
            return
        error: RequestError
        if self._is_head_too_large:
            error = HeadTooLargeError(
                f"The request's URL and headers are larger than the {self.max_header_bytes} bytes "
                f"or {MAX_HEADERS} headers that this server accepts",
                code="request_header_fields_too_large",
            )
        else:
            error = InvalidRequestError("This is not a valid HTTP request", code="invalid_http")
        body = msgspec.json.encode(ErrorBody.of(error))
        head = (
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
            f"x-request-id: {uuid4().hex}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(STATUS_LINE[error.status] + head.encode("ascii") + body)
        self._is_refused = True
        self._stop_timer()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._head_timer = self.loop.call_later(LINGER_S, self._give_up)
        else:  # TLS
            self.transport.close()

    @property
    def _is_head_too_large(self) -> bool:
        num_bytes = max(self._num_head_bytes, self._num_unfinished_bytes)
        return num_bytes > self.max_header_bytes or self._num_headers > MAX_HEADERS

    def _check_framing(self) -> None:
        """Refuse what others may read in another way, and which the parser lets pass: a coding of
        the body besides `chunked`, and several hosts (RFC 9112, sections 3.2 and 6.1).

        Raises:
            InvalidRequestError: the parser stops at this.
        """
        num_hosts = 0
        for name, value in self.headers:
            if name == b"host":
                num_hosts += 1
            elif name == b"transfer-encoding" and value.strip().lower() != b"chunked":
                raise InvalidRequestError("there is no such transfer coding here")
        if num_hosts > 1:
            raise InvalidRequestError("there are several hosts")

    def _count(self, num_bytes: int) -> None:
        self._num_head_bytes += num_bytes
        if self._is_head_too_large:
            raise HeadTooLargeError("the parser stops at this")

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        self.transport.close()


def _write(cycle: RequestResponseCycle, piece: bytes) -> bool:
    """Write a piece of a body whose length is unknown, and which goes on; False: use `send`.

    The same as `cycle.send`, without a coroutine and a message for each of many small pieces. That
    one does what is left: waits for slow readers, and knows bodies of other kinds.
    """
    if cycle.flow.write_paused or cycle.disconnected or not cycle.chunked_encoding:
        return False
    cycle.transport.write(b"%x\r\n%b\r\n" % (len(piece), piece))
    return True


def _without_upgrade(data: bytes) -> bytes:
    """Bytes that have a head, or its beginning, with another name for `Upgrade`."""
    end = data.find(b"\r\n\r\n")
    if end < 0:
        end = len(data)
    if _UPGRADE.search(data, 0, end) is None:
        return data
    return _UPGRADE.sub(rb"\1" + _NO_UPGRADE, data[:end]) + data[end:]


def bounded(max_header_bytes: int) -> type[BoundedProtocol]:
    """The protocol with heads of at most so many bytes."""
    return type("Protocol", (BoundedProtocol,), {"max_header_bytes": max_header_bytes})
