"""`octavo keys` on a ledger, and through the admin API of a running gateway."""

from __future__ import annotations

import json
import shutil
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn

from octavo.cli.main import main
from octavo.gateway.key_store import KeyStore
from octavo.gateway.keys import digest_of
from octavo.ledger.store import open_ledger
from tests.gateway.admin_app import ADMIN_KEY, AdminApp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(str(path)).close()
    return path


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, empty_ledger: Path) -> Iterator[str]:
    path = shutil.copy(empty_ledger, tmp_path_factory.mktemp("gateway") / "ledger.db")
    app = AdminApp(f"sqlite:///{path}")
    config = uvicorn.Config(app, port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()
    assert app.store is not None
    app.store.close()


@pytest.fixture(params=["ledger", "gateway"])
def where(
    request: pytest.FixtureRequest,
    empty_ledger: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """Flags that say where keys are."""
    if request.param == "ledger":
        return ["--ledger", f"sqlite:///{shutil.copy(empty_ledger, tmp_path / 'ledger.db')}"]
    monkeypatch.setenv("OCTAVO_ADMIN_KEY", ADMIN_KEY)
    return ["--url", request.getfixturevalue("gateway")]


class Shell:
    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.err = ""

    def __call__(self, *words: str, code: int = 0) -> str:
        assert main(["keys", *words]) == code
        out, self.err = self._capsys.readouterr()
        return out

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json"))


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_a_keys_life(shell: Shell, where: list[str]) -> None:
    out = shell(
        "create", "bot", "--tenant", "acme", "--feature", "chat", "--feature", "search-*",
        "--model", "small*", "--route", "chat", "--limit", "gold", "--budget", "month",
        "--tag", "cost_center=4=2", "--max-tokens", "100", "--default-max-tokens", "10",
        "--require-max-tokens", "--expires", "30d", *where,
    )  # fmt: skip
    key = out.strip()
    assert out == f"{key}\n"  # alone, for scripts
    key_id = key.split("_")[1]
    assert key_id in shell.err
    assert key not in shell.err
    view = shell.json("show", key_id, *where)
    assert view["features"] == ["chat", "search-*"]
    assert view["tags"] == {"cost_center": "4=2"}
    assert (view["limits"], view["budgets"]) == (["gold"], ["month"])
    assert (view["max_tokens"], view["default_max_tokens"]) == (100, 10)
    assert view["requires_max_tokens"] is True
    assert "key" not in view
    assert shell.json("show", key, *where) == view  # who has the key at hand gives that
    shown = shell("show", key_id, *where)
    assert "search-*" in shown
    assert key not in shown

    rotated = shell("rotate", key_id, "--overlap", "1h", *where).strip()
    assert rotated.startswith(f"oct_{key_id}_")
    assert rotated != key
    assert "passes until" in shell.err
    rotated = shell.json("rotate", key_id, "--overlap", "0s", *where)
    assert rotated["old_key_until"] is None
    assert rotated["key"].startswith(f"oct_{key_id}_")

    assert "bot" in shell("list", "--tenant", "acme", *where)
    assert [row["id"] for row in shell.json("list", "--tenant", "acme", *where)["data"]] == [key_id]
    revoked = shell.json("revoke", key_id, "--reason", "lost", *where)
    assert revoked["status"] == "revoked"
    assert shell.json("list", "--tenant", "acme", *where)["data"] == []
    assert len(shell.json("list", "--tenant", "acme", "--all", *where)["data"]) == 1


def test_what_is_printed_is_what_is_kept(shell: Shell, tmp_path: Path) -> None:
    ledger = str(tmp_path / "new.db")
    key = shell("create", "--ledger", ledger).strip()
    store = KeyStore(ledger)
    (stored,) = store.keys()
    assert stored.digest == digest_of(key.encode())
    (entry,) = store.audit_entries()
    assert entry.actor.startswith("cli:")
    store.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["create", "--expires", "yesterday"], "expires"),
        (["create", "--expires", "2020-01-01T00:00:00Z"], "past"),
        (["create", "--max-tokens", "0"], "max_tokens"),
        (["create", "--route", "files"], "routes"),
        (["create", "--tag", "nothing"], "NAME=VALUE"),
        (["create", "--id", "a_b"], "id"),
        (["rotate", "unknown"], "no key 'unknown'"),
        (["rotate", "unknown", "--overlap", "soon"], "no span of time"),
        (["revoke", "unknown"], "no key 'unknown'"),
        (["show", "a b"], "no key 'a b'"),
    ],
)
def test_errors_are_one_line(
    shell: Shell, where: list[str], words: list[str], message: str
) -> None:
    shell(*words, *where, code=1)
    assert message in shell.err
    assert shell.err.count("\n") == 1


def test_a_gateway_that_does_not_let_us(
    shell: Shell, gateway: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OCTAVO_ADMIN_KEY", raising=False)
    shell("list", "--url", gateway, code=1)
    assert "no admin key: set $OCTAVO_ADMIN_KEY" in shell.err
    file = tmp_path / "key"
    file.write_text("wrong-admin-key\n")
    shell("list", "--url", gateway, "--admin-key-file", str(file), code=1)
    assert "401" in shell.err
    assert "wrong-admin-key" not in shell.err
    file.write_text(f"{ADMIN_KEY}\n")
    shell("list", "--url", f"{gateway}/admin/v1/", "--admin-key-file", str(file))
    shell("list", "--url", "http://127.0.0.1:9", "--admin-key-file", str(file), code=1)
    assert "no answer from http://127.0.0.1:9/admin/v1" in shell.err
    shell("list", "--url", "ftp://x", "--admin-key-file", str(file), code=1)
    shell("list", "--url", gateway, "--ledger", "x.db", code=1)
    assert "contradict" in shell.err


def test_only_create_makes_a_ledger(shell: Shell, tmp_path: Path) -> None:
    shell("list", "--ledger", str(tmp_path / "typo.db"), code=1)
    assert "no ledger" in shell.err
    assert not (tmp_path / "typo.db").exists()
