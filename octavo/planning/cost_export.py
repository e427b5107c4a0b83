"""A cost report for programs: JSON and CSV, with exact numbers.

Money and other decimals are strings in JSON (`"0.000123456"`), as a float would not keep them;
counts and nanoseconds are integers.
"""

from __future__ import annotations

import csv
import io
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.planning.cost_columns import (
    exact,
    other_columns,
    outcome_columns,
    plain,
    usage_columns,
)
from octavo.planning.cost_query import CostQuery, from_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.planning.cost_columns import Column, Value
    from octavo.planning.cost_report import CostReport, CostRow


def to_json(report: CostReport, query: CostQuery, notes: Sequence[str]) -> str:
    """The report as a JSON object.

    Args:
        report: to tell.
        query: what it was made for.
        notes: what a reader should know of it.
    """
    whole = {
        "since": _time(query.since_ns),
        "until": None if query.until_ns is None else _time(query.until_ns),
        "by": report.by,
        "filters": {name: list(values) for name, values in query.filters},
        "view": report.view,
        "currency": report.currency,
        "rows": [{"group": group_of(report, row), **_figures(report, row)} for row in report.rows],
        "total": _figures(report, report.total),
        "device_ns": report.device_ns,
        "compared_with": {
            price.name: {
                "model": price.model,
                "source": price.source,
                "currency": price.currency,
                "bands": price.bands,
                "per_request": price.per_request,
            }
            for price in report.prices
        },
        "notes": list(notes),
    }
    return msgspec.json.format(msgspec.json.encode(whole)).decode() + "\n"


def to_csv(report: CostReport) -> str:
    """A line of names, and a line for each row; no total, so that columns can be added up."""
    columns = [*usage_columns(report), *other_columns(report)]
    for name in report.outcomes:
        columns += outcome_columns(report, name)
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([*report.by, *(column.name for column in columns)])
    for row in report.rows:
        figures = (_text(exact(column, row)) for column in columns)
        writer.writerow([*map(_harmless, row.group), *figures])
    return target.getvalue()


def group_of(report: CostReport, row: CostRow) -> dict[str, str]:
    """What the row is of, by name."""
    return dict(zip(report.by, row.group, strict=True))


def _figures(report: CostReport, row: CostRow) -> dict[str, Any]:
    figures: dict[str, Any] = _named([*usage_columns(report), *other_columns(report)], row)
    figures["compared"] = {price.name: figures.pop(f"at:{price.name}") for price in report.prices}
    figures["device_ns"], figures["waste_ns"] = row.device_ns, row.waste_ns
    figures["outcomes"] = {
        name: {
            key.removeprefix(f"{name}:"): value
            for key, value in _named(outcome_columns(report, name), row).items()
        }
        for name in report.outcomes
    }
    return figures


def _named(columns: Sequence[Column], row: CostRow) -> dict[str, int | str | None]:
    figures = ((column.name, exact(column, row)) for column in columns)
    return {name: f"{value:f}" if isinstance(value, Decimal) else value for name, value in figures}


def _time(time_ns: int) -> str:
    return from_ns(time_ns).isoformat().replace("+00:00", "Z")


def _text(value: Value) -> str:
    return "" if value is None else f"{plain(Decimal(value)):f}"


def _harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula: callers choose names of features."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
