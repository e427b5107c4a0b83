from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from decimal import Decimal
from typing import TYPE_CHECKING

import pytest

from octavo.cli.main import main
from octavo.ledger.record import NANO, EngineTime, Outcome
from octavo.ledger.store import open_ledger
from tests.planning.conftest import RATE, record

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three requests of today and one of long ago."""
    path = tmp_path_factory.mktemp("cost") / "ledger.db"
    now = time.time_ns()
    with open_ledger(str(path)) as opened:
        opened.add_usage(
            [
                record(
                    f"r{n}",
                    time_ns=now - (n == 3) * 100 * 86_400 * NANO,
                    feature=["support", "search", "support", "old"][n],
                    tags={"team": "a"} if n else {},
                    decode_ns=3600 * NANO // (n + 1),
                    waste_ns=36 * NANO,
                    num_input_tokens=1000,
                    num_cached_tokens=500,
                    num_output_tokens=100,
                )
                for n in range(4)
            ]
        )
        opened.add_outcomes(
            [Outcome(id="o", time_ns=now, request_id="r0", name="won", success=True)]
        )
        buckets = {"requests": 6600 * NANO, "idle": 600 * NANO}
        hour = now // (3600 * NANO)
        opened.add_engine_time(
            [
                EngineTime(
                    server="s",
                    hour=hour,
                    num_devices=2,
                    time_ns=now,
                    buckets=buckets,
                    hourly_rate_nano=RATE,
                )
            ]
        )
    return path


def report(ledger: Path, *args: str) -> int:
    return main(["cost", "report", "--ledger", str(ledger), *args])


def test_the_table(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ledger, "--outcome", "won") == 0
    out = capsys.readouterr().out
    assert "2.00 device hours: requests 91.7 %, idle 8.3 %" in out
    lines = [line.split() for line in out.splitlines()]
    (total, won) = [line for line in lines if line[:1] == ["total"]]
    assert total[1:6] == ["3", "3,000", "1,500", "300", "6,600.0"]
    assert total[6] == "4.583"
    assert total[-3:] == ["%", "8.3", "%"]
    assert won[1:4] == ["1", "1", "100.0"]
    assert next(line for line in lines if line[:1] == ["support"])[:3] == ["support", "2", "2,000"]
    assert "old" not in out


def test_json_and_the_whole_load(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(ledger, "--json", "--view", "loaded", "--by", "tag:team,day") == 0
    told = json.loads(capsys.readouterr().out)
    assert abs(Decimal(told["total"]["cost"]) - 5) < Decimal("1e-8")  # two hours at 2.50
    assert told["by"] == ["tag:team", "day"]
    assert {row["group"]["tag:team"] for row in told["rows"]} == {"", "a"}


def test_csv_and_filters(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ("--csv", "--since", "all", "--filter", "feature=search", "--filter", "feature=old")
    assert report(ledger, *flags) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["feature"] for row in rows] == ["search", "old"]
    assert rows[0]["cost"] == "1.25"
    assert report(ledger, "--csv", "--since", "all", "--until", "10d") == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["feature"] for row in rows] == ["old"]


def test_prices(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prices = tmp_path / "prices.yaml"
    prices.write_text("models: {ours: {input: 1, cached_input: 0.5, output: 2}}\n")
    flags = ("--prices", str(prices), "--json", "--by", "")
    assert report(ledger, *flags) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["compared"] == {"ours": "0.00285"}
    assert report(ledger, *flags, "--compare-with", "gpt-5-mini,ours") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["total"]["compared"] == {"gpt-5-mini": "0.0010125", "ours": "0.00285"}
    assert "newest dated price 2026-" in told["compared_with"]["gpt-5-mini"]["source"]
    assert report(ledger, "--compare-with", "ours", "--prices", str(prices)) == 0
    assert "per 1M tokens in 1, cached 0.5, out 2 USD (prices.yaml)" in capsys.readouterr().out


def test_html(ledger: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "report.html"
    assert report(ledger, "--by", "feature,day", "--html", str(page)) == 0
    assert "support" in capsys.readouterr().out
    assert page.read_text(encoding="utf-8").count("<svg") == 2


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--by", "fature"), "there is no 'fature'"),
        (("--since", "soon"), "'soon' is no time"),
        (("--until", "2020-01-01"), "is not after --since"),
        (("--filter", "feature"), "has no value"),
        (("--compare-with", "gpt-nonsense"), "knows no model"),
        (("--prices", "/nowhere/p.yaml"), "cannot read the prices"),
        (("--html", "/nowhere/x.html"), "cannot write"),
    ],
)
def test_errors_are_one_line(
    ledger: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], words: str
) -> None:
    assert report(ledger, *flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line


def test_a_ledger_that_is_not_there(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default the one that a server writes; none is made."""
    assert main(["cost", "report"]) == 1
    assert str(home / "ledger.db") in capsys.readouterr().err
    assert not home.exists()
    assert main(["cost", "report", "--ledger", "mysql://host/x"]) == 1
    assert "neither sqlite" in capsys.readouterr().err


def test_it_imports_little(ledger: Path) -> None:
    """No torch ever; the list prices and what they bring only where they are asked for."""
    code = (
        "import sys; from octavo.cli.main import main;"
        f"main(['cost', 'report', '--ledger', {str(ledger)!r}, '--json']);"
        "bad = {'torch', 'pydantic', 'genai_prices', 'alembic', 'httpx', 'matplotlib',"
        " 'starlette', 'transformers'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
