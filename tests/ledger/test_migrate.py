from __future__ import annotations

import multiprocessing
from typing import TYPE_CHECKING

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from octavo.ledger import migrations, schema
from octavo.ledger.database import REVISIONS, Database, ensure_schema, revision_of
from octavo.ledger.engine import make_engine
from octavo.ledger.migrate import upgrade
from octavo.ledger.store import open_ledger
from tests.ledger.records import usage

if TYPE_CHECKING:
    from pathlib import Path

FIRST_ROWS = (
    'INSERT INTO usage (request_id, parent_id, time_ns, feature, tenant, "key", session_id,'
    " trace_id, tags, route, backend, model, prefill_ns, decode_ns, waste_ns, num_input_tokens,"
    " num_cached_tokens, num_output_tokens, ttft_ns, e2e_ns, finish_reason, hourly_rate_nano,"
    " currency, cost_nano) VALUES ('old', '', 36000000000000, 'chat', '', '', '', '', '{}', '/v1',"
    " 'octavo', 'm', 5, 6, 0, 1, 0, 2, NULL, 9, 'stop', 1, 'USD', 17)",
    "INSERT INTO usage_hourly VALUES"
    " (10, 'chat', '', '', 'm', 'octavo', 'stop', 'USD', 0, 1, 1, 0, 2, 5, 6, 0, 9, 17)",
    "UPDATE meta SET value = 1 WHERE name = 'rolled_seq'",
)
"""A request as the first revision kept it, rolled up."""


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres").new_database()
    return url


def test_every_revision_is_named() -> None:
    config = Config()
    config.set_main_option("script_location", str(next(iter(migrations.__path__))))
    config.set_main_option("path_separator", "os")
    scripts = ScriptDirectory.from_config(config)
    names = [script.revision for script in scripts.walk_revisions()]
    assert tuple(reversed(names)) == REVISIONS


def test_revisions_make_what_the_code_describes(empty_url: str) -> None:
    open_ledger(empty_url).close()
    engine = make_engine(Database(empty_url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, schema.metadata) == []
    engine.dispose()


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_ledger_of_any_revision_comes_up_with_its_rows(empty_url: str, revision: str) -> None:
    database = Database(empty_url)
    upgrade(database, REVISIONS[0])
    connection = database.connect()
    for statement in FIRST_ROWS:
        connection.execute(statement)
    upgrade(database, revision)
    assert revision_of(connection) == revision
    connection.close()
    with open_ledger(empty_url) as ledger:
        ledger.add_usage([usage("new")])
        ledger.roll_up()
        for by in (["feature"], ["feature", "hour"]):
            total = ledger.totals(by)[-1]
            assert (total.key[0], total.num_requests, total.cost_nano) == ("chat", 1, 17)


def test_a_revision_that_fails_changes_nothing(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(empty_url)

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("in the middle")

    with monkeypatch.context() as patched:
        patched.setattr(Operations, "execute", fail)  # the last thing of the first revision
        with pytest.raises(RuntimeError, match="in the middle"):
            upgrade(database)
    connection = database.connect()
    assert revision_of(connection) is None
    connection.close()
    ensure_schema(database)


def test_processes_that_open_a_new_ledger_together(empty_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        counts = pool.map(_open, [(empty_url, i) for i in range(3)], chunksize=1)
    assert all(1 <= count <= 3 for count in counts)
    with open_ledger(empty_url) as ledger:
        assert ledger.totals()[0].num_requests == 3


def _open(job: tuple[str, int]) -> int:
    url, number = job
    with open_ledger(url) as ledger:
        ledger.add_usage([usage(f"{number}")])
        return ledger.totals()[0].num_requests
