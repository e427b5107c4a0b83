"""Limits that several gateways count together, in a real Redis that is killed and frozen."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError, RateLimitedError
from octavo.gateway import limits_lua, limits_redis
from octavo.gateway.config_limits import Limit, LimitsSection
from octavo.gateway.limits import RateLimits, open_limits
from octavo.gateway.limits_redis import RedisSettings, RedisStore
from octavo.gateway.limits_store import (
    LimitsUnavailableError,
    MemoryStore,
    Taking,
    counter_of,
)
from tests.gateway.redis_server import BINARY, RedisServer
from tests.gateway.test_limits import call_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from octavo.gateway.limits_store import Counter

pytestmark = pytest.mark.skipif(BINARY is None, reason="Redis is not installed")
NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "15"))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    server = RedisServer()
    yield server
    server.remove()


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.flush()
    return server


@pytest.fixture
async def opened(redis: RedisServer) -> AsyncIterator[Callable[..., RateLimits]]:
    """Opens gateways' limits, and closes them."""
    made: list[RateLimits] = []

    def make(
        lease_s: float = 30.0, when: Any = "open", timeout_s: float = 5.0, **rules: Limit
    ) -> RateLimits:
        settings = RedisSettings(redis.url, "test", when, timeout_s)
        section = LimitsSection(rules=rules, store="redis")
        made.append(RateLimits(section, RedisStore(settings, lease_s=lease_s)))
        return made[-1]

    yield make
    for limits in made:
        await limits.close()
        await limits.store.close()


async def is_refused(limits: RateLimits, **call: Any) -> RateLimitedError:
    with pytest.raises(RateLimitedError) as caught:
        await limits.admit(call_of(**call))
    return caught.value


