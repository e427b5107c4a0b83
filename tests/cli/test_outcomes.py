from __future__ import annotations

import io
import json
import sqlite3
import sys
from typing import TYPE_CHECKING, Any

import pytest

from octavo.cli import outcomes as module
from octavo.cli.main import main
from octavo.ledger.store import open_ledger
from octavo.ledger.writer import LedgerWriter
from tests.server.conftest import running_servers

if TYPE_CHECKING:
    from pathlib import Path

GOOD = "name,success,session_id,value\n" + "".join(f"won,true,s{n},1.5\n" for n in range(7))
BAD = GOOD + "won,perhaps,s8,1\nwon,true,s9,much\n"


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    path = tmp_path / "ledger.db"
    open_ledger(str(path)).close()
    return path


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH", 3)


def kept(ledger: Path) -> list[Any]:
    connection = sqlite3.connect(ledger)
    found = connection.execute("SELECT session_id, value_nano FROM outcomes ORDER BY seq")
    rows = found.fetchall()
    connection.close()
    return rows


def run(*args: str) -> int:
    return main(["outcomes", "import", *args])


def test_into_a_ledger_twice(
    tmp_path: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(GOOD)
    for _ in range(2):
        assert run(str(file), "--ledger", str(ledger)) == 0
        assert "7 outcomes imported or there before, 0 lines wrong" in capsys.readouterr().err
        assert kept(ledger) == [(f"s{n}", 1_500_000_000) for n in range(7)]


def test_lines_that_are_wrong_are_told_and_the_others_kept(
    tmp_path: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(BAD)
    assert run(str(file), "--ledger", str(ledger), "--json") == 3
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert (told["read"], told["imported"], told["failed"]) == (9, 7, 2)
    assert [(error["line"], error["param"]) for error in told["errors"]] == [
        (9, "success"),
        (10, "value"),
    ]
    assert f"{file}:9: success: 'perhaps' is neither true nor false" in captured.err
    assert len(kept(ledger)) == 7


def test_many_wrong_lines_are_not_all_printed(
    tmp_path: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n" * 50)
    assert run(str(file), "--ledger", str(ledger)) == 3
    err = capsys.readouterr().err
    assert err.count("Missing required field") == module.MAX_SHOWN_ERRORS
    assert "0 outcomes imported or there before, 50 lines wrong" in err


def test_a_dry_run_keeps_nothing(
    tmp_path: Path, ledger: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "a.csv"
    file.write_text(GOOD)
    assert run(str(file), "--ledger", str(ledger), "--dry-run") == 0
    assert "7 outcomes would be imported" in capsys.readouterr().err
    assert kept(ledger) == []


def test_standard_input(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """JSON lines by how they begin, into the ledger that a server writes by default."""
    text = b'{"name": "won", "success": true, "session_id": "s", "value": 2}\n'
    stream = io.TextIOWrapper(io.BytesIO(text), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stream)
    monkeypatch.setenv("OCTAVO_HOME", str(ledger.parent))
    assert run("-") == 0
    assert kept(ledger) == [("s", 2_000_000_000)]


def test_over_http(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "a.csv"
    file.write_text(BAD)
    ledger = tmp_path / "server.db"
    writer = LedgerWriter(str(ledger))
    writer.start()
    with running_servers() as serve:
        server = serve(api_keys=("sk-1",))
        server.app.context.usage.sink = writer
        assert run(str(file), "--url", server.url, "--api-key", "sk-1") == 3
        assert run(str(file), "--url", server.url, "--api-key", "sk-1") == 3
        assert kept(ledger) == [(f"s{n}", 1_500_000_000) for n in range(7)]
        capsys.readouterr()
        assert run(str(file), "--url", server.url) == 1
        assert "answered 401: Give an API key" in capsys.readouterr().err
        server.app.context.usage.sink = None
        assert run(str(file), "--url", server.url, "--api-key", "sk-1") == 1
        assert "--ledger" in capsys.readouterr().err
    writer.close()
    assert run(str(file), "--url", server.url, "--api-key", "sk-1") == 1
    assert "run the import again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("none.csv",), "cannot read none.csv: No such file"),
        (("a.csv", "--ledger", "x", "--url", "y"), "two places"),
        (("a.csv", "--ledger", "x", "--api-key", "k"), "--api-key is for a server"),
        (("a.csv", "--ledger", "nowhere.db"), "there is no ledger"),
        (("b.csv",), "line 1: 'nme' is no field"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path,
    ledger: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path))
    (tmp_path / "a.csv").write_text(GOOD)
    (tmp_path / "b.csv").write_text("nme,success\n")
    assert run(*args) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
