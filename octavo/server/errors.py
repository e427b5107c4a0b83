"""Every failure of a request as one answer in OpenAI's shape.

`RequestScope` is the outermost layer of the application: it names the request (`X-Request-Id`)
and turns whatever comes out of the layers below into a body; nobody sees a traceback or a path.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from octavo.errors import EngineError, NotFoundError, RequestError
from octavo.protocol.errors import ErrorBody

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("octavo.server")

_GIVEN_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class InternalError(RequestError):
    """Something failed on our side; the log knows what, the caller only that it did."""

    status = 500
    type = "server_error"


class MethodNotAllowedError(NotFoundError):
    """The route exists, with other methods."""

    status = 405
    type = "invalid_request_error"


def as_request_error(exc: Exception, request_id: str) -> RequestError:
    """What the caller may know of a failure. What the caller must not know goes to the log."""
    if isinstance(exc, RequestError):
        return exc
    if isinstance(exc, EngineError):
        logger.error("request %s: the engine failed: %s", request_id, exc)
        what, code = "The engine failed while it computed this request", "engine_error"
    else:
        logger.error("request %s: unexpected failure", request_id, exc_info=exc)
        what, code = "The server failed while it handled this request", "internal_error"
    return InternalError(f"{what}; the server's log names it {request_id}", code=code)


def error_response(exc: RequestError, headers: Mapping[str, str] | None = None) -> Response:
    """The answer that tells of a refused request."""
    body = msgspec.json.encode(ErrorBody.of(exc))
    all_headers = dict(headers or {})
    if exc.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    if exc.retry_after_s is not None:
        all_headers["Retry-After"] = str(exc.retry_after_s)
    return Response(body, exc.status, all_headers, "application/json")


async def on_http_exception(request: Request, exc: Any) -> Response:
    """Starlette's own errors: no such route (404), not with this method (405)."""
    where = f"{request.method} {request.url.path}"
    error: RequestError
    if exc.status_code == 405:
        allowed = ", ".join(sorted((exc.headers or {}).get("Allow", "").split(", ")))
        error = MethodNotAllowedError(
            f"{request.method} is not allowed here, use {allowed}", code="method_not_allowed"
        )
    else:
        error = NotFoundError(f"No such route: {where}", code="unknown_url")
    return error_response(error, exc.headers)


def request_id_of(scope: Scope) -> str:
    """The id that `RequestScope` gave to the request."""
    request_id: str = scope["state"]["request_id"]
    return request_id


def _choose_request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _GIVEN_ID.fullmatch(value):
            given: str = value.decode("ascii")
            return given
    return uuid4().hex


class RequestScope:
    """Pure ASGI middleware: gives the request its id, answers failures, echoes the id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other scopes pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = _choose_request_id(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        has_started = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_started
            if message["type"] == "http.response.start":
                has_started = True
                header = (b"x-request-id", request_id.encode("ascii"))
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except ClientDisconnect:
            logger.debug("request %s: the client went away", request_id)
        except Exception as exc:
            if has_started:
                raise  # The server closes the connection, which tells the client.
            response = error_response(as_request_error(exc, request_id))
            await response(scope, receive, send_with_id)
