"""What travels between API server and engine process: msgspec over ZeroMQ, never pickle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.types import (
    Charge,
    EngineInfo,
    EngineStats,
    FinishReason,
    PoolingParams,
    PositionLogprobs,
    SamplingParams,
)

if TYPE_CHECKING:
    from collections.abc import Iterable


class AddRequest(msgspec.Struct, tag="add", array_like=True):
    """Start a request.

    Attributes:
        request_id: unique among those in flight.
        prompt_token_ids: checked by the client: not empty, within vocabulary and context.
        params: `max_tokens` is set and fits the context.
        eos_token_ids: ids that end the request unless `ignore_eos`.
        cache_salt: requests share cached prefixes only with the same salt.
        priority: lower runs earlier, under the priority policy.
        tenant: whom the fair policy counts it to.
        bad_words_token_ids: token sequences that must not be completed.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    eos_token_ids: list[int]
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    bad_words_token_ids: list[list[int]] = []


class AddPooling(msgspec.Struct, tag="pool", array_like=True):
    """Ask for a text's vector.

    Attributes:
        request_id: unique among those in flight.
        prompt_token_ids: checked by the client: not empty, within vocabulary and context.
        params: checked by the client.
        priority, tenant: as `AddRequest`'s.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: PoolingParams
    priority: int = 0
    tenant: str = ""


class AbortRequests(msgspec.Struct, tag="abort", array_like=True):
    """Forget requests; unknown ids are ignored, no output follows."""

    request_ids: list[str]


class Shutdown(msgspec.Struct, tag="shutdown", array_like=True):
    """End the engine process. From one of several API servers it says nothing."""


class Hello(msgspec.Struct, tag="hello", array_like=True):
    """The first message of one of several API servers; `EngineReady` answers it."""


class ClientGone(msgspec.Struct, tag="gone", array_like=True):
    """One of several API servers has ended: forget its requests, and it. From their parent."""

    name: str


class Ping(msgspec.Struct, tag="ping", array_like=True):
    """Asks for a sign of life, a `StepOutputs`. From the parent of several API servers."""


class TokenOutput(msgspec.Struct, array_like=True, gc=False):
    """What a step added to one request.

    Not tracked by the garbage collector: a step makes hundreds, and none can be part of a cycle.

    Attributes:
        token_ids: may be empty when the request ends without a token (abort, error).
        logprobs: parallel to `token_ids`, or empty.
        finish_reason: set in the request's last output.
        stop_reason: the stop token id that ended it; None for the model's own end-of-sequence.
        error: a message when `finish_reason` is `error`.
        num_cached_tokens: prompt tokens found in the prefix cache.
        num_preemptions: how often the request lost its blocks so far.
        queue_ns, prefill_ns: with the first token, else 0; see `Delta`.
        prompt_logprobs: what came to be known of the prompt's tokens; see `Delta`.
        charge: what the request cost, in its last output, where the engine meters.
    """

    request_id: str
    token_ids: list[int]
    logprobs: list[PositionLogprobs] = []
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    error: str | None = None
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    queue_ns: int = 0
    prefill_ns: int = 0
    prompt_logprobs: list[PositionLogprobs] = []
    charge: Charge | None = None


class PoolingOutput(msgspec.Struct, array_like=True, gc=False):
    """The end of a request for a vector.

    Attributes:
        vector: float32, least significant byte first; empty unless `finish_reason` is `stop`.
        error: a message when `finish_reason` is `error`.
        charge: what the request cost, where the engine meters.
    """

    request_id: str
    vector: bytes = b""
    finish_reason: FinishReason = "stop"
    error: str | None = None
    charge: Charge | None = None


Output = TokenOutput | PoolingOutput


class StepOutputs(msgspec.Struct, tag="outputs", array_like=True):
    """All outputs of a step, and the engine's state after it.

    Attributes:
        charges: of requests that were aborted, each once, when the last step in flight with it is
            done; of an engine that meters.
    """

    outputs: list[TokenOutput]
    stats: EngineStats
    pooled: list[PoolingOutput] = []
    charges: list[tuple[str, Charge]] = []

    @classmethod
    def of(
        cls,
        outputs: Iterable[Output],
        stats: EngineStats,
        charges: Iterable[tuple[str, Charge]] = (),
    ) -> StepOutputs:
        """The message of these outputs and charges."""
        tokens: list[TokenOutput] = []
        pooled: list[PoolingOutput] = []
        for output in outputs:
            if isinstance(output, TokenOutput):
                tokens.append(output)
            else:
                pooled.append(output)
        return cls(tokens, stats, pooled, list(charges))


class EngineStarted(msgspec.Struct, tag="started", array_like=True):
    """The engine process runs and is connected; loading the model comes next.

    Attributes:
        after_s: seconds from the parent's start of it until then.
    """

    after_s: float


class EngineReady(msgspec.Struct, tag="ready", array_like=True):
    """The engine takes requests from now on; its state before the first one."""

    info: EngineInfo
    stats: EngineStats


class EngineFailed(msgspec.Struct, tag="failed", array_like=True):
    """The engine could not start.

    Attributes:
        kind: the name of a `StartupError` class, or of another exception.
        message: one line for the user.
    """

    kind: str
    message: str


Admission = AddRequest | AddPooling
ToEngine = AddRequest | AddPooling | AbortRequests | Shutdown | Hello | ClientGone | Ping
FromEngine = StepOutputs | EngineStarted | EngineReady | EngineFailed
