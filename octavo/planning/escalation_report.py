"""Whether the hybrid pays: what judged cheap attempts and their successors cost, per group.

`saved` sets what was paid for judged answers against the next tier alone: passed answers are worth
what their tokens would have cost there, dropped ones are lost. It counts the passed answers whose
price there is known by tokens; how many these are is said beside it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.ledger.record import from_nano
from octavo.planning.cost_table import print_columns, printable
from octavo.planning.cost_words import NO_NAME

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from octavo.ledger.gateway_queries import HybridTotals
    from octavo.ledger.record import EscalationRecord


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
                "cheap_cost": plain_text(from_nano(one.cheap_cost_nano)),
                "dear_cost": plain_text(from_nano(one.dear_cost_nano)),
                "hybrid_cost": plain_text(from_nano(one.cheap_cost_nano + one.dear_cost_nano)),
                "saved": plain_text(from_nano(one.saved_nano)),
                "passed_with_price": one.num_priced,
            }
        )
    return rows


def escalation_of(record: EscalationRecord) -> dict[str, Any]:
    """One escalation, money as decimal strings."""
    fields = msgspec.structs.asdict(record)
    for name in [name for name in fields if name.endswith("_nano")]:
        fields[name.removesuffix("_nano")] = plain_text(from_nano(fields.pop(name)))
    return fields


def print_totals(rows: Sequence[dict[str, Any]], by: Sequence[str], console: Console) -> None:
    """A table for a reader, and what follows from it in words."""
    if not rows:
        console.print("no judged attempts in this time")
        return
    heads = [*by, "judged", "passed", "escalated", "share", "cheap", "dear", "saved", "", "priced"]
    texts = []
    for row in rows:
        share = row["escalated_share"]
        texts.append(
            [
                *(printable(row[name]) or NO_NAME for name in by),
                *(f"{row[name]:,}" for name in ("judged", "passed", "escalated")),
                "-" if share is None else f"{share:.1%}",
                *(_short(Decimal(row[name])) for name in ("cheap_cost", "dear_cost", "saved")),
                row["currency"],
                f"{row['passed_with_price']:,} of {row['passed']:,}",
            ]
        )
    print_columns(heads, texts, len(by), console)
    console.print(
        "saved: against sending everything to the next tier; below 0 the hybrid costs more than it "
        "spares. priced: passed answers whose price there is known.",
        style="dim",
        soft_wrap=True,
    )


def print_list(records: Sequence[EscalationRecord], console: Console) -> None:
    """Escalations for a reader, the newest first."""
    if not records:
        console.print("no escalations in this time")
        return
    heads = ["ended (UTC)", "request", "feature", "judge", "score", "cheap", "dear", "reason"]
    rows = []
    for record in records:
        ended = datetime.fromtimestamp(record.time_ns / 1e9, UTC)
        dear = (
            f"{record.dear_backend}/{record.dear_model} {_short(from_nano(record.dear_cost_nano))}"
        )
        texts = (
            f"{ended:%Y-%m-%d %H:%M:%S}",
            record.request_id,
            record.feature or NO_NAME,
            record.judge,
            "-" if record.score is None else f"{record.score:.3g}",
            f"{record.cheap_backend}/{record.cheap_model} "
            f"{_short(from_nano(record.cheap_cost_nano))}",
            dear if record.dear_backend else "none",
            record.reason,
        )
        rows.append([printable(text) for text in texts])
    print_columns(heads, rows, len(heads), console)


def plain_text(amount: Decimal) -> str:
    """All digits, and no exponent."""
    return f"{amount:f}"


def _short(amount: Decimal) -> str:
    """Four digits that count, and no exponent."""
    if not amount:
        return "0"
    return f"{amount.quantize(Decimal(1).scaleb(max(amount.adjusted() - 3, -9))):f}"
