"""What clients are told of limits: OpenAI's headers, and errors that say what to do.

The headers and how they write time (`1s`, `6m0s`) are those of
<https://platform.openai.com/docs/guides/rate-limits>.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from octavo.errors import RateLimitedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.gateway.limits_store import Counter, Standing

MAX_RETRY_S = 86_400


def duration(seconds: float) -> str:
    """As OpenAI writes it, rounded up: `0s`, `20ms`, `1s`, `6m0s`, `1h0m0s`."""
    milliseconds = math.ceil(seconds * 1000 - 1e-6)
    if milliseconds <= 0:
        return "0s"
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(-(-milliseconds // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m{rest}s"
    return f"{minutes}m{rest}s" if minutes else f"{rest}s"


def headers_of(counters: Sequence[Counter], standings: Sequence[Standing]) -> dict[str, str]:
    """`x-ratelimit-*`, of the limit that has the least left.

    `limit` is per minute; `reset` is the time until the bucket is full again.
    """
    headers: dict[str, str] = {}
    least_requests = least_tokens = math.inf
    for counter, standing in zip(counters, standings, strict=True):
        if counter.requests_rate and standing.requests < least_requests:
            least_requests = standing.requests
            _put(headers, "requests", counter.requests_rate, counter.requests_cap, least_requests)
        if counter.tokens_rate and standing.tokens < least_tokens:
            least_tokens = standing.tokens
            _put(headers, "tokens", counter.tokens_rate, counter.tokens_cap, least_tokens)
    return headers


def _put(headers: dict[str, str], what: str, rate: float, cap: float, left: float) -> None:
    headers[f"x-ratelimit-limit-{what}"] = str(round(rate * 60))
    headers[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(left + 1e-6)))
    headers[f"x-ratelimit-reset-{what}"] = duration((cap - left) / rate)


def refusal(
    counters: Sequence[Counter],
    standings: Sequence[Standing],
    tokens: Sequence[int],
    *,
    waited_s: float = 0.0,
) -> tuple[Counter, RateLimitedError]:
    """The 429 of a call that does not fit now, and the counter that stands in its way longest.

    Args:
        counters: at least one.
        standings: as they are without the call; where there is room in all of them, others wait
            for it already.
        tokens: that the call needs, per counter.
        waited_s: how long it has waited for its turn.
    """
    worst, worst_wait, why = counters[0], -1.0, ""
    for counter, standing, amount in zip(counters, standings, tokens, strict=True):
        requests_wait, tokens_wait, has_place = standing.waits(counter, amount)
        limits = [
            (requests_wait, _per_minute(counter, "requests", counter.requests_rate)),
            (
                tokens_wait,
                f"{_per_minute(counter, 'tokens', counter.tokens_rate)}, "
                f"{max(0, math.floor(standing.tokens))} left, {amount} requested",
            ),
            (0.0 if has_place else 1e-3, f"{counter.concurrency} requests at a time"),
        ]
        for wait, what in limits:
            if wait > max(0.0, worst_wait):
                worst, worst_wait, why = counter, wait, what
    if math.isinf(worst_wait):
        return worst, _never(worst, headers_of(counters, standings), why)
    retry_s = min(MAX_RETRY_S, max(1, math.ceil(worst_wait)))
    waited = f" after {waited_s:g} s in the queue" if waited_s else ""
    why = why or "others wait for it already"
    error = RateLimitedError(
        f"Rate limit {worst.rule!r}{_of(worst)} reached{waited}: {why}. "
        f"Please try again in {duration(max(worst_wait, 1.0))}.",
        retry_after_s=retry_s,
        headers=headers_of(counters, standings),
    )
    return worst, error


def _never(counter: Counter, headers: dict[str, str], why: str) -> RateLimitedError:
    return RateLimitedError(
        f"Request too large for the limit {counter.rule!r}{_of(counter)}: {why}, and at most "
        f"{math.floor(counter.tokens_cap)} at once. Ask for fewer max_tokens or send less.",
        headers=headers | {"x-should-retry": "false"},  # OpenAI's clients heed it
    )


def _of(counter: Counter) -> str:
    subject = ", ".join(filter(None, counter.subject))
    return f" of {subject}" if subject else ""


def _per_minute(counter: Counter, what: str, rate: float) -> str:
    return f"{round(rate * 60)} {what} per minute"
