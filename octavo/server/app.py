"""The HTTP application: routes, and the layers around them.

Importing this is cheap on purpose: no torch, no tokenizer, no template engine.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.routing import Route, Router

from octavo.errors import ConfigError, InvalidRequestError
from octavo.observability.metrics import Metrics
from octavo.protocol.generation import DEFAULTED_FIELDS
from octavo.server.auth import Authentication
from octavo.server.batch_runs import BatchRuns
from octavo.server.context import ServerContext
from octavo.server.errors import ErrorAnswers
from octavo.server.lifecycle import Admission, Lifecycle
from octavo.server.metering import UsageBook
from octavo.server.openapi import document
from octavo.server.parsing import answer_reading
from octavo.server.prompts import PromptEncoder
from octavo.server.routes import ENDPOINTS
from octavo.server.scope import CLIENT_LEFT, RequestScope, content_length
from octavo.server.server_state import ServerState
from octavo.server.tracing import TracedRequests
from octavo.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from starlette.types import ASGIApp, Receive, Scope, Send

    from octavo.config import ServerConfig
    from octavo.engine.interface import EngineClient
    from octavo.observability.tracing_export import Telemetry
    from octavo.server.context import GrammarCheck
    from octavo.server.metering import RecordSink
    from octavo.server.prompts import TokenizerLike
    from octavo.server.routes import Endpoint
    from octavo.server.scope import Exchange


class Application:
    """One server's routes behind its layers; an ASGI application without lifespan.

    From the outside in: request ids and the log; traces, where they are wanted; CORS, where pages
    may ask; errors as answers; authentication; the drain and the load; the routes.

    Args:
        context: what the handlers share.
        config: the whole of it, API keys' digests included.
        endpoints: the routes.
        telemetry: told of every request; None: nobody wants to know.
    """

    def __init__(
        self,
        context: ServerContext,
        config: ServerConfig,
        endpoints: Sequence[Endpoint] = ENDPOINTS,
        telemetry: Telemetry | None = None,
    ) -> None:
        self.context = context
        self.endpoints = tuple(endpoints)
        self._needs_key = bool(config.api_key_digests)
        lifecycle = context.lifecycle
        operational = [e.path for e in self.endpoints if e.is_operational]
        routes = [Route(e.path, e.handler, methods=list(e.methods)) for e in self.endpoints]
        layer: ASGIApp = Router(routes, redirect_slashes=False)
        layer = Admission(layer, lifecycle, operational)
        dialects = {e.path: e.dialect for e in self.endpoints}
        tracer = None if telemetry is None else telemetry.tracer
        within: ASGIApp = ErrorAnswers(layer, dialects)
        if tracer is not None:
            within = TracedRequests(within, tracer, self.endpoints, is_internal=True)
        self._within: ASGIApp = RequestScope(within, lambda: lifecycle.is_draining, operational)
        self.batch_runs = BatchRuns(context, self._within_for)
        layer = Authentication(
            layer, config.api_key_digests, [e.path for e in self.endpoints if e.is_open]
        )
        layer = ErrorAnswers(layer, dialects)
        if config.allowed_origins:
            from starlette.middleware.cors import CORSMiddleware  # few need it

            layer = CORSMiddleware(
                layer,
                allow_origins=config.allowed_origins,
                allow_methods=config.allowed_methods,
                allow_headers=config.allowed_headers,
                allow_credentials=config.allow_credentials,
                expose_headers=("X-Request-Id", "Retry-After", "traceresponse"),
            )
        if tracer is not None:
            layer = TracedRequests(layer, tracer, self.endpoints)
        self._handlers: dict[Any, str] = {e.handler: e.path for e in self.endpoints}
        self._http = context.metrics.track_http(
            (e.path, method) for e in self.endpoints if not e.is_operational for method in e.methods
        )
        self._stack: ASGIApp = RequestScope(
            layer, lambda: lifecycle.is_draining, operational, self._observe
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        scope["app"] = self
        await self._stack(scope, receive, send)

    def start(self) -> None:
        """Begin what runs without a request: batches that were left. Call it in the event loop."""
        self.batch_runs.start()

    def _observe(self, scope: Scope, exchange: Exchange, seconds: float) -> None:
        """Count an answer; a route's path stands for all that it takes."""
        self._http.observe(
            self._handlers.get(scope.get("endpoint")),
            scope["method"],
            exchange.status or CLIENT_LEFT,
            seconds,
            (content_length(scope["headers"]), exchange.body_len),
        )

    def _within_for(self, tenant: str) -> ASGIApp:
        """The application for requests that we make ourselves, in the name of a tenant: all of its
        layers but the one that asks for a key.
        """

        async def call(scope: Scope, receive: Receive, send: Send) -> None:
            own = {**scope, "app": self, "state": {"tenant": tenant}}
            await self._within(own, receive, send)

        return call

    @cached_property
    def openapi_body(self) -> bytes:
        """The answer of `/openapi.json`."""
        return msgspec.json.encode(document(self.endpoints, needs_key=self._needs_key))


def create_app(
    engine: EngineClient,
    tokenizer: TokenizerLike,
    config: ServerConfig,
    *,
    metrics: Metrics | None = None,
    defaults: Mapping[str, Any] | None = None,
    grammars: GrammarCheck | None = None,
    ledger: RecordSink | None = None,
    telemetry: Telemetry | None = None,
) -> Application:
    """The OpenAI application over an engine.

    Args:
        engine: ready; the caller closes it.
        tokenizer: the served model's.
        config: `served_model_names` must name the model; host and port are not looked at.
        metrics: where requests are counted; None: a registry of its own.
        defaults: the model's generation_config; those of `DEFAULTED_FIELDS` hold for requests that
            leave them out.
        grammars: tries out what outputs shall follow, before the engine sees it; the caller closes
            it.
        ledger: where usage records go; the caller calls `context.usage.settle` before closing it.
            None: nowhere.
        telemetry: told of every request; the caller shuts it down. None: nobody wants to know.

    Raises:
        ConfigError: no served name, a default out of range, no such format of answers.
    """
    if not config.served_model_names:
        raise ConfigError("give the served model a name")
    if metrics is None:
        metrics = Metrics(
            config.served_model_names[0],
            lambda: engine.stats,
            info=engine.info,
            check_health=engine.check_health,
            currency=config.currency,
        )
    encoder = PromptEncoder(
        tokenizer,
        vocab_size=engine.info.vocab_size,
        max_model_len=engine.info.max_model_len,
        trusts_chat_templates=config.trust_request_chat_template,
    )
    lifecycle = Lifecycle()
    context = ServerContext(
        engine,
        tokenizer,
        encoder,
        msgspec.structs.replace(config, api_key_digests=()),
        metrics,
        _checked_defaults(defaults or {}),
        answer_reading(config, tokenizer),
        UsageBook(engine, metrics, config, ledger),
        ServerState(config.state_dir, lifecycle),
        lifecycle,
        grammars,
    )
    return Application(context, config, telemetry=telemetry)


def _checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults among the model's, known to be in range."""
    used = {name: defaults[name] for name in DEFAULTED_FIELDS if defaults.get(name) is not None}
    try:
        SamplingParams(**used)
    except (InvalidRequestError, TypeError) as exc:
        raise ConfigError(f"the model's generation_config is unusable: {exc}") from exc
    return used
