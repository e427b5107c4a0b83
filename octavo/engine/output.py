"""From the token ids of one request to its deltas: text, stop strings, log-probabilities.

Used by the async client and by the synchronous `LLM`. Knows nothing of scheduling, processes or
HTTP. Costs the same per token however long the output is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.stop import StopChecker
from octavo.types import Delta

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.engine.messages import TokenOutput
    from octavo.text.tokenizer import Tokenizer
    from octavo.types import Charge, FinishReason, PositionLogprobs, SamplingParams


class OutputProcessor:
    """Turns what the engine sends for one request into deltas.

    Args:
        prompt_token_ids: the prompt; the first word of the output keeps its space behind it.
        params: `stop` and what goes with it, `skip_special_tokens` and `shown_token_ids` are looked
            at.
        tokenizer: the model's, or None: texts stay empty, and there can be no stop strings.

    Attributes:
        is_finished: the last delta was made; `push` must not be called again.
        hit_stop_string: we ended the request, not the engine: the caller must abort it there.
    """

    __slots__ = (
        "_detokenizer",
        "_keeps_stop",
        "_num_cached",
        "_num_output",
        "_num_preemptions",
        "_num_prompt",
        "_prefill_ns",
        "_queue_ns",
        "_stop",
        "hit_stop_string",
        "is_finished",
    )

    def __init__(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        tokenizer: Tokenizer | None,
    ) -> None:
        stop = params.stop_strings
        assert tokenizer is not None or not stop, "stop strings need a tokenizer"
        self._detokenizer = (
            IncrementalDetokenizer(
                tokenizer,
                skip_special_tokens=params.skip_special_tokens,
                shown_token_ids=params.shown_token_ids,
                prompt_token_ids=prompt_token_ids,
            )
            if tokenizer is not None
            else None
        )
        self._stop = StopChecker(stop) if stop else None
        self._keeps_stop = params.include_stop_str_in_output
        self._num_prompt = len(prompt_token_ids)
        self._num_output = 0
        self._num_cached = 0
        self._num_preemptions = 0
        self._queue_ns = 0
        self._prefill_ns = 0
        self.is_finished = False
        self.hit_stop_string = False

    def push(self, output: TokenOutput) -> Delta:
        """Take the engine's next output of this request.

        A token that ended the request (end-of-sequence or a stop token) is among the token ids but
        adds no text, unless stops are kept. After a stop string, tokens behind the one that
        completed it are dropped.
        """
        assert not self.is_finished, "output after the end"
        ids, logprobs, reason = output.token_ids, output.logprobs, output.finish_reason
        self._num_cached = output.num_cached_tokens
        if output.num_preemptions:
            self._num_preemptions = output.num_preemptions
        if output.prefill_ns:
            self._queue_ns, self._prefill_ns = output.queue_ns, output.prefill_ns
        told = output.prompt_logprobs
        visible = ids[:-1] if reason == "stop" and not self._keeps_stop else ids
        text = ""
        if self._stop is not None:
            text, num_used, hit = self._push_with_stop(visible)
            if hit is not None:
                self.hit_stop_string = reason is None
                self.is_finished = True
                self._num_output += num_used
                return self._delta(
                    text=text,
                    token_ids=ids[:num_used],
                    logprobs=logprobs[:num_used],
                    finish_reason="stop",
                    stop_reason=hit,
                    prompt_logprobs=told,
                    charge=output.charge,
                )
        elif self._detokenizer is not None:
            text = self._detokenizer.push(visible)
        self._num_output += len(ids)
        if reason is None:
            return self._delta(text=text, token_ids=ids, logprobs=logprobs, prompt_logprobs=told)
        self.is_finished = True
        tail, hit = self._flush()
        if hit is not None:
            reason = "stop"
        return self._delta(
            text=text + tail,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=reason,
            stop_reason=output.stop_reason if hit is None else hit,
            error=output.error,
            prompt_logprobs=told,
            charge=output.charge,
        )

    def end(self, reason: FinishReason, error: str | None = None) -> Delta:
        """The last delta of a request that the engine will not finish: pending text, no tokens."""
        assert not self.is_finished, "a second end"
        self.is_finished = True
        text, _ = self._flush()
        return self._delta(text=text, finish_reason=reason, error=error)

    def _push_with_stop(self, ids: Sequence[int]) -> tuple[str, int, str | None]:
        """Text, how many ids made it, and the stop string that ended it or None."""
        assert self._stop is not None
        assert self._detokenizer is not None
        text = ""
        for num_used, token_id in enumerate(ids, start=1):
            piece, hit = self._stop.push(self._detokenizer.push((token_id,)))
            text += piece
            if hit is not None:
                return text + self._kept(hit), num_used, hit
        return text, len(ids), None

    def _flush(self) -> tuple[str, str | None]:
        """Text held back so far; U+FFFD for an unfinished character may complete a stop string."""
        if self._detokenizer is None:
            return "", None
        tail = self._detokenizer.flush()
        if self._stop is None:
            return tail, None
        tail, hit = self._stop.push(tail)
        return tail + self._stop.flush() + self._kept(hit), hit

    def _kept(self, hit: str | None) -> str:
        """The stop string, where it stays in the text."""
        return hit if hit is not None and self._keeps_stop else ""

    def _delta(
        self,
        *,
        text: str = "",
        token_ids: list[int] | None = None,
        logprobs: list[PositionLogprobs] | None = None,
        finish_reason: FinishReason | None = None,
        stop_reason: str | int | None = None,
        error: str | None = None,
        prompt_logprobs: list[PositionLogprobs] | None = None,
        charge: Charge | None = None,
    ) -> Delta:
        return Delta(
            text=text,
            token_ids=token_ids or [],
            logprobs=logprobs or [],
            finish_reason=finish_reason,
            stop_reason=stop_reason,
            error=error,
            num_prompt_tokens=self._num_prompt,
            num_output_tokens=self._num_output,
            num_cached_tokens=self._num_cached,
            num_preemptions=self._num_preemptions,
            queue_ns=self._queue_ns,
            prefill_ns=self._prefill_ns,
            prompt_logprobs=prompt_logprobs or [],
            charge=charge,
        )


class DeltaSum:
    """Adds up consecutive deltas of a request, at a cost that does not grow with what is there."""

    __slots__ = ("_last", "_logprobs", "_prompt_logprobs", "_texts", "_token_ids")

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._token_ids: list[int] = []
        self._logprobs: list[PositionLogprobs] = []
        self._prompt_logprobs: list[PositionLogprobs] = []
        self._last: Delta | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was added since the last `take`."""
        return self._last is None

    def add(self, delta: Delta) -> None:
        """Add the next delta."""
        if delta.text:
            self._texts.append(delta.text)
        self._token_ids += delta.token_ids
        if delta.logprobs:
            self._logprobs += delta.logprobs
        if delta.prompt_logprobs:
            self._prompt_logprobs += delta.prompt_logprobs
        self._last = delta

    def take(self) -> Delta:
        """What was added since the last call, at least one delta, as one."""
        last = self._last
        assert last is not None
        total = msgspec.structs.replace(
            last,
            text="".join(self._texts),
            token_ids=self._token_ids,
            logprobs=self._logprobs,
            prompt_logprobs=self._prompt_logprobs,
        )
        self._texts, self._token_ids, self._logprobs = [], [], []
        self._prompt_logprobs, self._last = [], None
        return total


def merge_deltas(deltas: Sequence[Delta]) -> Delta:
    """One delta that says what consecutive ones of a request said."""
    if len(deltas) == 1:
        return deltas[0]
    total = DeltaSum()
    for delta in deltas:
        total.add(delta)
    return total.take()
