"""Budgets as the gateway asks them: what is refused and what that says, races, failures."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import BudgetExceededError, ConfigError
from octavo.gateway import budgets_keeper
from octavo.gateway.budgets import BudgetBook, BudgetsUnavailableError, open_budgets
from octavo.gateway.budgets_redis import RedisStore
from octavo.gateway.budgets_sql import SqlStore
from octavo.gateway.budgets_store import BudgetStoreError, MemoryStore
from octavo.gateway.config_budgets import Budget, BudgetsSection
from octavo.gateway.model import Amount
from octavo.ledger.store import open_ledger
from tests.gateway.budget_stores import CENT, open_store, section_of, until
from tests.gateway.redis_server import BINARY, RedisServer
from tests.gateway.test_limits import call_of
from tests.ledger.postgres import PostgresServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from octavo.gateway.budgets_store import Store

NOON_NS = 1_790_856_000 * 10**9  # 2026-10-01T12:00:00Z
HOUR_NS = 3600 * 10**9


class Clock:
    def __init__(self) -> None:
        self.now = NOON_NS

    def __call__(self) -> int:
        return self.now


@pytest.fixture
async def book_of() -> AsyncIterator[Callable[..., BudgetBook]]:
    """Opens books, and closes them with their stores."""
    made: list[BudgetBook] = []

    def make(section: BudgetsSection, store: Store | None = None, **fields: Any) -> BudgetBook:
        made.append(BudgetBook(section, store, **fields))
        return made[-1]

    yield make
    for book in made:
        await book.close(0.5)
        await book.store.close()


async def refusal(book: BudgetBook, amount: Amount | None, **call: Any) -> BudgetExceededError:
    with pytest.raises(BudgetExceededError) as caught:
        await book.reserve(call_of(**call), amount)
    return caught.value


async def used(book: BudgetBook) -> list[tuple[Decimal, Decimal]]:
    return [
        (Decimal(str(row["cost"])), Decimal(str(row["cost_reserved"])))
        for row in await book.state()
    ]


async def test_a_reserve_is_settled_on_what_was_used(book_of: Callable[..., BudgetBook]) -> None:
    book = book_of(section_of(cents=100))
    first = await book.reserve(call_of(), Amount(60 * CENT))
    assert first.left_nano == 60 * CENT
    assert await used(book) == [(0, Decimal("0.6"))]
    error = await refusal(book, Amount(41 * CENT))
    assert error.status == 429
    assert "'b' has 0.4 USD left, and this request may use up to 0.41 USD" in str(error)
    await first.settle(Amount(10 * CENT))
    await first.settle(Amount(50 * CENT))  # twice is once
    assert await used(book) == [(Decimal("0.1"), 0)]
    second = await book.reserve(call_of(), Amount(90 * CENT))
    await second.settle(Amount(90 * CENT))
    assert await used(book) == [(1, 0)]
    assert (book.num_reserved, book.num_refused) == (2, {"b": 1})


async def test_what_the_refused_are_told(book_of: Callable[..., BudgetBook]) -> None:
    clock = Clock()
    rules = {
        "per team": Budget(tokens=10, per=("team", "tag:stage"), period="day"),
        "gpu": Budget(gpu_hours=Decimal("0.001"), per=(), period="total"),
    }
    book = book_of(BudgetsSection(rules=rules), wall_ns=clock)
    held = await book.reserve(call_of(tags={"stage": "pro duction"}), Amount(0, 8, 10**9))
    error = await refusal(book, Amount(0, 3, 0), tags={"stage": "pro duction"})
    assert "'per team' of team '', tag:stage 'pro duction' has 2 tokens left" in str(error)
    assert str(error).endswith("the next period begins at 2026-10-02T00:00:00Z")
    assert error.retry_after_s == 12 * 3600
    assert error.code == "budget_exceeded"
    error = await refusal(book, Amount(0, 11, 0), tags={"stage": "test"})
    assert "more than all of it: ask for fewer tokens (max_tokens)" in str(error)
    assert error.retry_after_s is None
    error = await refusal(book, Amount(0, 1, 2_600_000_001))
    assert "has 2.6 device seconds left, and this request may use up to 2.600000001" in str(error)
    assert error.retry_after_s is None  # it never begins anew
    await held.settle(Amount())


async def test_all_budgets_or_none(book_of: Callable[..., BudgetBook]) -> None:
    rules = {
        "wide": Budget(cost=Decimal(10), per=()),
        "soft": Budget(cost=Decimal("0.01"), per=(), kind="soft"),
        "key": Budget(tokens=5, per=("key",)),
    }
    book = book_of(BudgetsSection(rules=rules))
    one = await book.reserve(call_of("a"), Amount(CENT, 5))
    await refusal(book, Amount(CENT, 1), key="a")
    two = await book.reserve(call_of("b"), Amount(CENT, 5))
    rows = {(row["budget"], str(row["subject"])): row for row in await book.state()}
    assert len(rows) == 4
    assert rows["wide", "{}"]["cost_reserved"] == "0.02"
    assert rows["soft", "{}"]["reserved_part"] == 2
    assert rows["key", "{'key': 'a'}"]["tokens_reserved"] == 5
    await one.settle(Amount())
    await two.settle(Amount())


async def test_unknown_prices_pass_soft_budgets_alone(book_of: Callable[..., BudgetBook]) -> None:
    book = book_of(section_of())
    assert (await refusal(book, None)).code == "price_unknown"
    soft = book_of(section_of(budget={"kind": "soft"}))
    reservation = await soft.reserve(call_of(), None)
    assert reservation.left_nano is None
    await reservation.settle(Amount(5 * CENT))
    assert await used(soft) == [(Decimal("0.05"), 0)]
    free = book_of(section_of(budget={"features": ("other",)}))
    assert (await free.reserve(call_of(), None)).left_nano is None


async def test_what_ends_later_counts_where_it_began(book_of: Callable[..., BudgetBook]) -> None:
    clock = Clock()
    book = book_of(section_of(cents=100, budget={"period": "hour"}), wall_ns=clock)
    late = await book.reserve(call_of(), Amount(100 * CENT))
    clock.now += HOUR_NS - 1
    await refusal(book, Amount(1))
    clock.now += 1
    full = await book.reserve(call_of(), Amount(100 * CENT))
    await late.settle(Amount(100 * CENT))
    assert await used(book) == [(0, 1)]
    await full.settle(Amount(1 * CENT))
    clock.now -= 1
    assert await used(book) == [(1, 0)]


async def test_no_amount_is_too_large(book_of: Callable[..., BudgetBook]) -> None:
    book = book_of(section_of(budget={"kind": "soft"}))
    for _ in range(3):
        held = await book.reserve(call_of(), Amount(10**30, 10**30, 10**30))
        await held.settle(Amount(10**40, -5, 10**18))
    assert (await book.state())[0]["tokens"] == 0


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(str(path)).close()
    servers: dict[str, Any] = {"sqlite": path}
    if (binaries := find_binaries()) is not None:
        servers["postgresql"] = PostgresServer(binaries)
    if BINARY is not None:
        servers["redis"] = RedisServer()
    yield servers
    for name in ("postgresql", "redis"):
        if name in servers:
            servers[name].remove()


def url_of(kind: str, servers: dict[str, Any], tmp_path: Path) -> str:
    """A store's address that nobody has used."""
    if kind == "memory":
        return ""
    if kind not in servers:
        pytest.skip(f"{kind} is not installed")
    if kind == "redis":
        servers["redis"].flush()
        return str(servers["redis"].url)
    if kind == "postgresql":
        return str(servers["postgresql"].new_ledger())
    path = tmp_path / "ledger.db"
    path.write_bytes(servers["sqlite"].read_bytes())
    return f"sqlite:///{path}"


