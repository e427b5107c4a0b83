"""A response of server-sent events that is still an ordinary error until its first event."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from octavo.protocol import sse
from octavo.protocol.errors import ErrorBody
from octavo.server.errors import as_request_error, request_id_of
from octavo.server.http import until_disconnect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.types import Receive, Scope, Send

_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class EventStream:
    """Sends what a generator yields, as it comes, then `[DONE]`.

    The generator is closed when it is exhausted, fails, or the client goes. If it fails before its
    first item, the exception leaves this call and nothing was sent; later, an event with OpenAI's
    error body comes before `[DONE]`.

    Args:
        events: complete events; an item may hold several or none.
    """

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run as the response of one request whose body has been read."""
        await until_disconnect(receive, self._send_all(scope, send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        async with aclosing(self._events) as events:
            chunk: bytes | None = await anext(events)
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            try:
                while chunk is not None:
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
                    chunk = await anext(events, None)
                end = sse.DONE
            except Exception as exc:
                error = as_request_error(exc, request_id_of(scope))
                end = sse.event(ErrorBody.of(error)) + sse.DONE
            await send({"type": "http.response.body", "body": end})
