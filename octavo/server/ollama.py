"""Ollama's `POST /api/chat` and `POST /api/generate`."""

from __future__ import annotations

import time
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from msgspec import UNSET

from octavo.errors import InvalidRequestError
from octavo.protocol import ollama_answers as api
from octavo.protocol.ollama import OllamaChatRequest, OllamaGenerateRequest
from octavo.server.answers import chat_logprobs
from octavo.server.auth import tenant_of
from octavo.server.context import context_of
from octavo.server.dialect import OLLAMA
from octavo.server.http import json_response, until_disconnect
from octavo.server.ollama_chat import (
    chat_messages,
    chat_request,
    generation_messages,
    in_own_names,
    served_name,
)
from octavo.server.stream import EventStream
from octavo.server.turn import ChatTurn, encode_messages, unfinished
from octavo.text.tools.arguments import arguments_object
from octavo.text.tools.events import Call, CallArguments, CallBegin, Content, Reasoning

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.protocol.chat import ChatCompletionRequest, TokenLogprobs
    from octavo.protocol.ollama import OllamaFields
    from octavo.server.context import ServerContext
    from octavo.server.turn import Part
    from octavo.text.tools.events import Event

_AnswerT = TypeVar("_AnswerT", bound=api.OllamaAnswer)


async def ollama_chat(request: Request) -> ASGIApp:
    """Answer a conversation as Ollama does, in lines of JSON unless `stream` is false.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter_ns()
    context = context_of(request)
    body = await context.read(request, OllamaChatRequest)
    served_name(context, body.model)
    body.check()
    if not body.messages:
        message = api.OllamaMessageAnswer()
        return json_response(api.OllamaChatAnswer(message=message, **_loaded(body)))
    account = context.usage.open(request.scope, arrived / 1e9)
    try:
        chat = chat_request(context, body, chat_messages(body.messages))
        turn = await ChatTurn.start(
            context,
            chat,
            account=account,
            options=chat.options(tenant_of(request.scope)),
            clips=True,
        )
    except InvalidRequestError as exc:
        raise in_own_names(exc) from None
    return await _respond(request, _ChatAnswer(context, body, chat, turn, arrived))


async def ollama_generate(request: Request) -> ASGIApp:
    """Answer a prompt as Ollama does, in lines of JSON unless `stream` is false.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter_ns()
    context = context_of(request)
    body = await context.read(request, OllamaGenerateRequest)
    served_name(context, body.model)
    body.check()
    if not body.prompt:
        return json_response(api.OllamaGenerateAnswer(response="", **_loaded(body)))
    account = context.usage.open(request.scope, arrived / 1e9)
    is_raw = bool(body.raw) or context.tokenizer.chat_template is None
    try:
        chat = chat_request(context, body, generation_messages(body.prompt, body.system))
        turn = await ChatTurn.start(
            context,
            chat,
            account=account,
            options=chat.options(tenant_of(request.scope)),
            prompt_token_ids=await _prompt_ids(context, body, chat, is_raw=is_raw),
            is_plain=is_raw,
            clips=True,
        )
    except InvalidRequestError as exc:
        raise in_own_names(exc, is_generation=True) from None
    return await _respond(request, _GenerateAnswer(context, body, chat, turn, arrived))


async def _prompt_ids(
    context: ServerContext,
    body: OllamaGenerateRequest,
    chat: ChatCompletionRequest,
    *,
    is_raw: bool,
) -> list[int]:
    """The prompt's tokens, after those of earlier generations.

    Raises:
        InvalidRequestError: a model without a template has no place for a system prompt.
    """
    encoder = context.prompts
    if not is_raw:
        ids = await encode_messages(context, chat)
    elif body.system:
        raise InvalidRequestError("system: this model has no chat template", param="system")
    else:
        ids = await encoder.encode(body.prompt or "", add_special_tokens=True, param="prompt")
    before = body.context or []
    encoder.check_ids(before, param="context")
    # What a text begins with is in the context already.
    begin = context.tokenizer.encode("", add_special_tokens=True) if before else []
    return before + (ids[len(begin) :] if ids[: len(begin)] == begin else ids)


async def _respond(request: Request, answer: _Answer[_AnswerT]) -> ASGIApp:
    if answer.body.is_streamed:
        return EventStream(answer.stream(), OLLAMA)
    return json_response(await until_disconnect(request.receive, answer.complete()))


def _now() -> datetime:
    return datetime.now(UTC)


def _loaded(body: OllamaFields) -> dict[str, Any]:
    """Of an answer to a request that only wants the model to be loaded."""
    return {"model": body.model, "created_at": _now(), "done": True, "done_reason": "load"}


@dataclass
class _Pieces:
    """What a part adds to the answer; false where that is nothing."""

    content: str = ""
    thinking: str = ""
    calls: list[api.OllamaCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.content or self.thinking or self.calls or self.logprobs)

    def add(self, other: _Pieces) -> None:
        """Append another part's."""
        self.content += other.content
        self.thinking += other.thinking
        self.calls += other.calls
        self.logprobs += other.logprobs


