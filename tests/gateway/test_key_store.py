"""Keys in SQLite and PostgreSQL: what is kept, who hears of changes, and the audit log."""

from __future__ import annotations

import asyncio
import shutil
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.errors import AuthenticationError, ConfigError, InvalidRequestError, NotFoundError
from octavo.gateway.config_keys import KeysSection
from octavo.gateway.key_store import KeyStore
from octavo.gateway.keys import KeyBook, digest_of
from octavo.gateway.model import KeyInfo
from octavo.ledger.database import Database, DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.ledger.postgres import PostgresServer

FULL = KeyInfo(
    key_id="full",
    name="Über-bot",
    tenant="acme's; DROP TABLE keys --",
    team="red",
    features=("chat-*", "search"),
    models=("small*",),
    routes=("chat", "embeddings"),
    tags={"cost_center": "42", "ключ": "ä"},
    max_tokens=4096,
    default_max_tokens=256,
    requires_max_tokens=False,
    limits=("gold",),
    budgets=("month",),
    expires_ns=4_000_000_000 * 10**9,
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        empty: Path = request.getfixturevalue("empty_ledger")
        return f"sqlite:///{shutil.copy(empty, tmp_path / 'ledger.db')}"
    made: str = request.getfixturevalue("postgres").new_ledger()
    return made


class Clock:
    def __init__(self) -> None:
        self.now = 1_700_000_000 * 10**9

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[KeyStore]:
    store = KeyStore(url, wall_ns=clock)
    yield store
    store.close()


def everything_in(url: str) -> str:
    connection = Database(url).connect()
    try:
        return repr(connection.rows("SELECT * FROM keys") + connection.rows("SELECT * FROM audit"))
    finally:
        connection.close()


def test_a_key_comes_back_as_it_was_made_and_its_secret_is_nowhere(
    store: KeyStore, url: str, clock: Clock
) -> None:
    stored, key = store.create(FULL, actor="cli:me")
    assert store.get("full") == stored
    assert stored.info == FULL
    assert stored.digest == digest_of(key.encode())
    assert key.startswith("oct_full_")
    assert stored.created_ns == clock.now
    with pytest.raises(InvalidRequestError, match="already"):
        store.create(FULL, actor="cli:me")
    secret = key.rpartition("_")[2]
    assert secret not in everything_in(url)
    if url.startswith("sqlite:///"):
        files = list(Path(url.removeprefix("sqlite:///")).parent.iterdir())
        assert files
        assert not any(secret.encode() in file.read_bytes() for file in files)


def test_pages_of_keys(store: KeyStore) -> None:
    for index in range(5):
        tenant = "even" if index % 2 == 0 else "odd"
        store.create(KeyInfo(key_id=f"k{index}", tenant=tenant), actor="a")
    store.revoke("k2", actor="a")
    assert [key.info.key_id for key in store.keys(limit=2)] == ["k0", "k1"]
    assert [key.info.key_id for key in store.keys(after="k1", limit=2)] == ["k2", "k3"]
    assert [key.info.key_id for key in store.keys(tenant="even")] == ["k0", "k2", "k4"]
    assert [k.info.key_id for k in store.keys(tenant="even", with_revoked=False)] == ["k0", "k4"]
    assert store.keys(tenant="' OR 1=1 --") == []


def test_every_change_is_in_the_audit_log_and_nothing_secret(store: KeyStore, url: str) -> None:
    stored, key = store.create(FULL, actor="admin:root")
    store.update("full", {"max_tokens": 7, "tenant": "other"}, actor="admin:root")
    rotated, new = store.rotate("full", overlap_s=60, actor="cli:me")
    store.revoke("full", reason="lost", actor="admin:root")
    store.revoke("full", actor="admin:root")  # it is already
    store.add_audit("admin:root", "config.reload")
    for change in (
        lambda: store.update("full", {"name": "x"}, actor="a"),
        lambda: store.rotate("full", actor="a"),
    ):
        with pytest.raises(InvalidRequestError, match="revoked"):
            change()
    for unknown in (
        lambda: store.get("x"),
        lambda: store.revoke("' OR ''='", actor="a"),
        lambda: store.rotate("x", actor="a"),
        lambda: store.update("x", {}, actor="a"),
    ):
        with pytest.raises(NotFoundError):
            unknown()
    entries = store.audit_entries()
    assert [entry.action for entry in entries] == [
        "config.reload", "key.revoke", "key.rotate", "key.update", "key.create",
    ]  # fmt: skip
    assert entries[1].detail == {"reason": "lost"}
    assert entries[2].detail == {"overlap_s": 60}
    assert entries[3].detail == {"max_tokens": 7, "tenant": "other"}
    assert entries[4].detail["models"] == ["small*"]
    assert [entry.actor for entry in store.audit_entries(actor="cli:me")] == ["cli:me"]
    assert len(store.audit_entries(subject="full", action="key.revoke")) == 1
    assert [e.seq for e in store.audit_entries(before_seq=entries[1].seq, limit=1)] == [
        entries[2].seq
    ]
    written = msgspec.json.encode(entries).decode()
    for secret in (key, new, stored.digest.hex(), rotated.digest.hex()):
        assert secret.rpartition("_")[2] not in written


def test_rotation_keeps_the_id_and_the_old_key_for_a_while(store: KeyStore, clock: Clock) -> None:
    first, old = store.create(KeyInfo(key_id="k", tenant="t"), actor="a")
    second, new = store.rotate("k", overlap_s=60, actor="a")
    assert old != new
    assert second.info == first.info
    assert second.old_digest == first.digest
    assert second.old_until_ns == clock.now + 60 * 10**9
    third, _ = store.rotate("k", overlap_s=0, actor="a")
    assert (third.old_digest, third.old_until_ns) == (b"", None)
    assert store.get("k") == third


def test_changes_are_found_by_their_time(store: KeyStore, clock: Clock) -> None:
    store.create(KeyInfo(key_id="one"), actor="a")
    clock.now += 100 * 10**9
    since = store.now_ns()
    store.create(KeyInfo(key_id="two"), actor="a")
    assert [key.info.key_id for key in store.changed(since)] == ["two"]
    assert {key.info.key_id for key in store.changed(None)} == {"one", "two"}
    clock.now += 100 * 10**9
    since = store.now_ns()
    store.mark_used({"one": clock.now, "two": clock.now})  # no change that gateways must hear of
    assert store.changed(since) == []
    store.revoke("one", actor="a")
    assert [key.revoked_ns for key in store.changed(since)] == [clock.now]
    assert [key.info.key_id for key in store.changed(None)] == ["two"]


def test_use_is_never_set_back(store: KeyStore) -> None:
    store.create(KeyInfo(key_id="k"), actor="a")
    store.mark_used({"k": 50, "gone": 1})
    store.mark_used({"k": 40})
    assert store.get("k").last_used_ns == 50
    store.update("k", {"name": "n"}, actor="a")
    assert store.get("k").last_used_ns == 50


def test_two_writers_change_one_key_in_turn(url: str) -> None:
    stores = [KeyStore(url) for _ in range(4)]
    stores[0].create(KeyInfo(key_id="k"), actor="a")
    names = ["name", "tenant", "team", "max_tokens"]

    def change(store: KeyStore, name: str) -> None:
        for number in range(5):
            value = number + 1 if name == "max_tokens" else str(number)
            store.update("k", {name: value}, actor=name)

    threads = [
        threading.Thread(target=change, args=pair) for pair in zip(stores, names, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    info = stores[0].get("k").info
    assert (info.name, info.tenant, info.team, info.max_tokens) == ("4", "4", "4", 5)
    assert len(stores[0].audit_entries()) == 21
    for store in stores:
        store.close()


async def test_another_gateway_refuses_a_revoked_key_within_its_refresh(url: str) -> None:
    here, there = KeyStore(url), KeyStore(url)
    _, key = here.create(KeyInfo(key_id="k"), actor="a")
    book = KeyBook(KeysSection(refresh_s=0.2), there)
    await book.start()
    assert (await book.find(key.encode())).key_id == "k"
    here.revoke("k", actor="a")
    await asyncio.sleep(0.2 + 0.3)
    with pytest.raises(AuthenticationError):
        await book.find(key.encode())
    _, new = here.create(KeyInfo(key_id="new"), actor="a")
    await asyncio.sleep(0.5)
    await book.find(new.encode())
    _, rotated = here.rotate("new", overlap_s=0, actor="a")
    await asyncio.sleep(0.5)
    with pytest.raises(AuthenticationError):
        await book.find(new.encode())
    await book.find(rotated.encode())
    await book.close()
    assert here.get("new").last_used_ns is not None
    here.close()
    there.close()


def test_ids_and_times_that_cannot_be(store: KeyStore, clock: Clock) -> None:
    with pytest.raises(InvalidRequestError, match="underscore"):
        store.create(KeyInfo(key_id="a_b"), actor="a")
    with pytest.raises(InvalidRequestError, match="past"):
        store.create(KeyInfo(key_id="", expires_ns=clock.now), actor="a")
    assert store.keys() == []


def test_a_database_that_is_away(postgres: PostgresServer) -> None:
    store = KeyStore(postgres.new_ledger())
    store.create(KeyInfo(key_id="k"), actor="a")
    postgres.stop()
    try:
        for _ in range(2):
            with pytest.raises(DatabaseUnavailableError):
                store.keys()
    finally:
        postgres.start()
    assert store.get("k").info.key_id == "k"
    store.close()


def test_no_ledger_is_made_unasked(tmp_path: Path) -> None:
    store = KeyStore(str(tmp_path / "typo.db"), create=False)
    with pytest.raises(ConfigError, match="no ledger"):
        store.keys()
    assert not any(tmp_path.iterdir())


def test_fields_of_a_newer_octavo_are_left_alone(store: KeyStore, url: str) -> None:
    store.create(FULL, actor="a")
    connection = Database(url).connect()
    info: Any = {"models": ["m"], "from_the_future": {"x": 1}}
    connection.execute("UPDATE keys SET info = ?", (msgspec.json.encode(info).decode(),))
    connection.close()
    assert store.get("full").info.models == ("m",)
