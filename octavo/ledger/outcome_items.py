"""Outcomes as callers write them, into outcomes as the ledger keeps them."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import msgspec

from octavo.ledger.record import Outcome

if TYPE_CHECKING:
    from octavo.protocol.outcomes import OutcomeItem

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def to_outcome(item: OutcomeItem, outcome_id: str, now_ns: int) -> Outcome:
    """The outcome as it is kept.

    Args:
        item: checked (`protocol.outcomes.check_outcome`).
        outcome_id: stands for an id that is left out.
        now_ns: stands for a time that is left out, nanoseconds since 1970 UTC.
    """
    time_ns = now_ns
    if item.time is not None:
        time_ns = (item.time - _EPOCH) // timedelta(microseconds=1) * 1000
    return Outcome(
        id=item.id or outcome_id,
        time_ns=time_ns,
        request_id=item.request_id or "",
        session_id=item.session_id or "",
        trace_id=(item.trace_id or "").lower(),
        name=item.name,
        success=item.success,
        value=item.amount,
        tags=item.tags or {},
    )


def id_of_content(item: OutcomeItem) -> str:
    """An id that the same outcome always gets; two that differ in anything get two.

    Args:
        item: checked, without an id.
    """
    kept = to_outcome(item, "?", 0)
    said = {name: getattr(kept, name) for name in kept.__struct_fields__}
    said |= {"value": kept.value_nano, "tags": dict(sorted(kept.tags.items()))}
    return f"outcome_{hashlib.sha256(msgspec.json.encode(said)).hexdigest()[:32]}"
