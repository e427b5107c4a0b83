"""Runs the application under uvicorn, on a socket that is there already.

Knows no signals: whoever starts it sets `should_exit`.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import uvicorn
import uvicorn.protocols.http.httptools_impl

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

    from starlette.types import ASGIApp


class HTTPServer(uvicorn.Server):
    """One server on one socket; stops accepting when `should_exit` is set, and drains.

    Args:
        app: to serve.
        listener: listens; closed at the end.
    """

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                ws="none",
                lifespan="off",
                log_config=None,
                server_header=False,
            )
        )
        self._listener = listener
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # the launcher tells enough

    async def run_until_exit(self) -> None:
        """Serve until `should_exit`, then until the last connection is closed."""
        await self.serve(sockets=[self._listener])

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the launcher."""
        yield
