"""`POST /v1/embeddings`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from octavo.protocol.embeddings import Embedding, EmbeddingAnswer, EmbeddingRequest
from octavo.protocol.pooling import InputUsage, answer_id, inputs_of
from octavo.server.account import with_cost
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.http import json_response, until_disconnect
from octavo.server.vectors import embed, to_wire

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def create_embeddings(request: Request) -> Response:
    """Vectors of texts or of token ids.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, EmbeddingRequest)
    context.check_model(body.model)
    account = context.usage.open(request.scope, arrived, user=body.user)
    name = answer_id("embd")
    vectors = await until_disconnect(
        request.receive,
        embed(
            context,
            inputs_of(body.input),
            request_id=name,
            account=account,
            options=body.options(tenant_of(request.scope)),
            max_len=body.max_len(context.engine.info.max_model_len),
            dimensions=body.dimensions,
            is_normalized=body.is_normalized,
            add_special_tokens=body.add_special_tokens is not False,
        ),
    )
    data = [
        Embedding(index=index, embedding=to_wire(vector, body.encoding_format))
        for index, vector in enumerate(vectors.data)
    ]
    usage = await with_cost(InputUsage(vectors.num_tokens, vectors.num_tokens), account)
    return json_response(EmbeddingAnswer(id=name, model=context.model_name, data=data, usage=usage))
