from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.planning.cost_columns import add_up, show_column, usage_columns
from octavo.planning.cost_report import CostReport, CostRow

NANOS = st.integers(-(10**19), 10**19).map(lambda amount: Decimal(amount).scaleb(-9))


@given(parts=st.lists(NANOS, max_size=30), decimals=st.integers(0, 9))
def test_what_is_shown_adds_up(parts: list[Decimal], decimals: int) -> None:
    unit = Decimal(1).scaleb(-decimals)
    whole = sum(parts, Decimal(0))
    *shown, total = add_up(parts, whole, decimals)
    assert sum(shown, Decimal(0)) == total
    assert abs(total - whole) * 2 <= unit
    assert all(abs(a - b) < unit or a == b for a, b in zip(shown, parts, strict=True))


def report(*rows: CostRow, **fields: Any) -> CostReport:
    total = CostRow()
    for row in rows:
        total.add(row)
    given: dict[str, Any] = {
        "by": ("feature",),
        "view": "usage",
        "currency": "USD",
        "device_ns": {},
        "prices": (),
        "outcomes": (),
        **fields,
    }
    return CostReport(rows=rows, total=total, **given)


def shown(made: CostReport) -> dict[str, list[str]]:
    return {column.name: show_column(column, made) for column in usage_columns(made)}


def test_columns_of_thirds() -> None:
    """Three times a third of a cent is a cent, in what is shown as well."""
    row = {"num_requests": 1, "num_output_tokens": 30, "cost_nano": 3_333_333, "device_ns": 10**9}
    texts = shown(report(*(CostRow(group=(name,), **row) for name in "abc")))
    assert texts["cost"] == ["0.003334", "0.003333", "0.003333", "0.010000"]
    assert texts["requests"] == ["1", "1", "1", "3"]
    assert texts["cost_per_million_output_tokens"][0] == "111.11"
    assert texts["waste_share"] == ["0.0 %"] * 4


@pytest.mark.parametrize(
    ("nano", "text"),
    [(0, "0.00"), (1, "0.000000001"), (123_456, "0.0001235"), (10**18, "1,000,000,000.00")],
)
def test_digits_follow_the_amount(nano: int, text: str) -> None:
    assert shown(report(CostRow(group=("a",), cost_nano=nano)))["cost"] == [text, text]


def test_ratios_of_nothing_are_none() -> None:
    texts = shown(report(CostRow(group=("a",))))
    assert texts["cost_per_request"] == ["-", "-"]
