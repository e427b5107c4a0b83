"""The HTTP application: routes, and the layers around them.

Importing this is cheap on purpose: no torch, no tokenizer, no template engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.routing import Route

from octavo.errors import ConfigError, InvalidRequestError
from octavo.observability.metrics import Metrics
from octavo.protocol.generation import DEFAULTED_FIELDS
from octavo.server.auth import Authentication
from octavo.server.chat import create_chat_completion
from octavo.server.completions import create_completion
from octavo.server.context import ServerContext
from octavo.server.errors import RequestScope, on_http_exception
from octavo.server.health import health, version
from octavo.server.health import metrics as metrics_route
from octavo.server.models import list_models, retrieve_model
from octavo.server.prompts import PromptEncoder
from octavo.server.tokenize import detokenize, tokenize
from octavo.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.config import ServerConfig
    from octavo.engine.interface import EngineClient
    from octavo.server.prompts import TokenizerLike


def create_app(
    engine: EngineClient,
    tokenizer: TokenizerLike,
    config: ServerConfig,
    *,
    metrics: Metrics | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> Starlette:
    """The OpenAI application over an engine.

    Args:
        engine: ready; the caller closes it.
        tokenizer: the served model's.
        config: `served_model_names` must name the model; host and port are not looked at.
        metrics: where requests are counted; None: a registry of its own.
        defaults: the model's generation_config; its `temperature`, `top_p`, `top_k` and `min_p`
            hold for requests that leave them out.

    Raises:
        ConfigError: no served name, an unusable API key, a default out of range.
    """
    if not config.served_model_names:
        raise ConfigError("give the served model a name")
    if metrics is None:
        metrics = Metrics(config.served_model_names[0], lambda: engine.stats)
    encoder = PromptEncoder(
        tokenizer,
        vocab_size=engine.info.vocab_size,
        max_model_len=engine.info.max_model_len,
    )
    app = Starlette(
        routes=[
            Route("/v1/models", list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", retrieve_model, methods=["GET"]),
            Route("/v1/completions", create_completion, methods=["POST"]),
            Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
            Route("/tokenize", tokenize, methods=["POST"]),
            Route("/detokenize", detokenize, methods=["POST"]),
            Route("/health", health, methods=["GET"]),
            Route("/version", version, methods=["GET"]),
            Route("/metrics", metrics_route, methods=["GET"]),
        ],
        middleware=[
            Middleware(RequestScope),
            Middleware(Authentication, keys=config.api_keys),
        ],
        exception_handlers={HTTPException: on_http_exception},
    )
    app.router.redirect_slashes = False
    app.middleware_stack = app.build_middleware_stack()  # Unusable keys show now, not later.
    app.state.context = ServerContext(
        engine, tokenizer, encoder, config, metrics, _checked_defaults(defaults or {})
    )
    return app


def _checked_defaults(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling defaults among the model's, known to be in range."""
    used = {name: defaults[name] for name in DEFAULTED_FIELDS if defaults.get(name) is not None}
    try:
        SamplingParams(**used)
    except (InvalidRequestError, TypeError) as exc:
        raise ConfigError(f"the model's generation_config is unusable: {exc}") from exc
    return used
