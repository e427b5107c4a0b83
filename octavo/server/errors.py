"""Every failure of a request as one answer, in the shape that its route's clients expect.

`ErrorAnswers` is a layer of the application: it turns whatever comes out of the layers below into a
body; nobody sees a traceback or a path of ours.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from octavo.errors import EngineError, NotFoundError, RequestError
from octavo.server.dialect import OPENAI
from octavo.server.scope import exchange_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Receive, Scope, Send

    from octavo.server.dialect import Dialect

logger = logging.getLogger("octavo.server")


MAX_QUOTED_PATH = 200
"""Characters of an unknown path that its error repeats."""


class InternalError(RequestError):
    """Something failed on our side; the log knows what, the caller only that it did."""

    status = 500
    type = "server_error"


class MethodNotAllowedError(NotFoundError):
    """The route exists, with other methods."""

    status = 405
    type = "invalid_request_error"


class SlowRequestError(RequestError):
    """The request's body stopped coming."""

    status = 408


def as_request_error(exc: Exception, request_id: str) -> RequestError:
    """What the caller may know of a failure. What the caller must not know goes to the log."""
    error = exc if isinstance(exc, RequestError) else _own_failure(exc, request_id)
    error.request_id = request_id
    return error


def _own_failure(exc: Exception, request_id: str) -> InternalError:
    if isinstance(exc, EngineError):
        logger.error("request %s: the engine failed: %s", request_id, exc)
        what, code = "The engine failed while it computed this request", "engine_error"
    else:
        logger.error("request %s: unexpected failure", request_id, exc_info=exc)
        what, code = "The server failed while it handled this request", "internal_error"
    return InternalError(f"{what}; the server's log names it {request_id}", code=code)


def error_response(
    exc: RequestError, headers: Mapping[str, str] | None = None, dialect: Dialect = OPENAI
) -> Response:
    """The answer that tells of a refused request."""
    body = msgspec.json.encode(dialect.error_body(exc))
    all_headers = {**(headers or {}), **exc.headers}
    if exc.status == 401:
        all_headers["WWW-Authenticate"] = "Bearer"
    if dialect.id_header and exc.request_id is not None:
        all_headers[dialect.id_header] = exc.request_id
    if exc.retry_after_s is not None:
        all_headers["Retry-After"] = str(exc.retry_after_s)
    return Response(body, exc.status, all_headers, "application/json")


def routing_error(scope: Scope, exc: HTTPException) -> RequestError:
    """Starlette's own errors: no such route (404), not with this method (405)."""
    if exc.status_code == 405:
        allowed = ", ".join(sorted((exc.headers or {}).get("Allow", "").split(", ")))
        return MethodNotAllowedError(
            f"{scope['method']} is not allowed here, use {allowed}", code="method_not_allowed"
        )
    where = f"{scope['method']} {scope['path'][:MAX_QUOTED_PATH]}"
    return NotFoundError(f"No such route: {where}", code="unknown_url")


def request_id_of(scope: Scope) -> str:
    """The id of the request, as its answer's header has it."""
    return exchange_of(scope).request_id


class ErrorAnswers:
    """Pure ASGI middleware: answers failures.

    Args:
        app: the layers below.
        dialects: of the paths whose clients do not speak OpenAI's.
    """

    def __init__(self, app: ASGIApp, dialects: Mapping[str, Dialect]) -> None:
        self._app = app
        self._dialects = dialects

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other scopes pass through."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: Mapping[str, str] | None = None
        try:
            await self._app(scope, receive, send)
            return
        except ClientDisconnect:
            raise
        except HTTPException as exc:
            error = as_request_error(routing_error(scope, exc), request_id_of(scope))
            headers = exc.headers
        except Exception as exc:
            error = as_request_error(exc, request_id_of(scope))
            if exchange_of(scope).status is not None:
                raise  # The server closes the connection, which tells the client.
        dialect = self._dialects.get(scope["path"], OPENAI)
        await error_response(error, headers, dialect)(scope, receive, send)
