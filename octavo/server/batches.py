"""`/v1/batches`: many requests in a file, answered when there is room."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from uuid import uuid4

from octavo.errors import InvalidRequestError, NotFoundError
from octavo.protocol.batches import Batch, BatchList, BatchRequest
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.files import FileNotFoundHereError
from octavo.server.http import json_response
from octavo.server.queries import Query

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

MAX_PAGE = 100


class BatchNotFoundError(NotFoundError):
    """No such batch, or not of this caller."""

    type = "invalid_request_error"

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"No such batch: {batch_id[:100]!r}", code="batch_not_found")


async def create_batch(request: Request) -> Response:
    """Have the requests of a file answered.

    Raises:
        RequestError: there is no such file, or no room.
    """
    context = context_of(request)
    body = await context.read(request, BatchRequest)
    body.check()
    tenant = tenant_of(request.scope)
    file = await context.state.files.get(body.input_file_id, tenant)
    if file is None:
        raise FileNotFoundHereError(body.input_file_id, param="input_file_id")
    if file.purpose != "batch":
        raise InvalidRequestError(
            "input_file_id must name a file whose purpose is batch", param="input_file_id"
        )
    now = int(time.time())
    batch = Batch(
        id=f"batch_{uuid4().hex}",
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + body.window_s,
        metadata=body.metadata,
    )
    await context.state.batches.add(batch, tenant)
    request.app.batch_runs.nudge()
    return json_response(batch)


async def list_batches(request: Request) -> Response:
    """The caller's batches, the newest first.

    Raises:
        RequestError: the page is not there.
    """
    query = Query(request, "after", "limit")
    limit = query.number("limit", least=1, most=MAX_PAGE) or 20
    page = await context_of(request).state.batches.page(
        tenant_of(request.scope), after=query.text("after"), limit=limit + 1
    )
    if page is None:
        raise InvalidRequestError("after names no batch", param="after")
    shown = page[:limit]
    return json_response(
        BatchList(
            data=shown,
            first_id=shown[0].id if shown else None,
            last_id=shown[-1].id if shown else None,
            has_more=len(page) > limit,
        )
    )


async def retrieve_batch(request: Request) -> Response:
    """A batch as it is now.

    Raises:
        RequestError: it is not there.
    """
    Query(request)
    batch_id: str = request.path_params["batch_id"]
    batch = await context_of(request).state.batches.get(batch_id, tenant_of(request.scope))
    if batch is None:
        raise BatchNotFoundError(batch_id)
    return json_response(batch)


async def cancel_batch(request: Request) -> Response:
    """End a batch; what was answered until then is kept. One that is over stays as it is.

    Raises:
        RequestError: it is not there.
    """
    Query(request)
    batch_id: str = request.path_params["batch_id"]
    batch = await context_of(request).state.batches.cancel(batch_id, tenant_of(request.scope))
    if batch is None:
        raise BatchNotFoundError(batch_id)
    request.app.batch_runs.nudge()
    return json_response(batch)
