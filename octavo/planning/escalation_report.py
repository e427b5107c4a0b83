"""Whether the hybrid pays: what judged cheap attempts and their successors cost, per group.

`saved` sets what was paid for judged answers against the next tier alone: passed answers are worth
what their tokens would have cost there, dropped ones are lost. It counts the passed answers whose
price there is known by tokens; how many these are is said beside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.ledger.record import from_nano

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from octavo.ledger.gateway_queries import HybridTotals
    from octavo.ledger.record import EscalationRecord

_HEADS = (
    "judged", "passed", "escalated", "% escalated", "cheap", "dear", "saved", "priced",
)  # fmt: skip
NO_NAME = "(none)"


def rows_of(totals: Sequence[HybridTotals], by: Sequence[str]) -> list[dict[str, Any]]:
    """One object per group: its names, counts, and money as decimal strings."""
    rows = []
    for one in totals:
        judged = one.num_passed + one.num_escalated
        rows.append(
            {
                **dict(zip(by, one.key, strict=True)),
                "currency": one.currency,
                "judged": judged,
                "passed": one.num_passed,
                "escalated": one.num_escalated,
                "escalated_share": round(one.num_escalated / judged, 4) if judged else None,
                "cheap_cost": str(from_nano(one.cheap_cost_nano)),
                "dear_cost": str(from_nano(one.dear_cost_nano)),
                "hybrid_cost": str(from_nano(one.cheap_cost_nano + one.dear_cost_nano)),
                "saved": str(from_nano(one.saved_nano)),
                "passed_with_price": one.num_priced,
            }
        )
    return rows


def escalation_of(record: EscalationRecord) -> dict[str, Any]:
    """One escalation, money as decimal strings."""
    fields = msgspec.structs.asdict(record)
    for name in [name for name in fields if name.endswith("_nano")]:
        fields[name.removesuffix("_nano")] = str(from_nano(fields.pop(name)))
    return fields


def print_totals(rows: Sequence[dict[str, Any]], by: Sequence[str], console: Console) -> None:
    """A table for a reader, and what follows from it in words."""
    from rich.table import Table
    from rich.text import Text

    if not rows:
        console.print("no judged attempts in this time")
        return
    table = Table(box=None, pad_edge=False)
    for name in by:
        table.add_column(name)
    for head in _HEADS:
        table.add_column(head, justify="right")
    for row in rows:
        share = row["escalated_share"]
        money = [f"{row[name]} {row['currency']}" for name in ("cheap_cost", "dear_cost", "saved")]
        table.add_row(
            *(Text(_printable(row[name]) or NO_NAME) for name in by),
            *(f"{row[name]:,}" for name in ("judged", "passed", "escalated")),
            "" if share is None else f"{share:.1%}",
            *money,
            f"{row['passed_with_price']:,} of {row['passed']:,}",
        )
    console.print(table)
    console.print(
        "saved: against sending everything to the next tier; below 0 the hybrid costs more than it "
        "spares. priced: passed answers whose price there is known.",
        style="dim",
    )


def print_list(records: Sequence[EscalationRecord], console: Console) -> None:
    """Escalations for a reader, the newest first."""
    from datetime import UTC, datetime

    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for head in ("ended (UTC)", "request", "feature", "judge", "score", "reason", "cheap", "dear"):
        table.add_column(head)
    for record in records:
        ended = datetime.fromtimestamp(record.time_ns / 1e9, UTC)
        table.add_row(
            f"{ended:%Y-%m-%d %H:%M:%S}",
            *(
                Text(_printable(text))
                for text in (
                    record.request_id,
                    record.feature,
                    record.judge,
                    "" if record.score is None else f"{record.score:.3g}",
                    record.reason,
                    f"{record.cheap_backend}/{record.cheap_model} "
                    f"{from_nano(record.cheap_cost_nano)}",
                    f"{record.dear_backend}/{record.dear_model} {from_nano(record.dear_cost_nano)}"
                    if record.dear_backend
                    else "none",
                )
            ),
        )
    console.print(table)


def _printable(text: str) -> str:
    """Callers choose names: none of them moves the cursor."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "\ufffd" for c in text)
