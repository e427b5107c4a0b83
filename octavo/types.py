"""Values that several rows of the house share. Imports nothing of Octavo but its errors.

What crosses a process boundary is a `msgspec.Struct`; what crosses from host to device and back
(`StepPlan`, `StepResult`) holds ints and lists, never tensors.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from octavo.errors import InvalidRequestError

FinishReason = Literal["stop", "length", "abort", "error", "timeout"]
"""Why a request ended. `stop`: end-of-sequence, stop token or stop string; `length`: max_tokens or
the context is full; `abort`: the client went or asked; `error`: the engine failed; `timeout`: the
request's own deadline passed, and what was generated until then is the answer."""

SchedulingPolicy = Literal["fcfs", "priority", "fair"]
"""Order of waiting requests: by arrival; by `priority`; the least served tenant's first."""

Task = Literal["generate", "embed", "classify", "score"]
"""What an engine does: tokens after a prompt; a vector for a text; probabilities of labels; one
number for a pair of texts (a cross-encoder). Embeddings score pairs too, by their cosine."""

PoolingType = Literal["mean", "cls", "last"]
"""Which of a text's hidden states its vector is: their mean, the first one, or the last one."""

ITERATION_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
"""Upper bounds, inclusive, by which steps are counted (`EngineStats.iteration_tokens`); vLLM's."""

MAX_LOGPROBS = 20
"""Most alternatives that a request may ask for per position (OpenAI's bound)."""

MAX_CACHE_SALT_LEN = 1024
MAX_STOP_STRINGS = 16
MAX_STOP_STRING_LEN = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_LOGIT_BIASES = 1024
MAX_BAD_WORDS = 256
MAX_BAD_WORD_LEN = 256
MAX_CHOICES_LEN = 4096
"""Most strings that `StructuredOutputs.choice` may hold."""


