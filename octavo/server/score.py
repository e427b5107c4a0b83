"""`POST /score` and `POST /rerank`: pairs of texts, by a cross-encoder or by embeddings' cosine."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from octavo.errors import InvalidRequestError
from octavo.protocol.pooling import InputUsage, PoolingFields, answer_id
from octavo.protocol.score import (
    RerankAnswer,
    RerankDocument,
    RerankRequest,
    RerankResult,
    RerankUsage,
    Score,
    ScoreAnswer,
    ScoreRequest,
)
from octavo.server.account import with_cost
from octavo.server.auth import tenant_of
from octavo.server.context import ServerContext, context_of
from octavo.server.http import json_response, until_disconnect
from octavo.server.vectors import embed, encode, pool, to_floats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.server.account import Account


async def score(request: Request) -> Response:
    """How well each pair of texts goes together.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, ScoreRequest)
    context.check_model(body.model)
    account = context.usage.open(request.scope, arrived, user=body.user)
    name = answer_id("score")
    pairs = body.pairs()
    work = _scores(request, context, body, pairs, ("text_1", "text_2"), name, account)
    scores, num_tokens = await work
    return json_response(
        ScoreAnswer(
            id=name,
            model=context.model_name,
            data=[Score(index=index, score=value) for index, value in enumerate(scores)],
            usage=await with_cost(InputUsage(num_tokens, num_tokens), account),
        )
    )


async def rerank(request: Request) -> Response:
    """Documents in the order of how well they go with a query.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, RerankRequest)
    context.check_model(body.model)
    account = context.usage.open(request.scope, arrived, user=body.user)
    name = answer_id("rerank")
    texts = body.texts()
    pairs = [(body.query, text) for text in texts]
    work = _scores(request, context, body, pairs, ("query", "documents"), name, account)
    scores, num_tokens = await work
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    results = [
        RerankResult(
            index=index,
            relevance_score=scores[index],
            document=None if body.return_documents is False else RerankDocument(texts[index]),
        )
        for index in order[: body.top_n or None]
    ]
    usage = await with_cost(RerankUsage(num_tokens), account)
    return json_response(
        RerankAnswer(id=name, model=context.model_name, usage=usage, results=results)
    )


async def _scores(
    request: Request,
    context: ServerContext,
    body: PoolingFields,
    pairs: Sequence[tuple[str, str]],
    params: tuple[str, str],
    name: str,
    account: Account,
) -> tuple[list[float], int]:
    """The pairs' scores, and the number of tokens computed for them.

    `params` are the fields that the pairs' first and second texts come from.
    """
    info = context.engine.info
    max_len = body.max_len(info.max_model_len)
    options = body.options(tenant_of(request.scope))
    if "embed" in info.tasks:
        if body.use_activation is False:
            raise InvalidRequestError(
                "use_activation must not be false where embeddings are compared: their cosine "
                "needs them normalized",
                param="use_activation",
            )
        # Each text once, however many pairs it is in.
        has_one_first = len({first for first, _ in pairs}) == 1
        names: dict[str, str] = {}
        for index, (first, second) in enumerate(pairs):
            names.setdefault(first, params[0] if has_one_first else f"{params[0]}[{index}]")
            names.setdefault(second, f"{params[1]}[{index}]")
        places = {text: place for place, text in enumerate(names)}
        vectors = await until_disconnect(
            request.receive,
            embed(
                context,
                list(places),
                request_id=name,
                account=account,
                options=options,
                max_len=max_len,
                is_normalized=True,
                names=list(names.values()),
            ),
        )
        return _cosines(vectors.data, [(places[a], places[b]) for a, b in pairs]), (
            vectors.num_tokens
        )
    context.check_task("score")
    fields = [f"{params[1]}[{index}]" for index in range(len(pairs))]
    encoded = await encode(context, pairs, max_len=max_len, names=fields)
    work = pool(
        context,
        encoded,
        "score",
        request_id=name,
        account=account,
        options=options,
        is_activated=body.use_activation,
    )
    vectors = await until_disconnect(request.receive, work)
    return [to_floats(vector)[0] for vector in vectors.data], vectors.num_tokens


def _cosines(vectors: Sequence[bytes], pairs: Sequence[tuple[int, int]]) -> list[float]:
    """Products of vectors of length 1."""
    import numpy as np  # the other routes do without it

    matrix = np.frombuffer(b"".join(vectors), "<f4").reshape(len(vectors), -1)
    first, second = (matrix[[pair[side] for pair in pairs]] for side in (0, 1))
    cosines: list[float] = np.einsum("nd,nd->n", first, second).tolist()
    return cosines
