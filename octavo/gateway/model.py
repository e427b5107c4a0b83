"""What the gateway's parts say to one another: plain frozen values, no I/O.

Money is an integer number of 1e-9 of the currency ("nano"), as in the ledger; time on this
machine's monotonic clock is in seconds (`time.perf_counter()`), durations in records are integer
nanoseconds.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from octavo.ledger.record import cost_nano

Route = Literal["chat", "completions", "embeddings", "messages", "responses", "score", "rerank"]
"""What is asked for, whatever the path's spelling."""

PATHS: dict[str, Route] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "messages",
    "/v1/responses": "responses",
    "/v1/score": "score",
    "/v1/rerank": "rerank",
}
"""The routes that are forwarded; a backend gets the same path."""

Status = Literal[
    "ok",  # answered, and the answer was passed on
    "escalated",  # answered, judged not good enough
    "refused",  # the backend says that the caller is at fault (4xx): passed on, never retried
    "rate_limited",  # 429 of the backend
    "error",  # 5xx, a connection that failed or broke, an answer that cannot be read
    "timeout",  # to connect, to the first token, or between two pieces of a stream
    "client_left",  # cancelled because the client went away
    "over_budget",  # a stream that was ended at its ceiling
]
"""How an attempt ended."""


class KeyInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Whom a request is counted to. What is empty is not restricted, or not known.

    Attributes:
        key_id: public part of the key, in logs and records; never the key.
        name: given by whoever made the key.
        tenant, team: for limits, budgets and the backends' cache salt.
        features: the tags that the key may set; the first is used where the caller names none.
        models: names and aliases that it may ask for, shell patterns.
        routes: `Route`s that it may use.
        tags: put on every record, over the caller's.
        max_tokens: ceiling of a request's output, tokens; larger ones are clamped.
        default_max_tokens: for requests that name none.
        requires_max_tokens: requests that name none are refused.
        limits: names of limits in the configuration that hold for it, besides those for all.
        budgets: likewise.
        expires_ns: nanoseconds since 1970; None: never.
    """

    key_id: str
    name: str = ""
    tenant: str = ""
    team: str = ""
    features: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    tags: dict[str, str] = {}
    max_tokens: int | None = None
    default_max_tokens: int | None = None
    requires_max_tokens: bool = False
    limits: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    expires_ns: int | None = None


ANYBODY = KeyInfo(key_id="")
"""Who calls where no keys are asked for."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One request as it arrived, read as far as routing needs.

    Attributes:
        request_id: of the HTTP request, unique.
        parent_id: the caller's own `X-Request-Id`, of which `request_id` is made then, as callers
            may send one many times; empty: the caller has `request_id`.
        arrived: reading of `time.perf_counter()`.
        path: as the backend gets it.
        model: as asked for: a model or an alias.
        body: the decoded JSON object; not to be changed.
        headers: names in lower case, those that rules look at.
        num_prompt_chars: of all text in the prompt or messages.
        num_prompt_tokens: an estimate, on the high side.
        block_hashes: of the prompt's text in blocks, each over all before it: equal beginnings
            have equal hashes, so that they find the replica that has them in its cache.
        max_tokens: asked for and clamped; None: no bound.
        num_choices: `n`, times the number of prompts.
        key, feature, tenant, session_id, tags: who and what for; the key's word, where it has one.
        language: ISO 639-1 where a rule asks for it and it could be told, else empty.
        traceparent: W3C's, to be passed on; empty: none.
        includes_cost: the caller wants to know what it cost, in the answer's usage.
    """

    request_id: str
    parent_id: str = ""
    arrived: float
    route: Route
    path: str
    model: str
    stream: bool = False
    body: dict[str, Any]
    headers: dict[str, str] = {}
    num_prompt_chars: int = 0
    num_prompt_tokens: int = 0
    block_hashes: tuple[bytes, ...] = ()
    has_tools: bool = False
    has_schema: bool = False
    has_images: bool = False
    max_tokens: int | None = None
    num_choices: int = 1
    key: KeyInfo = ANYBODY
    feature: str = ""
    tenant: str = ""
    session_id: str = ""
    tags: dict[str, str] = {}
    language: str = ""
    traceparent: str = ""
    includes_cost: bool = False

    @property
    def known_as(self) -> str:
        """The `X-Request-Id` of the answer: what the caller knows the request by."""
        return self.parent_id or self.request_id


def value_of(call: Call, dimension: str) -> str:
    """What a call has of what limits and budgets count by.

    Args:
        call: any.
        dimension: `key`, `team`, `tenant`, `feature`, `model`, `route` or `tag:NAME`.
    """
    match dimension:
        case "key":
            return call.key.key_id
        case "team":
            return call.key.team
        case "tenant":
            return call.tenant
        case "feature":
            return call.feature
        case "model":
            return call.model
        case "route":
            return call.route
        case _:
            return call.tags.get(dimension.removeprefix("tag:"), "")


class Target(msgspec.Struct, frozen=True):
    """One model at one backend.

    Attributes:
        backend: its name in the configuration.
        model: as the backend calls it.
    """

    backend: str
    model: str


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """Targets that are as good as one another, tried in this order until one answers.

    Attributes:
        name: of the tier or alias in the configuration.
        judge: name of what decides whether its answer is good enough; empty: it is.
    """

    name: str
    targets: tuple[Target, ...]
    judge: str = ""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Where a call goes: the first tier, and the next where its answer is judged not good enough.

    Attributes:
        rule: name of the rule that decided, for records and the playground.
        shadows: get a copy, whose answers nobody sees.
        deadline_s: for the whole chain of attempts, from arrival.
        max_cost_nano: likewise; None: no bound but the budgets'.
    """

    rule: str
    tiers: tuple[Tier, ...]
    shadows: tuple[Target, ...] = ()
    deadline_s: float = 600.0
    max_cost_nano: int | None = None


