"""`POST /pooling` and `POST /classify`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from octavo.engine.admission import check_dimensions
from octavo.errors import InvalidRequestError
from octavo.protocol.pooling import (
    Classification,
    ClassificationAnswer,
    ClassificationRequest,
    InputUsage,
    PoolingAnswer,
    PoolingData,
    PoolingRequest,
    answer_id,
    inputs_of,
)
from octavo.server.account import with_cost
from octavo.server.auth import tenant_of
from octavo.server.context import ServerContext, context_of
from octavo.server.http import json_response, until_disconnect
from octavo.server.vectors import Vectors, encode, pool, to_floats, to_wire

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.server.account import Account
    from octavo.types import Task


async def create_pooling(request: Request) -> Response:
    """What the model makes of each input: its embedding, or the probabilities of its labels.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, PoolingRequest)
    context.check_model(body.model)
    first: Task = context.engine.info.tasks[0]
    task = body.task or ("embed" if first == "generate" else first)
    check_dimensions(body.dimensions, context.engine.info)
    if body.dimensions is not None and task != "embed":
        raise InvalidRequestError("dimensions is only allowed for embeddings", param="dimensions")
    account = context.usage.open(request.scope, arrived, user=body.user)
    name = answer_id("pool")
    vectors = await _pooled(request, context, body, task, name, account, body.dimensions)
    data = [
        PoolingData(index=index, data=to_wire(vector, body.encoding_format))
        for index, vector in enumerate(vectors.data)
    ]
    usage = await with_cost(InputUsage(vectors.num_tokens, vectors.num_tokens), account)
    return json_response(PoolingAnswer(id=name, model=context.model_name, data=data, usage=usage))


async def classify(request: Request) -> Response:
    """The most probable label of each input, and the probabilities of all labels.

    Raises:
        RequestError: the request cannot be served.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, ClassificationRequest)
    context.check_model(body.model)
    account = context.usage.open(request.scope, arrived, user=body.user)
    name = answer_id("classify")
    vectors = await _pooled(request, context, body, "classify", name, account)
    pooling = context.engine.info.pooling
    labels = [] if pooling is None else pooling.labels
    data = []
    for index, vector in enumerate(vectors.data):
        probs = to_floats(vector)
        best = max(range(len(probs)), key=probs.__getitem__)
        label = labels[best] if best < len(labels) else None
        data.append(Classification(index=index, label=label, probs=probs, num_classes=len(probs)))
    usage = await with_cost(InputUsage(vectors.num_tokens, vectors.num_tokens), account)
    return json_response(
        ClassificationAnswer(id=name, model=context.model_name, data=data, usage=usage)
    )


async def _pooled(
    request: Request,
    context: ServerContext,
    body: PoolingRequest | ClassificationRequest,
    task: Task,
    name: str,
    account: Account,
    dimensions: int | None = None,
) -> Vectors:
    info = context.engine.info
    context.check_task(task)
    encoded = await encode(
        context,
        inputs_of(body.input),
        max_len=body.max_len(info.max_model_len),
        add_special_tokens=body.add_special_tokens is not False,
    )
    work = pool(
        context,
        encoded,
        task,
        request_id=name,
        account=account,
        options=body.options(tenant_of(request.scope)),
        dimensions=dimensions,
        is_activated=body.use_activation,
    )
    return await until_disconnect(request.receive, work)
