"""Reports as JSON, CSV and a page: exact, complete, and harmless whatever callers named things."""

from __future__ import annotations

import csv
import io
import json
import re
from decimal import Decimal
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest

from octavo.ledger.record import NANO, EngineTime, Outcome
from octavo.ledger.store import open_ledger
from octavo.planning.cost_export import to_csv, to_json
from octavo.planning.cost_html import MAX_ROWS, to_html
from octavo.planning.cost_ledger import report_of
from octavo.planning.cost_prices import ListPrice, PriceBand
from octavo.planning.cost_query import CostQuery
from octavo.planning.cost_report import CostReport
from octavo.planning.cost_svg import bars, stacked_columns
from tests.planning.conftest import RATE, record

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DAY = 86_400 * NANO
NASTY = '=1+1"><script>alert(1)</script>'
PRICE = ListPrice(
    name="cloud",
    model="cloud",
    source="f.yaml",
    bands=(PriceBand(input=Decimal("0.1"), output=Decimal("0.2")),),
)


@pytest.fixture(scope="module")
def ledger(new_ledger: Callable[[], Path]) -> Path:
    path = new_ledger()
    with open_ledger(str(path)) as ledger:
        ledger.add_usage(
            [
                record(
                    f"r{n}",
                    time_ns=20_000 * DAY + n % 3 * DAY,
                    feature=["chat", NASTY, ""][n % 3],
                    decode_ns=NANO + n,
                    num_input_tokens=7,
                    num_output_tokens=3,
                )
                for n in range(10)
            ]
        )
        ledger.add_outcomes(
            [
                Outcome(
                    id="o", time_ns=0, request_id="r1", name=NASTY, success=True, value=Decimal(3)
                )
            ]
        )
        time: dict[str, Any] = {"server": "s", "hour": 20_000 * 24, "num_devices": 1}
        buckets = {"requests": 10 * NANO, "idle": 20 * NANO}
        ledger.add_engine_time(
            [EngineTime(**time, time_ns=0, buckets=buckets, hourly_rate_nano=RATE)]
        )
    return path


def made(ledger: Path, *by: str) -> tuple[CostReport, CostQuery]:
    query = CostQuery(since_ns=0, by=by, outcomes=(NASTY,))
    with open_ledger(str(ledger)) as opened:
        return report_of(opened, query, [PRICE])[0], query


def test_json_is_exact(ledger: Path) -> None:
    report, query = made(ledger, "feature")
    told = json.loads(to_json(report, query, ["a note"]))
    assert told["notes"] == ["a note"]
    assert [row["group"]["feature"] for row in told["rows"]] == ["chat", "", NASTY]
    assert sum(Decimal(row["cost"]) for row in told["rows"]) == Decimal(told["total"]["cost"])
    assert Decimal(told["total"]["cost"]) == Decimal(report.total.cost_nano).scaleb(-9)
    assert Decimal(told["total"]["device_seconds"]) == Decimal("10.000000045")
    assert Decimal(told["total"]["compared"]["cloud"]) == Decimal("0.000013")
    assert told["rows"][2]["outcomes"][NASTY]["value"] == "3"
    assert told["compared_with"]["cloud"]["bands"][0]["input"] == "0.1"
    assert (told["until"], told["since"]) == (None, "1970-01-01T00:00:00Z")


def test_csv_can_be_added_up_and_has_no_formulas(ledger: Path) -> None:
    report, _ = made(ledger, "feature", "day")
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert sum(Decimal(row["cost"]) for row in rows) == Decimal(report.total.cost_nano).scaleb(-9)
    assert sum(int(row["requests"]) for row in rows) == 10
    assert {row["feature"] for row in rows} == {"chat", f"'{NASTY}", ""}
    assert f"{NASTY}:cost_per_success" in rows[0]


class Page(HTMLParser):
    """Collects what a page is made of, and fails where tags are not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.links: list[str] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [f"{name}={value}" for name, value in attrs if name in ("src", "href")]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in ("meta", "br", "line", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("line", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("by", "num_plots"), [((), 2), (("feature",), 2), (("feature", "day"), 3), (("day",), 2)]
)
def test_the_page_stands_alone(ledger: Path, by: tuple[str, ...], num_plots: int) -> None:
    report, query = made(ledger, *by)
    text = to_html(report, query, [NASTY])
    page = Page()
    page.feed(text)
    page.close()
    assert not page.open
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not page.links
    assert not re.search(r"https?://|url\(|@import", text)
    assert NASTY in page.text  # as text
    assert text.count("<svg") == num_plots


def test_long_tables_are_cut_in_the_page(ledger: Path) -> None:
    report, query = made(ledger, "feature")
    rows = report.rows * (MAX_ROWS // len(report.rows) + 2)
    long = CostReport(
        by=report.by,
        view=report.view,
        currency="USD",
        rows=rows,
        total=report.total,
        device_ns={},
        prices=(),
        outcomes=(),
    )
    text = to_html(long, query, [])
    assert f"{len(rows) - MAX_ROWS} more rows: see --csv" in text


def test_plots_measure() -> None:
    """Bars and parts of columns are as long as their values say."""
    text = bars([("a", 4.0, "4"), ("b", 1.0, "1"), ("c", 0.0, "0")], "t")
    widths = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert widths[0] == pytest.approx(4 * widths[1], abs=0.2)
    assert widths[2] <= 1
    text = stacked_columns(["x", "y"], {"a": [1.0, 2.0], "b": [3.0, 0.0]}, "t")
    parts = re.findall(r'height="([\d.]+)" fill="var\(--c(\d)\)"><title>(\w)', text)
    heights = {(time, int(color)): float(height) for height, color, time in parts}
    assert set(heights) == {("x", 0), ("x", 1), ("y", 0)}
    assert heights["x", 1] == pytest.approx(3 * heights["x", 0], abs=0.2)
    assert heights["y", 0] == pytest.approx(2 * heights["x", 0], abs=0.2)
    assert stacked_columns([], {}, "t")
    assert stacked_columns(["x"], {"a": [0.0]}, "t")
