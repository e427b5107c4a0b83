from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from octavo.cli.main import main
from octavo.ledger.store import open_ledger
from tests.ledger.records import attempt, escalation

if TYPE_CHECKING:
    from pathlib import Path

DOLLAR = 10**9


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of four judged answers one was dropped."""
    path = tmp_path_factory.mktemp("cost") / "ledger.db"
    now = time.time_ns()
    costs = {"time_ns": now, "cost_nano": DOLLAR // 100, "next_cost_nano": DOLLAR // 10}
    with open_ledger(str(path)) as opened:
        opened.add([
            *(attempt(f"r{n}", feature="support", **costs) for n in range(3)),
            attempt("r3", feature="support", **(costs | {"status": "escalated"})),
            escalation(
                "r3", time_ns=now, feature="support", dear_cost_nano=DOLLAR // 8,
                reason="unsure\x1b[31m",
            ),
            attempt("old", feature="support", **(costs | {"time_ns": 5})),
        ])  # fmt: skip
    return path


def said(capsys: pytest.CaptureFixture[str], *args: str) -> Any:
    assert main(["cost", "escalations", *args, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["data"]


def test_the_hybrid_pays_or_not(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [row] = said(capsys, "--ledger", str(ledger))
    assert row["feature"] == "support"
    assert (row["judged"], row["passed"], row["escalated"]) == (4, 3, 1)
    assert row["escalated_share"] == 0.25
    assert (row["cheap_cost"], row["dear_cost"]) == ("0.040000000", "0.125000000")
    # Three times 0.10 spared for 0.01 each, and 0.01 lost.
    assert row["saved"] == "0.260000000"
    assert said(capsys, "--ledger", str(ledger), "--filter", "feature=other") == []
    [row] = said(capsys, "--ledger", str(ledger), "--by", "", "--since", "all")
    assert row["judged"] == 5


def test_one_by_one_with_reasons(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    [found] = said(capsys, "--ledger", str(ledger), "--list", "5")
    assert (found["request_id"], found["dear_cost"]) == ("r3", "0.125000000")
    assert main(["cost", "escalations", "--ledger", str(ledger), "--list", "5"]) == 0
    shown = capsys.readouterr().out
    assert "unsure" in shown
    assert "\x1b[31m" not in shown


def test_for_a_reader(ledger: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "escalations", "--ledger", str(ledger)]) == 0
    shown = capsys.readouterr().out
    assert "25.0%" in shown
    assert "3 of 3" in shown


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--by", "color"], "no 'color'"),
        (["--filter", "x"], "has no value"),
        (["--list", "0"], "at least 1"),
        (["--list", "1", "--filter", "model=x"], "use feature"),
        (["--since", "yesterday"], "is no time"),
    ],
)
def test_what_makes_no_sense_is_said(
    ledger: Path, capsys: pytest.CaptureFixture[str], args: list[str], says: str
) -> None:
    assert main(["cost", "escalations", "--ledger", str(ledger), *args]) == 1
    assert says in capsys.readouterr().err
