"""The connections to one backend: made when needed, kept while they are good, bounded in number.

A name is looked up for each new connection, at most once in `NAMES_S`, and what is connected to is
the address that was checked: a name cannot lead to a machine's credentials by changing its mind.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from functools import cache
from typing import TYPE_CHECKING

from octavo.errors import ConfigError, UpstreamError
from octavo.gateway.backend_url import is_link_local
from octavo.gateway.connection import Connection
from octavo.version import __version__

if TYPE_CHECKING:
    from octavo.gateway.backend_url import Address
    from octavo.gateway.config_backends import Backend

logger = logging.getLogger("octavo.gateway")

NAMES_S = 5.0
KEEP_S = 30.0
"""How long a connection that nobody uses is kept."""

_Family = socket.AddressFamily


class Upstream:
    """One backend. Belongs to the event loop that it is first used in.

    Args:
        name: in the configuration.
        backend: its section.

    Attributes:
        head: header lines of every request, the backend's key among them: never to be shown.
        secrets: texts that must not be shown.
        prices: by model; None: not known.

    Raises:
        ConfigError: its certificates cannot be read.
    """

    def __init__(self, name: str, backend: Backend) -> None:
        self.name = name
        self.backend = backend
        self.address: Address = backend.address
        self._tls: ssl.SSLContext | None = None
        if self.address.scheme == "https":
            try:
                self._tls = _own_tls(backend.ca_file) if backend.ca_file else _usual_tls()
            except OSError as error:  # ssl.SSLError too
                raise ConfigError(
                    f"backends.{name}: cannot read certificates in {backend.ca_file}: {error}"
                ) from None
        self.head = _head(backend, self.address)
        self.secrets = [value.reveal() for value in backend.headers.values()]
        if backend.api_key is not None:
            self.secrets.append(backend.api_key.reveal())
        self.prices = {model: backend.price(model) for model in backend.models}
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._num_connecting = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._hosts: list[tuple[_Family, str]] = []
        self._hosts_until = 0.0
        self._look_up: asyncio.Task[list[tuple[_Family, str]]] | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._num_users = 0
        self.is_closed = False

    def __repr__(self) -> str:
        return f"Upstream({self.name!r})"

    @property
    def num_open(self) -> int:
        """Connections that are open, those that nobody uses included."""
        return len(self._open)

    @property
    def num_idle(self) -> int:
        """Connections that nobody uses."""
        return len(self._idle)

    @property
    def _is_full(self) -> bool:
        return len(self._open) + self._num_connecting >= self.backend.max_connections

    async def acquire(
        self, within_s: float, *, is_new: bool = False, is_extra: bool = False
    ) -> Connection:
        """A connection, to be given to `release`.

        Args:
            within_s: for all of it: waiting for others to be released, the name, TLS.
            is_new: not one that was used before.
            is_extra: whatever their number: a backend that is busy shall not look ill.

        Raises:
            UpstreamError: there is none to be had in time; 503 where too many are in use.
        """
        while self._idle and not is_new:
            connection = self._idle.pop()
            if connection.is_open and connection.is_reusable:
                return connection
        if self.is_closed:
            raise self._error("is no longer configured", status=503)
        loop = asyncio.get_running_loop()
        until = loop.time() + within_s
        try:
            async with asyncio.timeout_at(until):
                while not is_extra and self._is_full:
                    if self._idle:
                        connection = self._idle.pop()
                        if not is_new and connection.is_open and connection.is_reusable:
                            return connection
                        connection.abort()
                        await asyncio.sleep(0)
                        continue
                    await self._turn()
        except TimeoutError:
            raise self._error("has no free connection", status=503) from None
        self._num_connecting += 1
        try:
            async with asyncio.timeout_at(until):
                connection = await self._connect()
        except TimeoutError:
            raise self._error("cannot be connected to in time", status=504) from None
        finally:
            self._num_connecting -= 1
            self._let_next()
        self._open.add(connection)
        if not connection.is_open:
            self._open.discard(connection)
            raise self._error("closed the connection at once")
        return connection

    def release(self, connection: Connection) -> None:
        """Take a connection back, whatever became of it; what is not over is aborted."""
        connection.finish()
        if connection.is_open and connection.is_reusable and not self.is_closed:
            loop = asyncio.get_running_loop()
            connection.idle_since = loop.time()
            self._idle.append(connection)
            if self._sweep is None:
                self._sweep = loop.call_later(KEEP_S, self._close_old)
            self._let_next()
        else:
            connection.abort()

    def share(self) -> Upstream:
        """One more user, who calls `close`."""
        self._num_users += 1
        return self

    async def close(self) -> None:
        """A user leaves. After the last, close what is not in use, and the rest when released."""
        self._num_users -= 1
        if self._num_users > 0:
            return
        self.is_closed = True
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        if self._look_up is not None:
            self._look_up.cancel()
        for connection in self._idle:
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # a transport closes its socket in the loop's next round

    async def _turn(self) -> None:
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self._let_next()  # the turn was ours, and somebody else's now
            raise
        finally:
            if not waiter.done() or waiter.cancelled():
                self._waiters = deque(other for other in self._waiters if other is not waiter)

    def _let_next(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._let_next()

    def _close_old(self) -> None:
        """Those that were not used for long; the least lately used come first."""
        loop = asyncio.get_running_loop()
        self._sweep = None
        limit = loop.time() - KEEP_S
        for connection in [one for one in self._idle if one.idle_since <= limit]:
            self._idle.remove(connection)
            connection.abort()
        if self._idle:
            self._sweep = loop.call_at(self._idle[0].idle_since + KEEP_S, self._close_old)

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        address = self.address

        def make() -> Connection:
            return Connection(self.name, self._lost)

        try:
            if address.socket:
                _, connection = await loop.create_unix_connection(make, address.socket)
                return connection
        except OSError as error:
            raise self._unreachable(error) from None
        failure: OSError | None = None
        for family, host in await self._addresses():
            try:
                transport, connection = await loop.create_connection(
                    make,
                    host,
                    address.port,
                    family=family,
                    ssl=self._tls,
                    server_hostname=address.host if self._tls else None,
                )
            except OSError as error:  # ssl.SSLError is one
                failure = error
                continue
            sock = transport.get_extra_info("socket")
            if sock is not None:  # asyncio's own loop does it, uvloop does it: nothing relies on it
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return connection
        raise self._unreachable(failure)

    async def _addresses(self) -> list[tuple[_Family, str]]:
        loop = asyncio.get_running_loop()
        if loop.time() < self._hosts_until:
            return self._hosts
        if self._look_up is None:
            self._look_up = loop.create_task(self._resolve())
            self._look_up.add_done_callback(self._resolved)
        look_up = self._look_up
        try:
            # Others wait for the same answer: it is not cancelled with one of them
            return await asyncio.shield(look_up)
        except asyncio.CancelledError:
            if look_up.cancelled():  # by `close`, and not this request
                raise self._error("is no longer configured", status=503) from None
            raise

    async def _resolve(self) -> list[tuple[_Family, str]]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(
                self.address.host, self.address.port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:
            raise self._unreachable(error) from None
        hosts: list[tuple[_Family, str]] = [
            (family, str(place[0])) for family, _, _, _, place in found
        ]
        if not self.backend.allow_link_local and any(is_link_local(host) for _, host in hosts):
            raise self._error("has a link-local address, which its configuration does not allow")
        return hosts

    def _resolved(self, task: asyncio.Task[list[tuple[_Family, str]]]) -> None:
        self._look_up = None
        if not task.cancelled() and task.exception() is None:
            self._hosts = task.result()
            self._hosts_until = task.get_loop().time() + NAMES_S

    def _unreachable(self, error: OSError | UnicodeError | None) -> UpstreamError:
        """What was tried goes to the log: clients need not know our machines."""
        logger.warning("backend %s cannot be connected to: %s", self.name, error)
        return self._error("cannot be connected to")

    def _error(self, what: str, *, status: int = 502) -> UpstreamError:
        code = "upstream_timeout" if status == 504 else "upstream_unreachable"
        return UpstreamError(f"backend {self.name} {what}", status=status, code=code)


@cache
def _usual_tls() -> ssl.SSLContext:
    """For all backends that the system vouches for: reading its certificates takes a while."""
    return _own_tls("")


def _own_tls(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file or None)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _head(backend: Backend, address: Address) -> bytes:
    """Header lines that all requests to a backend have. They hold its key: never shown."""
    lines = {
        "Host": address.authority,
        "User-Agent": f"octavo/{__version__}",
        "Accept-Encoding": "identity",
    }
    for name, value in backend.headers.items():
        lines[name] = value.reveal()
    if backend.api_key is not None:
        key = backend.api_key.reveal()
        is_bearer = backend.auth_header.lower() == "authorization"
        lines[backend.auth_header] = f"Bearer {key}" if is_bearer else key
    return "".join(f"{name}: {value}\r\n" for name, value in lines.items()).encode("ascii")