@pytest.mark.parametrize("kind", ["memory", "sqlite", "postgresql", "redis"])
async def test_200_at_once_for_a_budget_for_50(
    kind: str, servers: dict[str, Any], tmp_path: Path, book_of: Callable[..., BudgetBook]
) -> None:
    """Nobody settles before all have asked: exactly 50 get one, and 50 more once these are back."""
    url = url_of(kind, servers, tmp_path)
    book = book_of(section_of(cents=50), open_store(kind, url))
    for num_used in (0, 50):
        found = await asyncio.gather(
            *(book.reserve(call_of(), Amount(CENT)) for _ in range(200)), return_exceptions=True
        )
        held = [one for one in found if not isinstance(one, BaseException)]
        refused = [one for one in found if isinstance(one, BaseException)]
        assert len(held) == 50
        assert {type(one) for one in refused} == {BudgetExceededError}
        await asyncio.gather(*(one.settle(Amount(num_used and CENT)) for one in held))
        assert await used(book) == [(Decimal(num_used).scaleb(-2), 0)]
    await refusal(book, Amount(1))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql", "redis"])
def test_two_processes_never_overspend(kind: str, servers: dict[str, Any], tmp_path: Path) -> None:
    """100 requests in each of two processes, which settle a part of what they reserved: what was
    granted is never above the budget, and they stop only where one more reserve would be.
    """
    url = url_of(kind, servers, tmp_path)
    command = [sys.executable, "-m", "tests.gateway.hammer_budgets", kind, url]
    workers = [
        subprocess.Popen(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE,
            stdin=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    results = [worker.communicate(timeout=100)[0].split() for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    spent = sum(int(result[0]) for result in results)
    assert 49 * CENT < spent <= 50 * CENT
    assert all(result[1] == "0" for result in results), "there was more than the budget at a time"
    assert sum(int(result[2]) for result in results) >= 50


class FlakyStore(MemoryStore):
    """Fails when told to: before it has done what was asked, or after; or takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = ""
        self.num_asked = 0

    async def _do(self, work: Any) -> Any:
        self.num_asked += 1
        if self.fails == "hang":
            try:
                await asyncio.sleep(60)
            finally:
                work.close()
        if self.fails == "before":
            work.close()
            raise BudgetStoreError("gone")
        result = await work
        if self.fails == "after":
            raise BudgetStoreError("gone")
        return result

    async def reserve(self, *args: Any) -> Any:
        return await self._do(super().reserve(*args))

    async def settle(self, *args: Any, **kwargs: Any) -> Any:
        return await self._do(super().settle(*args, **kwargs))

    async def rows(self, *args: Any) -> Any:
        return await self._do(super().rows(*args))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> FlakyStore:
    monkeypatch.setattr(budgets_keeper, "RETRY_S", 0.02)
    monkeypatch.setattr(budgets_keeper, "MemoryStore", type(None))  # it may fail, unlike that
    return FlakyStore()


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_without_its_store_a_hard_budget_refuses(
    fails: str, flaky: FlakyStore, book_of: Callable[..., BudgetBook]
) -> None:
    book = book_of(section_of(cents=100), flaky)
    held = await book.reserve(call_of(), Amount(30 * CENT))
    flaky.fails = fails
    for _ in range(3):
        with pytest.raises(BudgetsUnavailableError) as caught:
            await book.reserve(call_of(), Amount(10 * CENT))
        assert caught.value.status == 503
    await held.settle(Amount(20 * CENT))
    assert book.is_down
    with pytest.raises(BudgetsUnavailableError):
        await book.state()
    flaky.fails = ""
    await until(lambda: not book.is_down)
    assert await used(book) == [(Decimal("0.2"), 0)]  # whatever the store had done unseen is undone
    assert book.num_unsettled == 0


@pytest.mark.parametrize("fails", ["before", "after"])
async def test_without_its_store_calls_may_pass_and_are_counted_later(
    fails: str, flaky: FlakyStore, book_of: Callable[..., BudgetBook]
) -> None:
    book = book_of(section_of(cents=100, on_failure="allow"), flaky)
    flaky.fails = fails
    held = [await book.reserve(call_of(), Amount(30 * CENT)) for _ in range(5)]
    await asyncio.gather(*(one.settle(Amount(25 * CENT)) for one in held[:4]))
    assert book.num_unsettled == 4
    flaky.fails = ""
    await until(lambda: not book.is_down)
    assert (await used(book))[0][0] == 1
    await held[4].settle(Amount(25 * CENT))  # it was let in without a reservation
    assert await used(book) == [(Decimal("1.25"), 0)]


async def test_a_soft_budget_needs_no_store(
    flaky: FlakyStore, book_of: Callable[..., BudgetBook]
) -> None:
    book = book_of(section_of(budget={"kind": "soft"}), flaky)
    flaky.fails = "before"
    held = await book.reserve(call_of(), Amount(CENT))
    await held.settle(Amount(CENT))
    flaky.fails = ""
    await until(lambda: not book.is_down)
    assert await used(book) == [(Decimal("0.01"), 0)]


async def test_a_store_that_hangs_is_waited_for_so_long_and_once(
    flaky: FlakyStore, book_of: Callable[..., BudgetBook]
) -> None:
    book = book_of(section_of(timeout_s=0.1), flaky)
    flaky.fails = "hang"
    loop = asyncio.get_running_loop()
    begin = loop.time()
    for _ in range(20):
        with pytest.raises(BudgetsUnavailableError):
            await book.reserve(call_of(), Amount(CENT))
    assert loop.time() - begin < 1.5
    flaky.fails = ""
    await until(lambda: not book.is_down)
    assert await used(book) in ([], [(0, 0)])


async def test_who_leaves_while_it_reserves_holds_nothing(
    flaky: FlakyStore, book_of: Callable[..., BudgetBook]
) -> None:
    book = book_of(section_of(), flaky)
    gate = asyncio.Event()

    async def slow(work: Any) -> Any:
        result = await work
        if not gate.is_set():
            await gate.wait()
        return result

    flaky._do = slow  # type: ignore[method-assign]
    task = asyncio.create_task(book.reserve(call_of(), Amount(CENT)))
    await asyncio.sleep(0.01)
    assert flaky._books.held
    task.cancel()
    gate.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not book.num_unsettled)
    assert await used(book) == [(0, 0)]


@pytest.mark.parametrize("when_lost", ["count", "release"])
async def test_what_a_killed_gateway_held_ends_and_what_lives_is_renewed(
    when_lost: Any, book_of: Callable[..., BudgetBook]
) -> None:
    store = MemoryStore()
    clock = Clock()
    section = section_of(cents=100, lease_s=1.0, when_lost=when_lost)
    killed = BudgetBook(section, store, wall_ns=clock)
    lost = await killed.reserve(call_of(), Amount(40 * CENT))
    await killed.keeper.close(0)  # so that nobody renews
    book = book_of(section, store, wall_ns=clock)
    held = await book.reserve(call_of(), Amount(30 * CENT))
    for _ in range(5):
        clock.now += 700_000_000
        before = store._books.held[held.held_id].expires_ns
        await until(lambda: store._books.held[held.held_id].expires_ns > before)  # noqa: B023
    counted = Decimal("0.4") if when_lost == "count" else 0
    assert await used(book) == [(counted, Decimal("0.3"))]
    assert book.keeper.num_expired == 1
    await lost.settle(Amount(5 * CENT))  # it was alive after all, and late
    await held.settle(Amount(30 * CENT))
    assert await used(book) == [(Decimal("0.35"), 0)]


async def test_redis_killed_and_back(
    servers: dict[str, Any],
    tmp_path: Path,
    book_of: Callable[..., BudgetBook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budgets_keeper, "RETRY_S", 0.05)
    url = url_of("redis", servers, tmp_path)
    book = book_of(section_of(timeout_s=0.5), RedisStore(url, "test", timeout_s=0.5))
    held = await book.reserve(call_of(), Amount(CENT))
    servers["redis"].freeze()
    with pytest.raises(BudgetsUnavailableError):
        await book.reserve(call_of(), Amount(CENT))
    await held.settle(Amount(CENT))
    servers["redis"].thaw()
    await until(lambda: not book.is_down)
    assert await used(book) == [(Decimal("0.01"), 0)]
    servers["redis"].kill()
    with pytest.raises(BudgetsUnavailableError):
        await book.reserve(call_of(), Amount(CENT))
    servers["redis"].start()
    await until(lambda: not book.is_down)
    await (await book.reserve(call_of(), Amount(CENT))).settle(Amount())


async def test_postgresql_stopped_and_back(
    servers: dict[str, Any],
    tmp_path: Path,
    book_of: Callable[..., BudgetBook],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(budgets_keeper, "RETRY_S", 0.05)
    url = url_of("postgresql", servers, tmp_path)
    book = book_of(section_of(), SqlStore(url))
    held = await book.reserve(call_of(), Amount(CENT))
    servers["postgresql"].stop()
    with pytest.raises(BudgetsUnavailableError):
        await book.reserve(call_of(), Amount(CENT))
    await held.settle(Amount(CENT))
    servers["postgresql"].start()
    await until(lambda: not book.is_down)
    assert await used(book) == [(Decimal("0.01"), 0)]


async def test_a_reload_goes_on_counting(tmp_path: Path, servers: dict[str, Any]) -> None:
    section = section_of(cents=2)
    old = open_budgets(section)
    held = await old.reserve(call_of(), Amount(2 * CENT))
    new = open_budgets(section_of(cents=3), previous=old)
    await refusal(new, Amount(2 * CENT))
    await held.settle(Amount(CENT))
    await old.close()
    await (await new.reserve(call_of(), Amount(2 * CENT))).settle(Amount(2 * CENT))
    assert await used(new) == [(Decimal("0.03"), 0)]
    await new.close()
    ledger = section_of(store="ledger")
    with pytest.raises(ConfigError, match=r"ledger\.url"):
        open_budgets(ledger)
    with pytest.raises(ConfigError, match="redis_url"):
        open_budgets(section_of(store="redis"))
    url = url_of("sqlite", servers, tmp_path)
    one = open_budgets(ledger, ledger_url=url, previous=new)
    two = open_budgets(ledger, ledger_url=url, previous=one)
    assert one.store is two.store
    await one.store.close()
