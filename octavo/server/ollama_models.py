"""What Ollama's clients ask about models, and what they may not ask of this server."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from starlette.responses import PlainTextResponse

from octavo.errors import InvalidRequestError
from octavo.protocol import ollama_answers as api
from octavo.protocol.ollama import OllamaShowRequest
from octavo.server.context import context_of
from octavo.server.http import json_response
from octavo.server.ollama_chat import LATEST, served_name
from octavo.server.thinking import can_think

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.server.context import ServerContext

NEVER = datetime.max.replace(tzinfo=UTC)
"""When the model will be unloaded."""


async def ollama_root(request: Request) -> Response:
    """That a server is here: clients ask before they ask anything else."""
    return PlainTextResponse("Octavo is running")


async def ollama_version(request: Request) -> Response:
    """The version of Ollama whose API is served."""
    return json_response(api.OllamaVersion())


async def ollama_tags(request: Request) -> Response:
    """The models that requests may name: every served name of the one model."""
    context = context_of(request)
    models = [
        api.OllamaModel(
            name=name, model=name, modified_at=_started(context), details=_details(context)
        )
        for name in _names(context)
    ]
    return json_response(api.OllamaModels(models))


async def ollama_ps(request: Request) -> Response:
    """The loaded model, under each of its names."""
    context = context_of(request)
    memory = context.engine.info.memory
    models = [
        api.OllamaRunningModel(
            name=name,
            model=name,
            details=_details(context),
            expires_at=NEVER,
            context_length=context.engine.info.max_model_len,
            size_vram=sum(size for part, size in memory.items() if part != "total"),
        )
        for name in _names(context)
    ]
    return json_response(api.OllamaRunningModels(models))


async def ollama_show(request: Request) -> Response:
    """What is known of a model.

    Raises:
        RequestError: there is no such model.
    """
    context = context_of(request)
    body = await context.read(request, OllamaShowRequest)
    name = body.name if body.model is None else body.model
    if name is None or body.name not in (None, name):
        raise InvalidRequestError("model must say which model is meant", param="model")
    served_name(context, name)
    template = context.tokenizer.chat_template
    return json_response(
        api.OllamaShow(
            modified_at=_started(context),
            template=template.sources[0] if template is not None and template.sources else "",
            parameters="\n".join(_parameters(context)),
            details=_details(context),
            model_info=_info(context),
            capabilities=_capabilities(context),
        )
    )


async def ollama_refusal(request: Request) -> Response:
    """Models are chosen when the server starts: none is fetched, made, copied or deleted over HTTP.

    Raises:
        InvalidRequestError: always.
    """
    raise InvalidRequestError(
        f"{request.url.path} is not served: the model is chosen when the server starts, "
        "by octavo pull NAME and octavo serve NAME"
    )


def _names(context: ServerContext) -> list[str]:
    """The served names as Ollama spells them, with a tag."""
    names = context.config.served_model_names
    return [name if ":" in name else name + LATEST for name in names]


def _started(context: ServerContext) -> datetime:
    return datetime.fromtimestamp(context.started, UTC)


def _details(context: ServerContext) -> api.OllamaDetails:
    info = context.engine.info
    return api.OllamaDetails(
        family=info.architecture, families=[info.architecture], quantization_level=info.dtype
    )


def _parameters(context: ServerContext) -> list[str]:
    """The model's own defaults, in the lines of a Modelfile."""
    names = {"repetition_penalty": "repeat_penalty"}
    return [f"{names.get(name, name)} {value}" for name, value in context.defaults.items()]


def _info(context: ServerContext) -> dict[str, Any]:
    info = context.engine.info
    family = info.architecture
    return {
        "general.architecture": family,
        f"{family}.context_length": info.max_model_len,
        f"{family}.vocab_size": info.vocab_size,
    }


def _capabilities(context: ServerContext) -> list[str]:
    tasks = context.engine.info.tasks
    if "generate" not in tasks:
        return ["embedding"] if "embed" in tasks else []
    capabilities = ["completion"]
    if context.reading.formats.tools is not None:
        capabilities.append("tools")
    if can_think(context):
        capabilities.append("thinking")
    return capabilities
