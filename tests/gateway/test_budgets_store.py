"""Every store of budgets against a plain model: any order of reserving, settling, expiring, with
answers that were lost and things that are done twice.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from octavo.gateway.budgets_scope import Ceiling
from octavo.gateway.budgets_store import FORGET_NS, Standing
from octavo.gateway.model import Amount
from octavo.ledger.store import open_ledger
from tests.gateway.budget_stores import opened
from tests.gateway.redis_server import BINARY, RedisServer
from tests.ledger.postgres import PostgresServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from octavo.gateway.budgets_store import Store

NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "12"))
START_NS = 1_800_000_000 * 10**9
LEASE_NS = 60 * 10**9
NAMES = itertools.count()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    path = tmp_path_factory.mktemp("ledger") / "ledger.db"
    open_ledger(str(path)).close()
    urls = {"memory": "", "sqlite": f"sqlite:///{path}"}
    postgres = redis = None
    if (binaries := find_binaries()) is not None:
        postgres = PostgresServer(binaries)
        urls["postgresql"] = postgres.new_ledger()
    if BINARY is not None:
        redis = RedisServer()
        urls["redis"] = redis.url
    yield urls
    for server in (postgres, redis):
        if server is not None:
            server.remove()


@pytest.fixture(params=["memory", "sqlite", "postgresql", "redis"])
def kind(request: pytest.FixtureRequest, urls: dict[str, str]) -> str:
    if request.param not in urls:
        pytest.skip(f"{request.param} is not installed")
    return str(request.param)


AMOUNTS = st.builds(Amount, *(st.integers(0, 6) | st.just(2**53),) * 3)
WHICH = st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True).map(sorted)
OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("reserve"), st.integers(0, 5), WHICH, AMOUNTS),
        st.tuples(st.just("settle"), st.integers(0, 5), AMOUNTS),
        st.tuples(st.just("settle_unsure"), st.integers(0, 5), AMOUNTS),
        st.tuples(st.just("renew"), st.lists(st.integers(0, 5), max_size=3)),
        st.tuples(st.just("wait"), st.integers(1, 90)),
        st.tuples(st.just("expire"), st.booleans()),
    ),
    max_size=25,
)
BOUND = st.none() | st.integers(0, 20) | st.just(2**62)
BOUNDS = st.lists(st.tuples(BOUND, BOUND, BOUND, st.booleans()), min_size=3, max_size=3)


class Model:
    """What every id counts, and nothing added up."""

    def __init__(self, ceilings: list[Ceiling]) -> None:
        self.ceilings = ceilings
        self.live: dict[str, tuple[list[int], Amount, int]] = {}
        self.ended: dict[str, tuple[list[int], Amount]] = {}
        self.is_known: dict[str, bool] = {}
        """Whether an id that has ended is still known to the store."""

    def standing(self, which: int) -> Standing:
        used = [a for counters, a in self.ended.values() if which in counters]
        held = [a for counters, a, _ in self.live.values() if which in counters]
        return Standing(_sum(used), _sum(held))

    def reserve(self, name: str, which: list[int], amount: Amount, expires: int) -> bool:
        if name in self.live:
            return True
        if self.is_known.get(name):
            return False
        for index in which:
            used, held = self.standing(index)
            total, ceiling = used + held + amount, self.ceilings[index]
            bounds = (ceiling.cost_nano, ceiling.num_tokens, ceiling.device_ns)
            values = (total.cost_nano, total.num_tokens, total.device_ns)
            over = [b is not None and v > b for v, b in zip(values, bounds, strict=True)]
            if ceiling.is_hard and any(over):
                return False
        self.live[name] = (which, amount, expires)
        return True

    def settle(self, name: str, which: list[int], used: Amount, *, is_sure: bool) -> None:
        if name in self.live:
            which = self.live.pop(name)[0]
        elif is_sure and not self.is_known.get(name):
            return  # it has been settled
        self.ended[name] = (which, used)
        self.is_known[name] = not is_sure

    def expire(self, now: int, *, counts: bool) -> int:
        late = [name for name, (_, _, expires) in self.live.items() if expires <= now]
        for name in late:
            which, amount, _ = self.live.pop(name)
            self.ended[name] = (which, amount if counts else Amount())
            self.is_known[name] = True
        return len(late)


def _sum(amounts: list[Amount]) -> Amount:
    total = Amount()
    for amount in amounts:
        total += amount
    return total


async def run(store: Store, operations: list[Any], bounds: list[Any]) -> None:
    run_name = f"run {next(NAMES)}"
    ceilings = [
        Ceiling(f"{run_name}-{i}", f"key={i}", START_NS, START_NS + 10**15, *bound)
        for i, bound in enumerate(bounds)
    ]
    model, now = Model(ceilings), START_NS
    where: dict[str, list[int]] = {}
    generation = dict.fromkeys(range(6), 0)
    for kind, *args in operations:
        if kind in ("reserve", "settle", "settle_unsure"):
            name = f"{run_name}:{args[0]}:{generation[args[0]]}"
        if kind == "reserve":
            _, which, amount = args
            which = where.setdefault(name, which)
            some = [ceilings[i] for i in which]
            for _ in range(2):  # the answer to the first time was lost
                taking = await store.reserve(name, some, amount, now + LEASE_NS)
                assert taking.is_reserved == model.reserve(name, which, amount, now + LEASE_NS)
                assert taking.standings == tuple(map(model.standing, which))
        elif kind in ("settle", "settle_unsure"):
            which = where.setdefault(name, [0])
            some = [ceilings[i] for i in which]
            is_sure = kind == "settle"
            for _ in range(2):
                model.settle(name, which, args[1], is_sure=is_sure)
                standings = await store.settle(
                    name, some, args[1], now_ns=now, was_reserved=is_sure
                )
                assert standings == tuple(map(model.standing, which))
            if is_sure:
                generation[args[0]] += 1  # an id is not used again
        elif kind == "renew":
            names = [f"{run_name}:{i}:{generation[i]}" for i in args[0]]
            await store.renew(names, now + LEASE_NS)
            for name in names:
                if name in model.live:
                    which, amount, _ = model.live[name]
                    model.live[name] = (which, amount, now + LEASE_NS)
        elif kind == "wait":
            now += args[0] * 10**9
        else:
            assert await store.expire(now, counts=args[0]) == model.expire(now, counts=args[0])
        for index, ceiling in enumerate(ceilings):
            rows = dict(await store.rows(ceiling.budget, START_NS, 10))
            standing = rows.get(ceiling.scope, Standing())
            assert standing == model.standing(index)
            assert not ceiling.is_hard or ceiling.fits(standing.reserved)
    # Nothing of this run may be in the way of the next.
    await store.expire(now + 2 * LEASE_NS, counts=False)


@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(OPERATIONS, BOUNDS)
def test_stores_do_as_the_model(
    kind: str, urls: dict[str, str], operations: list[Any], bounds: list[Any]
) -> None:
    async def scenario() -> None:
        async with opened(kind, urls[kind]) as store:
            await run(store, operations, bounds)

    asyncio.run(scenario())


async def test_thresholds_are_claimed_once(kind: str, urls: dict[str, str]) -> None:
    ceiling = Ceiling(f"claim {next(NAMES)}", "", START_NS, START_NS + 10**15, 1, None, None, True)
    async with opened(kind, urls[kind]) as one, opened(kind, urls[kind]) as other:
        others = other if kind != "memory" else one
        claims = await asyncio.gather(*(s.claim(ceiling, "0.5") for s in (one, others) * 5))
        assert sorted(claims) == [False] * 9 + [True]
        assert await others.claim(ceiling, "0.8")
        later = ceiling._replace(start_ns=START_NS + 1)
        assert await others.claim(later, "0.5")


async def test_what_is_long_over_is_forgotten(kind: str, urls: dict[str, str]) -> None:
    ceiling = Ceiling(f"old {next(NAMES)}", "", START_NS, START_NS + 1, None, 9, None, True)
    async with opened(kind, urls[kind]) as store:
        name = f"old {next(NAMES)}"
        await store.settle(name, [ceiling], Amount(0, 1), now_ns=START_NS, was_reserved=False)
        assert not (await store.reserve(name, [ceiling], Amount(0, 1), START_NS)).is_reserved
        if kind != "redis":  # whose clock is its own
            await store.expire(START_NS + 500 * FORGET_NS, counts=True)
            assert (await store.rows(ceiling.budget, START_NS, 1)) == []
            taking = await store.reserve(name, [ceiling], Amount(0, 9), START_NS + LEASE_NS)
            assert taking.is_reserved


async def test_a_deleted_database_is_begun_anew(tmp_path: Path, urls: dict[str, str]) -> None:
    path = tmp_path / "ledger.db"
    shutil.copy(urls["sqlite"].removeprefix("sqlite:///"), path)
    ceiling = Ceiling("b", "", 0, None, None, 5, None, True)
    async with opened("sqlite", f"sqlite:///{path}") as store:
        assert (await store.reserve("a", [ceiling], Amount(0, 5), START_NS)).is_reserved
        for name in await asyncio.to_thread(os.listdir, tmp_path):
            os.unlink(tmp_path / name)  # noqa: PTH108
        assert (await store.reserve("b", [ceiling], Amount(0, 5), START_NS)).is_reserved
        assert not (await store.reserve("c", [ceiling], Amount(0, 1), START_NS)).is_reserved
