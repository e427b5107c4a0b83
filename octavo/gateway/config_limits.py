"""The section `limits` of the configuration: how much may be asked for in how much time."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Dimension = Literal["key", "tenant", "team", "feature", "model", "route"]
"""What a limit may be counted by."""

_Rate = Annotated[int, Meta(ge=1, le=10**12)]
_Patterns = tuple[Annotated[str, Meta(min_length=1)], ...]


class Limit(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One limit; at least one of the first three must be given.

    Rates are token buckets: a bucket holds what `burst_s` seconds bring, and is full at first. In
    any time of T seconds at most (burst_s + T) / 60 times the rate is let through.

    Attributes:
        requests_per_minute: requests that begin.
        tokens_per_minute: prompt and output. The worst case is taken when a request begins
            (`max_tokens`, or `assumed_output_tokens`), and what it did not use is given back at
            its end.
        concurrency: requests at a time.
        per: what has a bucket of its own: any of key, tenant, team, feature, model, route; several:
            each combination; empty: one bucket for all.
        holds_for: `all` requests that the patterns below let in, or `named`: only those of keys
            that name it in their `limits`.
        features: it holds for these alone, shell patterns; empty: for all.
        tenants: likewise.
        models: likewise, as the caller asks for them.
        burst_s: what a bucket holds, in seconds of its rate.
        queue_s: how long a request may wait for its turn instead of a 429, seconds; 0: it is
            refused at once. Where several limits hold, the shortest counts.
        max_queue_len: more waiting requests of a tenant than this are refused.
        assumed_output_tokens: reserved for a choice that names no `max_tokens`.
    """

    requests_per_minute: _Rate | None = None
    tokens_per_minute: _Rate | None = None
    concurrency: Annotated[int, Meta(ge=1, le=10**6)] | None = None
    per: tuple[Dimension, ...] = ("key",)
    holds_for: Literal["all", "named"] = "all"
    features: _Patterns = ()
    tenants: _Patterns = ()
    models: _Patterns = ()
    burst_s: Annotated[float, Meta(gt=0, le=86_400)] = 60.0
    queue_s: Annotated[float, Meta(ge=0, le=3600)] = 0.0
    max_queue_len: Annotated[int, Meta(ge=1, le=100_000)] = 100
    assumed_output_tokens: Annotated[int, Meta(ge=0, le=10**9)] = 256

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: no limit is given, or a bucket would not hold one request.
        """
        rates = (self.requests_per_minute, self.tokens_per_minute)
        if rates == (None, None) and self.concurrency is None:
            raise ValueError(
                "give at least one of requests_per_minute, tokens_per_minute and concurrency"
            )
        for name, rate in zip(("requests_per_minute", "tokens_per_minute"), rates, strict=True):
            if rate is not None and rate * self.burst_s < 60:
                raise ValueError(
                    f"{name} {rate} with burst_s {self.burst_s:g} holds less than one: give "
                    f"burst_s {60 / rate:g} or more"
                )
        if len(set(self.per)) != len(self.per):
            raise ValueError("per names something twice")


class LimitsSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All limits, and where they are counted.

    Attributes:
        rules: name, and limit. All that hold for a request count, together or not at all.
        store: `memory`: each gateway process counts for itself; `redis`: all that share the
            server of `redis_url` count together.
        when_redis_fails: `open`: requests pass without Redis, counted by each process for itself
            until it is back; `closed`: they get a 503.
        redis_timeout_s: Redis counts as failed when it takes longer, seconds.
        redis_prefix: of all its keys there: gateways with the same prefix count together.
    """

    rules: dict[Annotated[str, Meta(min_length=1, max_length=100)], Limit] = {}
    store: Literal["memory", "redis"] = "memory"
    when_redis_fails: Literal["open", "closed"] = "open"
    redis_timeout_s: Annotated[float, Meta(ge=0.01, le=30)] = 0.5
    redis_prefix: Annotated[str, Meta(pattern=r"^[A-Za-z0-9:._-]{1,100}\Z")] = "octavo"