class TokenPrice(msgspec.Struct, frozen=True, kw_only=True):
    """What a provider takes, nano-units of the currency; `request` per request.

    Attributes:
        input, output, cached_input: per `per` tokens. Price lists are per million, and some of
            theirs are no whole number of nano-units per token.
    """

    input: int
    output: int
    cached_input: int | None = None
    request: int = 0
    per: int = 1
    currency: str = "USD"


class DevicePrice(msgspec.Struct, frozen=True, kw_only=True):
    """What a device of ours costs, and the most that a token takes of it: for reserving before the
    engine has told what it used.

    Attributes:
        hourly_nano: of one device for one hour.
        worst_input_ns, worst_output_ns: device time per token, at the most, in a request alone.
    """

    hourly_nano: int
    worst_input_ns: int
    worst_output_ns: int
    currency: str = "USD"


Price = TokenPrice | DevicePrice


class Amount(msgspec.Struct, frozen=True):
    """What a budget counts, all three at once."""

    cost_nano: int = 0
    num_tokens: int = 0
    device_ns: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(
            self.cost_nano + other.cost_nano,
            self.num_tokens + other.num_tokens,
            self.device_ns + other.device_ns,
        )


class Tokens(msgspec.Struct, frozen=True):
    """What a backend says it used.

    Attributes:
        input: cached ones included.
        device_ns: device time; None: the backend does not tell.
        cost_nano: as the backend tells it; None: it does not.
    """

    input: int = 0
    cached: int = 0
    output: int = 0
    device_ns: int | None = None
    cost_nano: int | None = None


def worst_case(call: Call, price: Price, *, max_tokens: int) -> Amount:
    """The most that one attempt at a call can use.

    Args:
        call: its prompt's length is an estimate on the high side.
        price: of the attempt's target.
        max_tokens: of one choice; the call's own, or the model's context where it names none.
    """
    output = max_tokens * call.num_choices
    num_tokens = call.num_prompt_tokens + output
    if isinstance(price, DevicePrice):
        device_ns = price.worst_input_ns * call.num_prompt_tokens + price.worst_output_ns * output
        return Amount(cost_nano(price.hourly_nano, device_ns), num_tokens, device_ns)
    cost = price.input * call.num_prompt_tokens + price.output * output
    return Amount(price.request - -cost // price.per, num_tokens, 0)


def actual(tokens: Tokens, price: Price) -> Amount:
    """What an attempt used, priced. A device's time is taken from the backend's word, and from the
    worst case per token where it gives none.
    """
    num_tokens = tokens.input + tokens.output
    if isinstance(price, DevicePrice):
        device_ns = tokens.device_ns
        if device_ns is None:
            uncached = tokens.input - tokens.cached
            device_ns = price.worst_input_ns * uncached + price.worst_output_ns * tokens.output
        return Amount(cost_nano(price.hourly_nano, device_ns), num_tokens, device_ns)
    per_cached = price.input if price.cached_input is None else price.cached_input
    cost = price.input * (tokens.input - tokens.cached)
    cost += per_cached * tokens.cached + price.output * tokens.output
    return Amount(price.request + (2 * cost + price.per) // (2 * price.per), num_tokens, 0)


SHADOW_TIER = "shadow"
JUDGE_TIER = "judge"
"""Tiers of attempts that answer no client: shadows', and what judges ask of models. No tier of a
configuration has these names.
"""


class Attempt(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a call at one target, for the ledger; written whatever became of it.

    Attributes:
        request_id: of the call.
        number: from 0, in order of sending; shadows after the others.
        upstream_id: the `X-Request-Id` that the backend got: its own records are found by it.
        time_ns: of the end, nanoseconds since 1970.
        tier: of the plan; `shadow` for shadows, `judge` for what a judge asked of a model.
        http_status: of the backend; None: there was no answer.
        ttft_ns: to the first piece of a stream, from sending; None: none came.
        answer_sha256: of the answer's text, hexadecimal; empty: there is none.
        reason: why it failed or was escalated, one line.
        judge: what judged it, or empty; score: by the judge, None: it gives none.
    """

    request_id: str
    number: int
    upstream_id: str
    time_ns: int
    tier: str
    backend: str
    model: str
    status: Status
    http_status: int | None = None
    tokens: Tokens = Tokens()
    cost_nano: int = 0
    currency: str = "USD"
    ttft_ns: int | None = None
    e2e_ns: int = 0
    answer_sha256: str = ""
    reason: str = ""
    judge: str = ""
    score: float | None = None
