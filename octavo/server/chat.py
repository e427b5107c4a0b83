"""`POST /v1/chat/completions`."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import uuid4

from msgspec import UNSET

from octavo.errors import InvalidRequestError
from octavo.protocol import sse
from octavo.protocol.chat import (
    ChatChoice,
    ChatChunkChoice,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    ChatDelta,
)
from octavo.protocol.generation import nth_choice
from octavo.protocol.tools import template_tools
from octavo.server.answers import UsageCounter, chat_logprobs, collect
from octavo.server.auth import tenant_of
from octavo.server.context import ServerContext, context_of
from octavo.server.generation import Job, run_jobs
from octavo.server.http import json_response, until_disconnect
from octavo.server.parsing import assistant_answer, chat_deltas, finish_reason, read_whole
from octavo.server.stream import EventStream
from octavo.text.tools.events import merged

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.server.answers import Output
    from octavo.types import Delta, RequestOptions


async def create_chat_completion(request: Request) -> ASGIApp:
    """Answer a conversation, as one answer or as a stream.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, ChatCompletionRequest)
    context.check_model(body.model)
    body.check()
    context.reading.check(body)
    options = body.options(tenant_of(request.scope))
    answer = _Answer(context, body, await _jobs(context, body, arrived, options))
    if body.stream:
        return EventStream(answer.events())
    return json_response(await until_disconnect(request.receive, answer.complete()))


async def _jobs(
    context: ServerContext, body: ChatCompletionRequest, arrived: float, options: RequestOptions
) -> list[Job]:
    """The conversation rendered, encoded, checked, and with its parameters: one job per choice."""
    params = context.reading.params(body.sampling_params(context.defaults), body)
    encoder = context.prompts
    encoder.check_ids(params.stop_token_ids, param="stop_token_ids")
    ids = await encoder.encode_chat(
        body.messages,
        add_generation_prompt=body.add_generation_prompt,
        continue_final_message=body.continue_final_message,
        template_kwargs=body.chat_template_kwargs,
        add_special_tokens=bool(body.add_special_tokens),
        tools=template_tools(body.offered_tools) or None,
    )
    try:
        params = encoder.fit(params, len(ids), prompt="messages", max_tokens=body.max_tokens_field)
    except InvalidRequestError as exc:
        raise body.in_own_names(exc) from None
    answer_id = f"chatcmpl-{uuid4().hex}"
    return [
        Job(f"{answer_id}-{index}", ids, nth_choice(params, index), arrived, options)
        for index in range(body.num_choices)
    ]


class _Answer:
    """Makes the answer, whole or in chunks, out of the deltas of its jobs, one per choice."""

    def __init__(
        self, context: ServerContext, body: ChatCompletionRequest, jobs: list[Job]
    ) -> None:
        self._context = context
        self._body = body
        self._jobs = jobs
        self._id = jobs[0].request_id.removesuffix("-0")
        self._prompt_token_ids = jobs[0].prompt_token_ids
        self._created = int(time.time())
        self._usage = UsageCounter([len(self._prompt_token_ids)] * len(jobs), len(jobs))
        self._parsers = [context.reading.parser(body, self._prompt_token_ids) for _ in jobs]
        self._has_calls = [False] * len(jobs)

    def _run(self) -> AsyncGenerator[tuple[int, Delta], None]:
        return run_jobs(self._context.engine, self._context.metrics, self._jobs)

    async def complete(self) -> ChatCompletion:
        """The whole answer."""
        async with aclosing(self._run()) as deltas:
            outputs = await collect(deltas, self._usage, len(self._jobs))
        answer = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=[self._choice(index, output) for index, output in enumerate(outputs)],
            usage=self._usage.usage,
        )
        if self._body.return_token_ids:
            answer.prompt_token_ids = self._prompt_token_ids
        return answer

    def _choice(self, index: int, output: Output) -> ChatChoice:
        answer = read_whole(self._parsers[index], output.text)
        choice = ChatChoice(
            index=index,
            message=assistant_answer(answer),
            finish_reason=finish_reason(output.finish_reason, has_calls=bool(answer.calls)),
            stop_reason=output.stop_reason,
        )
        if self._body.logprobs:
            choice.logprobs = chat_logprobs(self._context.tokenizer, output.logprobs)
        if self._body.return_token_ids:
            choice.token_ids = output.token_ids
        return choice

    def _chunk(self, *choices: ChatChunkChoice) -> ChatCompletionChunk:
        chunk = ChatCompletionChunk(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=list(choices),
        )
        if self._body.continuous_usage:
            chunk.usage = self._usage.usage
        elif self._body.include_usage:
            chunk.usage = None
        return chunk

    def _first_event(self, index: int) -> bytes:
        delta = ChatDelta(role="assistant", content="")
        chunk = self._chunk(ChatChunkChoice(index=index, delta=delta))
        if self._body.return_token_ids:
            chunk.prompt_token_ids = self._prompt_token_ids
        return sse.event(chunk)

    def _delta_events(self, index: int, delta: Delta) -> bytes:
        """What a delta adds, and the chunk with the reason if it is the last; may be nothing."""
        has_ids = bool(self._body.return_token_ids and delta.token_ids)
        events = b""
        parts = self._parts(index, delta)
        if parts or delta.logprobs or has_ids:
            choice = ChatChunkChoice(index=index, delta=parts[0] if parts else ChatDelta())
            if self._body.logprobs and delta.logprobs:
                choice.logprobs = chat_logprobs(self._context.tokenizer, delta.logprobs)
            choice.token_ids = delta.token_ids if has_ids else UNSET
            events = sse.event(self._chunk(choice))
        for part in parts[1:]:
            events += sse.event(self._chunk(ChatChunkChoice(index=index, delta=part)))
        if delta.finish_reason is not None:
            end = ChatChunkChoice(
                index=index,
                delta=ChatDelta(),
                finish_reason=finish_reason(delta.finish_reason, has_calls=self._has_calls[index]),
                stop_reason=delta.stop_reason,
            )
            events += sse.event(self._chunk(end))
        return events

    def _parts(self, index: int, delta: Delta) -> list[ChatDelta]:
        """What a delta's text adds to its choice's message, each part for a chunk of its own."""
        parser = self._parsers[index]
        if parser is None:
            return [ChatDelta(content=delta.text)] if delta.text else []
        events = parser.push(delta.text)
        if delta.finish_reason is not None:
            events += parser.finish()
        parts = chat_deltas(merged(events))
        self._has_calls[index] |= any(part.tool_calls for part in parts)
        return parts

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, without the end; empty where a delta has nothing to show."""
        is_new = [True] * len(self._jobs)
        async with aclosing(self._run()) as deltas:
            async for index, delta in deltas:
                self._usage.add(index, delta)
                events = self._delta_events(index, delta)
                if is_new[index]:
                    events = self._first_event(index) + events
                    is_new[index] = False
                yield events
        if self._body.include_usage:
            chunk = self._chunk()
            chunk.usage = self._usage.usage
            yield sse.event(chunk)
