"""Wire types of `POST /v1/outcomes`: what came of requests, to be joined with what they cost.

An outcome names one request (the `X-Request-Id` of its answer), or all requests of a session or a
trace. Whether such requests are known is not looked at: outcomes may come before their requests'
records are written, and days later.
"""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Annotated

import msgspec

from octavo.errors import InvalidRequestError
from octavo.protocol.metadata import MAX_KEY_LEN, MAX_PAIRS, MAX_VALUE_LEN, Metadata

MAX_OUTCOMES = 1000
"""Most outcomes of one request."""

MAX_NAME_BYTES = 200
MAX_ID_LEN = 256
MAX_VALUE = 9_000_000_000
MAX_DECIMALS = 9
MAX_FLOAT_DIGITS = 15
"""Digits of a number in JSON that every reader gives back as they were written."""

TraceId = Annotated[str, msgspec.Meta(pattern="^[0-9a-fA-F]{32}$")]
Id = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LEN)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME_BYTES)]
Value = (
    Annotated[int, msgspec.Meta(ge=-MAX_VALUE, le=MAX_VALUE)]
    | Annotated[float, msgspec.Meta(ge=-MAX_VALUE, le=MAX_VALUE)]
    | Annotated[str, msgspec.Meta(pattern=r"^[+-]?[0-9]{1,10}(\.[0-9]{1,9})?$")]
    | None
)
Time = Annotated[datetime, msgspec.Meta(tz=True)]


class OutcomeItem(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One outcome, about one request, session or trace.

    Attributes:
        name: of the kind of outcome, such as `ticket_resolved`.
        success: whether it is one that was hoped for.
        id: the caller's; the same outcome sent again with its id counts once. Left out, it is a new
            one each time.
        request_id: of the answer that it is about, as its `X-Request-Id` says.
        session_id: of the requests that it is about, as their `X-Octavo-Session` said.
        trace_id: of the requests that it is about, as their `traceparent` said: 32 hexadecimal
            digits.
        value: what it was worth, in the currency of the reports; a number of 15 digits at most, or
            a decimal string.
        time: when it was known; left out: now.
        tags: labels of the caller's.
    """

    name: Name
    success: bool
    id: Id | None = None
    request_id: Id | None = None
    session_id: Id | None = None
    trace_id: TraceId | None = None
    value: Value = None
    time: Time | None = None
    tags: Metadata | None = None

    @property
    def amount(self) -> Decimal | None:
        """The value, exactly as it was written."""
        return None if self.value is None else Decimal(str(self.value))


OutcomeItems = Annotated[list[OutcomeItem], msgspec.Meta(min_length=1, max_length=MAX_OUTCOMES)]


class OutcomeRequest(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One outcome, by the fields of `OutcomeItem`; or many of them in `outcomes` alone."""

    name: Name | None = None
    success: bool | None = None
    id: Id | None = None
    request_id: Id | None = None
    session_id: Id | None = None
    trace_id: TraceId | None = None
    value: Value = None
    time: Time | None = None
    tags: Metadata | None = None
    outcomes: OutcomeItems | None = None

    def items(self) -> list[OutcomeItem]:
        """The outcomes, each checked.

        Raises:
            InvalidRequestError: names the field: `success`, `outcomes[3].request_id`.
        """
        if self.outcomes is not None:
            for name in OutcomeItem.__struct_fields__:
                if getattr(self, name) is not None:
                    raise InvalidRequestError(
                        f"{name} has no place beside outcomes: give it in each of them", param=name
                    )
            for index, item in enumerate(self.outcomes):
                check_outcome(item, f"outcomes[{index}].")
            return self.outcomes
        if self.name is None or self.success is None:
            missing = "name" if self.name is None else "success"
            raise InvalidRequestError(
                f"Missing required field: {missing} (or outcomes, for a list)", param=missing
            )
        item = OutcomeItem(**{name: getattr(self, name) for name in OutcomeItem.__struct_fields__})
        check_outcome(item)
        return [item]


class OutcomeReceipt(msgspec.Struct, kw_only=True):
    """An outcome that is kept."""

    object: str = "outcome"
    id: str
    name: str


class OutcomeReceipts(msgspec.Struct, kw_only=True):
    """The outcomes of a request, in its order. All of them are kept; none is lost by a crash."""

    object: str = "list"
    data: list[OutcomeReceipt]


def check_outcome(item: OutcomeItem, prefix: str = "") -> None:
    """Refuse what types do not tell.

    Args:
        item: to check.
        prefix: goes before the names of fields in errors.

    Raises:
        InvalidRequestError: names the field.
    """

    def refuse(field: str, reason: str) -> InvalidRequestError:
        return InvalidRequestError(f"{prefix}{field} {reason}", param=f"{prefix}{field}")

    given = [name for name in ("request_id", "session_id", "trace_id") if getattr(item, name)]
    if len(given) != 1:
        raise refuse(
            given[1] if given else "request_id",
            "must be given, or session_id or trace_id, and only one of the three",
        )
    if len(item.name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
        raise refuse("name", f"must have {MAX_NAME_BYTES} bytes of UTF-8 at most")
    for field in ("id", "name", "request_id", "session_id", "trace_id"):
        if not (getattr(item, field) or " ").isprintable():
            raise refuse(field, "must have no control characters")
    amount = item.amount
    if amount is not None:
        _, digits, exponent = amount.normalize().as_tuple()
        if not isinstance(exponent, int) or exponent < -MAX_DECIMALS or abs(amount) > MAX_VALUE:
            raise refuse(
                "value",
                f"must lie in -{MAX_VALUE}..{MAX_VALUE}, with {MAX_DECIMALS} decimals at most",
            )
        if isinstance(item.value, float) and len(digits) > MAX_FLOAT_DIGITS:
            raise refuse("value", f"has more than {MAX_FLOAT_DIGITS} digits: give it as a string")
    if item.time is not None and item.time.year < 1971:
        raise refuse("time", "must be after 1970")
    tags = item.tags or {}
    if len(tags) > MAX_PAIRS or any(
        len(key) > MAX_KEY_LEN or len(value) > MAX_VALUE_LEN for key, value in tags.items()
    ):
        raise refuse(
            "tags",
            f"takes at most {MAX_PAIRS} pairs, keys of up to {MAX_KEY_LEN} and values of up to "
            f"{MAX_VALUE_LEN} characters",
        )
