"""Requests of a caller who has the core in its own process, and their answers.

Runs the core's steps in the caller's thread. Knows token ids and checked parameters; nothing of
prompts as callers write them. Not thread-safe.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from octavo.engine.admission import bad_words_token_ids
from octavo.engine.messages import AddRequest
from octavo.engine.output import DeltaSum, OutputProcessor
from octavo.types import RequestOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from octavo.engine.core import EngineCore
    from octavo.text.tokenizer import Tokenizer
    from octavo.types import (
        Charge,
        Delta,
        EngineInfo,
        FinishReason,
        PositionLogprobs,
        SamplingParams,
    )


@dataclass(slots=True)
class CompletionOutput:
    """One answer. `stop_reason` is the stop string or token id that ended it."""

    index: int
    text: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: str | int | None


@dataclass(slots=True)
class RequestOutput:
    """A prompt and its answers; `charge` is the device time that they cost, with `metering`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    num_cached_tokens: int = 0
    charge: Charge | None = None


@dataclass(slots=True)
class _Running:
    """A request in the core, and what it produced so far."""

    prompt: str | None
    prompt_token_ids: list[int]
    processor: OutputProcessor
    wants_logprobs: bool
    output: DeltaSum = field(default_factory=DeltaSum)
    charge: Charge | None = None


class LocalRequests:
    """See the module.

    Args:
        core: whoever made it closes it.
        tokenizer: None: texts stay empty.
        info: of the engine.
    """

    def __init__(self, core: EngineCore, tokenizer: Tokenizer | None, info: EngineInfo) -> None:
        self._core, self._tokenizer, self._info = core, tokenizer, info
        eos = tokenizer.eos_token_ids if tokenizer is not None else ()
        self._eos_token_ids = [i for i in eos if i < info.vocab_size]
        self._running: dict[str, _Running] = {}
        self._deadlines: dict[str, float] = {}
        self._ids = itertools.count()

    def add(
        self,
        text: str | None,
        token_ids: list[int],
        params: SamplingParams,
        options: RequestOptions | None = None,
    ) -> str:
        """Give a request to the core.

        Args:
            text: the prompt, if it came as text.
            token_ids: the prompt.
            params: checked, and so are
            options: priority, cache salt, time limit, tenant.

        Returns:
            Its id, until `forget`.
        """
        request_id, options = str(next(self._ids)), options or RequestOptions()
        banned: list[list[int]] = []
        if params.bad_words and self._tokenizer is not None:  # refused without a tokenizer
            banned = bad_words_token_ids(params.bad_words, self._tokenizer, self._info.vocab_size)
        self._core.add(
            AddRequest(
                request_id,
                token_ids,
                params,
                self._eos_token_ids,
                options.cache_salt,
                options.priority,
                options.tenant,
                banned,
            )
        )
        if options.timeout_s is not None:
            self._deadlines[request_id] = time.monotonic() + options.timeout_s
        self._running[request_id] = _Running(
            text,
            token_ids,
            OutputProcessor(token_ids, params, self._tokenizer),
            params.logprobs is not None,
        )
        return request_id

    def run(self, ids: Sequence[str], on_step: Callable[[int], None] | None = None) -> None:
        """Step until requests have ended.

        Args:
            ids: of requests that were added.
            on_step: called after each step, with how many of them ended in it.
        """
        open_ids = {i for i in ids if not self._running[i].processor.is_finished}
        while open_ids:
            done: set[str] = set()
            if self._step():  # usually none ends, which need not look at every request
                done = {i for i in open_ids if self._running[i].processor.is_finished}
                open_ids.difference_update(done)
            if on_step is not None:
                on_step(len(done))

    def answers(self, ids: Sequence[str]) -> list[RequestOutput]:
        """What came of requests that have ended, once it is known what each cost."""
        self._await_charges(ids)
        return [self._output(request_id) for request_id in ids]

    def stream(self, request_id: str) -> Iterator[Delta]:
        """Increments of one answer; at its end, or when it is closed, the request is forgotten."""
        running = self._running[request_id]
        try:
            while not running.processor.is_finished or not running.output.is_empty:
                if running.output.is_empty:
                    self._step()
                else:
                    yield running.output.take()
        finally:
            self.forget([request_id])

    def forget(self, ids: Sequence[str]) -> None:
        """Abort those that have not ended. The ids are of no use afterwards."""
        for request_id in ids:
            self._deadlines.pop(request_id, None)
        open_ids = [i for i in ids if not self._running.pop(i).processor.is_finished]
        self._core.abort(open_ids)

    def _step(self) -> int:
        """One step of the engine; how many requests ended in it."""
        num_ended = 0
        for output in self._core.step():
            running = self._running.get(output.request_id)
            if running is None or running.processor.is_finished:
                continue
            running.output.add(running.processor.push(output))
            num_ended += running.processor.is_finished
            running.charge = output.charge
            if running.processor.hit_stop_string:
                self._core.abort([output.request_id])
        num_ended += self._end_overdue()
        for request_id, charge in self._core.take_charges():
            if (ended := self._running.get(request_id)) is not None:
                ended.charge = charge
        return num_ended

    def _end_overdue(self) -> int:
        """End what has passed its deadline, with what there is; how many."""
        if not self._deadlines:
            return 0
        now = time.monotonic()
        overdue = [i for i, deadline in self._deadlines.items() if deadline <= now]
        num_ended = 0
        for request_id in overdue:
            del self._deadlines[request_id]
            running = self._running[request_id]
            if not running.processor.is_finished:
                running.output.add(running.processor.end("timeout"))
                self._core.abort([request_id])
                num_ended += 1
        return num_ended

    def _await_charges(self, ids: Sequence[str]) -> None:
        """Run the last steps of those that were ended here: they pay for them."""
        if self._info.work is not None:
            while any(self._running[i].charge is None for i in ids):
                self._step()

    def _output(self, request_id: str) -> RequestOutput:
        running = self._running[request_id]
        whole = running.output.take()
        completion = CompletionOutput(
            index=0,
            text=whole.text,
            token_ids=whole.token_ids,
            logprobs=whole.logprobs if running.wants_logprobs else None,
            finish_reason=whole.finish_reason,
            stop_reason=whole.stop_reason,
        )
        return RequestOutput(
            request_id=request_id,
            prompt=running.prompt,
            prompt_token_ids=running.prompt_token_ids,
            outputs=[completion],
            num_cached_tokens=whole.num_cached_tokens,
            charge=running.charge,
        )
