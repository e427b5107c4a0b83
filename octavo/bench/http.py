"""A small HTTP/1.1 client on asyncio's protocols, so that the load generator is not the bottleneck.

Bodies are handed over inside `data_received`, with the time of that moment: no task has to wake
before an arrival is stamped. Knows nothing of SSE, JSON or OpenAI. No redirects, proxies or
compression: it talks to the server that it was told of.
"""

from __future__ import annotations

import asyncio
import ssl
from time import perf_counter
from typing import Protocol, cast
from urllib.parse import urlsplit

import httptools

from octavo.errors import ConfigError

_LINGER_S = 1.0
"""How long to wait for the end of a body after the sink has had all it wants."""


class TransportError(Exception):
    """No answer, or half of one: the connection could not be made or was lost."""


class Sink(Protocol):
    """Takes one response."""

    def start(self, status: int) -> None:
        """The headers are complete."""
        ...

    def body(self, data: bytes, now: float) -> bool:
        """A piece of the body, and `perf_counter()` at its arrival. True: nothing more matters."""
        ...


class BufferSink:
    """Keeps status and body."""

    def __init__(self) -> None:
        self.status = 0
        self.content = bytearray()

    def start(self, status: int) -> None:
        """Keep the status."""
        self.status = status

    def body(self, data: bytes, now: float) -> bool:
        """Keep the piece."""
        self.content += data
        return False


class _Connection(asyncio.Protocol):
    """One keep-alive connection, with at most one exchange at a time."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._done: asyncio.Future[None] | None = None
        self._linger: asyncio.TimerHandle | None = None
        self.is_reusable = False
        self.got_bytes = False

    async def exchange(self, request: bytes, sink: Sink) -> None:
        assert self._transport is not None
        assert self._done is None
        self._parser = httptools.HttpResponseParser(self)
        self._sink = sink
        self._has_length = False
        self._has_headers = False
        self._now = 0.0
        self.got_bytes = self.is_reusable = False
        self._done = asyncio.get_running_loop().create_future()
        try:
            if self._transport.is_closing():
                raise TransportError("the server closed the connection before it answered")
            self._transport.write(request)
            await self._done
        finally:
            self._done = None
            if self._linger is not None:
                self._linger.cancel()
                self._linger = None
            if not self.is_reusable:
                self._transport.abort()

    @property
    def is_closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _finish(self, error: Exception | None = None) -> None:
        if self._done is not None and not self._done.done():
            if error is None:
                self._done.set_result(None)
            else:
                self._done.set_exception(error)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        self.got_bytes = True
        if self._done is None:
            self.close()  # bytes that nobody asked for
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(TransportError(f"the answer is not HTTP: {error}"))
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._done is None or self._done.done():
            return
        if exc is None and self._has_headers and not self._has_length:
            self._finish()  # a body without a length ends with its connection
        elif not self.got_bytes:
            self._finish(TransportError("the server closed the connection before it answered"))
        else:
            self._finish(TransportError("the server closed the connection within its answer"))

    # httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"content-length", b"transfer-encoding"):
            self._has_length = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._sink is not None:
            self._has_headers = True
            self._sink.start(status)

    def on_body(self, data: bytes) -> None:
        assert self._sink is not None
        if self._sink.body(data, self._now) and self._linger is None:
            # The end of the body is wanted only to use the connection again.
            self._linger = asyncio.get_running_loop().call_later(_LINGER_S, self._finish)

    def on_message_complete(self) -> None:
        if not self._has_headers:
            return  # 100 Continue and its like
        self.is_reusable = self._parser.should_keep_alive()
        self._finish()


class HTTPClient:
    """A pool of keep-alive connections to one server.

    Args:
        url: `http://host:port/base`; paths are appended to it.
        headers: sent with every request.

    Raises:
        ConfigError: the URL is not one.
    """

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"{url!r} is not a URL: {error}") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{url!r} is not a URL: write http://127.0.0.1:8000/v1")
        self._host = parts.hostname
        self._port = port or (443 if parts.scheme == "https" else 80)
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._base = parts.path.rstrip("/")
        lines = {"Host": parts.netloc.rpartition("@")[2], "Accept-Encoding": "identity"}
        lines |= headers or {}
        for name, value in lines.items():
            if not (name + value).isascii() or not (name + value).isprintable():
                raise ConfigError(f"the header {name} must be printable ASCII")
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()

    async def request(
        self, method: str, path: str, sink: Sink, body: bytes = b"", accept: str = "*/*"
    ) -> None:
        """Send one request and feed its response to `sink`; returns when the response is over.

        Cancelling it closes the connection, which is how a server learns that its client has gone.

        Raises:
            TransportError: no connection, or it was lost within the answer.
        """
        head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._headers}Accept: {accept}\r\n"
        if body:
            head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        message = head.encode("ascii") + b"\r\n" + body
        while self._idle:
            connection = self._idle.pop()
            if connection.is_closed:
                continue
            try:
                return await self._exchange(connection, message, sink)
            except TransportError:
                # A server may close an idle connection while we write to it; that is not a
                # failure of the request, as long as it has not begun to answer.
                if connection.got_bytes:
                    raise
        return await self._exchange(await self._connect(), message, sink)

    async def _connect(self) -> _Connection:
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        except OSError as error:  # ssl.SSLError and socket.gaierror are OSErrors
            reason = error.strerror or str(error) or type(error).__name__
            raise TransportError(f"cannot connect to {self._host}:{self._port}: {reason}") from None
        return connection

    async def _exchange(self, connection: _Connection, message: bytes, sink: Sink) -> None:
        self._busy.add(connection)
        try:
            await connection.exchange(message, sink)
        except BaseException:
            connection.close()  # also where the answer's end and a cancellation came together
            raise
        finally:
            self._busy.discard(connection)
        if connection.is_reusable and not connection.is_closed:
            self._idle.append(connection)

    async def aclose(self) -> None:
        """Close every connection; exchanges under way fail."""
        for connection in (*self._idle, *self._busy):
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next round
