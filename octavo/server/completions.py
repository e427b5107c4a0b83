"""`POST /v1/completions`."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import TYPE_CHECKING
from uuid import uuid4

from msgspec import UNSET

from octavo.protocol import sse
from octavo.protocol.completions import Completion, CompletionChoice, CompletionRequest
from octavo.protocol.generation import nth_choice
from octavo.server.answers import UsageCounter, collect, completion_logprobs
from octavo.server.auth import tenant_of
from octavo.server.context import ServerContext, context_of
from octavo.server.generation import Job, run_jobs
from octavo.server.http import json_response, until_disconnect
from octavo.server.stream import EventStream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from msgspec import UnsetType
    from starlette.requests import Request
    from starlette.types import ASGIApp

    from octavo.protocol.usage import Usage
    from octavo.types import Delta, RequestOptions


async def create_completion(request: Request) -> ASGIApp:
    """Complete one or several prompts, as one answer or as a stream.

    Raises:
        RequestError: the request cannot be served; nothing was generated.
    """
    arrived = time.perf_counter()
    context = context_of(request)
    body = await context.read(request, CompletionRequest)
    context.check_model(body.model)
    body.check()
    jobs = await _jobs(context, body, arrived, body.options(tenant_of(request.scope)))
    answer = _Answer(context, body, jobs)
    if body.stream:
        return EventStream(answer.events())
    return json_response(await until_disconnect(request.receive, answer.complete()))


async def _jobs(
    context: ServerContext, body: CompletionRequest, arrived: float, options: RequestOptions
) -> list[Job]:
    """The prompts encoded, checked, and with their parameters: one job per choice."""
    params = body.sampling_params(context.defaults)
    encoder = context.prompts
    encoder.check_ids(params.stop_token_ids, param="stop_token_ids")
    prompts = body.prompts()
    add_special_tokens = body.add_special_tokens is not False
    completion_id = f"cmpl-{uuid4().hex}"
    jobs: list[Job] = []
    for index, prompt in enumerate(prompts):
        param = "prompt" if len(prompts) == 1 else f"prompt[{index}]"
        if isinstance(prompt, str):
            ids = await encoder.encode(prompt, add_special_tokens=add_special_tokens, param=param)
        else:
            ids = prompt
            encoder.check_ids(ids, param=param)
        fitted = encoder.fit(params, len(ids), prompt=param, max_tokens="max_tokens")
        for choice in range(body.num_choices):
            request_id = f"{completion_id}-{len(jobs)}"
            jobs.append(Job(request_id, ids, nth_choice(fitted, choice), arrived, options))
    return jobs


class _Answer:
    """Makes the answer, whole or in chunks, out of the deltas of its jobs."""

    def __init__(self, context: ServerContext, body: CompletionRequest, jobs: list[Job]) -> None:
        self._context = context
        self._body = body
        self._jobs = jobs
        self._id = jobs[0].request_id.removesuffix("-0")
        self._created = int(time.time())
        self._usage = UsageCounter([len(job.prompt_token_ids) for job in jobs], body.num_choices)

    def _run(self) -> AsyncGenerator[tuple[int, Delta], None]:
        return run_jobs(self._context.engine, self._context.metrics, self._jobs)

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
        async with aclosing(self._run()) as deltas:
            outputs = await collect(deltas, self._usage, len(self._jobs))
        choices = []
        for index, output in enumerate(outputs):
            choice = CompletionChoice(
                index=index,
                text=output.text,
                finish_reason=output.finish_reason,
                stop_reason=output.stop_reason,
            )
            if self._body.logprobs is not None:
                choice.logprobs = completion_logprobs(self._context.tokenizer, output.logprobs, 0)
            if self._body.return_token_ids:
                choice.token_ids = output.token_ids
                choice.prompt_token_ids = self._jobs[index].prompt_token_ids
            choices.append(choice)
        return self._wrap(choices, self._usage.usage)

    def _text_events(self, index: int, usage: UnsetType | None) -> sse.TextEvents:
        """The events of a choice that bring nothing but text."""
        return sse.TextEvents(
            lambda text: self._wrap([CompletionChoice(index=index, text=text)], usage)
        )

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The answer as events, without the end; empty where a delta has nothing to show."""
        body = self._body
        offsets = [0] * len(self._jobs)
        is_new = [True] * len(self._jobs)
        no_usage: UnsetType | None = None if body.include_usage else UNSET
        usage: Usage | UnsetType | None = no_usage
        texts = [self._text_events(index, no_usage) for index in range(len(self._jobs))]
        has_more = body.logprobs is not None or body.return_token_ids or body.continuous_usage
        async with aclosing(self._run()) as deltas:
            async for index, delta in deltas:
                self._usage.add(index, delta)
                if not has_more and delta.finish_reason is None:
                    yield texts[index].event(delta.text) if delta.text else b""
                    continue
                has_ids = bool(body.return_token_ids and delta.token_ids)
                if not (delta.text or delta.logprobs or has_ids or delta.finish_reason):
                    yield b""
                    continue
                choice = CompletionChoice(
                    index=index,
                    text=delta.text,
                    finish_reason=delta.finish_reason,
                    stop_reason=delta.stop_reason,
                )
                if body.logprobs is not None and delta.logprobs:
                    logprobs = completion_logprobs(
                        self._context.tokenizer, delta.logprobs, offsets[index]
                    )
                    offsets[index] = logprobs.text_offset[-1] + len(logprobs.tokens[-1])
                    choice.logprobs = logprobs
                if body.return_token_ids:
                    choice.token_ids = delta.token_ids
                    if is_new[index]:
                        choice.prompt_token_ids = self._jobs[index].prompt_token_ids
                is_new[index] = False
                if body.continuous_usage:
                    usage = self._usage.usage
                yield sse.event(self._wrap([choice], usage))
        if body.include_usage:
            yield sse.event(self._wrap([], self._usage.usage))
