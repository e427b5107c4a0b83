"""Runs the application under uvicorn, on a socket that is there already.

Knows no signals: whoever starts it sets `should_exit`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import uvicorn

from octavo.server.accept import Acceptor
from octavo.server.http_protocol import bounded

if TYPE_CHECKING:
    import asyncio
    import socket
    import ssl
    from collections.abc import Iterator

    from starlette.types import ASGIApp

    from octavo.observability.board import Gauge

KEEP_ALIVE_S = 75
"""How long a connection without a request stays open, seconds: longer than proxies keep theirs
(usually 60), so that they never send a request into one that is just being closed."""


class HTTPServer(uvicorn.Server):
    """One server on one socket; stops accepting when `should_exit` is set, and drains.

    Args:
        app: to serve.
        listener: listens; closed at the end.
        tls: speak TLS; None: plain HTTP.
        max_header_bytes: longer heads of requests are refused.
        connections: the open ones of all servers that take theirs from this listener; None: we are
            the only one.
    """

    def __init__(
        self,
        app: ASGIApp,
        listener: socket.socket,
        *,
        tls: ssl.SSLContext | None = None,
        max_header_bytes: int = 64 * 1024,
        connections: Gauge | None = None,
    ) -> None:
        config = uvicorn.Config(
            app,
            http=bounded(max_header_bytes),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,  # ours has the requests' ids
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
        )
        config.load()
        config.ssl = tls
        super().__init__(config)
        self._listener = listener
        self._acceptor = (
            None
            if connections is None
            else Acceptor(
                listener,
                self._protocol,
                connections,
                lambda: len(self.server_state.connections),
                tls=tls,
            )
        )
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # the launcher tells enough

    async def run_until_exit(self) -> None:
        """Serve until `should_exit`, then until the last connection is closed."""
        await self.serve(sockets=[] if self._acceptor is not None else [self._listener])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Let connections in."""
        await super().startup(sockets)
        if self._acceptor is not None:
            self._acceptor.start()

    async def on_tick(self, counter: int) -> bool:
        """What is done ten times a second."""
        if self._acceptor is not None:
            self._acceptor.publish()
        return await super().on_tick(counter)

    def stop_accepting(self) -> None:
        """Leave new connections to the other servers of the listener, if there are any."""
        if self._acceptor is not None:
            self._acceptor.stop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let no more connections in, and wait for the end of those that there are."""
        self.stop_accepting()
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        config = self.config
        assert not isinstance(config.http_protocol_class, str)
        return config.http_protocol_class(  # type: ignore[call-arg]
            config=config, server_state=self.server_state, app_state=self.lifespan.state
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the launcher."""
        yield
