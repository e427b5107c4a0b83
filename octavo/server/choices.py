"""How a request comes to its choices: each sampled, the best of more, or by beam search.

Between the routes and `generation`: routes see `n` choices per prompt, whatever was run for them.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec

from octavo.engine.output import merge_deltas
from octavo.errors import InvalidRequestError
from octavo.observability.metrics_requests import Siblings
from octavo.protocol.generation import nth_choice
from octavo.server.account import with_cost
from octavo.server.answers import UsageCounter
from octavo.server.beam import BeamSearch, run_beam_search
from octavo.server.generation import Job, run_jobs, side_by_side
from octavo.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from octavo.protocol.generation import GenerationRequest
    from octavo.protocol.usage import Usage
    from octavo.server.account import Account
    from octavo.server.context import ServerContext
    from octavo.types import Delta, RequestOptions


class PromptToRun(msgspec.Struct, frozen=True):
    """A prompt, checked, and how to sample from it."""

    token_ids: list[int]
    params: SamplingParams


class Choices:
    """The choices of one request.

    Args:
        context: the server's.
        body: the request; its `check` passed.
        prompts: each gets `body.num_choices` choices, which are neighbours.
        answer_id: the engine's requests are named after it.
        account: of the HTTP request.
        options: how to treat it.

    Attributes:
        num_choices: of all prompts together.
        account: see above.
        usage: counts tokens as they come.
    """

    def __init__(
        self,
        context: ServerContext,
        body: GenerationRequest,
        prompts: Sequence[PromptToRun],
        *,
        answer_id: str,
        account: Account,
        options: RequestOptions,
    ) -> None:
        self.num_choices = len(prompts) * body.num_choices
        self.account = account
        self._context = context
        self._body = body
        self._shows_logprobs = prompts[0].params.logprobs is not None
        self._picks = body.num_sampled > body.num_choices
        num_jobs = 1 if body.use_beam_search else body.num_sampled
        # A request's `n` is one parameter of all that is sampled for a prompt.
        siblings = [Siblings(body.num_choices, num_jobs) for _ in prompts]
        lines = account.lines(num_jobs * len(prompts))
        self._jobs = [
            Job(
                f"{answer_id}-{prompt * num_jobs + index}",
                job.token_ids,
                self._sampled(nth_choice(job.params, index)),
                account.arrived,
                lines[prompt * num_jobs + index],
                options,
                siblings[prompt],
            )
            for prompt, job in enumerate(prompts)
            for index in range(num_jobs)
        ]
        per_prompt = max(num_jobs, body.num_choices)
        lengths = [len(prompt.token_ids) for prompt in prompts for _ in range(per_prompt)]
        self.usage = UsageCounter(lengths, per_prompt)

    async def whole_usage(self) -> Usage:
        """Token counts when all has been run, with what it cost if that was asked for."""
        return await with_cost(self.usage.usage, self.account)

    def _sampled(self, params: SamplingParams) -> SamplingParams:
        """What choosing the best needs to know: the log-probabilities of what was sampled."""
        if self._picks and params.logprobs is None:
            return msgspec.structs.replace(params, logprobs=0)
        return params

    def run(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """The deltas of all choices, each with its choice's index, as they come; counts the usage.

        Exactly the last delta of each choice has a `finish_reason`.

        Raises:
            RequestError: the engine refuses a prompt, before the first delta; the error names the
                request's own field.
            EngineError: the engine failed.
        """
        if self._body.use_beam_search:
            return self._beams()
        if self._picks:
            return self._best()
        return self._prompts_only() if self._body.has_no_output else self._sampled_deltas()

    async def _sampled_deltas(
        self, *, counts: bool = True
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """Every job's deltas."""
        run = run_jobs(self._context.engine, self._context.metrics, self._jobs)
        try:
            async with aclosing(run) as deltas:
                async for item in deltas:
                    if counts:
                        self.usage.add(*item)
                    yield item
        except InvalidRequestError as exc:
            raise self._body.in_own_names(exc) from None

    async def _best(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """Per prompt, the choices with the highest mean log-probability, when all have ended."""
        per_prompt, num = self._body.num_sampled, self._body.num_choices
        wholes = await self._wholes()
        for first in range(0, len(wholes), per_prompt):
            ranked = sorted(wholes[first : first + per_prompt], key=_mean_logprob, reverse=True)
            for rank, whole in enumerate(ranked[:num]):
                if not self._shows_logprobs:
                    whole = msgspec.structs.replace(whole, logprobs=[])
                yield first // per_prompt * num + rank, whole

    async def _wholes(self) -> list[Delta]:
        """Each job's deltas as one."""
        source = self._prompts_only() if self._body.has_no_output else self._sampled_deltas()
        parts: list[list[Delta]] = [[] for _ in self._jobs]
        async with aclosing(source) as deltas:
            async for index, delta in deltas:
                parts[index].append(delta)
        return [merge_deltas(deltas) for deltas in parts]

    async def _prompts_only(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """One delta per job without the token that the engine had to sample."""
        parts: list[list[Delta]] = [[] for _ in self._jobs]
        async with aclosing(self._sampled_deltas(counts=False)) as deltas:
            async for index, delta in deltas:
                parts[index].append(delta)
                if delta.finish_reason is not None:
                    whole = _prompt_only(merge_deltas(parts[index]))
                    self.usage.add(index, whole)
                    yield index, whole

    async def _beams(self) -> AsyncGenerator[tuple[int, Delta], None]:
        """One delta per choice, when its prompt's search has ended."""
        context, width = self._context, self._body.num_choices
        runs = [
            run_beam_search(
                context.engine, context.metrics, job, self._search(job), context.tokenizer
            )
            for job in self._jobs
        ]
        async with aclosing(side_by_side(runs)) as answers:
            async for prompt, (rank, delta) in answers:
                index = prompt * width + rank
                self.usage.add(index, delta)
                yield index, delta

    def _search(self, job: Job) -> BeamSearch:
        body, params = self._body, job.params
        assert params.max_tokens is not None  # it was fitted to the context
        return BeamSearch(
            body.num_choices,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            eos_token_ids=() if params.ignore_eos else self._context.tokenizer.eos_token_ids,
            stop_token_ids=params.stop_token_ids,
            length_penalty=1.0 if body.length_penalty is None else body.length_penalty,
            early_stopping=bool(body.early_stopping),
        )


def _mean_logprob(whole: Delta) -> float:
    """Of the sampled tokens, natural; an output without tokens comes last."""
    logprobs = [position.sampled.logprob for position in whole.logprobs]
    return sum(logprobs) / len(logprobs) if logprobs else float("-inf")


def _prompt_only(whole: Delta) -> Delta:
    """The delta without its output."""
    ended = whole.finish_reason in ("stop", "length")
    return msgspec.structs.replace(
        whole,
        text="",
        token_ids=[],
        logprobs=[],
        finish_reason="length" if ended else whole.finish_reason,
        stop_reason=None,
        num_output_tokens=0,
    )
