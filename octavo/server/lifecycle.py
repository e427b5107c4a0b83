"""Whether a server takes requests, and how many it works on: for readiness, load and the drain.

Knows no engine. Belongs to the server's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from octavo.errors import EngineUnavailableError
from octavo.observability.board import Gauge

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from starlette.types import ASGIApp, Receive, Scope, Send

DRAIN_RETRY_S = 1
"""What callers are told to wait while a server drains, seconds: another one may take them."""


class Lifecycle:
    """See the module.

    Attributes:
        num_open: requests that are being worked on.
        open_requests: the same, where other API servers of the engine see it and we see theirs.
        is_draining: no new ones are taken.
    """

    def __init__(self) -> None:
        self.num_open = 0
        self.open_requests = Gauge()
        self.is_draining = False
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Count a request while the context is open.

        Raises:
            EngineUnavailableError: the server drains.
        """
        self.check_open()
        self._count(1)
        self._idle.clear()
        try:
            yield
        finally:
            self._count(-1)
            if not self.num_open:
                self._idle.set()

    def check_open(self) -> None:
        """Return while new requests are taken.

        Raises:
            EngineUnavailableError: the server drains.
        """
        if self.is_draining:
            raise EngineUnavailableError(
                "The server is shutting down", code="shutting_down", retry_after_s=DRAIN_RETRY_S
            )

    def drain(self) -> None:
        """Take no more requests, from now on."""
        self.is_draining = True

    async def wait_idle(self) -> None:
        """Wait until no request is being worked on."""
        await self._idle.wait()

    def _count(self, change: int) -> None:
        self.num_open += change
        self.open_requests.value = self.num_open


class Admission:
    """Pure ASGI middleware: counts requests, and refuses them while the server drains.

    Args:
        app: the layers below.
        lifecycle: the server's.
        operational_paths: answered always, and not counted: they are asked about the others.
    """

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, operational_paths: Collection[str]
    ) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._operational_paths = frozenset(operational_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request.

        Raises:
            EngineUnavailableError: the server drains.
        """
        if scope["type"] != "http" or scope["path"] in self._operational_paths:
            await self._app(scope, receive, send)
            return
        with self._lifecycle.request():
            await self._app(scope, receive, send)
