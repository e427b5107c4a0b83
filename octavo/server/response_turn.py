"""From a request for a response to the turn of a conversation that answers it.

The conversation is that of the response which it goes on from, and what is new.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError, NotFoundError, RequestError
from octavo.protocol.chat import ChatCompletionRequest
from octavo.protocol.messages import SystemMessage
from octavo.protocol.response_items import InputItem, kind_of, to_messages
from octavo.protocol.responses import NamedFunction, ResponseSchemaFormat
from octavo.protocol.structured import (
    JSONObjectBySchemaFormat,
    JSONObjectFormat,
    JSONSchemaFormat,
    JSONSchemaSpec,
)
from octavo.protocol.tools import (
    FunctionDefinition,
    FunctionName,
    FunctionTool,
    NamedToolChoice,
)
from octavo.server.turn import ChatTurn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.protocol.responses import ResponseRequest
    from octavo.server.account import Account
    from octavo.server.context import ServerContext
    from octavo.server.state.responses import ResponseStore

_SAME_FIELDS = (
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "repetition_penalty",
    "priority",
    "cache_salt",
    "timeout",
    "chat_template_kwargs",
    "parallel_tool_calls",
    "top_logprobs",
    "stream",
)
"""Fields that chats have too, with the same name and meaning."""

_NAMES = (
    (re.compile(r"messages\b.*"), "input"),
    (re.compile(r"max_(completion_)?tokens"), "max_output_tokens"),
    (re.compile(r"reasoning_effort"), "reasoning.effort"),
    (re.compile(r"response_format|structured_outputs"), "text.format"),
    (re.compile(r"(tools\[\d+\]|tool_choice)\.function\b"), r"\1"),
)
"""A chat's names of fields, and this API's."""

_items_decoder = msgspec.json.Decoder(list[InputItem])


class ResponseNotFoundError(NotFoundError):
    """No such response, or not of this caller."""

    type = "invalid_request_error"

    def __init__(self, response_id: str, *, param: str | None = None, why: str = "") -> None:
        super().__init__(
            f"Response with id {response_id[:100]!r} not found{why}",
            param=param,
            code="response_not_found" if param is None else "previous_response_not_found",
        )


class _Output(msgspec.Struct):
    """What a stored response says, as items to go on from."""

    output: list[InputItem]


_output_decoder = msgspec.json.Decoder(_Output)


async def earlier_items(
    store: ResponseStore, body: ResponseRequest, tenant: str
) -> list[InputItem]:
    """The conversation so far, inputs and outputs in order.

    Raises:
        RequestError: the response is not there, or not over; or one before it is gone.
    """
    last_id = body.previous_response_id
    if last_id is None:
        return []
    chain = await store.chain(last_id, tenant)
    if not chain:
        raise ResponseNotFoundError(last_id, param="previous_response_id")
    if chain[0].previous_id is not None:
        why = f": {last_id[:100]!r} goes on from it, and it was deleted or is too old"
        raise ResponseNotFoundError(chain[0].previous_id, param="previous_response_id", why=why)
    if not all(stored.is_over for stored in chain):
        raise InvalidRequestError(
            f"previous_response_id: {last_id[:100]!r} is not over yet",
            param="previous_response_id",
        )
    items: list[InputItem] = []
    for stored in chain:
        items += _items_decoder.decode(stored.input)
        items += _output_decoder.decode(stored.body).output
    return items


async def start_turn(
    context: ServerContext,
    body: ResponseRequest,
    earlier: Sequence[InputItem],
    *,
    response_id: str,
    account: Account,
    tenant: str,
) -> ChatTurn:
    """A turn that answers the request, with as much of the conversation as its `truncation` lets.

    Raises:
        RequestError: the request cannot be served; `param` is this API's name of a field.
    """
    items = [*earlier, *body.items]

    async def start(first: int) -> ChatTurn:
        try:
            chat = _chat_request(body, items[first:])
            options = chat.options(tenant)
            return await ChatTurn.start(
                context, chat, account=account, options=options, answer_id=response_id
            )
        except InvalidRequestError as exc:
            raise _in_own_names(exc) from None

    try:
        return await start(0)
    except RequestError as exc:
        starts = [n for n, item in enumerate(items) if n and _begins_turn(item)]
        if body.truncation != "auto" or exc.code != "context_length_exceeded" or not starts:
            raise
    return await _start_with_most(start, starts)


async def _start_with_most(start: Any, starts: list[int]) -> ChatTurn:
    """The turn that begins at the first of these places from where on it fits."""
    turn = await start(starts[-1])  # if not even this fits, nothing does
    least, most = 0, len(starts) - 1
    while least < most:
        middle = (least + most) // 2
        try:
            turn = await start(starts[middle])
            most = middle
        except RequestError as exc:
            if exc.code != "context_length_exceeded":
                raise
            least = middle + 1
    found: ChatTurn = turn
    return found


def _begins_turn(item: InputItem) -> bool:
    """Whether a conversation may begin here: templates want the user to."""
    return kind_of(item) == "message" and item.role == "user"


def _chat_request(body: ResponseRequest, items: Sequence[InputItem]) -> ChatCompletionRequest:
    """The chat that the request amounts to."""
    messages = to_messages(items)
    if body.instructions is not None:
        messages.insert(0, SystemMessage(body.instructions))
    chat = ChatCompletionRequest(
        messages=messages,
        logprobs=body.has_logprobs or None,
        max_completion_tokens=body.max_output_tokens,
        **{name: getattr(body, name) for name in _SAME_FIELDS},
    )
    if not body.has_logprobs:
        chat.top_logprobs = None
    if body.tools:
        chat.tools = [
            FunctionTool(
                FunctionDefinition(tool.name, tool.description, tool.parameters, tool.strict),
                "function",
            )
            for tool in body.tools
        ]
    choice = body.tool_choice
    if isinstance(choice, NamedFunction):
        choice = NamedToolChoice(FunctionName(choice.name), "function")  # type: ignore[assignment]
    chat.tool_choice = choice  # type: ignore[assignment]
    if body.reasoning is not None:
        chat.reasoning_effort = body.reasoning.effort
    match body.text.format if body.text else None:
        case ResponseSchemaFormat(name, schema, strict, description):
            spec = JSONSchemaSpec(name=name, schema=schema, strict=strict, description=description)
            chat.response_format = JSONSchemaFormat(spec)
        case JSONObjectFormat():
            chat.response_format = JSONObjectBySchemaFormat()
        case other:
            chat.response_format = other
    return chat


def _in_own_names(exc: InvalidRequestError) -> InvalidRequestError:
    """The error with a chat's names turned into this API's."""
    param = exc.param
    if param is None:
        return exc
    for pattern, name in _NAMES:
        own = pattern.sub(name, param, count=1) if pattern.match(param) else param
        if own != param:
            return InvalidRequestError(exc.message.replace(param, own), param=own, code=exc.code)
    return exc
