"""What both APIs need to turn deltas into answers: collected outputs, usage, log-probabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.protocol.chat import ChatLogprobs, TokenLogprobs, TopLogprob
from octavo.protocol.completions import CompletionLogprobs
from octavo.protocol.usage import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from octavo.server.prompts import TokenizerLike
    from octavo.types import Delta, FinishReason, PositionLogprobs, TokenLogprob

LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have (vLLM's choice)."""


class Output:
    """One prompt's output as it grows. `finish_reason` is None until its end."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[PositionLogprobs] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.texts)

    def add(self, delta: Delta) -> None:
        """Append an increment."""
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason
        self.stop_reason = delta.stop_reason


class UsageCounter:
    """Token counts over the choices of one HTTP request, as far as they have come.

    A prompt counts once, however many choices it has: so do its cached tokens, those of its first
    choice, for what the others find is what that one computed.

    Args:
        num_prompt_tokens: of each choice's prompt; choices of one prompt are neighbours.
        num_choices: per prompt.
    """

    def __init__(self, num_prompt_tokens: Sequence[int], num_choices: int = 1) -> None:
        self._num_choices = num_choices
        self._prompt = sum(num_prompt_tokens[::num_choices])
        self._completion = [0] * len(num_prompt_tokens)
        self._cached = [0] * len(num_prompt_tokens)

    def add(self, index: int, delta: Delta) -> None:
        """Take note of a delta of the choice with this index."""
        self._completion[index] = delta.num_output_tokens
        if index % self._num_choices == 0:
            self._cached[index] = delta.num_cached_tokens

    @property
    def usage(self) -> Usage:
        """The sum."""
        return Usage.of(
            prompt=self._prompt, completion=sum(self._completion), cached=sum(self._cached)
        )


async def collect(
    deltas: AsyncIterator[tuple[int, Delta]], usage: UsageCounter, num_outputs: int
) -> list[Output]:
    """All outputs at their end, in the order of the prompts."""
    outputs = [Output() for _ in range(num_outputs)]
    async for index, delta in deltas:
        outputs[index].add(delta)
        usage.add(index, delta)
    return outputs


def completion_logprobs(
    tokenizer: TokenizerLike, positions: Sequence[PositionLogprobs], offset: int
) -> CompletionLogprobs:
    """Log-probabilities in the shape of `/v1/completions`.

    Args:
        tokenizer: for the tokens' texts.
        positions: one per token.
        offset: where the first token begins in the choice's text, characters.
    """
    result = CompletionLogprobs()
    for position in positions:
        text = tokenizer.token_text(position.sampled.token_id)
        result.tokens.append(text)
        result.token_logprobs.append(_finite(position.sampled))
        result.text_offset.append(offset)
        offset += len(text)
        tops: dict[str, float] = {}
        for top in (*position.top, position.sampled):
            # Different tokens may have one text: the more probable one, which comes first, counts.
            tops.setdefault(tokenizer.token_text(top.token_id), _finite(top))
        result.top_logprobs.append(tops)
    return result


def chat_logprobs(tokenizer: TokenizerLike, positions: Sequence[PositionLogprobs]) -> ChatLogprobs:
    """Log-probabilities in the shape of `/v1/chat/completions`."""

    def parts(token: TokenLogprob) -> tuple[str, float, list[int]]:
        token_id = token.token_id
        data = list(tokenizer.token_bytes(token_id))
        return tokenizer.token_text(token_id), _finite(token), data

    return ChatLogprobs(
        [
            TokenLogprobs(
                *parts(position.sampled), [TopLogprob(*parts(top)) for top in position.top]
            )
            for position in positions
        ]
    )


def _finite(token: TokenLogprob) -> float:
    return max(token.logprob, LEAST_LOGPROB)
