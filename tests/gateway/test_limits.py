"""Limits in memory: what is let in, who waits, what comes back, and what clients are told."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import ConfigError, RateLimitedError
from octavo.gateway import limits as limits_module
from octavo.gateway import limits_store
from octavo.gateway.config_limits import LimitsSection
from octavo.gateway.limits import RateLimits, open_limits
from octavo.gateway.limits_answers import duration
from octavo.gateway.limits_store import MemoryStore
from octavo.gateway.model import Call, KeyInfo

NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "25"))


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def call_of(
    key: str = "k",
    *,
    tenant: str = "",
    tokens: int = 0,
    limits: tuple[str, ...] = (),
    **fields: Any,
) -> Call:
    settings = {
        "request_id": "r", "arrived": 0.0, "route": "chat", "path": "/v1/chat/completions",
        "model": "m", "body": {}, "num_prompt_tokens": tokens, "max_tokens": 0,
    }  # fmt: skip
    info = KeyInfo(key_id=key, tenant=tenant, limits=limits)
    return Call(**{**settings, "key": info, "tenant": tenant, **fields})


def section_of(**rules: dict[str, Any]) -> LimitsSection:
    return msgspec.convert({"rules": rules}, LimitsSection)


def limits_of(clock: Clock | None = None, **rules: dict[str, Any]) -> RateLimits:
    return RateLimits(section_of(**rules), MemoryStore(clock) if clock is not None else None)


async def is_refused(limits: RateLimits, call: Call) -> RateLimitedError:
    with pytest.raises(RateLimitedError) as caught:
        await limits.admit(call)
    assert caught.value.status == 429
    return caught.value


async def test_requests_per_minute_per_key() -> None:
    clock = Clock()
    limits = limits_of(clock, rpm={"requests_per_minute": 3, "burst_s": 60})
    for left in (2, 1, 0):
        permit = await limits.admit(call_of())
        assert permit.headers["x-ratelimit-limit-requests"] == "3"
        assert permit.headers["x-ratelimit-remaining-requests"] == str(left)
        await permit.settle(10)
    assert permit.headers["x-ratelimit-reset-requests"] == "1m0s"
    error = await is_refused(limits, call_of())
    assert error.retry_after_s == 20
    assert error.code == "rate_limit_exceeded"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert "'rpm' of k" in error.message
    assert "3 requests per minute" in error.message
    await limits.admit(call_of("another"))
    clock.now += 20
    await limits.admit(call_of())
    await is_refused(limits, call_of())
    assert limits.num_refused == {"rpm": 2}
    assert limits.num_admitted == 5


async def test_tokens_are_reserved_and_what_is_unused_comes_back() -> None:
    clock = Clock()
    limits = limits_of(clock, tpm={"tokens_per_minute": 600})
    permit = await limits.admit(call_of(tokens=100, max_tokens=200, num_choices=2))
    assert permit.headers["x-ratelimit-remaining-tokens"] == "100"
    assert permit.headers["x-ratelimit-reset-tokens"] == "50s"
    error = await is_refused(limits, call_of(tokens=150))
    assert error.retry_after_s == 5
    await permit.settle(120)
    await permit.settle(0)  # counts once
    permit = await limits.admit(call_of(tokens=480))
    await permit.settle(600)  # more than was reserved
    error = await is_refused(limits, call_of(tokens=1))
    assert error.retry_after_s == 13


async def test_a_call_without_max_tokens_reserves_what_is_assumed() -> None:
    limits = limits_of(tpm={"tokens_per_minute": 1000, "assumed_output_tokens": 900})
    await is_refused(limits, call_of(tokens=101, max_tokens=None))
    await limits.admit(call_of(tokens=101, max_tokens=None, route="embeddings"))
    await is_refused(limits, call_of(tokens=100, max_tokens=None))


async def test_what_never_fits_is_told_so_and_not_to_come_again() -> None:
    limits = limits_of(tpm={"tokens_per_minute": 1000, "queue_s": 100})
    error = await is_refused(limits, call_of(tokens=1001))
    assert "too large" in error.message
    assert error.retry_after_s is None
    assert error.headers["x-should-retry"] == "false"
    assert error.headers["x-ratelimit-remaining-tokens"] == "1000"


async def test_all_limits_count_or_none() -> None:
    limits = limits_of(
        Clock(),
        each={"requests_per_minute": 100},
        all={"requests_per_minute": 1, "per": []},
        large={"tokens_per_minute": 10_000_000, "per": ["tenant", "model"]},
    )
    permit = await limits.admit(call_of(tenant="t"))
    assert permit.headers["x-ratelimit-limit-requests"] == "1"
    assert permit.headers["x-ratelimit-limit-tokens"] == "10000000"
    for _ in range(5):
        await is_refused(limits, call_of(tenant="t"))
    state = {row["limit"]: row for row in await limits.state()}
    assert state["each"]["requests_left"] == 99
    assert state["all"] == {
        "limit": "all", "subject": {}, "requests_per_minute": 1, "requests_left": 0,
    }  # fmt: skip
    assert state["large"]["subject"] == {"tenant": "t", "model": "m"}


async def test_which_limits_hold() -> None:
    limits = limits_of(
        named={"requests_per_minute": 1, "holds_for": "named"},
        patterns={"requests_per_minute": 1, "per": [], "features": ["chat-*"], "models": ["big"]},
    )
    for _ in range(3):
        permit = await limits.admit(call_of(feature="chat-x"))
        assert permit.headers == {}
    await limits.admit(call_of(limits=("named",)))
    await is_refused(limits, call_of(limits=("named",)))
    await limits.admit(call_of(feature="chat-x", model="big"))
    await is_refused(limits, call_of("other", feature="chat-y", model="big"))


async def test_a_key_that_names_a_limit_that_is_not_there_is_told_of(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limits = limits_of(named={"requests_per_minute": 100, "holds_for": "named"})
    for model in "abc":
        await limits.admit(call_of(limits=("named", "gone"), model=model))
    (record,) = caplog.records
    assert record.getMessage() == "key k names limits that are not there: gone"


async def test_concurrency_is_given_back() -> None:
    limits = limits_of(two={"concurrency": 2, "per": ["tenant"]})
    permits = [await limits.admit(call_of(tenant="t")) for _ in range(2)]
    error = await is_refused(limits, call_of(tenant="t"))
    assert error.retry_after_s == 1
    assert "2 requests at a time" in error.message
    await permits[0].settle(5)
    await permits[0].settle(5)
    await limits.admit(call_of(tenant="t"))
    await is_refused(limits, call_of(tenant="t"))


async def test_who_waits_gets_in_when_a_place_is_free_in_fair_order() -> None:
    limits = limits_of(one={"concurrency": 1, "per": [], "queue_s": 5})
    order: list[str] = []

    async def request(tenant: str) -> None:
        permit = await limits.admit(call_of(tenant, tenant=tenant, tokens=10))
        order.append(tenant)
        await asyncio.sleep(0)
        await permit.settle(10)

    first = await limits.admit(call_of("x", tenant="x"))
    tasks = [asyncio.create_task(request("greedy")) for _ in range(20)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(request("modest")) for _ in range(3)]
    await asyncio.sleep(0)
    assert limits.num_waiting == 23
    await first.settle(0)
    await asyncio.gather(*tasks)
    assert sorted(index for index, who in enumerate(order) if who == "modest")[-1] <= 6
    assert limits.num_waiting == 0
    assert limits.num_queued == 23
    assert (await limits.state())[0]["running"] == 0
    await limits.close()


async def test_who_waits_for_one_thing_does_not_keep_others_from_another() -> None:
    limits = limits_of(each={"concurrency": 1, "queue_s": 5}, all={"concurrency": 10, "per": []})
    permit = await limits.admit(call_of("a"))
    waiting = asyncio.create_task(limits.admit(call_of("a")))
    await asyncio.sleep(0.01)
    await limits.admit(call_of("b"))  # shares a limit with who waits, which is not short
    assert not waiting.done()
    await permit.settle(0)
    await waiting


async def test_large_requests_are_not_starved_by_small_ones() -> None:
    limits = limits_of(tpm={"tokens_per_minute": 6000, "burst_s": 1, "per": [], "queue_s": 50})
    await limits.admit(call_of("small", tokens=100))
    large = asyncio.create_task(limits.admit(call_of("large", tokens=100)))
    await asyncio.sleep(0)
    tasks = [asyncio.create_task(limits.admit(call_of("small", tokens=1))) for _ in range(20)]
    await asyncio.sleep(0.02)
    assert not any(task.done() for task in tasks)  # there is room for them, were they let pass
    await asyncio.wait_for(large, 20)
    await asyncio.gather(*tasks)
    await limits.close()


async def test_waiting_ends_with_a_429_and_too_many_may_not_wait() -> None:
    limits = limits_of(
        one={"concurrency": 1, "per": ["tenant"], "queue_s": 0.05, "max_queue_len": 2}
    )
    await limits.admit(call_of(tenant="t"))
    waiting = [asyncio.create_task(limits.admit(call_of(tenant="t"))) for _ in range(2)]
    await asyncio.sleep(0)
    error = await is_refused(limits, call_of(tenant="t"))
    assert "queue" not in error.message
    for task in waiting:
        with pytest.raises(RateLimitedError, match=r"0\.05 s in the queue"):
            await task
    assert limits.num_waiting == 0


async def test_the_bucket_lets_waiting_ones_in_as_it_fills() -> None:
    limits = limits_of(rpm={"requests_per_minute": 1200, "burst_s": 0.05, "queue_s": 5})
    started = asyncio.get_running_loop().time()
    permits = await asyncio.gather(*(limits.admit(call_of()) for _ in range(5)))
    assert asyncio.get_running_loop().time() - started >= 0.19
    for permit in permits:
        await permit.settle(0)


async def test_who_is_cancelled_while_waiting_gives_everything_back() -> None:
    limits = limits_of(one={"concurrency": 1, "requests_per_minute": 10, "queue_s": 5})
    permit = await limits.admit(call_of())
    waiting = [asyncio.create_task(limits.admit(call_of())) for _ in range(3)]
    await asyncio.sleep(0.01)
    waiting[0].cancel()
    await asyncio.sleep(0.01)
    await permit.settle(0)
    # The next one is let in as this runs, and is cancelled before it knows.
    for _ in range(20):
        if limits.num_waiting == 1:
            break
        await asyncio.sleep(0)
    assert limits.num_waiting == 1
    assert not waiting[1].done()
    waiting[1].cancel()
    last = await asyncio.wait_for(waiting[2], 1)
    results = await asyncio.gather(*waiting[:2], return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    state = (await limits.state())[0]
    assert state["running"] == 1
    assert state["requests_left"] == 8
    await last.settle(0)
    await limits.close()


async def test_a_reload_keeps_what_was_counted_and_wakes_who_waits() -> None:
    old = open_limits(section_of(rpm={"requests_per_minute": 10, "concurrency": 1}))
    permit = await old.admit(call_of())
    new = open_limits(
        section_of(rpm={"requests_per_minute": 5, "concurrency": 1, "queue_s": 5}), previous=old
    )
    waiting = asyncio.create_task(new.admit(call_of()))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert (await new.state())[0]["requests_left"] == 4
    await permit.settle(0)
    await old.close()
    await asyncio.wait_for(waiting, 1)
    assert (await new.state())[0]["requests_left"] == 3
    await new.close()


async def test_closing_refuses_who_waits() -> None:
    limits = limits_of(one={"concurrency": 1, "queue_s": 50})
    await limits.admit(call_of())
    waiting = asyncio.create_task(limits.admit(call_of()))
    await asyncio.sleep(0)
    await limits.close()
    with pytest.raises(Exception, match="stops"):
        await waiting


async def test_counters_that_are_as_good_as_new_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits_store, "MAX_IDLE", 500)
    monkeypatch.setattr(limits_module, "MAX_KNOWN", 500)
    clock = Clock()
    store = MemoryStore(clock)
    limits = RateLimits(section_of(rpm={"requests_per_minute": 60}), store)
    held = await limits.admit(call_of("held"))
    for number in range(1100):
        await (await limits.admit(call_of(str(number)))).settle(0)
        clock.now += 1
    assert len(store) <= 1000
    assert len(limits._known) <= 500
    await held.settle(0)
    store.check_integrity()


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(st.data())
def test_no_limit_is_passed_and_every_permit_returns(data: st.DataObject) -> None:
    """Random arrivals, ends and cancellations of tenants, over several limits at once."""
    concurrency = data.draw(st.integers(1, 3))
    rate = data.draw(st.integers(1, 100)) * 60

    async def scenario() -> None:
        clock = Clock()
        limits = limits_of(
            clock,
            each={"concurrency": concurrency, "per": ["tenant"], "queue_s": 100},
            all={"tokens_per_minute": rate, "burst_s": 1, "per": [], "queue_s": 100},
        )
        store = limits.store
        tasks: list[tuple[str, int, asyncio.Task[Any]]] = []
        begun: list[tuple[float, int]] = []
        running: list[tuple[str, int, Any]] = []
        for _ in range(data.draw(st.integers(5, 30))):
            what = data.draw(st.sampled_from(["call", "call", "end", "cancel", "time"]))
            if what == "call":
                tenant = data.draw(st.sampled_from("abc"))
                tokens = data.draw(st.integers(0, rate // 60))
                call = call_of(tenant, tenant=tenant, tokens=tokens)
                tasks.append((tenant, tokens, asyncio.create_task(limits.admit(call))))
            elif what == "end" and running:
                _, tokens, permit = running.pop(data.draw(st.integers(0, len(running) - 1)))
                await permit.settle(tokens)
            elif what == "cancel" and tasks:
                tasks[data.draw(st.integers(0, len(tasks) - 1))][2].cancel()
            else:
                clock.now += data.draw(st.floats(0, 2))
                limits._wake.set()
            for _ in range(data.draw(st.integers(0, 6))):
                await asyncio.sleep(0)
            for entry in list(tasks):
                tenant, tokens, task = entry
                if task.done():
                    tasks.remove(entry)
                    if not task.cancelled():
                        running.append((tenant, tokens, task.result()))
                        begun.append((clock.now, tokens))
            store.check_integrity()
            limits._queue.check_integrity()
            for tenant in "abc":
                assert sum(who == tenant for who, *_ in running) <= concurrency
        for index, (first, _) in enumerate(begun):
            used = 0
            for last, tokens in begun[index:]:
                used += tokens
                # A step sees who was let in at its end.
                assert used <= rate / 60 * (1 + last - first + 2) + 1e-3
        for _, _, task in tasks:
            task.cancel()
        await asyncio.gather(*(task for *_, task in tasks), return_exceptions=True)
        for *_, task in tasks:
            if not task.cancelled():
                await task.result().settle(0)
        for *_, permit in running:
            await permit.settle(0)
        assert limits.num_waiting == 0
        assert all(row.get("running", 0) == 0 for row in await limits.state())
        await limits.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"), (-3, "0s"), (0.0201, "21ms"), (0.02, "20ms"), (1, "1s"), (1.2, "2s"),
        (59.9999, "1m0s"), (360, "6m0s"), (3723, "1h2m3s"),
    ],
)  # fmt: skip
def test_durations_are_written_as_openai_does(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({}, "at least one"),
        ({"requests_per_minute": 1, "burst_s": 1}, "holds less than one"),
        ({"concurrency": 1, "per": ["key", "key"]}, "twice"),
        ({"concurrency": 0}, ">= 1"),
        ({"concurrency": 1, "what": 1}, "what"),
        ({"concurrency": 1, "per": ["colour"]}, "colour"),
    ],
)
def test_limits_that_cannot_be_meant(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        section_of(name=rule)


def test_redis_needs_a_url() -> None:
    section = msgspec.convert({"store": "redis"}, LimitsSection)
    with pytest.raises(ConfigError, match="redis_url"):
        open_limits(section)
