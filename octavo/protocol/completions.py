"""Wire types of `/v1/completions`.

Source: https://platform.openai.com/docs/api-reference/completions
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import msgspec
from msgspec import UNSET, UnsetType

from octavo.errors import InvalidRequestError
from octavo.protocol.decode import Int32
from octavo.protocol.generation import (
    GenerationRequest,
    Neutral,
    check_neutral,
    sampling_params,
)
from octavo.protocol.logprobs import PromptLogprobs
from octavo.protocol.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.types import SamplingParams

MAX_PROMPTS = 2048
"""Most prompts in one request."""

NEUTRAL_COMPLETION_VALUES: Neutral = {"suffix": (None, "")}


class CompletionRequest(GenerationRequest, kw_only=True):
    """A completion request.

    `prompt` is a text, a list of texts, a list of token ids, or a list of lists of token ids; the
    decoder lets mixtures through, `prompts()` refuses them.
    `max_tokens` null means up to the context's end, as in vLLM; left out, it is 16. With `echo` the
    answer begins with the prompt, and 0 is allowed: the prompt alone is answered then.
    """

    prompt: str | list[str | Int32 | list[Int32]]
    max_tokens: Int32 | None = 16
    logprobs: Int32 | None = None
    echo: bool | None = None
    suffix: str | None = None

    def check(self) -> None:
        """Refuse what is not served.

        Raises:
            InvalidRequestError: names the field.
        """
        check_neutral(self, NEUTRAL_COMPLETION_VALUES)
        super().check()
        if self.max_tokens == 0 and not self.echo:
            raise InvalidRequestError(
                "max_tokens must be at least 1, or 0 when echo is true", param="max_tokens"
            )
        if self.has_no_output and self.use_beam_search:
            raise InvalidRequestError(
                "max_tokens must be at least 1 in a beam search", param="max_tokens"
            )
        if self.has_no_output and self.min_tokens:
            raise InvalidRequestError(
                f"min_tokens ({self.min_tokens}) must not exceed max_tokens (0)",
                param="min_tokens",
            )

    @property
    def has_no_output(self) -> bool:
        """True when the answer is the prompt alone."""
        return self.max_tokens == 0

    def prompts(self) -> list[str | list[int]]:
        """The texts or lists of token ids, none of them empty; each has `num_choices` choices.

        Raises:
            InvalidRequestError: an empty prompt, too many, or kinds mixed in one list.
        """
        prompts = self._by_choice()
        if len(prompts) > MAX_PROMPTS:
            raise InvalidRequestError(
                f"prompt holds {len(prompts)} prompts, at most {MAX_PROMPTS} are allowed",
                param="prompt",
            )
        if len(prompts) * self.num_sampled > MAX_PROMPTS:
            name = "n" if self.best_of is None else "best_of"
            raise InvalidRequestError(
                f"{len(prompts)} prompts and {name} {self.num_sampled} make more than "
                f"{MAX_PROMPTS} choices",
                param=name,
            )
        for index, prompt in enumerate(prompts):
            if not prompt:
                param = f"prompt[{index}]" if self._is_batch else "prompt"
                raise InvalidRequestError(f"{param} must not be empty", param=param)
        return prompts

    @property
    def _is_batch(self) -> bool:
        return isinstance(self.prompt, list) and not isinstance((self.prompt or [0])[0], int)

    def _by_choice(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        kinds = {type(item) for item in self.prompt}
        if len(kinds) > 1:
            raise InvalidRequestError(
                "prompt must hold texts only, token ids only, or lists of token ids only",
                param="prompt",
            )
        if kinds <= {int}:
            return [cast("list[int]", self.prompt)]
        return cast("list[str | list[int]]", self.prompt)

    def sampling_params(self, defaults: Mapping[str, Any]) -> SamplingParams:
        """How the engine shall sample, see `generation.sampling_params`.

        It samples at least one token, also when none is asked for. An echo's log-probabilities are
        asked for as the prompt's.

        Raises:
            InvalidRequestError: a value is out of range; `param` is this API's name for it.
        """
        try:
            params = sampling_params(
                self,
                max_tokens=1 if self.has_no_output else self.max_tokens,
                logprobs=self.logprobs,
                defaults=defaults,
            )
        except InvalidRequestError as exc:
            raise self.in_own_names(exc) from None
        if self.echo and self.logprobs is not None:
            num = max(self.logprobs, self.prompt_logprobs or 0)
            return msgspec.structs.replace(params, prompt_logprobs=num)
        return params


class CompletionLogprobs(msgspec.Struct):
    """Four parallel lists, one entry per token.

    Attributes:
        tokens: the tokens' texts.
        token_logprobs: their log-probabilities; null for a prompt's first token.
        top_logprobs: the most probable alternatives by text; the token itself is always in it;
            null for a prompt's first token.
        text_offset: where in the choice's text the token begins, characters.
    """

    tokens: list[str] = []
    token_logprobs: list[float | None] = []
    top_logprobs: list[dict[str, float] | None] = []
    text_offset: list[int] = []


class CompletionChoice(msgspec.Struct, kw_only=True):
    """One prompt's output, or an increment of it in a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    prompt_logprobs: list[PromptLogprobs | None] | UnsetType = UNSET


class Completion(msgspec.Struct, kw_only=True):
    """The answer, and also every chunk of a stream (then `usage` may be null or absent)."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    system_fingerprint: str | None = None
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET
