"""The columns of a cost report, once for terminals, CSV and HTML, and how numbers are shown.

A column that is a sum (`is_sum`) is rounded so that what is shown adds up: the total is rounded
half up, every row down, and the units that are missing go to the rows with the largest remainders.
A row is then less than one unit of the last digit away from its exact value. Ratios are rounded
half up, each by itself, out of exact sums. JSON and CSV have the exact sums.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import TYPE_CHECKING, Literal

import msgspec

from octavo.planning.cost_report import CostReport, CostRow, OutcomeFigures

if TYPE_CHECKING:
    from collections.abc import Sequence

Kind = Literal["count", "seconds", "money", "price", "share", "times"]
Value = int | Decimal | None

RATIO_DIGITS = 12


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column.

    Attributes:
        name: for programs.
        heading: for readers.
        kind: how its values are shown. `money` is whole units of the currency, `price` the same by
            the piece; `times` is a factor.
        is_sum: the rows add up to the total.
        value: of a row, exact; None: there is none.
    """

    name: str
    heading: str
    kind: Kind
    is_sum: bool
    value: Callable[[CostRow], Value]


def usage_columns(report: CostReport) -> list[Column]:
    """What requests used and cost."""
    currency = report.currency
    cost = f"cost {currency}" if report.view == "usage" else f"loaded cost {currency}"
    columns = [
        _sum("requests", "requests", lambda row: row.num_requests),
        _sum("input_tokens", "tokens in", lambda row: row.num_input_tokens),
        _sum("cached_tokens", "cached", lambda row: row.num_cached_tokens),
        _sum("output_tokens", "tokens out", lambda row: row.num_output_tokens),
        _sum("device_seconds", "device s", lambda row: nano(row.device_ns), "seconds"),
        _sum("cost", cost, lambda row: nano(row.cost_nano), "money"),
        _ratio("cost_per_million_output_tokens", "per 1M out", "price", _per_million_output),
        _ratio("cost_per_request", "per request", "price", lambda row: row.cost_per_request),
        _ratio("waste_share", "waste", "share", lambda row: row.waste_share),
    ]
    if report.device_ns:
        columns.append(_ratio("other_share", "idle, other", "share", lambda row: row.other_share))
    columns += [
        _sum(f"at:{price.name}", f"at {price.name}", _compared(price.name), "money")
        for price in report.prices
    ]
    return columns


def other_columns(report: CostReport) -> list[Column]:
    """The share of the device's other time, for programs: terminals have no room for it."""
    if not report.device_ns:
        return []
    return [
        _sum("other_seconds", "other s", lambda row: nano(row.other_ns), "seconds"),
        _sum("other_cost", "other cost", lambda row: nano(row.other_nano), "money"),
    ]


def outcome_columns(report: CostReport, outcome: str) -> list[Column]:
    """What came of requests, for outcomes of one name."""

    def of(get: Callable[[OutcomeFigures], Value]) -> Callable[[CostRow], Value]:
        return lambda row: get(row.outcomes[outcome])

    prefix = f"{outcome}:"
    return [
        _sum(f"{prefix}outcomes", "outcomes", of(lambda f: f.num_outcomes)),
        _sum(f"{prefix}successes", "successes", of(lambda f: f.num_successes)),
        _ratio(f"{prefix}success_rate", "rate", "share", of(lambda f: f.success_rate)),
        _sum(f"{prefix}requests", "their requests", of(lambda f: f.num_requests)),
        _sum(f"{prefix}cost", "their cost", of(lambda f: nano(f.cost_nano)), "money"),
        _ratio(
            f"{prefix}cost_per_success", "per success", "price", of(lambda f: f.cost_per_success)
        ),
        _sum(f"{prefix}value", "value", of(lambda f: nano(f.value_nano)), "money"),
        _ratio(f"{prefix}return", "return", "times", of(lambda f: f.value_over_cost)),
    ]


def show_column(column: Column, report: CostReport) -> list[str]:
    """The column's texts: of the rows in order, and of the total, last."""
    rows = [*report.rows, report.total]
    values = [column.value(row) for row in rows]
    if column.kind == "count":
        return [f"{value:,}" for value in values]
    if not column.is_sum:
        return [_show(column.kind, value) for value in values]
    *numbers, whole = (Decimal(value or 0) for value in values)
    decimals = 1 if column.kind == "seconds" and whole >= 1000 else _decimals(whole)
    *parts, total = add_up(numbers, whole, decimals)
    return [f"{part:,.{decimals}f}" for part in (*parts, total)]


def add_up(parts: Sequence[Decimal], total: Decimal, decimals: int) -> list[Decimal]:
    """The parts and, last, their total, rounded so that they add up; see the module.

    Args:
        parts: exact; they add up to `total`.
        total: their sum.
        decimals: to round to.
    """
    unit = Decimal(1).scaleb(-decimals)
    whole = total.quantize(unit, ROUND_HALF_UP)
    floors = [part.quantize(unit, ROUND_FLOOR) for part in parts]
    missing = int((whole - sum(floors, Decimal(0))) / unit)
    order = sorted(range(len(parts)), key=lambda index: floors[index] - parts[index])
    for index in order[:missing]:
        floors[index] += unit
    return [*floors, whole]


def exact(column: Column, row: CostRow) -> Value:
    """For programs: sums exact, ratios half up to `RATIO_DIGITS` decimals."""
    value = column.value(row)
    if column.is_sum or value is None:
        return value
    return plain(Decimal(value).quantize(Decimal(1).scaleb(-RATIO_DIGITS), ROUND_HALF_UP))


def plain(value: Decimal) -> Decimal:
    """The same number without zeros at the end, and never as `1E+3`."""
    value = value.normalize()
    return value.quantize(Decimal(1)) if value == value.to_integral_value() else value


def nano(amount: int) -> Decimal:
    """Nano-units as whole ones, exact."""
    return plain(Decimal(amount).scaleb(-9))


def _compared(name: str) -> Callable[[CostRow], Value]:
    return lambda row: row.compared[name]


def _per_million_output(row: CostRow) -> Decimal | None:
    return row.cost_per_million_output


def _sum(
    name: str, heading: str, value: Callable[[CostRow], Value], kind: Kind = "count"
) -> Column:
    return Column(name=name, heading=heading, kind=kind, is_sum=True, value=value)


def _ratio(name: str, heading: str, kind: Kind, value: Callable[[CostRow], Value]) -> Column:
    return Column(name=name, heading=heading, kind=kind, is_sum=False, value=value)


def _decimals(amount: Decimal) -> int:
    """Digits after the point that leave about four that say something, two at least."""
    if not amount:
        return 2
    return min(9, max(2, 3 - amount.adjusted()))


def _show(kind: Kind, value: Value) -> str:
    if value is None:
        return "-"
    number = Decimal(value)
    if kind == "share":
        return f"{(number * 100).quantize(Decimal('0.1'), ROUND_HALF_UP)} %"
    if kind == "times":
        return f"{number.quantize(Decimal('0.1'), ROUND_HALF_UP):,} x"
    decimals = _decimals(number)
    return f"{number.quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_UP):,.{decimals}f}"
