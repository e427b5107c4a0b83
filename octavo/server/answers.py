"""What both APIs need to turn deltas into answers: collected outputs, usage, log-probabilities."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from octavo.protocol.chat import ChatLogprobs, TokenLogprobs, TopLogprob
from octavo.protocol.completions import CompletionLogprobs
from octavo.protocol.logprobs import PromptLogprob
from octavo.protocol.usage import Usage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Container, Sequence

    from octavo.protocol.logprobs import PromptLogprobs
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
        self.prompt_logprobs: list[PositionLogprobs] = []
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
        self.prompt_logprobs += delta.prompt_logprobs
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
    deltas: AsyncIterator[tuple[int, Delta]], usage: UsageCounter | None, num_outputs: int
) -> list[Output]:
    """All outputs at their end, in the order of the prompts; `usage` None: others count it."""
    outputs = [Output() for _ in range(num_outputs)]
    async for index, delta in deltas:
        outputs[index].add(delta)
        if usage is not None:
            usage.add(index, delta)
    return outputs


class CompletionLogprobsMaker:
    """One choice's log-probabilities in the shape of `/v1/completions`, as its tokens come.

    A token begins where the characters end that the tokens before it completed; special tokens that
    are left out of the text take no place in it.

    Args:
        tokenizer: for the tokens' texts.
        num_top: alternatives per token.
        hides_special: special tokens are left out of the text.
    """

    def __init__(self, tokenizer: TokenizerLike, num_top: int, *, hides_special: bool) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._hidden: Container[int] = tokenizer.special_token_ids if hides_special else ()
        self._offset = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def prompt(
        self, token_ids: Sequence[int], positions: Sequence[PositionLogprobs], text: str
    ) -> CompletionLogprobs:
        """Of an echoed prompt, before those of the output.

        Args:
            token_ids: the prompt's.
            positions: one per token but the first.
            text: the echo. Special tokens are where it has their names.
        """
        result = CompletionLogprobs()
        tokenizer = self._tokenizer
        special = tokenizer.special_token_ids
        first = next((i for i in token_ids if i not in special), None)
        if first is not None and tokenizer.token_bytes(first)[:1] == b" " and text[:1] != " ":
            self._offset = -1  # the space before the first word is not in the text: SentencePiece
        for token_id, position in zip(token_ids, (None, *positions), strict=True):
            offset = max(0, self._offset)
            name = tokenizer.token_text(token_id)
            if token_id not in special:
                self._advance(token_id)
            elif text.startswith(name, offset):
                self._offset += len(name)
            self._add(result, token_id, position, offset)
        self._offset = len(text)
        return result

    def output(self, positions: Sequence[PositionLogprobs]) -> CompletionLogprobs:
        """Of the output's next tokens, one position each."""
        result = CompletionLogprobs()
        for position in positions:
            token_id, offset = position.sampled.token_id, self._offset
            if token_id not in self._hidden:
                self._advance(token_id)
            self._add(result, token_id, position, offset)
        return result

    def _advance(self, token_id: int) -> None:
        self._offset += len(self._decoder.decode(self._tokenizer.token_bytes(token_id)))

    def _add(
        self,
        result: CompletionLogprobs,
        token_id: int,
        position: PositionLogprobs | None,
        offset: int,
    ) -> None:
        tokenizer = self._tokenizer
        result.tokens.append(tokenizer.token_text(token_id))
        result.text_offset.append(offset)
        if position is None:
            result.token_logprobs.append(None)
            result.top_logprobs.append(None)
            return
        result.token_logprobs.append(_finite(position.sampled))
        tops: dict[str, float] = {}
        for top in (*position.top[: self._num_top], position.sampled):
            # Different tokens may have one text: the more probable one, which comes first, counts.
            tops.setdefault(tokenizer.token_text(top.token_id), _finite(top))
        result.top_logprobs.append(tops)


def joined_logprobs(first: CompletionLogprobs, second: CompletionLogprobs) -> CompletionLogprobs:
    """The prompt's and the output's as one."""
    return CompletionLogprobs(
        first.tokens + second.tokens,
        first.token_logprobs + second.token_logprobs,
        first.top_logprobs + second.top_logprobs,
        first.text_offset + second.text_offset,
    )


def prompt_logprobs(
    tokenizer: TokenizerLike, positions: Sequence[PositionLogprobs], num_top: int
) -> list[PromptLogprobs | None]:
    """A prompt's log-probabilities in vLLM's shape; null for its first token.

    Args:
        tokenizer: for the tokens' texts.
        positions: one per token but the first.
        num_top: alternatives per token.
    """
    return [
        None,
        *(
            {
                str(token.token_id): PromptLogprob(
                    _finite(token), token.rank, tokenizer.token_text(token.token_id)
                )
                for token in (position.sampled, *position.top[:num_top])
            }
            for position in positions
        ),
    ]


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