class _Reader:
    """Makes pieces of events: calls are told of when they are whole."""

    def __init__(self) -> None:
        self._num_calls = 0
        self._open: Call | None = None

    def read(self, events: Iterable[Event], *, is_last: bool) -> _Pieces:
        """What the events add; the last ones end the call that is open."""
        pieces = _Pieces()
        for event in events:
            match event:
                case Content(text):
                    pieces.content += text
                case Reasoning(text):
                    pieces.thinking += text
                case CallBegin(_, call_id, name):
                    self._end(pieces)
                    self._open = Call(call_id, name)
                case CallArguments(_, text):
                    assert self._open is not None
                    self._open.arguments += text
        if is_last:
            self._end(pieces)
        return pieces

    def _end(self, pieces: _Pieces) -> None:
        call, self._open = self._open, None
        if call is not None:
            arguments = arguments_object(call.arguments)
            function = api.OllamaCalledFunction(self._num_calls, call.name, arguments)
            pieces.calls.append(api.OllamaCall(call.id, function))
            self._num_calls += 1


class _Answer(Generic[_AnswerT]):
    """Makes the answer, whole or in lines, out of a turn; subclasses give its shape.

    Args:
        context: the server's.
        body: what was asked.
        chat: the chat request that was made of it.
        turn: not yet run.
        arrived: when the HTTP request came, `time.perf_counter_ns()`.
    """

    is_generation = False

    def __init__(
        self,
        context: ServerContext,
        body: OllamaFields,
        chat: ChatCompletionRequest,
        turn: ChatTurn,
        arrived: int,
    ) -> None:
        self.body = body
        self._context = context
        self._chat = chat
        self._turn = turn
        self._arrived = arrived
        self._output_ids: list[int] = []

    def _make(self, *, done: bool, pieces: _Pieces, **fields: Any) -> _AnswerT:
        """The answer, or a line of it, that says these pieces."""
        raise NotImplementedError

    def _line(self, pieces: _Pieces, *, done: bool = False, **fields: Any) -> _AnswerT:
        if pieces.logprobs:
            fields["logprobs"] = pieces.logprobs
        return self._make(
            pieces=pieces, model=self.body.model, created_at=_now(), done=done, **fields
        )

    async def complete(self) -> _AnswerT:
        """The whole answer."""
        whole = _Pieces()
        end: dict[str, Any] = {}
        async with aclosing(self._run()) as steps:
            async for pieces, stats in steps:
                whole.add(pieces)
                end = stats
        return self._line(whole, done=True, **end)

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """The answer's lines."""
        async with aclosing(self._run()) as steps:
            async for pieces, stats in steps:
                if stats or pieces:
                    yield api.line(self._line(pieces, done=bool(stats), **stats))
                else:
                    yield b""

    async def _run(self) -> AsyncGenerator[tuple[_Pieces, dict[str, Any]], None]:
        """What comes, piece by piece; with the last one, which is empty, what the end tells."""
        reader = _Reader()
        begin = time.perf_counter_ns()
        first: int | None = None
        reason = ""
        try:
            async with aclosing(self._turn.parts()) as parts:
                async for part in parts:
                    first = first or time.perf_counter_ns()
                    self._output_ids += part.delta.token_ids
                    pieces = reader.read(part.events, is_last=part.finish_reason is not None)
                    if part.delta.logprobs and self._chat.logprobs:
                        tokenizer = self._context.tokenizer
                        pieces.logprobs = chat_logprobs(tokenizer, part.delta.logprobs).content
                    yield pieces, {}
                    if part.finish_reason is not None:
                        reason = _done_reason(part)
        except InvalidRequestError as exc:
            exc = self._chat.in_own_names(exc)
            raise in_own_names(exc, is_generation=self.is_generation) from None
        now = time.perf_counter_ns()
        first = first or now
        usage = self._turn.usage
        cost = await self._turn.account.cost()
        yield (
            _Pieces(),
            {
                "done_reason": reason,
                "total_duration": now - self._arrived,
                "load_duration": begin - self._arrived,
                "prompt_eval_count": usage.prompt_tokens,
                "prompt_eval_duration": first - begin,
                "eval_count": usage.completion_tokens,
                "eval_duration": now - first,
                **({} if cost is None else cost.fields),
            },
        )


class _ChatAnswer(_Answer[api.OllamaChatAnswer]):
    """Of `/api/chat`."""

    def _make(self, *, done: bool, pieces: _Pieces, **fields: Any) -> api.OllamaChatAnswer:
        message = api.OllamaMessageAnswer(
            content=pieces.content,
            thinking=pieces.thinking or UNSET,
            tool_calls=pieces.calls or UNSET,
        )
        return api.OllamaChatAnswer(message=message, done=done, **fields)


class _GenerateAnswer(_Answer[api.OllamaGenerateAnswer]):
    """Of `/api/generate`."""

    is_generation = True

    def _make(self, *, done: bool, pieces: _Pieces, **fields: Any) -> api.OllamaGenerateAnswer:
        assert isinstance(self.body, OllamaGenerateRequest)
        if done and not self.body.raw:
            fields["context"] = self._turn.prompt_token_ids + self._output_ids
        return api.OllamaGenerateAnswer(
            response=pieces.content, thinking=pieces.thinking or UNSET, done=done, **fields
        )


def _done_reason(part: Part) -> str:
    """Why the answer ended.

    Raises:
        EngineUnavailableError: before its end.
    """
    match part.finish_reason:
        case "stop" | "tool_calls":
            return "stop"
        case "length":
            return "length"
        case reason:
            raise unfinished(reason)
