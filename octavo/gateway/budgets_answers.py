"""What callers and administrators are told of budgets. Pure."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from octavo.errors import BudgetExceededError
from octavo.ledger.record import HOUR_NS, NANO, from_nano

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from octavo.gateway.budgets_scope import Ceiling
    from octavo.gateway.budgets_store import Standing
    from octavo.gateway.model import Amount


def refusal(
    ceilings: Sequence[Ceiling],
    standings: Sequence[Standing],
    amount: Amount,
    *,
    currency: str,
    now_ns: int,
) -> tuple[Ceiling, Standing, BudgetExceededError]:
    """The first budget that an amount does not fit into, how it stands, and what the caller gets.

    Args:
        ceilings: of all budgets of the call.
        standings: of their counters, as they were when it was refused.
        amount: its worst case.
        currency: of costs.
        now_ns: nanoseconds since 1970.
    """
    for ceiling, standing in zip(ceilings, standings, strict=True):
        taken = standing.used + standing.reserved
        if ceiling.is_hard and not ceiling.fits(taken + amount):
            break
    needs, left = _shortage(ceiling, taken, amount, currency)
    message = (
        f"The budget {ceiling.budget!r}{_of(ceiling.scope)} has {left} left, and this request may "
        f"use up to {needs}"
    )
    if not ceiling.fits(amount):
        message += ", which is more than all of it: ask for fewer tokens (max_tokens)"
        return ceiling, standing, BudgetExceededError(message)
    retry_after_s = None
    if ceiling.end_ns is not None:
        message += f": the next period begins at {time_text(ceiling.end_ns)}"
        retry_after_s = max(1, -((now_ns - ceiling.end_ns) // NANO))
    return ceiling, standing, BudgetExceededError(message, retry_after_s=retry_after_s)


def _shortage(ceiling: Ceiling, taken: Amount, amount: Amount, currency: str) -> tuple[str, str]:
    """What is needed, and what is left, of the first thing that there is too little of."""
    if ceiling.cost_nano is not None and taken.cost_nano + amount.cost_nano > ceiling.cost_nano:
        left = max(0, ceiling.cost_nano - taken.cost_nano)
        return f"{_plain(from_nano(amount.cost_nano))} {currency}", (
            f"{_plain(from_nano(left))} {currency}"
        )
    if ceiling.num_tokens is not None and taken.num_tokens + amount.num_tokens > ceiling.num_tokens:
        left = max(0, ceiling.num_tokens - taken.num_tokens)
        return f"{amount.num_tokens} tokens", f"{left} tokens"
    assert ceiling.device_ns is not None
    left = max(0, ceiling.device_ns - taken.device_ns)
    return (
        f"{_plain(from_nano(amount.device_ns))} device seconds",
        f"{_plain(from_nano(left))} device seconds",
    )


def subject_of(scope: str) -> dict[str, str]:
    """Whom a counter is for, by dimension."""
    return dict(parse_qsl(scope, keep_blank_values=True))


def _of(scope: str) -> str:
    subject = ", ".join(f"{name} {value!r}" for name, value in subject_of(scope).items())
    return f" of {subject}" if subject else ""


def row_of(ceiling: Ceiling, period: str, standing: Standing, currency: str) -> dict[str, object]:
    """One counter, for the admin API and alerts. Costs are exact, as text."""
    used, reserved = standing
    row: dict[str, object] = {
        "budget": ceiling.budget,
        "subject": subject_of(ceiling.scope),
        "kind": "hard" if ceiling.is_hard else "soft",
        "period": period,
        "period_start": time_text(ceiling.start_ns) if ceiling.end_ns is not None else None,
        "period_end": time_text(ceiling.end_ns) if ceiling.end_ns is not None else None,
        "used_part": round(ceiling.part(used), 6),
        "reserved_part": round(ceiling.part(reserved), 6),
        "cost": _plain(from_nano(used.cost_nano)),
        "cost_reserved": _plain(from_nano(reserved.cost_nano)),
        "tokens": used.num_tokens,
        "tokens_reserved": reserved.num_tokens,
        "gpu_hours": _hours(used.device_ns),
        "gpu_hours_reserved": _hours(reserved.device_ns),
        "currency": currency,
    }
    if ceiling.cost_nano is not None:
        row["cost_ceiling"] = _plain(from_nano(ceiling.cost_nano))
    if ceiling.num_tokens is not None:
        row["tokens_ceiling"] = ceiling.num_tokens
    if ceiling.device_ns is not None:
        row["gpu_hours_ceiling"] = _hours(ceiling.device_ns)
    return row


def time_text(time_ns: int) -> str:
    """A time as RFC 3339 has it, in UTC, to the second."""
    return datetime.fromtimestamp(time_ns // NANO, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _hours(nanoseconds: int) -> float:
    return round(nanoseconds / HOUR_NS, 9)


def _plain(amount: Decimal) -> str:
    """Without zeros at the end or an exponent."""
    text = f"{amount:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