async def until(condition: Callable[[], Awaitable[bool]], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def test_two_gateways_count_together(opened: Callable[..., RateLimits]) -> None:
    # Buckets that hold much and are filled slowly, as this machine may be slow, too.
    rules = {
        "rule": Limit(requests_per_minute=3, concurrency=2),
        "tokens": Limit(tokens_per_minute=1, burst_s=60_000),
    }
    one, other = opened(**rules), opened(**rules)
    first = await one.admit(call_of(tokens=100))
    second = await other.admit(call_of(tokens=300))
    assert second.headers["x-ratelimit-remaining-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-tokens"] == "600"
    assert "2 requests at a time" in (await is_refused(one)).message
    await first.settle(50)
    await first.settle(50)
    third = await one.admit(call_of(tokens=600))
    assert third.headers["x-ratelimit-remaining-tokens"] == "50"
    error = await is_refused(other)
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.retry_after_s is not None
    assert 1 <= error.retry_after_s <= 20
    state = {row["limit"]: row for row in await other.state()}
    assert (state["rule"]["running"], state["rule"]["requests_left"]) == (2, 0)
    await second.settle(300)
    await third.settle(600)
    assert (await one.state())[0]["running"] == 0


class FakeClock:
    """Both stores' time, in microseconds."""

    def __init__(self, redis: RedisServer) -> None:
        self._redis = redis
        self.advance(0, start=1_800_000_000_000_000)

    def __call__(self) -> float:
        return self._now / 1e6

    def advance(self, microseconds: int, start: int | None = None) -> None:
        self._now = (start if start is not None else self._now) + microseconds
        seconds, rest = divmod(self._now, 1_000_000)
        self._redis.command("mset", "clock:s", str(seconds), "clock:us", str(rest))


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 200), st.booleans()),
            st.tuples(st.just("end"), st.integers(0, 9), st.floats(0, 1.5)),
            st.tuples(st.just("undo"), st.integers(0, 9), st.just(0)),
            st.tuples(st.just("time"), st.integers(0, 100_000_000), st.just(0)),
            st.tuples(st.just("resize"), st.integers(1, 5), st.just(0)),
        ),
        max_size=30,
    )
)
def test_redis_counts_as_memory_does(server: RedisServer, steps: list[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("TAKE", "GIVE_BACK", "RENEW"):
            script = getattr(limits_lua, name)
            told = script.replace(
                "redis.call('TIME')",
                "{redis.call('GET', 'clock:s'), redis.call('GET', 'clock:us')}",
            )
            assert told != script
            patch.setattr(limits_redis, name, told)
        asyncio.run(_compare(server, steps))


async def _compare(server: RedisServer, steps: list[Any]) -> None:
    server.flush()
    clock = FakeClock(server)
    memory = MemoryStore(clock)
    redis = RedisStore(RedisSettings(server.url, "test", "closed", 5), lease_s=1e6)

    def counters_of(size: int) -> list[Counter]:
        one = Limit(requests_per_minute=2 * size, tokens_per_minute=120 * size, concurrency=3)
        two = Limit(tokens_per_minute=300, burst_s=90)
        return [counter_of("one", one, ("a",)), counter_of("two", two, ())]

    counters = counters_of(2)
    held: list[tuple[Taking, Taking, list[Counter], list[int]]] = []
    try:
        for kind, number, value in steps:
            if kind == "take":
                wanted = counters if value else counters[:1]
                tokens = [number] * len(wanted)
                ours, theirs = await memory.take(wanted, tokens), await redis.take(wanted, tokens)
                assert ours.is_taken == theirs.is_taken
                if ours.is_taken:
                    held.append((ours, theirs, wanted, tokens))
            elif kind in ("end", "undo") and held:
                ours, theirs, wanted, tokens = held.pop(number % len(held))
                used = int(tokens[0] * value)
                unused = [amount - used for amount in tokens]
                await memory.give_back(ours, wanted, unused, undo=kind == "undo")
                await redis.give_back(theirs, wanted, unused, undo=kind == "undo")
            elif kind == "time":
                clock.advance(number)
            elif kind == "resize":
                counters = counters_of(number)
                for store in (memory, redis):  # it is heard of by the next that takes
                    taking = await store.take(counters, [0, 0])
                    if taking.is_taken:
                        await store.give_back(taking, counters, [0, 0], undo=True)
            ours_now, theirs_now = await memory.look(counters), await redis.look(counters)
            for one, other in zip(ours_now, theirs_now, strict=True):
                assert one.requests == pytest.approx(other.requests, abs=1e-3)
                assert one.tokens == pytest.approx(other.tokens, abs=1e-3)
            assert ours_now[0].running == theirs_now[0].running
    finally:
        await redis.close()


def test_four_processes_take_together_what_one_may(redis: RedisServer) -> None:
    command = [sys.executable, "-m", "tests.gateway.hammer_redis", redis.url]
    started = time.monotonic()
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate(timeout=60)[0].split() for process in processes]
    took_s = time.monotonic() - started
    assert all(process.returncode == 0 for process in processes)
    num_in = sum(int(count) for count, _ in outputs)
    assert 100 <= num_in <= 100 + took_s * 100 / 60 + 1
    assert 1 <= max(int(most) for _, most in outputs) <= 3


async def test_places_of_a_killed_gateway_come_back_and_those_of_living_ones_stay(
    opened: Callable[..., RateLimits],
) -> None:
    rule = Limit(concurrency=1)
    dead, living = opened(1.5, rule=rule), opened(1.5, rule=rule)
    await dead.admit(call_of())
    assert isinstance(dead.store, RedisStore)
    assert dead.store._renewer is not None
    await asyncio.sleep(2.0)
    await is_refused(living)  # it was renewed
    dead.store._renewer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dead.store._renewer
    await asyncio.sleep(1.6)
    await living.admit(call_of())


async def test_who_is_cancelled_while_redis_is_asked_has_taken_nothing(
    redis: RedisServer, opened: Callable[..., RateLimits]
) -> None:
    rule = Limit(requests_per_minute=10, tokens_per_minute=1000, concurrency=5, queue_s=5)
    limits = opened(rule=rule)
    await (await limits.admit(call_of(tokens=0))).settle(0)
    redis.freeze()
    asking = asyncio.create_task(limits.admit(call_of(tokens=900)))
    await asyncio.sleep(0.05)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    redis.thaw()
    assert isinstance(limits.store, RedisStore)
    await limits.store._line.drain()
    state = (await limits.state())[0]
    assert (state["running"], state["requests_left"], state["tokens_left"]) == (0, 9, 1000)


async def test_who_waits_hears_of_places_that_another_gateway_gave_back(
    opened: Callable[..., RateLimits],
) -> None:
    rule = Limit(concurrency=1, queue_s=5)
    one, other = opened(rule=rule), opened(rule=rule)
    permit = await one.admit(call_of())
    waiting = asyncio.create_task(other.admit(call_of()))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await permit.settle(0)
    await (await asyncio.wait_for(waiting, 1)).settle(0)


async def test_killed_redis_with_fail_open(
    redis: RedisServer, opened: Callable[..., RateLimits], caplog: pytest.LogCaptureFixture
) -> None:
    rule = Limit(requests_per_minute=5, concurrency=2)
    limits = opened(rule=rule)
    held = await limits.admit(call_of())
    redis.kill()
    permits = [await limits.admit(call_of()) for _ in range(2)]  # this process counts for itself
    await is_refused(limits)
    for permit in permits:
        await permit.settle(1)
    assert isinstance(limits.store, RedisStore)
    assert limits.store.is_down
    assert (await limits.state())[0]["requests_left"] == 3
    redis.start()

    async def is_back() -> bool:
        return not limits.store.is_down

    await until(is_back)
    assert "Redis is back" in caplog.text
    # Redis has forgotten everything; the places that are held are told to it again.
    assert (await limits.state())[0]["running"] == 1
    permit = await limits.admit(call_of())
    await is_refused(limits)
    await permit.settle(1)
    await held.settle(1)
    assert (await limits.state())[0]["running"] == 0


async def test_killed_redis_with_fail_closed(
    redis: RedisServer, opened: Callable[..., RateLimits]
) -> None:
    rule = Limit(requests_per_minute=5, concurrency=1, queue_s=20)
    limits = opened(when="closed", rule=rule)
    held = await limits.admit(call_of())
    waiting = asyncio.create_task(limits.admit(call_of()))
    await asyncio.sleep(0.02)
    redis.kill()
    with pytest.raises(LimitsUnavailableError):
        await asyncio.wait_for(waiting, 2)
    with pytest.raises(LimitsUnavailableError) as caught:
        await limits.admit(call_of())
    assert (caught.value.status, caught.value.retry_after_s) == (503, 2)
    await held.settle(1)  # does not fail, and does not wait long
    redis.start()

    async def is_let_in() -> bool:
        try:
            await (await limits.admit(call_of())).settle(0)
        except LimitsUnavailableError:
            return False
        return True

    await until(is_let_in)


async def test_redis_that_does_not_answer_is_not_waited_for_twice(
    redis: RedisServer, opened: Callable[..., RateLimits]
) -> None:
    limits = opened(timeout_s=1.0, rule=Limit(requests_per_minute=1000))
    await limits.admit(call_of())
    redis.freeze()
    try:
        started = time.monotonic()
        await asyncio.gather(*(limits.admit(call_of()) for _ in range(500)))
        for _ in range(5):
            await limits.admit(call_of())
        # One timeout is all that those wait who come before it is known. Redis is tried again
        # meanwhile, which nobody waits for.
        assert time.monotonic() - started < 1.9
    finally:
        redis.thaw()


async def test_keys_end_by_themselves(
    redis: RedisServer, opened: Callable[..., RateLimits]
) -> None:
    limits = opened(
        0.2, rule=Limit(requests_per_minute=6000, burst_s=0.1, tokens_per_minute=60_000)
    )
    permit = await limits.admit(call_of("odd key/ä:{}", tokens=5))
    await permit.settle(5)
    (name,) = redis.command("keys", "*")
    assert name == "{test}:limit:rule:odd%20key%2F%C3%A4%3A%7B%7D"
    assert 0 < int(redis.command("pttl", name)[0]) < 3000


def test_addresses_that_are_none() -> None:
    section = LimitsSection(store="redis")
    with pytest.raises(ConfigError, match="redis_url"):
        open_limits(section, "http://localhost")


async def test_a_reload_goes_on_with_the_same_connections(redis: RedisServer) -> None:
    section = LimitsSection(rules={"rule": Limit(concurrency=1)}, store="redis")
    old = open_limits(section, redis.url)
    assert open_limits(section, redis.url, old).store is old.store
    other = LimitsSection(rules={}, store="redis", redis_prefix="other")
    assert open_limits(other, redis.url, old).store is not old.store
    assert isinstance(open_limits(LimitsSection(), "", old).store, MemoryStore)
    await old.store.close()
