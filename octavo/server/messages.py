"""Anthropic's `POST /v1/messages` and `POST /v1/messages/count_tokens`."""

from __future__ import annotations

import hashlib
import time
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar
from uuid import uuid4

import msgspec
from starlette.responses import Response

from octavo.errors import InvalidRequestError
from octavo.protocol import anthropic_answers as api
from octavo.protocol.anthropic import (
    CountTokensRequest,
    MessagesRequest,
    decode_request,
)
from octavo.server.account import with_cost
from octavo.server.anthropic_chat import chat_request, in_own_names
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.dialect import ANTHROPIC
from octavo.server.http import read_body, until_disconnect
from octavo.server.scope import exchange_of
from octavo.server.stream import EventStream
from octavo.server.turn import ChatTurn, encode_messages, unfinished
from octavo.text.tools.arguments import arguments_object
from octavo.text.tools.events import CallArguments, CallBegin, Content, Reasoning

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.protocol.chat import ChatCompletionRequest
    from octavo.server.turn import Part
    from octavo.text.tools.events import Event

_T = TypeVar("_T", bound=CountTokensRequest)


async def create_message(request: Request) -> ASGIApp:
    """Answer a conversation as Anthropic's API does, as one message or as a stream.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await _read(request, MessagesRequest)
    context.check_model(body.model)
    user = None if body.metadata is None else body.metadata.user_id
    account = context.usage.open(request.scope, arrived, user=user)
    try:
        chat = chat_request(context, body)
        turn = await ChatTurn.start(
            context,
            chat,
            account=account,
            options=chat.options(tenant_of(request.scope)),
            answer_id=f"msg_{uuid4().hex}",
            clips=True,
        )
    except InvalidRequestError as exc:
        raise in_own_names(exc) from None
    shows_thinking = getattr(body.thinking, "display", None) != "omitted"
    answer = _Answer(chat, turn, body.model, shows_thinking=shows_thinking)
    if body.stream:
        return EventStream(answer.stream(), ANTHROPIC)
    return _response(request, await until_disconnect(request.receive, answer.complete()))


async def count_tokens(request: Request) -> ASGIApp:
    """How many tokens a conversation has, tools and system prompt included.

    Raises:
        RequestError: the request cannot be served.
    """
    context = context_of(request)
    body = await _read(request, CountTokensRequest)
    context.check_model(body.model)
    try:
        chat = chat_request(context, body)
        chat.check()
        context.reading.check(chat)
        ids = await encode_messages(context, chat)
    except InvalidRequestError as exc:
        raise in_own_names(exc) from None
    return _response(request, api.TokenCount(len(ids)))


def _response(request: Request, value: api.AnthropicAnswer | api.TokenCount) -> Response:
    headers = {ANTHROPIC.id_header: exchange_of(request.scope).request_id}
    return Response(msgspec.json.encode(value), headers=headers, media_type="application/json")


async def _read(request: Request, kind: type[_T]) -> _T:
    return decode_request(await read_body(request, context_of(request).config.max_body_bytes), kind)


class _Answer:
    """Makes the message, whole or in events, out of a turn."""

    def __init__(
        self, chat: ChatCompletionRequest, turn: ChatTurn, model: str, *, shows_thinking: bool
    ) -> None:
        self._chat = chat
        self._turn = turn
        self._model = model
        self._shows_thinking = shows_thinking

    async def complete(self) -> api.AnthropicAnswer:
        """The whole message."""
        message = _Message()
        async with aclosing(self._events()) as events:
            async for event in events:
                message.add(event)
        return message.whole()

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The message's events on the wire."""
        async with aclosing(self._events()) as events:
            async for event in events:
                yield api.event(event)

    async def _events(self) -> AsyncGenerator[api.AnthropicEvent, None]:
        blocks = _Blocks(shows_thinking=self._shows_thinking)
        is_new = True
        try:
            async with aclosing(self._turn.parts()) as parts:
                async for part in parts:
                    if is_new:
                        yield self._start()
                        is_new = False
                    for event in blocks.add(part.events):
                        yield event
                    if part.finish_reason is not None:
                        for event in blocks.close():
                            yield event
                        usage = await with_cost(self._usage, self._turn.account)
                        yield api.MessageDelta(self._end(part), usage)
        except InvalidRequestError as exc:
            raise in_own_names(self._chat.in_own_names(exc)) from None
        yield api.MessageStop()

    @property
    def _usage(self) -> api.AnthropicUsage:
        return api.AnthropicUsage.of(self._turn.usage)

    def _start(self) -> api.MessageStart:
        answer = api.AnthropicAnswer(
            id=self._turn.id, model=self._model, content=[], usage=self._usage
        )
        return api.MessageStart(answer)

    def _end(self, part: Part) -> api.AnthropicEnd:
        """Why the answer ended.

        Raises:
            EngineUnavailableError: before its end.
        """
        match part.finish_reason:
            case "stop" | "tool_calls" if isinstance(part.delta.stop_reason, str):
                return api.AnthropicEnd("stop_sequence", part.delta.stop_reason)
            case "stop":
                return api.AnthropicEnd("end_turn")
            case "tool_calls":
                return api.AnthropicEnd("tool_use")
            case "length" if self._turn.is_clipped:
                return api.AnthropicEnd("model_context_window_exceeded")
            case "length":
                return api.AnthropicEnd("max_tokens")
            case reason:
                raise unfinished(reason)


