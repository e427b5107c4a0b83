"""What comes of a request that generates: increments, and how likely their tokens were.

Knows tokens and their text, not how either is sent to a caller.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from octavo.types.metering import Charge

FinishReason = Literal["stop", "length", "abort", "error", "timeout"]
"""Why a request ended. `stop`: end-of-sequence, stop token or stop string; `length`: max_tokens or
the context is full; `abort`: the client went or asked; `error`: the engine failed; `timeout`: the
request's own deadline passed, and what was generated until then is the answer."""


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
