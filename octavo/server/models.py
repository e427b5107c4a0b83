"""`GET /v1/models` and `GET /v1/models/{id}`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.protocol.models import ModelCard, ModelList
from octavo.server.context import ServerContext, context_of
from octavo.server.http import json_response

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


def _card(context: ServerContext, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        created=context.started,
        root=context.model_name,
        max_model_len=context.engine.info.max_model_len,
    )


async def list_models(request: Request) -> Response:
    """Every served name."""
    context = context_of(request)
    names = context.config.served_model_names
    return json_response(ModelList(data=[_card(context, name) for name in names]))


async def retrieve_model(request: Request) -> Response:
    """One served name.

    Raises:
        ModelNotServedError: it is not.
    """
    context = context_of(request)
    name: str = request.path_params["name"]
    context.check_model(name)
    return json_response(_card(context, name))