class _Blocks:
    """Turns what an answer says into blocks, each begun and ended.

    Args:
        shows_thinking: else blocks of reasoning are empty but for their signature.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self._shows_thinking = shows_thinking
        self._num = 0
        self._open: type[Event] | None = None
        self._digest = hashlib.sha256()

    def add(self, events: Iterable[Event]) -> Iterable[api.AnthropicEvent]:
        """What these events add."""
        for event in events:
            index = self._num - 1
            match event:
                case Content(text):
                    yield from self._enter(Content, api.AnthropicText())
                    yield api.BlockDelta(self._num - 1, api.AnthropicTextDelta(text))
                case Reasoning(text):
                    yield from self._enter(Reasoning, api.AnthropicThinkingAnswer())
                    self._digest.update(text.encode())
                    if self._shows_thinking:
                        yield api.BlockDelta(self._num - 1, api.AnthropicThinkingDelta(text))
                case CallBegin(_, call_id, name):
                    yield from self.close()
                    yield from self._enter(
                        CallBegin, api.AnthropicToolUse(id=call_id, name=name, input={})
                    )
                case CallArguments(_, text):
                    yield api.BlockDelta(index, api.AnthropicInputDelta(text))

    def _enter(self, kind: type[Event], block: api.AnthropicBlock) -> Iterable[api.AnthropicEvent]:
        if self._open is kind:
            return
        yield from self.close()
        self._open = kind
        yield api.BlockStart(self._num, block)
        self._num += 1

    def close(self) -> Iterable[api.AnthropicEvent]:
        """End the block that is open."""
        if self._open is None:
            return
        index = self._num - 1
        if self._open is Reasoning:
            signature = api.AnthropicSignatureDelta(self._digest.hexdigest())
            self._digest = hashlib.sha256()
            yield api.BlockDelta(index, signature)
        self._open = None
        yield api.BlockStop(index)


class _Message:
    """Puts a message together out of its events."""

    def __init__(self) -> None:
        self._answer: api.AnthropicAnswer
        self._inputs: dict[int, str] = {}

    def add(self, event: api.AnthropicEvent) -> None:
        """Take the next event."""
        match event:
            case api.MessageStart(message):
                self._answer = message
            case api.BlockStart(_, block):
                self._answer.content.append(block)
            case api.BlockDelta(index, delta):
                self._add_delta(index, delta)
            case api.MessageDelta(end, usage):
                self._answer.stop_reason = end.stop_reason
                self._answer.stop_sequence = end.stop_sequence
                self._answer.usage = usage

    def _add_delta(self, index: int, delta: api.AnthropicBlockDelta) -> None:
        match self._answer.content[index], delta:
            case api.AnthropicText() as block, api.AnthropicTextDelta(text):
                block.text += text
            case api.AnthropicThinkingAnswer() as block, api.AnthropicThinkingDelta(text):
                block.thinking += text
            case api.AnthropicThinkingAnswer() as block, api.AnthropicSignatureDelta(signature):
                block.signature = signature
            case api.AnthropicToolUse() as block, api.AnthropicInputDelta(text):
                self._inputs[index] = self._inputs.get(index, "") + text

    def whole(self) -> api.AnthropicAnswer:
        """The message, after its last event."""
        for index, text in self._inputs.items():
            block = self._answer.content[index]
            assert isinstance(block, api.AnthropicToolUse)
            block.input = arguments_object(text)
        return self._answer
