"""Traces of HTTP requests: a layer of the application, which is there where telemetry is wanted.

Knows what HTTP says of a request, and what a route asks the model for. Probes and scrapes are not
traced: they come every few seconds.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from starlette.requests import ClientDisconnect

from octavo.observability import tracing_names as names
from octavo.observability.trace_context import trace_context_of, trace_id_of
from octavo.observability.tracing import within
from octavo.server.scope import exchange_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from octavo.observability.tracing_spans import Attributes, RequestTrace, Tracer
    from octavo.server.routes import Endpoint

CHAT, COMPLETION, EMBEDDINGS = "chat", "text_completion", "embeddings"
OPERATIONS = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": CHAT,
    "/api/chat": CHAT,
    "/v1/completions": COMPLETION,
    "/api/generate": COMPLETION,
    "/v1/embeddings": EMBEDDINGS,
    "/pooling": EMBEDDINGS,
    "/api/embed": EMBEDDINGS,
    "/api/embeddings": EMBEDDINGS,
    "/classify": "classify",
    "/score": "score",
    "/v1/score": "score",
    "/rerank": "rerank",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
}
"""What paths ask the model for: the first three words are of the conventions, the others ours."""

METHODS = frozenset(
    {"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"}
)
MAX_TEXT_LEN = 256
"""Characters of a caller's own words (path, program) that a span keeps."""


def trace_of(scope: Scope) -> RequestTrace | None:
    """The trace of a request; None: nobody wants one."""
    trace: RequestTrace | None = scope.get("state", {}).get("trace")
    return trace


def trace_id_of_request(scope: Scope) -> str:
    """The id of the trace that a request is in, ours if we began it; empty: it is in none."""
    trace = trace_of(scope)
    return trace_id_of(scope["headers"]) if trace is None else trace.trace_id


class TracedRequests:
    """Pure ASGI middleware, see the module. Needs `RequestScope` above it.

    Args:
        app: the layers below.
        tracer: begins traces.
        endpoints: the routes.
        is_internal: the requests are our own, and no client waits for them.
    """

    def __init__(
        self,
        app: ASGIApp,
        tracer: Tracer,
        endpoints: Iterable[Endpoint],
        *,
        is_internal: bool = False,
    ) -> None:
        from octavo.observability.tracing_spans import INTERNAL, SERVER

        self._app = app
        self._tracer = tracer
        self._kind = INTERNAL if is_internal else SERVER
        endpoints = tuple(endpoints)
        self._quiet = frozenset(e.path for e in endpoints if e.is_operational)
        self._paths: dict[Any, str] = {e.handler: e.path for e in endpoints}
        self._fixed = frozenset(e.path for e in endpoints if "{" not in e.path)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request; other scopes pass through."""
        if scope["type"] != "http" or scope["path"] in self._quiet:
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        trace = self._tracer.begin(
            f"{'HTTP' if method == '_OTHER' else method} {path}" if path in self._fixed else method,
            OPERATIONS.get(path, COMPLETION),
            _attributes(scope, method),
            trace_context_of(scope["headers"]),
            kind=self._kind,
        )
        scope["state"]["trace"] = trace
        told = (b"traceresponse", str(trace.place).encode("ascii"))
        status = 0

        async def send_with_trace(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), told]}
            await send(message)

        error_type = ""
        try:
            with within(trace):
                await self._app(scope, receive, send_with_trace)
        except ClientDisconnect:
            error_type = "client_disconnected"
            raise
        except BaseException as exc:
            error_type = type(exc).__name__
            raise
        finally:
            if status:
                trace.attributes[names.STATUS] = status
            self._name_route(scope, trace, method)
            trace.end(
                error_type or (str(status) if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "")
            )

    def _name_route(self, scope: Scope, trace: RequestTrace, method: str) -> None:
        """Name the route that took the request, which is known once it did."""
        path = scope["path"]
        route = path if path in self._fixed else self._paths.get(scope.get("endpoint"))
        if route is not None:
            trace.attributes[names.ROUTE] = route
            trace.name = f"{'HTTP' if method == '_OTHER' else method} {route}"


def _attributes(scope: Scope, method: str) -> Attributes:
    """What HTTP says of a request, but for its query, which may hold secrets."""
    found: Attributes = {
        names.METHOD: method,
        names.URL_PATH: scope["path"][:MAX_TEXT_LEN],
        names.URL_SCHEME: scope.get("scheme", "http"),
        names.PROTOCOL_VERSION: scope.get("http_version", "1.1"),
        names.REQUEST_ID: exchange_of(scope).request_id,
    }
    server, client = scope.get("server"), scope.get("client")
    if server is not None:
        found[names.SERVER_ADDRESS] = server[0]
        if server[1] is not None:
            found[names.SERVER_PORT] = server[1]
    if client is not None:
        found[names.CLIENT_ADDRESS], found[names.CLIENT_PORT] = client
    for name, value in scope["headers"]:
        if name == b"user-agent":
            found[names.USER_AGENT] = value[:MAX_TEXT_LEN].decode("latin-1")
            break
    return found
