"""The outermost layer: each request gets an id, an end in the log, and the id in its answer.

Knows nothing of what a request is about, nor of errors' bodies: a layer below makes those.
"""

from __future__ import annotations

import logging
import re
import time
from secrets import token_hex
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.requests import ClientDisconnect

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("octavo.access")

CLIENT_LEFT = 499
"""Stands in the log for the status of a request whose client did not wait for one (nginx's)."""

WRITE = "octavo.write"
"""An extension of the ASGI scope: a function that writes a piece of a streamed body at once, or
returns False where it cannot, and then `send` must be used. Servers need not have it."""

LEAVES = "octavo.leaves"
"""An extension of the ASGI scope: the set of functions that are called when the client goes, at
once and from the event loop. It costs nothing, as waiting in `receive` costs a task. Servers need
not have it."""

_GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class Exchange:
    """What the layers know of one request and its answer. Get it with `exchange_of`.

    Attributes:
        request_id: the caller's `X-Request-Id` if that is 1 to 128 visible ASCII characters, else
            one of ours.
        is_given_id: it is the caller's, who may have given it before.
        status: of the answer; None until it started.
        body_len: of the answer, bytes, where its head tells; else 0.
    """

    __slots__ = ("_send", "_write", "body_len", "is_given_id", "request_id", "status")

    def __init__(
        self, given_id: str | None, send: Send, write: Callable[[bytes], bool] | None
    ) -> None:
        self.request_id = given_id or uuid4().hex
        self.is_given_id = given_id is not None
        self.status: int | None = None
        self.body_len = 0
        self._send = send
        self._write = _never if write is None else write

    def unique_id(self) -> tuple[str, str]:
        """An id that no other request has, for records; and what the caller knows the request by,
        where that is another one, else empty.

        Callers and proxies may send one id many times, and each request is to be paid.
        """
        if self.is_given_id:
            return f"{self.request_id}.{token_hex(6)}", self.request_id
        return self.request_id, ""

    @property
    def write(self) -> Callable[[bytes], bool]:
        """Writes a piece of a started body that goes on, see `WRITE`."""
        return self._write

    async def send(self, piece: bytes, *, is_last: bool = False) -> None:
        """Send a piece of a started body by the server's own `send`.

        All layers want to see an answer's start and none its body, so what makes thousands of
        events goes past them.
        """
        await self._send({"type": "http.response.body", "body": piece, "more_body": not is_last})


def _never(piece: bytes) -> bool:
    return False


def exchange_of(scope: Scope) -> Exchange:
    """The exchange that `RequestScope` began."""
    exchange: Exchange = scope["state"]["exchange"]
    return exchange


class RequestScope:
    """Pure ASGI middleware, see the module.

    Args:
        app: the layers below.
        closes: whether connections shall end with their answers, asked when one starts.
        quiet_paths: probes come every few seconds: they are logged at level `debug`.
        observe: told of each request and its answer when that has ended, probes left out, with the
            seconds that it took; None: nobody wants to know.
    """

    def __init__(
        self,
        app: ASGIApp,
        closes: Callable[[], bool],
        quiet_paths: Collection[str],
        observe: Callable[[Scope, Exchange, float], None] | None = None,
    ) -> None:
        self._app = app
        self._closes = closes
        self._observe = observe
        self._quiet_paths = frozenset(quiet_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other scopes pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.perf_counter()
        exchange = Exchange(_given_id(scope), send, scope.get("extensions", {}).get(WRITE))
        scope.setdefault("state", {})["exchange"] = exchange

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                exchange.body_len = content_length(message.get("headers", ()))
                added = [(b"x-request-id", exchange.request_id.encode("ascii"))]
                if self._closes():
                    added.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        is_gone = False
        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            is_gone = True
        finally:
            seconds = time.perf_counter() - begin
            self._log(scope, exchange, is_gone, seconds)
            if self._observe is not None and scope["path"] not in self._quiet_paths:
                self._observe(scope, exchange, seconds)

    def _log(self, scope: Scope, exchange: Exchange, is_gone: bool, seconds: float) -> None:
        level = logging.DEBUG if scope["path"] in self._quiet_paths else logging.INFO
        if logger.isEnabledFor(level):
            client = scope.get("client")
            logger.log(
                level,
                "%s %s %s: %s in %.3f s, request %s",
                client[0] if client else "-",
                scope["method"],
                scope["path"],
                CLIENT_LEFT if is_gone else exchange.status or CLIENT_LEFT,
                seconds,
                exchange.request_id,
            )


def content_length(headers: Iterable[tuple[bytes, bytes]]) -> int:
    """Bytes of a body, as its head tells; 0: it does not."""
    for name, value in headers:
        if name.lower() == b"content-length" and value.isdigit() and len(value) < 19:
            return int(value)
    return 0


def _given_id(scope: Scope) -> str | None:
    """The caller's `X-Request-Id`, if it can be used."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            given: str = value.decode("ascii")
            return given
    return None
