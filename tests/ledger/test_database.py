from __future__ import annotations

import sqlite3
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from octavo.errors import ConfigError
from octavo.ledger.database import Database, DatabaseUnavailableError, DataRefusedError
from octavo.ledger.store import open_ledger
from octavo.ledger.writer import LedgerWriter
from tests.ledger.records import usage

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:////var/lib/ledger.db", "/var/lib/ledger.db"),
        ("sqlite:///ledger.db", str(Path.cwd() / "ledger.db")),
        ("sqlite+pysqlite:////a%20b.db", "/a b.db"),
        ("/tmp/ledger.db", "/tmp/ledger.db"),
        ("~/ledger.db", str(Path.home() / "ledger.db")),
    ],
)
def test_sqlite_is_a_file(url: str, path: str) -> None:
    assert str(Database(url).path) == path


@pytest.mark.parametrize(
    "url", ["sqlite://", "sqlite://ledger.db", ":memory:", "", "mysql://u:p@h/n"]
)
def test_other_urls_are_refused_in_words(url: str) -> None:
    with pytest.raises(ConfigError, match="sqlite:///"):
        Database(url)


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_passwords_stay_out_of_names(scheme: str) -> None:
    database = Database(f"{scheme}://octavo:se%2Fcret@db.local:5432/costs?sslmode=require")
    assert database.name == "postgresql://octavo:***@db.local:5432/costs?sslmode=require"
    assert database.dsn == "postgresql://octavo:se%2Fcret@db.local:5432/costs?sslmode=require"


def test_a_failing_connection_says_no_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(DatabaseUnavailableError) as caught:
        open_ledger("postgresql://octavo:secret@127.0.0.1:1/costs")
    assert "octavo:***@127.0.0.1:1" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_commits_wait_for_the_disk(ledger_url: str) -> None:
    connection = Database(ledger_url).connect()
    if connection.is_sqlite:
        assert connection.rows("PRAGMA journal_mode") == [("wal",)]
        assert connection.rows("PRAGMA synchronous") == [(2,)]  # FULL
    else:
        assert connection.rows("SHOW synchronous_commit") == [("on",)]
    connection.close()


def test_a_newer_schema_is_refused_and_left_alone(ledger_url: str) -> None:
    connection = Database(ledger_url).connect()
    with connection.transaction():
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for opener in (open_ledger, lambda url: LedgerWriter(url).start()):
        with pytest.raises(ConfigError, match=r"newer Octavo .* schema is 9999.*Upgrade Octavo"):
            opener(ledger_url)
    assert connection.rows("SELECT version_num FROM alembic_version") == [("9999",)]
    connection.close()


def test_a_report_makes_no_ledger(tmp_path: Path) -> None:
    path = tmp_path / "none" / "ledger.db"
    with pytest.raises(ConfigError, match="there is no ledger"):
        open_ledger(str(path), create=False)
    assert not path.parent.exists()
    other = tmp_path / "other.db"
    other.touch()
    with pytest.raises(ConfigError, match="there is no ledger in"):
        open_ledger(str(other), create=False)


def test_opening_waits_for_who_writes_before_the_file_has_its_log(tmp_path: Path) -> None:
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN IMMEDIATE")  # SQLite refuses to wait for this one by itself
    timer = threading.Timer(0.3, other.execute, ["COMMIT"])
    timer.start()
    connection = Database(str(path)).connect()
    timer.join()
    assert connection.rows("PRAGMA journal_mode") == [("wal",)]
    connection.close()
    other.close()


def test_opening_gives_up_after_the_time_of_a_statement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.ledger.database.BUSY_S", 0.2)
    path = tmp_path / "new.db"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("CREATE TABLE t (x)")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseUnavailableError, match="locked"):
        Database(str(path)).connect()
    other.close()


def test_what_is_no_database_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("not a database, and long enough to be looked at as one" * 40)
    with pytest.raises(DatabaseUnavailableError, match="not a database"):
        open_ledger(str(path))


def test_a_ledger_that_is_current_costs_no_big_imports(
    new_ledger: Callable[[str], str],
) -> None:
    """SQLAlchemy and alembic cost half a second, which a server that starts need not spend."""
    program = """
        import sys
        from octavo.ledger.record import UsageRecord
        from octavo.ledger.writer import LedgerWriter
        writer = LedgerWriter(sys.argv[1], batch_s=0)
        writer.start()
        from tests.ledger.records import usage
        writer.put(usage("a"))
        writer.close()
        assert writer.num_written == 1
        print(*sorted({"sqlalchemy", "alembic", "psycopg", "torch", "numpy"} & set(sys.modules)))
    """
    url = new_ledger("ledger.db")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ""


def test_bad_values_are_told_from_a_bad_database(ledger_url: str) -> None:
    with open_ledger(ledger_url) as ledger:
        for bad in (usage("a", prefill_ns=2**63), usage("a", decode_ns=-1), usage("a", -1)):
            with pytest.raises(DataRefusedError):
                ledger.add_usage([usage("b"), bad])
        assert ledger.totals() == []
        ledger.add_usage([usage("b")])
        assert ledger.totals()[0].num_requests == 1


def test_any_text_is_kept(ledger_url: str) -> None:
    odd = ["NUL \0", "half \ud83d", "größe", "x" * 5000, "quote ' \" ; DROP TABLE usage", "%s ?"]
    with open_ledger(ledger_url) as ledger:
        ledger.add_usage(
            [usage(f"{i}", feature=text, tags={"team": text}) for i, text in enumerate(odd)]
        )
        features = {total.key[0] for total in ledger.totals(["feature"])}
        tags = {total.key[0] for total in ledger.totals(["tag:team"])}
        assert features == {"NUL \ufffd", "half ?", "größe", "x" * 200, *odd[4:]}
        assert tags == {"NUL \ufffd", "half ?", "größe", "x" * 1000, *odd[4:]}
        (found,) = ledger.totals(where={"tag:team": [odd[4]], "feature": [odd[4], "other"]})
        assert found.num_requests == 1
