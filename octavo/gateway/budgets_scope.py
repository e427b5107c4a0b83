"""Which budgets hold for a call, whom it is counted for, and in which period. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from hashlib import blake2b
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from octavo.gateway.model import value_of
from octavo.gateway.patterns import matches_any
from octavo.ledger.record import NANO

if TYPE_CHECKING:
    from octavo.gateway.config_budgets import Budget, Period
    from octavo.gateway.model import Amount, Call

MAX_VALUE_BYTES = 64
"""Of a value in a scope: PostgreSQL takes 2.7 kB in a key of an index."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HOUR_NS = 3600 * NANO
_DAY_NS = 24 * _HOUR_NS

CounterKey = tuple[str, str, int]
"""A budget's name, whom it is counted for, and the beginning of its period."""


class Ceiling(NamedTuple):
    """What one budget allows one subject in one period.

    Attributes:
        budget: its name.
        scope: whom it is counted for, see `scope_of`.
        start_ns: of the period, nanoseconds since 1970 UTC; 0 of `total`.
        end_ns: of the period, likewise; None: it has none.
        cost_nano, num_tokens, device_ns: at the most; None: no bound.
        is_hard: what does not fit is refused.
    """

    budget: str
    scope: str
    start_ns: int
    end_ns: int | None
    cost_nano: int | None
    num_tokens: int | None
    device_ns: int | None
    is_hard: bool

    @property
    def key(self) -> CounterKey:
        """Of its counter."""
        return self[:3]

    def fits(self, amount: Amount) -> bool:
        """Whether an amount is not above it."""
        return (
            (self.cost_nano is None or amount.cost_nano <= self.cost_nano)
            and (self.num_tokens is None or amount.num_tokens <= self.num_tokens)
            and (self.device_ns is None or amount.device_ns <= self.device_ns)
        )

    def part(self, amount: Amount) -> float:
        """The largest part of it that an amount is, 1 is all."""
        pairs = (
            (amount.cost_nano, self.cost_nano),
            (amount.num_tokens, self.num_tokens),
            (amount.device_ns, self.device_ns),
        )
        return max(value / ceiling for value, ceiling in pairs if ceiling is not None)


def holds(name: str, budget: Budget, call: Call) -> bool:
    """Whether a budget holds for a call."""
    if budget.holds_for == "named" and name not in call.key.budgets:
        return False
    return (
        matches_any(call.feature, budget.features)
        and matches_any(call.tenant, budget.tenants)
        and matches_any(call.key.team, budget.teams)
        and matches_any(call.model, budget.models)
        and all(
            fnmatchcase(call.tags.get(tag, ""), pattern) for tag, pattern in budget.tags.items()
        )
    )


def scope_of(budget: Budget, call: Call) -> str:
    """Whom a budget counts a call for: `key=oct1&team=web`, empty where it is one for all.

    Values are percent-encoded, so that none can pass for another's; of a long one there is the
    beginning and a digest.
    """
    return "&".join(f"{name}={_quoted(value_of(call, name))}" for name in budget.per)


def _quoted(value: str) -> str:
    data = value.encode("utf-8", "replace")
    if len(data) > MAX_VALUE_BYTES:
        data = data[:MAX_VALUE_BYTES] + b"~" + blake2b(data, digest_size=16).hexdigest().encode()
    return quote(data, safe="")


def period_of(period: Period, time_ns: int) -> tuple[int, int | None]:
    """Beginning and end of the period that a time is in, in UTC: nanoseconds since 1970.

    The end belongs to the next one. `total` is from 0, and has no end.
    """
    match period:
        case "hour":
            start = time_ns - time_ns % _HOUR_NS
            return start, start + _HOUR_NS
        case "day":
            start = time_ns - time_ns % _DAY_NS
            return start, start + _DAY_NS
        case "month":
            time = _EPOCH + timedelta(seconds=time_ns // NANO)
            first = time.replace(day=1, hour=0, minute=0, second=0)
            after = (first + timedelta(days=32)).replace(day=1)
            return _ns(first), _ns(after)
        case "total":
            return 0, None


def _ns(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(seconds=1) * NANO


def ceiling_of(name: str, budget: Budget, scope: str, time_ns: int) -> Ceiling:
    """What a budget allows a subject in the period of a time."""
    start_ns, end_ns = period_of(budget.period, time_ns)
    return Ceiling(
        name,
        scope,
        start_ns,
        end_ns,
        budget.cost_nano,
        budget.tokens,
        budget.device_ns,
        budget.kind == "hard",
    )
