"""How a request's tokens are chosen, and what its text must be.

Values are checked as they are made, by what is known without a model: ranges and sizes. Knows no
vocabulary, and compiles no schema.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from octavo.types.check import check

MAX_LOGPROBS = 20
"""Most alternatives that a request may ask for per position (OpenAI's bound)."""

MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LEN = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LEN = 256

MAX_CHOICES_LEN = 4096
"""Most strings that `StructuredOutputs.choice` may hold."""


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True):
    """What the output's text must be; exactly one of the first five is set. Names follow vLLM's.

    Attributes:
        json: a JSON schema, as an object, true, or JSON text.
        json_object: any JSON object.
        regex: matched by the whole output; Rust's syntax, without look-around and back-references.
        choice: one of these strings.
        grammar: Lark as llguidance reads it, or GBNF.
        reasoning_end_token_ids: reasoning, which is free, ends with one of these; none: there is no
            reasoning.
        reasoning_start_token_ids: reasoning begins with one of these as the first token, or there
            is none; none: the prompt has begun it.

    Raises:
        InvalidRequestError: none or several are set, or one is empty; its `param` says
            `structured_outputs`.
    """

    json: dict[str, Any] | bool | str | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: Sequence[str] | None = None
    grammar: str | None = None
    reasoning_end_token_ids: Sequence[int] = ()
    reasoning_start_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        kinds = ("json", "json_object", "regex", "choice", "grammar")
        given = [name for name in kinds if getattr(self, name) is not None]
        check(
            len(given) == 1,
            "structured_outputs",
            f"structured_outputs takes exactly one of {', '.join(kinds)}, "
            f"got {' and '.join(given) or 'none'}",
        )
        check(
            self.json_object is not False,
            "structured_outputs",
            "structured_outputs.json_object must be true, or left out",
        )
        value = getattr(self, given[0])
        check(
            not isinstance(value, str | Sequence) or len(value) > 0,
            "structured_outputs",
            f"structured_outputs.{given[0]} must not be empty",
        )
        check(
            self.choice is None or len(self.choice) <= MAX_CHOICES_LEN,
            "structured_outputs",
            f"structured_outputs.choice takes at most {MAX_CHOICES_LEN} strings",
        )


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to choose tokens. Names, defaults and meaning follow vLLM's class of this name.

    Order of operations: structured outputs, allowed tokens, bad words and `min_tokens` forbid
    tokens; then logit bias; repetition, frequency and presence penalty; temperature; then min-p,
    top-k and top-p on the scaled distribution.

    Attributes:
        temperature: 0 is greedy; otherwise logits are divided by it. 0..2 is usual, any >= 0 works.
        top_p: smallest set of tokens whose probability reaches this, (0, 1].
        top_k: keep this many tokens; 0 or -1 keeps all.
        min_p: drop tokens less probable than this share of the most probable one, [0, 1].
        seed: same seed, same prompt, same parameters: same tokens, whatever else is in the batch.
        max_tokens: most tokens to generate; None: up to the context's end.
        min_tokens: end-of-sequence and stop tokens are masked before this many tokens.
        stop: strings that end the output; the output leaves them out.
        stop_token_ids: token ids that end the output, beside the model's own end-of-sequence ids.
        ignore_eos: go on after an end-of-sequence token (for measurements).
        include_stop_str_in_output: the output ends with the stop string, instead of before it.
        presence_penalty: taken once from the logit of each token in the output, -2..2.
        frequency_penalty: taken from it as often as the token is there, -2..2.
        repetition_penalty: positive logits of tokens in prompt or output are divided by it,
            negative ones multiplied, (0, 10]; 1 is none (CTRL, arXiv:1909.05858).
        logit_bias: added to the logits of these token ids, each -100..100.
        allowed_token_ids: no other token is sampled; None: all are allowed.
        bad_words: texts that the output never holds as tokens of their own encoding, with or
            without a space before them.
        structured_outputs: what the output's text must be; None: anything.
        prompt_logprobs: report this many alternatives for each token of the prompt but the first,
            as `logprobs` does; None: none.
        logprobs: report this many most probable alternatives per position, 0..20; None: none.
            The values are log-softmax of the raw logits, before temperature.
        skip_special_tokens: leave special tokens out of the text.
        shown_token_ids: special tokens that stay in the text all the same, for a reader of it.

    Raises:
        InvalidRequestError: a value is out of range; its `param` names the field.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    allowed_token_ids: Sequence[int] | None = None
    bad_words: Sequence[str] = ()
    structured_outputs: StructuredOutputs | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    shown_token_ids: Sequence[int] = ()

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        msgspec.structs.force_setattr(self, "stop", stop)
        msgspec.structs.force_setattr(self, "stop_token_ids", tuple(self.stop_token_ids))
        check(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            f"temperature must be a finite number >= 0, got {self.temperature}",
        )
        check(0 < self.top_p <= 1, "top_p", f"top_p must be in (0, 1], got {self.top_p}")
        check(
            self.top_k >= -1, "top_k", f"top_k must be >= 0, or -1 for all tokens, got {self.top_k}"
        )
        check(0 <= self.min_p <= 1, "min_p", f"min_p must be in [0, 1], got {self.min_p}")
        check(
            self.seed is None or -(2**63) <= self.seed < 2**63,
            "seed",
            "seed must fit into a signed 64-bit integer",
        )
        check(
            self.max_tokens is None or self.max_tokens >= 1,
            "max_tokens",
            f"max_tokens must be at least 1, got {self.max_tokens}",
        )
        check(self.min_tokens >= 0, "min_tokens", f"min_tokens must be >= 0, got {self.min_tokens}")
        check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})",
        )
        check(len(stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} stop strings")
        check(
            all(0 < len(text) <= MAX_STOP_STRING_LEN for text in stop),
            "stop",
            f"each stop string must have 1 to {MAX_STOP_STRING_LEN} characters",
        )
        check(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS
            and all(token_id >= 0 for token_id in self.stop_token_ids),
            "stop_token_ids",
            f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids, each >= 0",
        )
        for name in ("logprobs", "prompt_logprobs"):
            num = getattr(self, name)
            check(
                num is None or 0 <= num <= MAX_LOGPROBS,
                name,
                f"{name} must be in 0..{MAX_LOGPROBS}, got {num}",
            )
        self._check_logits()

    def _check_logits(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            check(-2 <= value <= 2, name, f"{name} must be in -2..2, got {value}")
        check(
            0 < self.repetition_penalty <= 10,
            "repetition_penalty",
            f"repetition_penalty must be in (0, 10], got {self.repetition_penalty}",
        )
        check(
            len(self.logit_bias) <= MAX_LOGIT_BIASES
            and all(token_id >= 0 for token_id in self.logit_bias),
            "logit_bias",
            f"logit_bias takes at most {MAX_LOGIT_BIASES} token ids, each >= 0",
        )
        check(
            all(-100 <= bias <= 100 for bias in self.logit_bias.values()),
            "logit_bias",
            "logit_bias takes numbers in -100..100",
        )
        allowed = self.allowed_token_ids
        check(
            allowed is None or (len(allowed) > 0 and all(token_id >= 0 for token_id in allowed)),
            "allowed_token_ids",
            "allowed_token_ids must hold at least one id, each >= 0",
        )
        check(
            len(self.bad_words) <= MAX_BAD_WORDS
            and all(0 < len(word) <= MAX_BAD_WORD_LEN for word in self.bad_words),
            "bad_words",
            f"bad_words takes at most {MAX_BAD_WORDS} texts of 1 to {MAX_BAD_WORD_LEN} characters",
        )

    @property
    def is_greedy(self) -> bool:
        """True when the most probable token is always taken."""
        return self.temperature == 0.0

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whatever it was given as."""
        return tuple(self.stop)
