"""The gateway's HTTP application: calls are forwarded (`forward`), the rest is told of the gateway
itself: models, health, metrics, administration.

From the outside in: request ids and the log; errors as answers, in the dialect of their route; the
drain. Calls take no router: there are seven paths, and they are what a gateway does all day.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route, Router

from octavo.errors import EngineUnavailableError, ModelNotServedError
from octavo.gateway.forward import DIALECTS, Forward, who
from octavo.gateway.model import PATHS, Target
from octavo.protocol.status import Load, Status, Version
from octavo.server.errors import ErrorAnswers
from octavo.server.http import json_response
from octavo.server.lifecycle import Lifecycle
from octavo.server.scope import CLIENT_LEFT, RequestScope
from octavo.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from starlette.requests import Request
    from starlette.routing import BaseRoute
    from starlette.types import Receive, Scope, Send

    from octavo.gateway.gateway_metrics import GatewayMetrics
    from octavo.gateway.model import KeyInfo
    from octavo.gateway.parts import Parts
    from octavo.server.scope import Exchange

PROBES = ("/health", "/health/live", "/health/ready", "/ready", "/ping", "/metrics", "/load")


class GatewayApplication:
    """An ASGI application without lifespan.

    Args:
        parts: of the configuration in force; `parts` may be set to others.
        metrics: where requests are counted.
        more: further routes, which see to it themselves who may use them.

    Attributes:
        parts: those that new requests get.
        lifecycle: of this server: how many requests it has, and whether it drains.
    """

    def __init__(
        self, parts: Parts, metrics: GatewayMetrics, more: Sequence[BaseRoute] = ()
    ) -> None:
        self.parts = parts
        self.lifecycle = Lifecycle()
        self.metrics = metrics
        self._started = int(time.time())
        self._running: set[Forward] = set()
        get = ["GET"]
        self._router = Router(
            [
                Route("/v1/models", self._with_key(self._models), methods=get),
                Route("/v1/models/{name:path}", self._with_key(self._model), methods=get),
                Route("/health", _alive, methods=get),
                Route("/health/live", _alive, methods=get),
                Route("/health/ready", self._ready, methods=get),
                Route("/ready", self._ready, methods=get),
                Route("/ping", _alive, methods=["GET", "POST"]),
                Route("/load", self._load, methods=get),
                Route("/version", _version, methods=get),
                Route("/metrics", self._metrics, methods=get),
                *more,
            ],
            redirect_slashes=False,
        )
        dialects = {path: DIALECTS[route] for path, route in PATHS.items() if route in DIALECTS}
        self._stack = RequestScope(
            ErrorAnswers(self._serve, dialects),
            lambda: self.lifecycle.is_draining,
            PROBES,
            self._observe,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            scope["app"] = self  # so that the router raises what it does not know
            await self._stack(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})

    def end_all(self) -> None:
        """End what still runs; clients are told."""
        for forward in list(self._running):
            forward.end()

    def abort_all(self) -> None:
        """End what even then does, as its clients read nothing. It is settled and recorded."""
        for forward in list(self._running):
            forward.abort()

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = PATHS.get(scope["path"])
        if route is None:
            if scope["path"] in PROBES:
                await self._router(scope, receive, send)
                return
            with self.lifecycle.request():
                await self._router(scope, receive, send)
            return
        if scope["method"] != "POST":
            raise HTTPException(405, headers={"Allow": "POST"})
        with self.lifecycle.request():
            parts, metrics = self.parts, self.metrics
            parts.num_open += 1
            metrics.num_open += 1
            forward = Forward(scope, receive, send, route, parts, metrics)
            self._running.add(forward)
            try:
                await forward.run()
            finally:
                self._running.discard(forward)
                metrics.num_open -= 1
                parts.leave()

    def _observe(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        route = PATHS.get(scope["path"], "other")
        self.metrics.observe_request(route, exchange.status or CLIENT_LEFT, seconds)

    def _with_key(self, handler: Callable[[Request, Any], Response]) -> Callable[[Request], Any]:
        """A handler that a caller's key opens."""

        async def answer(request: Request) -> Response:
            return handler(request, await who(request.scope, self.parts))

        return answer

    def _models(self, request: Request, key: KeyInfo) -> Response:
        """Every name that the key may ask for."""
        names = self.parts.router.names_for(key)
        return json_response({"object": "list", "data": [self._card(name) for name in names]})

    def _model(self, request: Request, key: KeyInfo) -> Response:
        """One of them.

        Raises:
            ModelNotServedError: it is not.
        """
        name: str = request.path_params["name"]
        if name not in self.parts.router.names_for(key):
            raise ModelNotServedError(
                f"The model {name[:256]!r} does not exist here", code="model_not_found"
            )
        return json_response(self._card(name))

    def _card(self, name: str) -> dict[str, Any]:
        card: dict[str, Any] = {
            "id": name,
            "object": "model",
            "created": self._started,
            "owned_by": "octavo",
        }
        alias = self.parts.config.models.get(name)
        if alias is not None and alias.description:
            card["description"] = alias.description
        return card

    async def _ready(self, request: Request) -> Response:
        """Whether new requests should come here.

        Raises:
            EngineUnavailableError: the gateway drains, or no backend can be used.
        """
        self.lifecycle.check_open()
        parts = self.parts
        health = parts.dispatcher.health
        if not any(
            health.is_usable(Target(name, model))
            for name, backend in parts.config.backends.items()
            for model in backend.models
        ):
            raise EngineUnavailableError("No backend can be used now", code="no_backend")
        return json_response(Status())

    async def _load(self, request: Request) -> Response:
        """How many requests are worked on."""
        return json_response(Load(self.metrics.num_open))

    async def _metrics(self, request: Request) -> Response:
        """All metrics in Prometheus' format."""
        accept = request.headers.get("accept", "")
        body, kind = await self.metrics.exposition(accept, self.parts)
        return Response(body, headers={"content-type": kind})


async def _alive(request: Request) -> Response:
    return json_response(Status())


async def _version(request: Request) -> Response:
    return json_response(Version(__version__))
