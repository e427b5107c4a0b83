"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING

from msgspec import UNSET

from octavo.protocol import sse
from octavo.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from octavo.server.answers import chat_logprobs, prompt_logprobs
from octavo.server.auth import tenant_of
from octavo.server.context import ServerContext, context_of
from octavo.server.http import json_response, until_disconnect
from octavo.server.parsing import assistant_answer, chat_deltas
from octavo.server.stream import EventStream
from octavo.server.turn import ChatTurn

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.server.turn import Choice, Part


async def create_chat_completion(request: Request) -> ASGIApp:
    """Answer a conversation, as one answer or as a stream.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, ChatCompletionRequest)
    options = body.options(tenant_of(request.scope))
    account = context.usage.open(request.scope, arrived, metadata=body.metadata, user=body.asker)
    turn = await ChatTurn.start(context, body, account=account, options=options)
    answer = _Answer(context, body, turn)
    if body.stream:
        return EventStream(answer.events())
    return json_response(await until_disconnect(request.receive, answer.complete()))


class _Answer:
    """Makes the answer, whole or in chunks, out of a turn."""

    def __init__(self, context: ServerContext, body: ChatCompletionRequest, turn: ChatTurn) -> None:
        self._context = context
        self._body = body
        self._turn = turn
        self._has_usage = body.include_usage or turn.account.includes_cost

    async def complete(self) -> ChatCompletion:
        """The whole answer."""
        turn = self._turn
        choices = await turn.complete()
        answer = ChatCompletion(
            id=turn.id,
            created=turn.created,
            model=turn.model,
            choices=[self._choice(index, choice) for index, choice in enumerate(choices)],
            usage=await turn.whole_usage(),
        )
        if self._body.return_token_ids:
            answer.prompt_token_ids = turn.prompt_token_ids
        if self._body.prompt_logprobs is not None:
            told = choices[0].output.prompt_logprobs
            answer.prompt_logprobs = prompt_logprobs(
                self._context.tokenizer, told, self._body.prompt_logprobs
            )
        return answer

    def _choice(self, index: int, finished: Choice) -> ChatChoice:
        output = finished.output
        choice = ChatChoice(
            index=index,
            message=assistant_answer(finished.answer),
            finish_reason=finished.finish_reason,
            stop_reason=output.stop_reason,
        )
        if self._body.logprobs:
            choice.logprobs = chat_logprobs(self._context.tokenizer, output.logprobs)
        if self._body.return_token_ids:
            choice.token_ids = output.token_ids
        return choice

    def _chunk(self, *choices: ChatChunkChoice) -> ChatCompletionChunk:
        turn = self._turn
        chunk = ChatCompletionChunk(
            id=turn.id, created=turn.created, model=turn.model, choices=list(choices)
        )
        if self._body.continuous_usage:
            chunk.usage = turn.usage
        elif self._has_usage:
            chunk.usage = None
        return chunk

    def _first_event(self, index: int) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        chunk = self._chunk(ChatChunkChoice(index=index, delta=delta))
        if self._body.return_token_ids:
            chunk.prompt_token_ids = self._turn.prompt_token_ids
        return sse.event(chunk)

    def _text_events(self, index: int) -> sse.TextEvents:
        """The events of a choice that bring nothing but text."""
        return sse.TextEvents(
            lambda text: self._chunk(ChatChunkChoice(index=index, delta=ChatDelta(content=text)))
        )

    def _part_events(self, part: Part) -> bytes:
        """What a part adds, and the chunk with the reason if it is the last; may be nothing."""
        index, delta = part.index, part.delta
        has_ids = bool(self._body.return_token_ids and delta.token_ids)
        events = b""
        adds = chat_deltas(part.events)
        if adds or delta.logprobs or has_ids:
            choice = ChatChunkChoice(index=index, delta=adds[0] if adds else ChatDelta())
            if self._body.logprobs and delta.logprobs:
                choice.logprobs = chat_logprobs(self._context.tokenizer, delta.logprobs)
            choice.token_ids = delta.token_ids if has_ids else UNSET
            events = sse.event(self._chunk(choice))
        for added in adds[1:]:
            events += sse.event(self._chunk(ChatChunkChoice(index=index, delta=added)))
        if part.finish_reason is not None:
            end = ChatChunkChoice(
                index=index,
                delta=ChatDelta(),
                finish_reason=part.finish_reason,
                stop_reason=delta.stop_reason,
            )
            events += sse.event(self._chunk(end))
        return events

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, without the end; empty where a part has nothing to show."""
        body, turn = self._body, self._turn
        is_new = [True] * turn.num_choices
        is_bare = not (body.logprobs or body.return_token_ids or body.continuous_usage)
        texts = [
            self._text_events(index) if is_bare and not turn.has_parser(index) else None
            for index in range(turn.num_choices)
        ]
        async with aclosing(turn.parts()) as parts:
            async for part in parts:
                index, delta = part.index, part.delta
                quick = texts[index]
                if quick is not None and part.finish_reason is None:
                    events = quick.event(delta.text) if delta.text else b""
                else:
                    events = self._part_events(part)
                if is_new[index]:
                    events = self._first_event(index) + events
                    is_new[index] = False
                yield events
        if self._has_usage:
            chunk = self._chunk()
            chunk.usage = await turn.whole_usage()
            yield sse.event(chunk)
