"""`POST /v1/completions`."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import uuid4

from msgspec import UNSET

from octavo.protocol import sse
from octavo.protocol.completions import Completion, CompletionChoice, CompletionRequest
from octavo.server.answers import (
    CompletionLogprobsMaker,
    collect,
    joined_logprobs,
    prompt_logprobs,
)
from octavo.server.auth import tenant_of
from octavo.server.choices import Choices, PromptToRun
from octavo.server.context import ServerContext, context_of
from octavo.server.http import json_response, until_disconnect
from octavo.server.prompts import MAX_INLINE_CHARS
from octavo.server.stream import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from msgspec import UnsetType
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.protocol.usage import Usage
    from octavo.server.answers import Output
    from octavo.types import Delta, PositionLogprobs, SamplingParams


class _Prompt(PromptToRun, frozen=True):
    """`text` is what an echo shows of it."""

    text: str = ""


async def create_completion(request: Request) -> ASGIApp:
    """Complete one or several prompts, as one answer or as a stream.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, CompletionRequest)
    context.check_model(body.model)
    context.check_task("generate")
    body.check()
    options = body.options(tenant_of(request.scope))
    prompts = await _prompts(context, body)
    answer_id = f"cmpl-{uuid4().hex}"
    account = context.usage.open(request.scope, arrived, metadata=body.metadata, user=body.asker)
    choices = Choices(context, body, prompts, answer_id=answer_id, account=account, options=options)
    answer = _Answer(context, body, prompts, choices, answer_id)
    if body.stream:
        return EventStream(answer.events())
    return json_response(await until_disconnect(request.receive, answer.complete()))


async def _prompts(context: ServerContext, body: CompletionRequest) -> list[_Prompt]:
    """The prompts encoded, checked, and with their parameters."""
    params = body.sampling_params(context.defaults)
    context.prompts.check_params(params)
    await context.check_grammar(params, body)
    given = body.prompts()
    return [
        await _prompt(
            context, body, prompt, params, "prompt" if len(given) == 1 else f"prompt[{i}]"
        )
        for i, prompt in enumerate(given)
    ]


async def _prompt(
    context: ServerContext,
    body: CompletionRequest,
    prompt: str | list[int],
    params: SamplingParams,
    param: str,
) -> _Prompt:
    encoder = context.prompts
    if isinstance(prompt, str):
        add_special_tokens = body.add_special_tokens is not False
        ids = await encoder.encode(prompt, add_special_tokens=add_special_tokens, param=param)
    else:
        ids = prompt
        encoder.check_ids(ids, param=param)
    ids = encoder.truncate(ids, body.truncate_prompt_tokens, params)
    params = encoder.fit(params, len(ids), prompt=param, max_tokens="max_tokens")
    if not body.echo:
        return _Prompt(ids, params)
    if isinstance(prompt, str) and body.truncate_prompt_tokens is None:
        return _Prompt(ids, params, prompt)

    def decode() -> str:
        skip = params.skip_special_tokens
        return context.tokenizer.decode(ids, skip_special_tokens=skip)

    is_short = len(ids) <= MAX_INLINE_CHARS
    return _Prompt(ids, params, decode() if is_short else await asyncio.to_thread(decode))


