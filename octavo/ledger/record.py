"""What the ledger keeps: a request's usage, an outcome, and a server's device time in one hour.

Plain values. Knows nothing of databases or of HTTP. Money is an integer number of 1e-9 of its
currency ("nano"), time an integer number of nanoseconds; `Decimal` appears at the edges only, so
that sums are exact in any order.
"""

from __future__ import annotations

from decimal import Decimal

import msgspec

from octavo.errors import InvalidRequestError

NANO = 10**9
HOUR_NS = 3600 * NANO
FOREVER_NS = 2**62
"""A time after all others, nanoseconds since 1970."""
MAX_INT = 2**63 - 1
"""Largest integer that both databases keep."""


class UsageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What one request used and cost; written once, at its end.

    Attributes:
        request_id: unique among all requests of all time: a second record with the same id is taken
            for the first one, sent again.
        parent_id: the `X-Request-Id` that the client saw, where it has several records (n > 1); an
            outcome that names it concerns them all. Empty: it is `request_id`.
        time_ns: of the request's end, nanoseconds since 1970 UTC.
        feature, tenant, key: who asked and what for; `key` is a name or a digest's beginning.
        session_id, trace_id: what outcomes may join by; empty: none.
        tags: further tags, name to value.
        route: of the HTTP request (`/v1/chat/completions`).
        backend: what served it (`octavo`).
        model: as served.
        prefill_ns, decode_ns: device time.
        waste_ns: the part of these two that was thrown away: recomputed after preemption, or for
            drafts that were rejected.
        num_input_tokens: cached ones included.
        num_cached_tokens: of the input, found in the prefix cache.
        num_output_tokens: reasoning included.
        ttft_ns: from arrival to the first token; None: there was none.
        e2e_ns: from arrival to the end.
        finish_reason: as `octavo.types.FinishReason`.
        hourly_rate_nano: price of one device for one hour, frozen in.
        price_nano: what it cost in all, where that is not by device time (a provider's tokens);
            None: the hourly rate says it.
        currency: of the price.
    """

    request_id: str
    time_ns: int
    parent_id: str = ""
    feature: str = ""
    tenant: str = ""
    key: str = ""
    session_id: str = ""
    trace_id: str = ""
    tags: dict[str, str] = {}
    route: str
    backend: str
    model: str
    prefill_ns: int
    decode_ns: int
    waste_ns: int
    num_input_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    ttft_ns: int | None = None
    e2e_ns: int
    finish_reason: str
    hourly_rate_nano: int
    price_nano: int | None = None
    currency: str = "USD"

    @property
    def total_ns(self) -> int:
        """Device time, prefill and decode."""
        return self.prefill_ns + self.decode_ns

    @property
    def gpu_seconds(self) -> Decimal:
        """Device time in seconds, exact."""
        return Decimal(self.total_ns).scaleb(-9)

    @property
    def cost_nano(self) -> int:
        """Hourly rate times device time, to the nearest nano-unit, halves up; or the price.

        So a sum over requests is at most half a nano-unit per request from the unrounded one, and
        it is the same in any order.
        """
        if self.price_nano is not None:
            return self.price_nano
        return cost_nano(self.hourly_rate_nano, self.total_ns)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of one request, or of all requests of a session or a trace.

    Attributes:
        id: unique; a second outcome with the same id is taken for the first one, sent again.
        time_ns: when it was known, nanoseconds since 1970 UTC.
        request_id, session_id, trace_id: exactly one is not empty; `request_id` is the
            `X-Request-Id` of the answer.
        name: what kind (`ticket_resolved`).
        success: whether it is one that counts as success.
        value: what it was worth, in a unit of the caller's, or None.
        tags: of the caller's.

    Raises:
        InvalidRequestError: none or several of the three ids are set, the name is empty, or the
            value has more than 9 decimals or is beyond 9e9.
    """

    id: str
    time_ns: int
    request_id: str = ""
    session_id: str = ""
    trace_id: str = ""
    name: str
    success: bool
    value: Decimal | None = None
    tags: dict[str, str] = {}

    def __post_init__(self) -> None:
        if sum(map(bool, (self.request_id, self.session_id, self.trace_id))) != 1:
            raise InvalidRequestError(
                "set exactly one of request_id, session_id and trace_id", param="request_id"
            )
        if not self.name:
            raise InvalidRequestError("an outcome needs a name", param="name")
        if self.value is not None:
            to_nano(self.value, "value")

    @property
    def value_nano(self) -> int | None:
        """The value in nano-units."""
        return None if self.value is None else to_nano(self.value, "value")


class EngineTime(msgspec.Struct, frozen=True, kw_only=True):
    """Where the device time of one engine went within one hour, until now.

    A later one of the same server and hour replaces it, so one may be sent again and again while
    the hour runs, in any order.

    Attributes:
        server: names one run of one engine; a restarted engine is another.
        hour: hours since 1970 UTC.
        time_ns: until when it counts, nanoseconds since 1970 UTC.
        num_devices: of the engine.
        buckets: nanoseconds of device time by name, `requests` among them; their sum is
            `num_devices` times the hour's part that the engine ran in.
        hourly_rate_nano, currency: price of one device hour.
    """

    server: str
    hour: int
    time_ns: int
    num_devices: int
    buckets: dict[str, int]
    hourly_rate_nano: int
    currency: str = "USD"


class AttemptRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt of a call through the gateway, whatever became of it; known by the first two.

    Attributes:
        request_id: of the call; number: from 0 in order of sending.
        parent_id: the `X-Request-Id` that the caller saw, where that is not `request_id`.
        upstream_id: the `X-Request-Id` that the backend got; the backend's own records have it.
        time_ns: of the end, nanoseconds since 1970 UTC.
        rule, tier: that led here.
        backend, model: by their names in the configuration and at the backend.
        status: as `octavo.gateway.model.Status`.
        http_status: of the backend; None: no answer.
        device_ns: device time, where the backend tells it.
        cost_nano: what the attempt cost.
        next_cost_nano: what the same tokens would have cost at the next tier; of judged ones.
        ttft_ns: from sending to the first piece of a stream; e2e_ns: to the end.
        answer_sha256: of the answer's text, hexadecimal.
        reason: why it failed or was not good enough.
        judge, score: what judged it, and how.
    """

    request_id: str
    parent_id: str = ""
    number: int
    upstream_id: str
    time_ns: int
    feature: str = ""
    tenant: str = ""
    key: str = ""
    session_id: str = ""
    trace_id: str = ""
    route: str
    rule: str
    tier: str
    backend: str
    model: str
    status: str
    http_status: int | None = None
    num_input_tokens: int = 0
    num_cached_tokens: int = 0
    num_output_tokens: int = 0
    device_ns: int | None = None
    cost_nano: int
    currency: str = "USD"
    next_cost_nano: int | None = None
    ttft_ns: int | None = None
    e2e_ns: int
    answer_sha256: str = ""
    reason: str = ""
    judge: str = ""
    score: float | None = None


class EscalationRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An answer that was not good enough, and the attempt that took its place.

    Attributes:
        number: of the cheaper attempt, which with the request's id is the record's.
        time_ns: of the dearer attempt's end.
        dear_status: what became of it; empty: there was none, as it could not be afforded.
        difference_nano: dearer less cheaper cost.
    """

    request_id: str
    number: int
    time_ns: int
    feature: str = ""
    tenant: str = ""
    key: str = ""
    rule: str
    judge: str
    reason: str
    score: float | None = None
    answer_sha256: str
    cheap_tier: str
    cheap_backend: str
    cheap_model: str
    cheap_cost_nano: int
    dear_tier: str = ""
    dear_backend: str = ""
    dear_model: str = ""
    dear_status: str = ""
    dear_cost_nano: int = 0
    difference_nano: int
    currency: str = "USD"


Entry = UsageRecord | Outcome | EngineTime | AttemptRecord | EscalationRecord
"""What a ledger's writer takes."""


def cost_nano(hourly_rate_nano: int, device_ns: int) -> int:
    """What device time costs, to the nearest nano-unit, halves up.

    Args:
        hourly_rate_nano: price of one device hour, nano-units.
        device_ns: nanoseconds, not negative.
    """
    return (2 * hourly_rate_nano * device_ns + HOUR_NS) // (2 * HOUR_NS)


def to_nano(amount: Decimal, param: str) -> int:
    """An amount in nano-units.

    Raises:
        InvalidRequestError: not finite, more than 9 decimals, or beyond 9e9; names `param`.
    """
    nano = amount.scaleb(9) if amount.is_finite() and abs(amount) <= MAX_INT else None
    if nano is None or nano != int(nano) or abs(nano) > MAX_INT:
        raise InvalidRequestError(
            f"{param} must be a number between -9e9 and 9e9 with at most 9 decimals", param=param
        )
    return int(nano)


def from_nano(nano: int) -> Decimal:
    """Nano-units as an amount, exact."""
    return Decimal(nano).scaleb(-9)
