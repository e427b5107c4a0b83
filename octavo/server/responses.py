"""`/v1/responses`: OpenAI's other way to chat, with responses that the server keeps."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.response_items import ListedItem, listed, new_id
from octavo.protocol.responses import (
    LOGPROBS,
    ItemList,
    ResponseDeleted,
    ResponseRequest,
)
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.dialect_responses import RESPONSES
from octavo.server.http import json_response, until_disconnect
from octavo.server.queries import Query
from octavo.server.response_runs import LOST, ResponseRun, asked_response, lost
from octavo.server.response_turn import ResponseNotFoundError, earlier_items, start_turn
from octavo.server.state.database import StateError
from octavo.server.stream import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.responses import Response as HTTPResponse
    from starlette.types import ASGIApp

    from octavo.server.server_state import ServerState
    from octavo.server.state.responses import StoredResponse

TAIL_S = 0.05
"""How often the store is asked for a background response's next events, seconds."""

CANCEL_S = 5.0
"""How long a cancelled response may take to end before its caller gets an answer, seconds."""

MAX_PAGE = 100
MAX_NUMBER = 999_999_999


async def create_response(request: Request) -> ASGIApp:
    """Answer a conversation, as one response, as a stream of events, or in the background.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, ResponseRequest)
    context.check_model(body.model)
    body.check()
    state, tenant = context.state, tenant_of(request.scope)
    if body.background:
        state.runs.check_room()
    asker = body.safety_identifier or body.user
    account = context.usage.open(request.scope, arrived, metadata=body.metadata, user=asker)
    earlier = await earlier_items(state.responses, body, tenant)
    response_id = new_id("resp")
    turn = await start_turn(
        context, body, earlier, response_id=response_id, account=account, tenant=tenant
    )
    items = msgspec.json.encode([listed(item) for item in body.items])
    response = asked_response(context, body, response_id)
    run = ResponseRun(context, state.responses, body, turn, response, tenant=tenant, items=items)
    if body.background:
        queued = json_response(response)
        await state.runs.start(run)
        return EventStream(_tail(state, response_id, -1), RESPONSES) if body.stream else queued
    if body.stream:
        return EventStream(run.events(), RESPONSES)
    return json_response(await until_disconnect(request.receive, run.complete()))


async def retrieve_response(request: Request) -> ASGIApp:
    """A stored response as it is now; with `stream`, the events of one made so in the background.

    Raises:
        RequestError: it is not there.
    """
    query = Query(
        request, "stream", "starting_after", "include", "include[]", "include_obfuscation"
    )
    if query.flag("include_obfuscation"):
        raise InvalidRequestError(
            "include_obfuscation is not supported by this server: leave it out",
            param="include_obfuscation",
        )
    for name in ("include", "include[]"):
        if query.text(name) is not None:
            query.choice(name, LOGPROBS)  # they are there if they were asked for
    after = query.number("starting_after", least=0, most=MAX_NUMBER)
    is_stream = query.flag("stream")
    if after is not None and not is_stream:
        raise InvalidRequestError(
            "starting_after is only allowed when stream is true", param="starting_after"
        )
    state = context_of(request).state
    stored = await _stored(request)
    if not is_stream:
        return json_response(msgspec.Raw(stored.body))
    if not stored.has_events:
        raise InvalidRequestError(
            "stream: only responses that were made with background and stream can be streamed",
            param="stream",
        )
    return EventStream(_tail(state, stored.id, -1 if after is None else after), RESPONSES)


async def delete_response(request: Request) -> HTTPResponse:
    """Forget a stored response; one that runs in the background ends.

    Raises:
        RequestError: it is not there.
    """
    Query(request)
    response_id = _id(request)
    state = context_of(request).state
    if not await state.responses.delete(response_id, tenant_of(request.scope)):
        raise ResponseNotFoundError(response_id)
    await state.runs.cancel(response_id)
    return json_response(ResponseDeleted(id=response_id))


async def cancel_response(request: Request) -> HTTPResponse:
    """End a response that runs in the background; one that is over stays as it is.

    Raises:
        RequestError: it is not there, or was never in the background.
    """
    Query(request)
    state = context_of(request).state
    stored = await _stored(request)
    if not msgspec.json.decode(stored.body, type=_Background).background:
        raise InvalidRequestError(
            "Only responses that were made with background can be cancelled", param="response_id"
        )
    if not stored.is_over:
        await state.responses.ask_cancel(stored.id)
        await state.runs.cancel(stored.id)
        deadline = time.monotonic() + CANCEL_S
        stored = await _stored(request)
        while not stored.is_over and time.monotonic() < deadline:
            await asyncio.sleep(TAIL_S)  # another process runs it
            stored = await _stored(request)
    return json_response(msgspec.Raw(stored.body))


class _Background(msgspec.Struct):
    """All that is asked of a stored response here."""

    background: bool


async def list_input_items(request: Request) -> HTTPResponse:
    """The input that a stored response was made for, the last item first unless told otherwise.

    Raises:
        RequestError: it is not there, or the page is not.
    """
    query = Query(request, "after", "limit", "order", "include", "include[]")
    for name in ("include", "include[]"):
        if query.text(name) is not None:
            query.choice(name, LOGPROBS)
    limit = query.number("limit", least=1, most=MAX_PAGE) or 20
    order, after = query.choice("order", "desc", "asc"), query.text("after")
    stored = await _stored(request)
    items = msgspec.json.decode(stored.input, type=list[ListedItem])
    if order == "desc":
        items.reverse()
    if after is not None:
        places = [n for n, item in enumerate(items) if item.id == after]
        if not places:
            raise InvalidRequestError("after names no item of this response", param="after")
        items = items[places[0] + 1 :]
    page = items[:limit]
    return json_response(
        ItemList(
            data=page,
            first_id=page[0].id if page else None,
            last_id=page[-1].id if page else None,
            has_more=len(items) > limit,
        )
    )


def _id(request: Request) -> str:
    response_id: str = request.path_params["response_id"]
    return response_id


async def _stored(request: Request) -> StoredResponse:
    """The caller's response that the path names.

    Raises:
        ResponseNotFoundError: it is not there.
        StateError: the store failed.
    """
    response_id, store = _id(request), context_of(request).state.responses
    stored = await store.get(response_id, tenant_of(request.scope))
    if stored is None:
        raise ResponseNotFoundError(response_id)
    if stored.is_lost:
        body = msgspec.json.encode(lost(stored.body))
        await store.update(response_id, body=body, is_over=True)
        stored = msgspec.structs.replace(stored, body=body, is_over=True)
    return stored


async def _tail(state: ServerState, response_id: str, after: int) -> AsyncGenerator[bytes, None]:
    """The events of a response's stream, those that are there and those to come."""
    while True:
        life = await state.responses.life(response_id)  # before the events: the last ones count
        events = await state.responses.events(response_id, after)
        if events:
            after = events[-1][0]
            yield b"".join(event for _, event in events)
        elif life == "runs":
            await asyncio.sleep(TAIL_S)
        elif life == "over":
            return
        elif life == "lost":
            raise StateError(LOST, code="response_lost")
        else:
            raise ResponseNotFoundError(response_id, why=" any more: it was deleted")
