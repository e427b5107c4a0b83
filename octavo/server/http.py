"""The seams between ASGI and the handlers: bodies in, JSON out, and clients that go away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from octavo.errors import RequestTooLargeError
from octavo.server.errors import SlowRequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    from starlette.requests import Request
    from starlette.types import Receive

BODY_SILENCE_S = 60.0
"""A body of which nothing more comes for so long is given up, seconds."""

_T = TypeVar("_T")
_encoder = msgspec.json.Encoder()


def json_response(value: Any) -> Response:
    """A 200 with the value (structs included) as JSON."""
    return Response(_encoder.encode(value), media_type="application/json")


async def read_body(request: Request, limit: int) -> bytes:
    """The request's body, never more than `limit` bytes of it in memory.

    Raises:
        RequestTooLargeError: it is longer, by its announcement or as it turns out.
        SlowRequestError: nothing more of it came for `BODY_SILENCE_S`.
        ClientDisconnect: the client went away before its end.
    """
    body = bytearray()
    async for chunk in body_chunks(request, limit):
        body += chunk
    return bytes(body)


async def body_chunks(request: Request, limit: int) -> AsyncGenerator[bytes, None]:
    """The request's body as it comes, `limit` bytes of it at most.

    Raises:
        RequestTooLargeError: it is longer, by its announcement or as it turns out.
        SlowRequestError: nothing more of it came for `BODY_SILENCE_S`.
        ClientDisconnect: the client went away before its end.
    """
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise _too_large(limit)
    num_bytes = 0
    while True:
        try:
            async with asyncio.timeout(BODY_SILENCE_S):
                message = await request.receive()
        except TimeoutError:
            raise SlowRequestError(
                f"Nothing more of the request body came for {BODY_SILENCE_S:.0f} s",
                code="request_timeout",
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > limit:
            raise _too_large(limit)
        yield chunk
        if not message.get("more_body", False):
            return


def _too_large(limit: int) -> RequestTooLargeError:
    return RequestTooLargeError(
        f"The request body is larger than the {limit} bytes that this server accepts",
        code="request_too_large",
    )


async def until_disconnect(
    receive: Receive,
    work: Coroutine[Any, Any, _T],
    *,
    tick: Callable[[], Awaitable[None]] | None = None,
    tick_s: float = 0.0,
) -> _T:
    """Run `work` while the client stays. The request's body must have been read.

    When the client goes, or this call is cancelled, `work` is cancelled and its end awaited, so
    that its generators are closed.

    Args:
        receive: the request's.
        work: to run.
        tick: called every `tick_s` seconds meanwhile.
        tick_s: 0: never.

    Raises:
        ClientDisconnect: the client went before `work` was done.
    """
    task = asyncio.ensure_future(work)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        while not (task.done() or watch.done()):
            await asyncio.wait(
                (task, watch), timeout=tick_s or None, return_when=asyncio.FIRST_COMPLETED
            )
            if tick is not None and not (task.done() or watch.done()):
                await tick()
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        watch.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
