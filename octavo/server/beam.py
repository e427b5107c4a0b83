"""Beam search on top of an engine that gives the most probable next tokens.

Each step asks the engine for one token after each beam, all at the same time; the prefix cache
keeps what the beams share. The definition is that of transformers' `generate(num_beams=...)`: each
step takes the most probable continuations of all beams together; those among the best `width` that
end are finished, with their log-probability divided by length ** length_penalty, and the best
others go on. vLLM's differs in two points: it counts the prompt into the length, and it goes on to
`max_tokens` even when no beam can become better than those finished.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import msgspec

from octavo.errors import EngineError, RequestError
from octavo.observability.tracing import start_call
from octavo.server.generation import side_by_side, with_time_left
from octavo.types import MAX_LOGPROBS, Delta, PositionLogprobs, SamplingParams

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Collection, Sequence

    from octavo.engine.interface import EngineClient
    from octavo.observability.metrics import Metrics
    from octavo.server.generation import Job
    from octavo.server.prompts import TokenizerLike
    from octavo.types import FinishReason

NUM_CONTEXT_TOKENS = 16
"""Tokens of the prompt that are decoded with the output, so that its first word keeps its space."""


@dataclass(frozen=True, slots=True)
class Beam:
    """One continuation of the prompt.

    Attributes:
        positions: for each of its tokens, itself and the most probable alternatives.
        logprob: of all of them together, natural.
        finish_reason: None while it may go on.
        stop_reason: the stop token id that ended it.
    """

    positions: tuple[PositionLogprobs, ...] = ()
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None

    @property
    def token_ids(self) -> list[int]:
        """The tokens; one that ended the beam is among them."""
        return [position.sampled.token_id for position in self.positions]

    def score(self, length_penalty: float) -> float:
        """What beams of different lengths are ranked by."""
        length = len(self.positions)
        return self.logprob / length**length_penalty if length else -math.inf


class BeamSearch:
    """The beams of one prompt. Knows no engine.

    Args:
        width: beams that go on at each step, and answers.
        max_tokens: of each answer.
        min_tokens: no beam ends before.
        eos_token_ids: end a beam.
        stop_token_ids: end it too, and are named as the reason.
        length_penalty: above 0 long answers are favoured, below 0 short ones.
        early_stopping: end as soon as `width` beams are finished, whatever the others promise.

    Attributes:
        running: the beams that go on, the best one first.
    """

    def __init__(
        self,
        width: int,
        *,
        max_tokens: int,
        min_tokens: int = 0,
        eos_token_ids: Collection[int] = (),
        stop_token_ids: Collection[int] = (),
        length_penalty: float = 1.0,
        early_stopping: bool = False,
    ) -> None:
        self.width = width
        self.running: list[Beam] = [Beam()]
        self._max_tokens = max_tokens
        self._min_tokens = min_tokens
        self._eos = frozenset(eos_token_ids)
        self._ends = self._eos.union(stop_token_ids)
        self._length_penalty = length_penalty
        self._early_stopping = early_stopping
        self._finished: list[Beam] = []

    @property
    def num_candidates(self) -> int:
        """Most probable next tokens that each beam needs."""
        return min(MAX_LOGPROBS, self.width * max(2, 1 + len(self._ends)))

    def step(self, positions: Sequence[PositionLogprobs]) -> None:
        """Go on by one token.

        Args:
            positions: for each running beam, its `num_candidates` most probable next tokens.
        """
        candidates = [
            (beam.logprob + top.logprob, beam, msgspec.structs.replace(position, sampled=top))
            for beam, position in zip(self.running, positions, strict=True)
            for top in position.top
            if len(beam.positions) >= self._min_tokens or top.token_id not in self._ends
        ]
        candidates.sort(key=lambda candidate: candidate[0], reverse=True)
        if not candidates:  # every probable token would end a beam too early
            self.end("length")
            return
        self.running = []
        for rank, (logprob, beam, position) in enumerate(candidates[: self.num_candidates]):
            grown = self._grown(beam, position, logprob)
            if grown.finish_reason is None:
                if len(self.running) < self.width:
                    self.running.append(grown)
            elif rank < self.width:
                self._finished.append(grown)
        self._finished = self._ranked(self._finished)
        if self._is_done:
            self.running = []

    def _grown(self, beam: Beam, position: PositionLogprobs, logprob: float) -> Beam:
        positions = (*beam.positions, position)
        token_id = position.sampled.token_id
        reason: FinishReason | None = None
        if token_id in self._ends:
            reason = "stop"
        elif len(positions) >= self._max_tokens:
            reason = "length"
        is_stop_token = token_id in self._ends and token_id not in self._eos
        return Beam(positions, logprob, reason, token_id if is_stop_token else None)

    def end(self, reason: FinishReason) -> None:
        """Finish the beams that run, as far as they came; there are `width` answers after it."""
        stopped = [Beam(beam.positions, beam.logprob, reason) for beam in self.running]
        self.running, self._finished = [], self._ranked([*self._finished, *stopped])
        num_missing = self.width - len(self._finished)
        self._finished += [Beam(finish_reason=reason)] * num_missing

    @property
    def answers(self) -> list[Beam]:
        """The best finished beams, at most `width`, the best one first."""
        return self._finished

    def _ranked(self, beams: list[Beam]) -> list[Beam]:
        if len(beams) > 1:
            beams = sorted(beams, key=lambda b: b.score(self._length_penalty), reverse=True)
        return beams[: self.width]

    @property
    def _is_done(self) -> bool:
        """Whether `width` beams are finished and none that runs is better, by its present score."""
        if len(self._finished) < self.width:
            return not self.running
        if self._early_stopping or not self.running:
            return True
        worst = self._finished[-1].score(self._length_penalty)
        return self.running[0].score(self._length_penalty) <= worst


async def run_beam_search(
    engine: EngineClient, metrics: Metrics, job: Job, search: BeamSearch, tokenizer: TokenizerLike
) -> AsyncGenerator[tuple[int, Delta], None]:
    """One delta for each answer, with its rank, 0 for the best; all of them at the end.

    Raises:
        RequestError: before the first step: the engine refuses the request.
        EngineError: the engine failed.
    """
    timer = metrics.start_request(
        job.arrived, max_tokens=job.params.max_tokens, siblings=job.siblings
    )
    timer.call = start_call(job.request_id, job.params, job.arrived)
    is_admitted = False
    first: Delta | None = None
    try:
        while search.running:
            deltas = await _step(engine, job, search)
            is_admitted = True
            first = first or deltas[0]
            ended = next((d.finish_reason for d in deltas if not d.logprobs), None)
            if ended is None:
                search.step([delta.logprobs[0] for delta in deltas])
            else:
                search.end(ended)
        assert first is not None
        answers = [_delta(job, beam, first, tokenizer) for beam in search.answers]
        timer.on_delta(answers[0])
        total = msgspec.structs.replace(
            answers[0], num_output_tokens=sum(answer.num_output_tokens for answer in answers)
        )
        job.line.end(total.finish_reason or "stop", total, timer.first_token_at)
        for index, answer in enumerate(answers):
            yield index, answer
    except (GeneratorExit, asyncio.CancelledError):
        timer.finish("abort")
        job.line.end("abort", first, num_input_tokens=len(job.prompt_token_ids))
        raise
    except Exception as exc:
        job.line.end("error", first, num_input_tokens=len(job.prompt_token_ids))
        if is_admitted or not isinstance(exc, RequestError):
            timer.finish("error")
        else:
            timer.refuse(exc)
        raise


async def _step(engine: EngineClient, job: Job, search: BeamSearch) -> list[Delta]:
    """For each running beam, the one delta that its next token takes."""
    length = len(search.running[0].positions)
    params = SamplingParams(
        temperature=0.0,
        max_tokens=1,
        ignore_eos=True,
        logprobs=search.num_candidates,
        prompt_logprobs=None if length else job.params.prompt_logprobs,
    )
    streams = [
        _one_token(engine, job, beam, params, f"{job.request_id}-{length}-{index}")
        for index, beam in enumerate(search.running)
    ]
    sums = [Delta() for _ in streams]
    async with aclosing(side_by_side(streams)) as deltas:
        async for index, delta in deltas:
            if delta.finish_reason == "error":
                raise EngineError(delta.error or "no reason given")
            last = sums[index]
            sums[index] = msgspec.structs.replace(
                delta,
                logprobs=last.logprobs + delta.logprobs,
                prompt_logprobs=last.prompt_logprobs + delta.prompt_logprobs,
            )
    return sums


async def _one_token(
    engine: EngineClient, job: Job, beam: Beam, params: SamplingParams, engine_id: str
) -> AsyncGenerator[Delta, None]:
    """The deltas of a beam's next token. All requests of a search are one line of usage."""
    stream = engine.generate(
        [*job.prompt_token_ids, *beam.token_ids],
        params,
        request_id=engine_id,
        options=with_time_left(job.options, job.arrived),
    )
    job.line.open(engine_id)
    is_admitted = False
    try:
        async with aclosing(cast("AsyncGenerator[Delta, None]", stream)) as deltas:
            async for delta in deltas:
                is_admitted = True
                yield delta
    except RequestError:
        if not is_admitted:
            job.line.refuse(engine_id)
        raise


def _delta(job: Job, beam: Beam, first: Delta, tokenizer: TokenizerLike) -> Delta:
    """The answer that a finished beam is."""
    ids = beam.token_ids
    visible = ids[:-1] if beam.finish_reason == "stop" else ids
    before = job.prompt_token_ids[-NUM_CONTEXT_TOKENS:]
    skip = job.params.skip_special_tokens
    context = tokenizer.decode(before, skip_special_tokens=skip)
    whole = tokenizer.decode([*before, *visible], skip_special_tokens=skip)
    num_top = job.params.logprobs
    return Delta(
        text=whole[len(context) :],
        token_ids=ids,
        logprobs=[]
        if num_top is None
        else [PositionLogprobs(p.sampled, p.top[:num_top]) for p in beam.positions],
        finish_reason=beam.finish_reason,
        stop_reason=beam.stop_reason,
        num_prompt_tokens=len(job.prompt_token_ids),
        num_output_tokens=len(ids),
        num_cached_tokens=first.num_cached_tokens,
        prompt_logprobs=first.prompt_logprobs,
    )