class _Answer:
    """Makes the answer, whole or in chunks, out of the deltas of its choices."""

    def __init__(
        self,
        context: ServerContext,
        body: CompletionRequest,
        prompts: list[_Prompt],
        choices: Choices,
        answer_id: str,
    ) -> None:
        self._context = context
        self._body = body
        self._prompts = prompts
        self._choices = choices
        self._id = answer_id
        self._has_usage = body.include_usage or choices.account.includes_cost
        self._created = int(time.time())
        hides_special = body.skip_special_tokens is not False
        self._logprobs = [
            CompletionLogprobsMaker(
                context.tokenizer, body.logprobs or 0, hides_special=hides_special
            )
            for _ in range(choices.num_choices)
        ]
        self._is_new = [True] * choices.num_choices
        self._known: list[list[PositionLogprobs]] = [[] for _ in range(choices.num_choices)]

    def _prompt_of(self, index: int) -> _Prompt:
        return self._prompts[index // self._body.num_choices]

    def _wrap(self, choices: list[CompletionChoice], usage: Usage | UnsetType | None) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=choices,
            usage=usage,
        )

    async def complete(self) -> Completion:
        """The whole answer."""
        async with aclosing(self._choices.run()) as deltas:
            outputs = await collect(deltas, None, self._choices.num_choices)
        choices = [self._choice(index, output) for index, output in enumerate(outputs)]
        return self._wrap(choices, await self._choices.whole_usage())

    def _choice(self, index: int, output: Output) -> CompletionChoice:
        body, prompt, maker = self._body, self._prompt_of(index), self._logprobs[index]
        choice = CompletionChoice(
            index=index,
            text=prompt.text + output.text,
            finish_reason=output.finish_reason,
            stop_reason=output.stop_reason,
        )
        if body.logprobs is not None:
            if body.echo:
                before = maker.prompt(prompt.token_ids, output.prompt_logprobs, prompt.text)
                choice.logprobs = joined_logprobs(before, maker.output(output.logprobs))
            else:
                choice.logprobs = maker.output(output.logprobs)
        if body.prompt_logprobs is not None:
            choice.prompt_logprobs = prompt_logprobs(
                self._context.tokenizer, output.prompt_logprobs, body.prompt_logprobs
            )
        if body.return_token_ids:
            choice.token_ids = output.token_ids
            choice.prompt_token_ids = prompt.token_ids
        return choice

    def _text_events(self, index: int, usage: UnsetType | None) -> sse.TextEvents:
        """The events of a choice that bring nothing but text."""
        return sse.TextEvents(
            lambda text: self._wrap([CompletionChoice(index=index, text=text)], usage)
        )

    @property
    def _usage(self) -> Usage | UnsetType | None:
        """What a chunk says of the usage."""
        if self._body.continuous_usage:
            return self._choices.usage.usage
        return None if self._has_usage else UNSET

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, without the end; empty where a delta has nothing to show."""
        body = self._body
        usage: UnsetType | None = None if self._has_usage else UNSET
        texts = [self._text_events(index, usage) for index in range(self._choices.num_choices)]
        has_more = body.logprobs is not None or body.return_token_ids or body.continuous_usage
        async with aclosing(self._choices.run()) as deltas:
            async for index, delta in deltas:
                if has_more or self._is_new[index] or delta.finish_reason is not None:
                    yield self._event(index, delta)
                else:
                    yield texts[index].event(delta.text) if delta.text else b""
        if self._has_usage:
            yield sse.event(self._wrap([], await self._choices.whole_usage()))

    def _event(self, index: int, delta: Delta) -> bytes:
        """What a delta adds to its choice; before the first tokens come those of an echo."""
        body, is_new, event = self._body, self._is_new[index], b""
        if is_new and body.echo:
            self._known[index] += delta.prompt_logprobs
            if not (delta.token_ids or delta.finish_reason):
                return b""  # more of the prompt's log-probabilities may be on their way
            event = self._echo_event(index)
        has_ids = bool(body.return_token_ids and delta.token_ids)
        if not (delta.text or delta.logprobs or has_ids or delta.finish_reason):
            return event
        choice = CompletionChoice(
            index=index,
            text=delta.text,
            finish_reason=delta.finish_reason,
            stop_reason=delta.stop_reason,
        )
        if body.logprobs is not None and delta.logprobs:
            choice.logprobs = self._logprobs[index].output(delta.logprobs)
        if body.return_token_ids:
            choice.token_ids = delta.token_ids
            if is_new and not body.echo:
                choice.prompt_token_ids = self._prompt_of(index).token_ids
        self._is_new[index] = False
        return event + sse.event(self._wrap([choice], self._usage))

    def _echo_event(self, index: int) -> bytes:
        """The prompt, as a choice's first chunk."""
        body, prompt = self._body, self._prompt_of(index)
        choice = CompletionChoice(index=index, text=prompt.text)
        if body.logprobs is not None:
            choice.logprobs = self._logprobs[index].prompt(
                prompt.token_ids, self._known[index], prompt.text
            )
        if body.return_token_ids:
            choice.token_ids, choice.prompt_token_ids = [], prompt.token_ids
        self._is_new[index], self._known[index] = False, []
        return sse.event(self._wrap([choice], self._usage))
