"""The store of responses: bounds, tenants, order of dropping, and life in the background."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.server.state import responses
from octavo.server.state.database import FILE_NAME, StateError, StateFolder
from octavo.server.state.responses import SCHEMA, ResponseStore

if TYPE_CHECKING:
    from pathlib import Path

MAX_RESPONSES = 5
MAX_BYTES = 1000

names = st.sampled_from("abcdefghij")
tenants = st.sampled_from(["one", "two"])
sizes = st.integers(1, MAX_BYTES // 3)
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), names, tenants, sizes),
        st.tuples(st.just("get"), names, tenants, st.none()),
        st.tuples(st.just("delete"), names, tenants, st.none()),
    ),
    max_size=25,
)


def in_database(folder: Path) -> list[tuple[str, str, int]]:
    connection = sqlite3.connect(folder / FILE_NAME)
    try:
        return connection.execute(
            "SELECT id, tenant, length(body) + length(input) FROM responses ORDER BY used"
        ).fetchall()
    finally:
        connection.close()


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(operations)
def test_bounds_hold_and_the_least_used_go_first(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, str, int | None]]
) -> None:
    folder = tmp_path_factory.mktemp("state")

    async def run() -> None:
        store = ResponseStore(
            StateFolder(str(folder), SCHEMA), max_responses=MAX_RESPONSES, max_bytes=MAX_BYTES
        )
        model: dict[str, tuple[str, int]] = {}  # by use, the least used first
        for step, name, tenant, size in steps:
            if step == "add" and name not in model:
                assert size is not None
                await store.add(name, tenant, b"x" * size, b"")
                model[name] = (tenant, size)
                while len(model) > MAX_RESPONSES or sum(n for _, n in model.values()) > MAX_BYTES:
                    del model[next(iter(model))]
            elif step == "get":
                found = await store.get(name, tenant)
                is_there = name in model and model[name][0] == tenant
                assert (found is not None) == is_there
                if found is not None:
                    model[name] = model.pop(name)
                    assert len(found.body) == model[name][1]
            elif step == "delete":
                is_there = name in model and model[name][0] == tenant
                assert await store.delete(name, tenant) == is_there
                if is_there:
                    del model[name]
            if step == "add" or model:
                rows = in_database(folder)
                assert rows == [(key, *value) for key, value in model.items()]

    asyncio.run(run())


@pytest.fixture
def store(tmp_path: Path) -> ResponseStore:
    return ResponseStore(StateFolder(str(tmp_path), SCHEMA), max_responses=3, max_bytes=1000)


async def test_what_runs_is_kept(store: ResponseStore) -> None:
    for name in "abc":
        await store.add(name, "", b"x", b"[]", is_over=False)
    with pytest.raises(StateError, match="full"):
        await store.add("d", "", b"x", b"[]", is_over=False)
    assert await store.get("d", "") is None
    assert await store.update("a", body=b"y", is_over=True)
    await store.add("d", "", b"x", b"[]", is_over=False)
    assert await store.get("a", "") is None
    assert await store.life("a") == "gone"
    assert await store.life("b") == "runs"


async def test_news_and_the_end(store: ResponseStore) -> None:
    await store.add("a", "", b"x", b"[]", is_over=False, has_events=True)
    assert await store.update("a", events=[(0, b"e0"), (1, b"e1")])
    assert await store.events("a", -1) == [(0, b"e0"), (1, b"e1")]
    assert await store.events("a", 0) == [(1, b"e1")]
    await store.ask_cancel("a")
    assert not await store.update("a", body=b"end", is_over=True)
    found = await store.get("a", "")
    assert found is not None
    assert (found.body, found.is_over, found.is_lost) == (b"end", True, False)
    assert not await store.update("a", body=b"later"), "what is over stays as it is"
    await store.delete("a", "")
    assert await store.events("a", -1) == []


async def test_what_nobody_speaks_of_is_lost(
    store: ResponseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(responses, "ALIVE_S", -1.0)
    await store.add("a", "", b"x", b"[]", is_over=False)
    found = await store.get("a", "")
    assert found is not None
    assert found.is_lost
    assert await store.life("a") == "lost"


async def test_chains(store: ResponseStore) -> None:
    await store.add("a", "me", b"1", b"[]")
    await store.add("b", "me", b"2", b"[]", previous_id="a")
    await store.add("c", "me", b"3", b"[]", previous_id="b")
    assert [stored.id for stored in await store.chain("c", "me")] == ["a", "b", "c"]
    assert await store.chain("c", "you") == []
    await store.delete("a", "me")
    first, _ = await store.chain("c", "me")
    assert (first.id, first.previous_id) == ("b", "a")


async def test_a_full_disk_is_told_and_gets_over(tmp_path: Path) -> None:
    folder = StateFolder(str(tmp_path), SCHEMA)
    store = ResponseStore(folder)
    await store.add("a", "", b"x", b"[]")

    def bound(connection: sqlite3.Connection) -> None:
        connection.execute("ROLLBACK")
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")
        connection.execute("BEGIN")

    await folder.call(bound)
    with pytest.raises(StateError, match="full"):
        await store.add("b", "", b"x" * 100_000, b"[]")
    await store.add("b", "", b"x" * 100_000, b"[]")  # a new connection has no bound
    assert await store.get("a", "") is not None


def test_many_writers(tmp_path: Path) -> None:
    """Several processes' connections write at once; none is refused."""

    async def write(first: int) -> None:
        store = ResponseStore(StateFolder(str(tmp_path), SCHEMA), max_responses=50)
        for number in range(first, first + 10):
            await store.add(str(number), "", b"x", b"[]")

    threads = [
        threading.Thread(target=asyncio.run, args=(write(first),)) for first in range(0, 60, 10)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(in_database(tmp_path)) == 50
