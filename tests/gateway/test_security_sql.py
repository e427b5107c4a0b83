"""SQL in everything that reaches the ledger or asks it, on both databases."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from octavo.ledger.database import Database
from octavo.ledger.store import open_ledger
from tests.gateway.raw_http import CHAT, ServedGateway
from tests.ledger.postgres import PostgresServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.gateway.fake_upstream import FakeUpstream

ADMIN_KEY = "an-admin-key-of-the-tests-0123"
ADMIN = f"Authorization: Bearer {ADMIN_KEY}"
TRICKS = (
    "'; DROP TABLE attempts; --", "' OR '1'='1", '" OR ""="', "\\'; DELETE FROM keys; --",
    "%' UNION SELECT digest FROM keys --", "$$; DROP TABLE usage; $$", "?; :name %s {0}",
    "x' || 'y",
)  # fmt: skip


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "sqlite":
        path: Path = tmp_path_factory.mktemp("ledger") / "ledger.db"
        open_ledger(str(path)).close()
        yield f"sqlite:///{path}"
        return
    binaries = find_binaries()
    if binaries is None or shutil.which("sh") is None:
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(binaries)
    yield server.new_ledger()
    server.remove()


@pytest.fixture(scope="module")
def served(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedGateway]:
    def config(fake: FakeUpstream) -> str:
        return f"""
admin: {{keys: {{root: {ADMIN_KEY}}}}}
routing: {{trust_tenant: true}}
ledger: {{url: "{url}"}}
backends:
  fake:
    {{url: "{fake.url}", models: {{ok: {{price: {{input: 1, output: 3}}}}}}}}
"""

    with ServedGateway(tmp_path_factory.mktemp("gateway"), config) as served:
        yield served


def rows(served: ServedGateway, statement: str) -> list[tuple[Any, ...]]:
    served.idle()
    ledger = served.gateway.gateway._ledger
    assert ledger.writer is not None
    assert ledger.writer.wait_durable()
    connection = Database(ledger.url).connect()
    try:
        return list(connection.rows(statement))
    finally:
        connection.close()


def test_what_is_written_is_text_and_nothing_else(served: ServedGateway) -> None:
    made = []
    for trick in TRICKS:
        form = {"name": trick, "tenant": trick, "team": trick, "tags": {trick[:64]: trick}}
        made.append(served.ask("/admin/v1/keys", form, ADMIN))
        assert made[-1].status == 200, made[-1]
        assert made[-1].json["tenant"] == trick
        lines = (
            f"Authorization: Bearer {made[-1].json['key']}", f"X-Octavo-Feature: {trick}",
            f"X-Octavo-Session: {trick}", f"X-Octavo-Tag-x: {trick}",
            f"X-Request-Id: {trick.replace(' ', '/**/')}", "traceparent: 00-' OR 1=1-x-01",
        )  # fmt: skip
        body = {"model": "ok", "messages": [], "metadata": {"a'b": trick}, "user": trick}
        assert served.ask(CHAT, body, *lines).status == 200
    found = rows(
        served,
        "SELECT feature, tenant, session_id, parent_id, trace_id FROM attempts ORDER BY time_ns",
    )
    assert [row[:3] for row in found] == [(trick,) * 3 for trick in TRICKS]
    assert [row[3] for row in found] == [trick.replace(" ", "/**/") for trick in TRICKS]
    assert {row[4] for row in found} == {""}
    assert len(rows(served, "SELECT request_id FROM usage")) == len(TRICKS)
    listed = served.ask("/admin/v1/keys", b"", ADMIN).json["data"]
    assert {key["name"] for key in listed} == set(TRICKS)


PATHS = (
    "keys?tenant=%s", "keys?after=%s", "keys/%s", "requests/%s", "spend?by=%s", "spend?feature=%s",
    "spend?tenant=%s&by=feature,day", "spend?team=%s", "spend?since=%s", "spend?%s=x",
    "escalations?feature=%s", "escalations?%s=x", "escalations?before=1:0:%s",
    "escalations?before=%s", "escalations?limit=%s", "audit?actor=%s", "audit?subject=%s",
    "audit?action=%s", "audit?before=%s", "budgets/history?budget=%s", "budgets/history?scope=%s",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_what_is_asked_is_text_and_nothing_else(served: ServedGateway, path: str) -> None:
    before = len(rows(served, "SELECT key_id FROM keys"))
    for trick in (*TRICKS, "\0", "\ufffd", "9" * 30, "x" * 5000):
        answer = served.ask(f"/admin/v1/{path.replace('%s', quote(trick, safe=''))}", b"", ADMIN)
        assert answer.status in (200, 400, 404), answer
        if answer.status == 200 and trick in TRICKS and "requests/" not in path:
            named = {trick} if "tenant" in path or "feature" in path else set()
            for row in answer.json.get("data", answer.json.get("groups", [])):
                assert not row.get("digest")
                assert {row.get("tenant", trick), row.get("feature", trick)} - {None} >= named
        assert b"SELECT" not in answer.body.replace(b"UNION SELECT", b"")  # no statement is shown
    assert len(rows(served, "SELECT key_id FROM keys")) == before


@pytest.mark.parametrize("trick", TRICKS)
def test_keys_that_are_statements(served: ServedGateway, trick: str) -> None:
    before = len(rows(served, "SELECT key_id FROM keys"))
    for key in (f"oct_{trick}_{'0' * 64}", f"oct__{trick}", trick):
        answer = served.ask("/v1/models", b"", f"Authorization: Bearer {key}")
        assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    path = f"/admin/v1/keys/{quote(trick, safe='')}"
    for method, body in (("DELETE", b""), ("PATCH", {"name": trick}), ("GET", b"")):
        assert served.ask(path, body, ADMIN, method=method).status == 404
    assert served.ask(f"{path}/rotate", {}, ADMIN, method="POST").status == 404
    assert len(rows(served, "SELECT key_id FROM keys WHERE revoked_ns IS NULL")) == before
