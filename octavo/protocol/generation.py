"""What completion and chat requests have in common: sampling fields, and fields not served yet.

A field of a request either changes what the engine is asked for or what the answer holds, or is
in `HARMLESS_FIELDS`, or is refused by name unless it has one of its neutral values.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.beam import check_beam_search
from octavo.protocol.decode import Int32, Int64
from octavo.protocol.structured import (
    ResponseFormat,
    StructuredOutputsSpec,
    structured_field,
    structured_outputs,
)
from octavo.types import RequestOptions, SamplingParams

MAX_CHOICES = 128
"""Most answers per prompt (OpenAI's bound)."""

MAX_TOKEN_ID_DIGITS = 9
"""Longer numbers are no token ids."""

DEFAULTED_FIELDS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Sampling fields whose default may come from a model's generation_config."""

SAMPLING_FIELDS = (
    *DEFAULTED_FIELDS,
    "seed",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
    "presence_penalty",
    "frequency_penalty",
    "allowed_token_ids",
    "bad_words",
    "prompt_logprobs",
)
"""Fields that `SamplingParams` has too, with the same name, type and meaning."""

HARMLESS_FIELDS = frozenset(
    {
        "metadata",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "user",
    }
)
"""Accepted without effect: who asks, labels, and hints that never change an answer's content."""

Neutral = Mapping[str, tuple[Any, ...]]
"""Per field that is not served: the values that ask for nothing."""

NEUTRAL_VALUES: Neutral = {
    "spaces_between_special_tokens": (None, True),
    "store": (None, False),
}


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream carries beside the text.

    Attributes:
        include_usage: a last chunk without choices has the usage.
        continuous_usage_stats: with `include_usage`, every chunk has the usage so far.
        include_obfuscation: padding against traffic analysis; not served, so never true.
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None


class GenerationRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Fields of both APIs: OpenAI's, and vLLM's extras. Null is the same as leaving a field out."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    top_k: Int32 | None = None
    min_p: float | None = None
    seed: Int64 | None = None
    min_tokens: Int32 | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[Int32] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None
    priority: Int32 | None = None
    cache_salt: str | None = None
    timeout: float | None = None
    n: Int32 | None = None
    best_of: Int32 | None = None
    include_stop_str_in_output: bool | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    allowed_token_ids: list[Int32] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Int32 | None = None
    truncate_prompt_tokens: Int32 | None = None

    # Beam search.
    use_beam_search: bool | None = None
    length_penalty: float | None = None
    early_stopping: bool | None = None

    # What the output must be; see `structured`.
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsSpec | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    # Harmless.
    metadata: dict[str, Any] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    service_tier: Literal["auto", "default"] | None = None
    user: str | None = None

    # Not served: only neutral values pass.
    spaces_between_special_tokens: bool | None = None
    store: bool | None = None

    def check(self) -> None:
        """Refuse what is not served and fields that contradict each other.

        Raises:
            InvalidRequestError: names the field.
        """
        check_neutral(self, NEUTRAL_VALUES)
        check_choices(self)
        check_beam_search(self)
        check_stream_options(self)
        if self.prompt_logprobs is not None and self.stream:
            raise InvalidRequestError(
                "prompt_logprobs is not available when stream is true", param="prompt_logprobs"
            )
        kept = self.truncate_prompt_tokens
        if kept is not None and kept < 1 and kept != -1:
            raise InvalidRequestError(
                f"truncate_prompt_tokens must be at least 1, or -1 for as many as fit, got {kept}",
                param="truncate_prompt_tokens",
            )

    def options(self, tenant: str) -> RequestOptions:
        """How the engine shall treat the request.

        Raises:
            InvalidRequestError: a value is out of range.
        """
        if self.cache_salt == "":
            raise InvalidRequestError(
                "cache_salt must not be empty: leave it out to share", param="cache_salt"
            )
        return RequestOptions(
            priority=self.priority or 0,
            cache_salt=self.cache_salt or "",
            timeout_s=self.timeout,
            tenant=tenant,
        )

    def in_own_names(self, exc: InvalidRequestError) -> InvalidRequestError:
        """The error with SamplingParams' field names turned into those of this request."""
        if exc.param != "structured_outputs" or self.structured_outputs is not None:
            return exc
        field = structured_field(self)
        message = exc.message.replace("structured_outputs", field, 1)
        return InvalidRequestError(message, param=field, code=exc.code)

    @property
    def has_no_output(self) -> bool:
        """True when the answer is about the prompt alone."""
        return False

    @property
    def num_choices(self) -> int:
        """Answers per prompt."""
        return 1 if self.n is None else self.n

    @property
    def num_sampled(self) -> int:
        """Answers per prompt that are sampled, of which the best `num_choices` are returned."""
        return self.num_choices if self.best_of is None else self.best_of

    @property
    def asker(self) -> str | None:
        """Who asks, by the word of the caller."""
        return self.safety_identifier or self.user

    @property
    def include_usage(self) -> bool:
        """True when a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def continuous_usage(self) -> bool:
        """True when every chunk of a stream carries the usage so far."""
        options = self.stream_options
        return self.include_usage and bool(options and options.continuous_usage_stats)


def check_neutral(request: msgspec.Struct, neutral: Neutral) -> None:
    """Refuse fields that are not served.

    Raises:
        InvalidRequestError: a field of `neutral` has a value that asks for something.
    """
    for name, values in neutral.items():
        value = getattr(request, name)
        if value not in values:
            allowed = " or ".join(msgspec.json.encode(v).decode() for v in values if v is not None)
            only = f", or set it to {allowed}" if allowed else ""
            raise InvalidRequestError(
                f"{name} is not supported by this server: leave it out{only}", param=name
            )


def check_choices(request: GenerationRequest) -> None:
    """Refuse a number of answers that is none or too large, and choosing among fewer.

    Raises:
        InvalidRequestError: `n` or `best_of`.
    """
    num, best_of = request.num_choices, request.num_sampled
    if not 1 <= num <= MAX_CHOICES:
        raise InvalidRequestError(f"n must be in 1..{MAX_CHOICES}, got {num}", param="n")
    if not num <= best_of <= MAX_CHOICES:
        raise InvalidRequestError(
            f"best_of must be in {num}..{MAX_CHOICES}, from n up, got {best_of}", param="best_of"
        )
    if request.stream and best_of != num:
        raise InvalidRequestError(
            f"best_of chooses among whole answers, so that with stream it must be n, {num}",
            param="best_of",
        )


def nth_choice(params: SamplingParams, index: int) -> SamplingParams:
    """The parameters of a prompt's choice: its seed is the request's plus its index, if given."""
    if params.seed is None or not index:
        return params
    seed = (params.seed + index + 2**63) % 2**64 - 2**63
    return msgspec.structs.replace(params, seed=seed)


def check_stream_options(request: GenerationRequest) -> None:
    """Refuse stream options without a stream, and padding.

    Raises:
        InvalidRequestError: `stream_options` asks for something that does not happen.
    """
    options = request.stream_options
    if options is None:
        return
    if not request.stream:
        raise InvalidRequestError(
            "stream_options is only allowed when stream is true", param="stream_options"
        )
    if options.include_obfuscation:
        raise InvalidRequestError(
            "stream_options.include_obfuscation is not supported by this server: "
            "leave it out, or set it to false",
            param="stream_options.include_obfuscation",
        )


def sampling_params(
    request: GenerationRequest,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    defaults: Mapping[str, Any],
) -> SamplingParams:
    """How the engine shall sample for this request.

    Args:
        request: explicit values win.
        max_tokens: most tokens to generate; None: up to the context's end.
        logprobs: alternatives per position, None: no logprobs.
        defaults: values for those of `DEFAULTED_FIELDS` that the request leaves out.

    Raises:
        InvalidRequestError: a value is out of range; `param` is SamplingParams' name for it.
    """
    given: dict[str, Any] = {name: defaults.get(name) for name in DEFAULTED_FIELDS}
    for name in SAMPLING_FIELDS:
        value = getattr(request, name)
        if value is not None:
            given[name] = tuple(value) if isinstance(value, list) else value
    if request.logit_bias:
        given["logit_bias"] = _token_ids(request.logit_bias)
    given["structured_outputs"] = structured_outputs(request)
    given = {name: value for name, value in given.items() if value is not None}
    return SamplingParams(max_tokens=max_tokens, logprobs=logprobs, **given)


def _token_ids(logit_bias: Mapping[str, float]) -> dict[int, float]:
    """The biases by token id.

    Raises:
        InvalidRequestError: a key spells no id; `param` is `logit_bias.KEY`.
    """
    biases: dict[int, float] = {}
    for key, bias in logit_bias.items():
        if not (key.isascii() and key.isdigit()) or len(key) > MAX_TOKEN_ID_DIGITS:
            param = f"logit_bias.{key[:20]}"
            raise InvalidRequestError(
                f'{param}: the keys of logit_bias must be token ids, such as "50256"',
                param=param,
            )
        biases[int(key)] = bias
    return biases
