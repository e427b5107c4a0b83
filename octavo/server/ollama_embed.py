"""Ollama's `POST /api/embed`, and `POST /api/embeddings`, its older shape."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.protocol import ollama_answers as api
from octavo.protocol.ollama import (
    OllamaEmbeddingsRequest,
    OllamaEmbedRequest,
    OllamaOptions,
    check_keep_alive,
)
from octavo.protocol.pooling import MAX_INPUTS, answer_id
from octavo.server.account import with_cost
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.http import json_response, until_disconnect
from octavo.server.ollama_chat import in_own_names, served_name
from octavo.server.vectors import embed, to_floats
from octavo.types import RequestOptions

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.server.account import Account
    from octavo.server.vectors import Vectors


async def ollama_embed(request: Request) -> Response:
    """Vectors of texts, each of length 1.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter_ns()
    context = context_of(request)
    body = await context.read(request, OllamaEmbedRequest)
    served_name(context, body.model)
    texts = [body.input] if isinstance(body.input, str) else body.input
    if len(texts) > MAX_INPUTS:
        raise InvalidRequestError(f"input must hold at most {MAX_INPUTS} texts", param="input")
    check_keep_alive(body.keep_alive, is_load=not texts)
    _check_options(request, body.options)
    begin = time.perf_counter_ns()
    account = context.usage.open(request.scope, arrived / 1e9)
    vectors = await _embed(
        request,
        texts,
        account=account,
        truncate=body.truncate is not False,
        dimensions=body.dimensions,
        is_normalized=True,
    )
    answer = api.OllamaEmbedAnswer(
        model=body.model,
        embeddings=[to_floats(vector) for vector in vectors.data],
        total_duration=time.perf_counter_ns() - arrived,
        load_duration=begin - arrived,
        prompt_eval_count=vectors.num_tokens,
    )
    return json_response(await with_cost(answer, account))


async def ollama_embeddings(request: Request) -> Response:
    """The vector of one text, as the model computes it.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter_ns()
    context = context_of(request)
    body = await context.read(request, OllamaEmbeddingsRequest)
    served_name(context, body.model)
    check_keep_alive(body.keep_alive, is_load=not body.prompt)
    _check_options(request, body.options)
    texts = [body.prompt] if body.prompt else []
    account = context.usage.open(request.scope, arrived / 1e9)
    vectors = await _embed(request, texts, account=account, param="prompt")
    answer = api.OllamaEmbeddingsAnswer(to_floats(vectors.data[0]) if vectors.data else [])
    return json_response(await with_cost(answer, account))


def _check_options(request: Request, options: OllamaOptions | None) -> None:
    try:
        (options or OllamaOptions()).check(context_of(request).engine.info.max_model_len)
    except InvalidRequestError as exc:
        raise in_own_names(exc) from None


async def _embed(
    request: Request,
    texts: list[str],
    *,
    account: Account,
    truncate: bool = True,
    dimensions: int | None = None,
    is_normalized: bool | None = None,
    param: str = "input",
) -> Vectors:
    """The vectors; no texts only ask for the model to be there."""
    context = context_of(request)
    try:
        return await until_disconnect(
            request.receive,
            embed(
                context,
                texts,
                request_id=answer_id("embd"),
                account=account,
                options=RequestOptions(tenant=tenant_of(request.scope)),
                max_len=context.engine.info.max_model_len if truncate else None,
                dimensions=dimensions,
                is_normalized=is_normalized,
                param=param,
            ),
        )
    except InvalidRequestError as exc:
        message = exc.message.replace("give truncate_prompt_tokens", "leave out truncate")
        raise InvalidRequestError(message, param=exc.param, code=exc.code) from None
