"""Shares out the connections of one listening socket among several processes.

All of them wake when a client comes. Whoever has the fewest connections takes it; the others step
aside for a moment, and look again in case it could not. Streams last long, so that what matters is
where a connection goes, and event loops' own way of accepting, everything that waits at once, would
give a burst to whoever wakes first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from octavo.observability.board import Gauge

logger = logging.getLogger("octavo.server")

STEP_ASIDE_S = 0.002
"""How long others get to take a connection before us, seconds: a busy event loop's turn."""

EXHAUSTED_S = 0.1
"""Pause when there are no descriptors left, seconds."""


class Acceptor:
    """See the module. Belongs to the running event loop.

    Args:
        listener: listens already, or will when `start` is called; closed by `stop`.
        make_protocol: for each connection.
        connections: what each process has open.
        num_open: how many of our protocols have a connection.
        tls: speak TLS.
    """

    def __init__(
        self,
        listener: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        connections: Gauge,
        num_open: Callable[[], int],
        *,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._listener = listener
        self._make_protocol = make_protocol
        self._connections = connections
        self._num_open = num_open
        self._tls = tls
        self._opening: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Take connections from now on."""
        self._listener.setblocking(False)
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_client)

    def stop(self) -> None:
        """Take no more; the other processes still do."""
        if self._pause is not None:
            self._pause.cancel()
        if self._listener.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listener.fileno())
            self._listener.close()

    def publish(self) -> None:
        """Tell the others how many connections we have."""
        self._connections.value = self._num_open() + len(self._opening)

    def _on_client(self) -> None:
        self.publish()
        if self._connections.value > min(self._connections.others, default=0):
            self._step_aside(STEP_ASIDE_S)
        else:
            self._accept()

    def _step_aside(self, duration_s: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._listener.fileno())
        self._pause = loop.call_later(duration_s, self._step_back)

    def _step_back(self) -> None:
        self._pause = None
        asyncio.get_running_loop().add_reader(self._listener.fileno(), self._on_client)
        self._accept()  # if it is still there: the others are busy, or worse

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process was faster, or the client left
        except OSError as error:
            logger.error("cannot accept connections: %s", error.strerror)
            if self._pause is None:
                self._step_aside(EXHAUSTED_S)
            return
        client.setblocking(False)
        if client.family != socket.AF_UNIX:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.ensure_future(self._open(client))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self.publish()

    async def _open(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):  # it left, or its handshake failed: SSLError is one
            await loop.connect_accepted_socket(self._make_protocol, client, ssl=self._tls)