def _check(ok: bool, param: str, message: str) -> None:
    if not ok:
        raise InvalidRequestError(message, param=param)


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
        _check(
            len(given) == 1,
            "structured_outputs",
            f"structured_outputs takes exactly one of {', '.join(kinds)}, "
            f"got {' and '.join(given) or 'none'}",
        )
        _check(
            self.json_object is not False,
            "structured_outputs",
            "structured_outputs.json_object must be true, or left out",
        )
        value = getattr(self, given[0])
        _check(
            not isinstance(value, str | Sequence) or len(value) > 0,
            "structured_outputs",
            f"structured_outputs.{given[0]} must not be empty",
        )
        _check(
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
        _check(
            math.isfinite(self.temperature) and self.temperature >= 0,
            "temperature",
            f"temperature must be a finite number >= 0, got {self.temperature}",
        )
        _check(0 < self.top_p <= 1, "top_p", f"top_p must be in (0, 1], got {self.top_p}")
        _check(
            self.top_k >= -1, "top_k", f"top_k must be >= 0, or -1 for all tokens, got {self.top_k}"
        )
        _check(0 <= self.min_p <= 1, "min_p", f"min_p must be in [0, 1], got {self.min_p}")
        _check(
            self.seed is None or -(2**63) <= self.seed < 2**63,
            "seed",
            "seed must fit into a signed 64-bit integer",
        )
        _check(
            self.max_tokens is None or self.max_tokens >= 1,
            "max_tokens",
            f"max_tokens must be at least 1, got {self.max_tokens}",
        )
        _check(
            self.min_tokens >= 0, "min_tokens", f"min_tokens must be >= 0, got {self.min_tokens}"
        )
        _check(
            self.max_tokens is None or self.min_tokens <= self.max_tokens,
            "min_tokens",
            f"min_tokens ({self.min_tokens}) must not exceed max_tokens ({self.max_tokens})",
        )
        _check(len(stop) <= MAX_STOP_STRINGS, "stop", f"at most {MAX_STOP_STRINGS} stop strings")
        _check(
            all(0 < len(text) <= MAX_STOP_STRING_LEN for text in stop),
            "stop",
            f"each stop string must have 1 to {MAX_STOP_STRING_LEN} characters",
        )
        _check(
            len(self.stop_token_ids) <= MAX_STOP_TOKEN_IDS
            and all(token_id >= 0 for token_id in self.stop_token_ids),
            "stop_token_ids",
            f"stop_token_ids takes at most {MAX_STOP_TOKEN_IDS} ids, each >= 0",
        )
        for name in ("logprobs", "prompt_logprobs"):
            num = getattr(self, name)
            _check(
                num is None or 0 <= num <= MAX_LOGPROBS,
                name,
                f"{name} must be in 0..{MAX_LOGPROBS}, got {num}",
            )
        self._check_logits()

    def _check_logits(self) -> None:
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _check(-2 <= value <= 2, name, f"{name} must be in -2..2, got {value}")
        _check(
            0 < self.repetition_penalty <= 10,
            "repetition_penalty",
            f"repetition_penalty must be in (0, 10], got {self.repetition_penalty}",
        )
        _check(
            len(self.logit_bias) <= MAX_LOGIT_BIASES
            and all(token_id >= 0 for token_id in self.logit_bias),
            "logit_bias",
            f"logit_bias takes at most {MAX_LOGIT_BIASES} token ids, each >= 0",
        )
        _check(
            all(-100 <= bias <= 100 for bias in self.logit_bias.values()),
            "logit_bias",
            "logit_bias takes numbers in -100..100",
        )
        allowed = self.allowed_token_ids
        _check(
            allowed is None or (len(allowed) > 0 and all(token_id >= 0 for token_id in allowed)),
            "allowed_token_ids",
            "allowed_token_ids must hold at least one id, each >= 0",
        )
        _check(
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


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True):
    """What to make of a text, instead of more text.

    Attributes:
        task: one of the engine's tasks, not `generate`.
        dimensions: keep this many leading numbers of an embedding; None: all.
        is_activated: an embedding gets length 1, labels' logits become probabilities; None: as the
            model does it.
        second_start: where the second text of a pair begins, for models that are told by token
            types; None: there is one text.
    """

    task: Task = "embed"
    dimensions: int | None = None
    is_activated: bool | None = None
    second_start: int | None = None


class RequestOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to treat a request, whatever it samples.

    Attributes:
        priority: lower runs earlier; other than 0 only under the policy `priority`.
        cache_salt: cached prefixes are shared only between requests of the same salt.
        timeout_s: seconds until the request ends with `timeout`; None: never.
        tenant: whom the policy `fair` counts the request to.

    Raises:
        InvalidRequestError: a value is out of range; its `param` names the request's field.
    """

    priority: int = 0
    cache_salt: str = ""
    timeout_s: float | None = None
    tenant: str = ""

    def __post_init__(self) -> None:
        _check(
            len(self.cache_salt) <= MAX_CACHE_SALT_LEN,
            "cache_salt",
            f"cache_salt must have at most {MAX_CACHE_SALT_LEN} characters",
        )
        _check(
            self.timeout_s is None or (math.isfinite(self.timeout_s) and self.timeout_s > 0),
            "timeout",
            f"timeout must be a finite number of seconds > 0, got {self.timeout_s}",
        )


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of one token at one position, and its rank (1 is the most probable)."""

    token_id: int
    logprob: float
    rank: int


class PositionLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """What was sampled at one position, and the most probable alternatives in falling order.

    `top` holds exactly as many entries as the request asked for (`SamplingParams.logprobs`).
    """

    sampled: TokenLogprob
    top: list[TokenLogprob]


class RowInit(msgspec.Struct, array_like=True):
    """State that the device must have before a request's first step, or its first after preemption.

    Attributes:
        row: place in the device's request table, 0..max_num_seqs - 1.
        token_ids: every token known so far (the prompt, and what was generated before preemption).
        num_prompt_tokens: how many of them are the prompt.
        params: how to sample.
        seed: the seed in force, the caller's or one drawn at admission; never None.
        stop_token_ids: every id that ends the request (for masking under `min_tokens`).
        bad_words_token_ids: token sequences that must not be completed, of `bad_words`.
    """

    row: int
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    seed: int
    stop_token_ids: list[int]
    bad_words_token_ids: list[list[int]] = []


class StepPlan(msgspec.Struct, array_like=True):
    """One step, as counts and ids: what the scheduler decided and all that the device needs.

    The four parallel lists hold one entry per scheduled request, in batch order. Token values that
    the device sampled itself are not in here: it has them, so a plan can be made before they reach
    the host.

    Attributes:
        step_id: rises by one with each plan.
        new_rows: rows to (re)initialise before the step.
        rows: the scheduled rows.
        num_computed_tokens: tokens whose KV is already in the cache.
        num_new_tokens: tokens to compute now, >= 1; they are the next ones of the row.
        samples: whether the last of them is the row's last known token, so that one is sampled.
        new_block_ids: blocks appended to the row's block table before the step.
    """

    step_id: int
    new_rows: list[RowInit]
    rows: list[int]
    num_computed_tokens: list[int]
    num_new_tokens: list[int]
    samples: list[bool]
    new_block_ids: list[list[int]]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(self.num_new_tokens)

    @property
    def is_empty(self) -> bool:
        """True when there is nothing to run."""
        return not self.rows


class StepMasks(msgspec.Struct, array_like=True):
    """Which tokens the constrained rows of a step may get.

    Attributes:
        rows: some of the plan's rows, of those that sample, in plan order.
        bits: for each of them ceil(vocabulary / 32) words, uint32 in this machine's byte order; bit
            i % 32 of word i // 32 says whether token i is allowed. Each row allows at least one.
    """

    rows: list[int]
    bits: bytes


class StepResult(msgspec.Struct, array_like=True):
    """What a step produced.

    Attributes:
        step_id: the plan's.
        token_ids: one sampled token per scheduled request whose `samples` is true, in plan order.
        logprobs: parallel to `token_ids`; an entry is None where the request asked for none.
            The list is empty when nobody asked.
        device_ns: duration of the step on the device, nanoseconds.
        prompt_logprobs: parallel to the plan's rows: of those that ask for it, what the step
            computed of their prompt's tokens (`SamplingParams.prompt_logprobs`), in order, the
            prompt's first token left out; None for the others. Empty when nobody asked.
        waited_ns: how much of `device_ns` the device waited for masks.
    """

    step_id: int
    token_ids: list[int]
    logprobs: list[PositionLogprobs | None]
    device_ns: int
    prompt_logprobs: list[list[PositionLogprobs] | None] = []
    waited_ns: int = 0


class KVCacheLayout(msgspec.Struct, frozen=True):
    """Size of the paged KV cache that the device really allocated.

    Attributes:
        num_blocks: blocks in the pool.
        block_size: tokens per block.
        bytes_per_block: over all layers, keys and values.
    """

    num_blocks: int
    block_size: int
    bytes_per_block: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the whole cache holds."""
        return self.num_blocks * self.block_size


class PoolingPlan(msgspec.Struct, array_like=True):
    """Texts that are pooled together: whole ones, in any order.

    Attributes:
        step_id: rises by one with each plan.
        token_ids: of each text, at least one.
        params: parallel to it.
    """

    step_id: int
    token_ids: list[list[int]]
    params: list[PoolingParams]

    @property
    def num_tokens(self) -> int:
        """Tokens that the step computes."""
        return sum(map(len, self.token_ids))


class PoolingResult(msgspec.Struct, array_like=True):
    """What came of a `PoolingPlan`.

    Attributes:
        step_id: the plan's.
        vectors: parallel to the plan's texts: float32, least significant byte first.
        device_ns: duration of the step on the device, nanoseconds.
    """

    step_id: int
    vectors: list[bytes]
    device_ns: int


class Charge(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Device time that a request is charged with, nanoseconds; see `docs/metering.md`.

    Attributes:
        prefill_ns: its share of steps, for tokens of its prompt.
        decode_ns: for tokens that it generated.
        waste_ns: how much of the two was for nothing: computing again after a preemption.
    """

    prefill_ns: int = 0
    decode_ns: int = 0
    waste_ns: int = 0

    @property
    def total_ns(self) -> int:
        """All of it; waste is a part of the other two."""
        return self.prefill_ns + self.decode_ns


class DeviceTime(msgspec.Struct, frozen=True, kw_only=True):
    """Where an engine's device time went since its process began, nanoseconds.

    `requests_ns` and the buckets add up to `num_devices * wall_ns` exactly, in every snapshot.

    Attributes:
        num_devices: of the engine; 0 where it is not metered.
        wall_ns: since the engine process began.
        requests_ns: charged to requests so far, those that have not ended included.
        startup_ns: loading the model, until the engine was ready.
        idle_ns: there was no request.
        scheduler_ns: the host planned a step or took in a result, and nothing ran.
        messages_ns: the host took requests or sent outputs, and nothing ran.
        launch_ns: the host handed a step over or waited for its result, and nothing ran.
        grammar_ns: the device waited for a grammar to be compiled, or for masks of one.
        run_ahead_ns: work for requests whose end was not known when the step was planned.
        failed_ns: steps that failed.
        in_flight_ns: since the last step that was accounted for; it belongs to the steps in flight
            and goes elsewhere when they end. The only one that ever falls.
    """

    num_devices: int = 0
    wall_ns: int = 0
    requests_ns: int = 0
    startup_ns: int = 0
    idle_ns: int = 0
    scheduler_ns: int = 0
    messages_ns: int = 0
    launch_ns: int = 0
    grammar_ns: int = 0
    run_ahead_ns: int = 0
    failed_ns: int = 0
    in_flight_ns: int = 0


class AttentionWork(msgspec.Struct, frozen=True, array_like=True):
    """What attention does, summed over the layers of one window.

    Attributes:
        flops_per_pair: of a token and one that it looks at.
        bytes_per_token: keys and values of one token in the cache.
        window: how many tokens one looks at, itself included; None: all before it.
    """

    flops_per_pair: float
    bytes_per_token: float
    window: int | None = None


class WorkModel(msgspec.Struct, frozen=True, kw_only=True):
    """What a step's tokens cost a device: a model's shape and the device's rates, as data.

    Attributes:
        flops_per_token: of all products but the output layer's.
        flops_per_sample: of the output layer, for each row that samples.
        bytes_per_token: activations that are read and written.
        weight_bytes: weights read in each step, the output layer's left out.
        head_weight_bytes: the output layer's, in each step that samples.
        attention: one entry for each kind of layer.
        is_causal: whether tokens look at those before them only.
        flops_per_s, bytes_per_s: what the device reaches.
    """

    flops_per_token: float
    flops_per_sample: float
    bytes_per_token: float
    weight_bytes: float
    head_weight_bytes: float
    attention: tuple[AttentionWork, ...]
    is_causal: bool = True
    flops_per_s: float
    bytes_per_s: float


class Pooled(msgspec.Struct, frozen=True, kw_only=True):
    """How a request for a vector ended, as `AsyncEngine.pool` returns it.

    Attributes:
        vector: float32, least significant byte first; empty unless `finish_reason` is `stop`.
        finish_reason: `stop`, or why there is no vector.
        error: a message, when `finish_reason` is `error`.
        charge: device time it cost, where the engine ended it and meters; see `Delta`.
    """

    vector: bytes = b""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    charge: Charge | None = None


class PoolingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What vectors an engine makes.

    Attributes:
        pooling_type: how hidden states become one.
        num_dimensions: length of a vector; of a classifier, its number of labels.
        is_normalized: whether embeddings have length 1 unless a request asks otherwise.
        is_matryoshka: whether embeddings may be cut (`PoolingParams.dimensions`).
        matryoshka_dimensions: lengths to which they may be cut; empty: any.
        labels: of a classifier, in the order of its vector; empty where they have no names.
        has_token_types: whether a pair's texts are told apart by token types.
        lowercases: whether texts are to be put into lower case before they are encoded.
    """

    pooling_type: PoolingType
    num_dimensions: int
    is_normalized: bool = False
    is_matryoshka: bool = False
    matryoshka_dimensions: list[int] = []
    labels: list[str] = []
    has_token_types: bool = False
    lowercases: bool = False


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a ready engine tells its clients.

    Attributes:
        architecture: the checkpoint's word for it, such as `LlamaForCausalLM`.
        dtype: computing precision, such as `bfloat16`.
        device: such as `cpu` or `cuda:0 NVIDIA H100 80GB HBM3`.
        vocab_size: rows of the output layer; every token id is below it.
        max_model_len: most tokens of prompt and output together.
        kv_cache: size of the KV cache.
        startup_s: named parts of start-up and their seconds, in order.
        scheduling_policy: in force.
        compilation: of a GPU's kernels: `num_kernels` that the start waited for, for `waited_s`
            (which is in `startup_s` too), and other fields of `kernels.compile.Compilation`;
            `num_missing` that were still being compiled at its end. Empty where nothing is.
        memory: bytes of a GPU: `total`, and what holds or will hold them, part by part; else empty.
        tasks: what it does.
        pooling: what vectors it makes; None where it generates.
        num_devices: it computes on.
        work: what tokens cost, by which device time is shared out; None: it is not metered.
    """

    architecture: str
    dtype: str
    device: str
    vocab_size: int
    max_model_len: int
    kv_cache: KVCacheLayout
    startup_s: dict[str, float]
    scheduling_policy: SchedulingPolicy = "fcfs"
    compilation: dict[str, float] = {}
    memory: dict[str, int] = {}
    tasks: tuple[Task, ...] = ("generate",)
    pooling: PoolingInfo | None = None
    num_devices: int = 1
    work: WorkModel | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine after a step, and counters since its start.

    Attributes:
        num_running: requests that hold a row.
        num_waiting: requests admitted to the queue and not running.
        num_deferred: those of them that wait for something other than room: a grammar.
        num_free_rows: how many more could run, as far as rows go.
        num_received: requests that reached the engine, those it refused included, counter.
        kv_cache_usage: share of KV blocks in use, 0..1.
        num_steps, num_preemptions, num_prompt_tokens, num_generation_tokens: counters.
            Prompt tokens count once per request, when its first token was sampled.
        num_cached_prompt_tokens: those of `num_prompt_tokens` that the prefix cache had, counter.
        iteration_tokens: steps by the tokens that they computed, up to each of `ITERATION_BUCKETS`
            and above the last one, then all those tokens, counters; empty: there was no step.
        device_ns: time in steps, nanoseconds, counter.
        scheduler_ns: the host's time for planning and updating, nanoseconds, counter.
        prefix_cache_queries, prefix_cache_hits: prompt tokens looked up in the prefix cache, and
            found there, counters; once per request.
        num_restarts: engine processes started in the place of one that failed, counter; the API
            server's, like `is_up`.
        is_up: whether the engine takes requests.
        device_time: where the device's time went.
    """

    num_running: int = 0
    num_waiting: int = 0
    num_deferred: int = 0
    num_free_rows: int = 0
    num_received: int = 0
    kv_cache_usage: float = 0.0
    num_steps: int = 0
    num_preemptions: int = 0
    num_prompt_tokens: int = 0
    num_generation_tokens: int = 0
    num_cached_prompt_tokens: int = 0
    iteration_tokens: list[int] = []
    device_ns: int = 0
    scheduler_ns: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_restarts: int = 0
    is_up: bool = True
    device_time: DeviceTime = DeviceTime()


class Delta(msgspec.Struct, kw_only=True, gc=False):
    """One increment of a request's output, as `AsyncEngine.generate` yields it.

    Not tracked by the garbage collector: there is one for every token, and none in a cycle.

    A request's deltas end with exactly one whose `finish_reason` is set.

    Attributes:
        text: what the new tokens add to the text; never a piece of a character, never text that a
            stop string may still take back; may be empty.
        token_ids: the new tokens; may be empty in the last delta.
        logprobs: one per new token when asked for, else empty.
        finish_reason: set in the last delta only.
        stop_reason: the stop string or stop token id that ended it; None for end-of-sequence.
        error: a message, when `finish_reason` is `error`.
        num_prompt_tokens, num_output_tokens: totals so far.
        num_cached_tokens: prompt tokens found in the prefix cache.
        num_preemptions: how often it lost its blocks so far.
        queue_ns: from the engine's queue to its first step, nanoseconds; 0 before the first token.
        prefill_ns: from there to the first token, nanoseconds; 0 before it.
        prompt_logprobs: when asked for: of the prompt's tokens but the first, each once, in order,
            before or with the first new token.
        charge: device time that the request cost, in the last delta of one that the engine ended,
            where it meters. Of one ended from outside it is known later: see
            `EngineClient.listen_for_charges`.
    """

    text: str = ""
    token_ids: list[int] = []
    logprobs: list[PositionLogprobs] = []
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queue_ns: int = 0
    prefill_ns: int = 0
    prompt_logprobs: list[PositionLogprobs] = []
    charge: Charge | None = None


JSONObject = dict[str, Any]
"""A decoded JSON object of unknown shape."""
