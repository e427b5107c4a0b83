"""What calls become at backends that fail, in every way (over sockets), and when."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from time import perf_counter

import pytest

from octavo.errors import UpstreamError
from octavo.gateway.config_backends import Backend, BreakerRule, Timeouts
from octavo.gateway.model import Tokens
from tests.gateway.dispatching import MODELS, QUICK, Tried, backend, call, collect, dispatching
from tests.gateway.fake_upstream import FakeUpstream

FAULTS = {
    "reset": ("error", None),
    "reset-mid": ("error", 200),
    "close-mid": ("error", 200),
    "garbage": ("error", None),
    "garbage-body": ("error", 200),
    "empty": ("error", 200),
    "redirect": ("error", 302),
    "500": ("error", 500),
    "503": ("error", 503),
    "529": ("error", 529),
    "401": ("error", 401),
    "404": ("error", 404),
    "408": ("timeout", 408),
    "429": ("rate_limited", 429),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_another_target_answers_where_one_fails(fault: str) -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        reply = await tried.open(call(), f"a/{fault}", "a/ok")
        attempt = await reply.close()
        assert [(one.status, one.http_status) for one in tried.failed] == [FAULTS[fault]]
        assert tried.failed[0].model == fault
        assert tried.failed[0].reason
        assert (attempt.number, attempt.upstream_id) == (1, "req-1.1")
        assert [seen.headers["x-request-id"] for seen in fake.seen] == ["req-1", "req-1.1"]
        assert not any("cookie" in seen.headers for seen in fake.seen)


@pytest.mark.parametrize(
    "fault", ["reset", "garbage", "garbage-body", "empty", "stream-error", "500", "429", "hang"]
)
async def test_another_target_streams_where_one_fails_before_its_first_event(fault: str) -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        reply = await tried.open(call(stream=True), f"a/{fault}", "a/ok")
        events = await collect(reply)
        await reply.close()
        assert events[-1] == b"data: [DONE]\n\n"
        assert len(tried.failed) == 1
        await fake.idle(1)


@pytest.mark.parametrize("fault", ["hang", "hang-mid"])
async def test_a_backend_that_hangs_is_given_up_in_time(fault: str) -> None:
    hurry = Timeouts(connect=0.1, first_token=0.1, idle=0.1, total=0.2)
    async with FakeUpstream() as fake, dispatching(a=backend(fake, timeouts=hurry)) as dispatcher:
        tried = Tried(dispatcher)
        begin = perf_counter()
        with pytest.raises(UpstreamError) as caught:
            await tried.open(call(), f"a/{fault}")
        assert 0.15 < perf_counter() - begin < 1.5
        assert caught.value.status == 504
        assert not caught.value.may_retry
        assert tried.failed[0].status == "timeout"
        assert tried.failed[0].tokens == Tokens()  # no price is known for that model
        await fake.idle()
        assert fake.num_cancelled == 1


@pytest.mark.parametrize("fault", ["hang-mid", "reset-mid", "close-mid"])
async def test_a_stream_that_breaks_off_is_the_clients_to_see(fault: str) -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        reply = await tried.open(call(stream=True), f"a/{fault}", "a/ok")
        events: list[bytes] = []
        begin = perf_counter()
        with pytest.raises(UpstreamError) as caught:
            events.extend([event async for event in reply.events()])
        assert perf_counter() - begin < 2.0
        assert not caught.value.may_retry
        attempt = await reply.close()
        assert attempt.status == ("timeout" if fault == "hang-mid" else "error")
        assert attempt.tokens.input == 9  # an estimate: the usage never came
        assert 2 <= attempt.tokens.output <= 6
        assert tried.failed == []
        await fake.idle()


async def test_comments_are_no_first_token() -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        begin = perf_counter()
        reply = await tried.open(call(stream=True), "a/comments", "a/ok")
        assert 0.35 < perf_counter() - begin < 2.0
        assert tried.failed[0].status == "timeout"
        assert tried.failed[0].ttft_ns is None
        await collect(reply)
        await reply.close()
        await fake.idle(1)


async def test_a_stream_whose_last_event_is_here_need_not_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("octavo.gateway.exchange.AFTER_END_S", 0.05)
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses"):
            reply = await Tried(dispatcher).open(call(path, stream=True), "a/no-end")
            begin = perf_counter()
            await collect(reply)
            assert perf_counter() - begin < 0.8
            attempt = await reply.close()
            assert (attempt.status, attempt.tokens.output) == ("ok", 5)
        await fake.idle()


async def test_a_storm_of_faults_leaves_nothing_behind() -> None:
    """Each call ends once, in an answer or an error, whatever fails and whoever leaves."""
    chance = random.Random(7)
    hurry = Timeouts(connect=0.2, first_token=0.05, idle=0.05, total=0.1)
    lenient = BreakerRule(failures=10_000)
    faults = [*FAULTS, "hang", "hang-mid", "ok", "ok", "stream-error", "comments", "400", "slow"]
    async with FakeUpstream(retry_after="0", delay_s=0.004) as fake, FakeUpstream() as other:
        one = backend(fake, timeouts=hurry, breaker=lenient, max_connections=20)
        two = backend(other, timeouts=hurry, breaker=lenient, max_connections=20)
        async with dispatching(a=one, b=two) as dispatcher:
            ended: list[str] = []

            async def ask(number: int) -> None:
                tried = Tried(dispatcher)
                targets = [f"{chance.choice('ab')}/{chance.choice(faults)}" for _ in range(3)]
                asked = call(stream=chance.random() < 0.5, request_id=f"r{number}")
                status = "ok"
                try:
                    reply = await tried.open(asked, *targets, within_s=0.3)
                except (UpstreamError, asyncio.CancelledError) as error:
                    ended.append(type(error).__name__)
                    assert [one.number for one in tried.failed] == list(range(len(tried.failed)))
                    return
                try:
                    if reply.is_stream:
                        await collect(reply)
                except UpstreamError:
                    pass
                except asyncio.CancelledError:
                    status = "client_left"
                attempt = await reply.close(status=status)
                assert attempt.number == len(tried.failed)
                ended.append(attempt.status)

            tasks = [asyncio.create_task(ask(number)) for number in range(150)]
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.003)
                chance.choice(tasks).cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            num_unborn = sum(task.cancelled() for task in tasks)
            assert len(ended) + num_unborn == 150
            assert {"ok", "UpstreamError", "CancelledError", "refused"} <= set(ended)
            for way in dispatcher.upstreams.values():
                assert way.num_open == way.num_idle <= 20
                assert not way._waiters
        await fake.idle()
        await other.idle()


async def test_a_slow_stream_is_no_fault() -> None:
    fake = FakeUpstream(delay_s=0.1)
    hurry = Timeouts(connect=0.3, first_token=1.0, idle=0.45, total=5.0)
    async with fake, dispatching(a=backend(fake, timeouts=hurry)) as dispatcher:
        reply = await Tried(dispatcher).open(call(stream=True), "a/slow")
        assert len(await collect(reply)) == 7
        assert (await reply.close()).status == "ok"


async def test_the_callers_fault_is_passed_on() -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        for stream in (False, True):
            tried = Tried(dispatcher)
            reply = await tried.open(call(stream=stream), "a/400", "a/ok")
            assert reply.status == 400
            assert not reply.is_stream
            assert b"the fake answers 400" in await reply.read()
            attempt = await reply.close()
            assert attempt.status == "refused"
            assert attempt.reason == "the fake answers 400"
            assert attempt.cost_nano == 0
            assert tried.failed == []


async def test_nobody_listens() -> None:
    fake = FakeUpstream()
    await fake.up()
    await fake.down()
    async with dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        with pytest.raises(UpstreamError, match="backend a cannot be connected to") as caught:
            await tried.open(call(), "a/ok")
        assert caught.value.status == 502
        assert str(fake.port) not in caught.value.message


async def test_a_connection_that_is_not_accepted_is_given_up_in_time() -> None:
    # 192.0.2.0/24 is for documentation: nobody is there, and nobody says so (RFC 5737)
    section = Backend(url="http://192.0.2.1:9", timeouts=QUICK, models=MODELS)
    async with dispatching(a=section) as dispatcher:
        begin = perf_counter()
        with pytest.raises(UpstreamError, match="cannot be connected to") as caught:
            await Tried(dispatcher).open(call(), "a/ok")
        assert perf_counter() - begin < 2.0
        assert caught.value.status in (502, 504)


async def test_a_backend_that_dies_and_returns() -> None:
    rule = BreakerRule(failures=3, window=10, open=0.2, max_open=0.2)
    async with FakeUpstream() as fake, dispatching(a=backend(fake, breaker=rule)) as dispatcher:
        tried = Tried(dispatcher)
        await (await tried.open(call(), "a/ok")).close()
        await fake.down()
        for _ in range(3):
            with pytest.raises(UpstreamError, match="cannot be connected to"):
                await tried.open(call(), "a/ok")
        assert dispatcher.health.breaker_state("a") == "open"
        begin = perf_counter()
        with pytest.raises(UpstreamError) as caught:
            await tried.open(call(), "a/ok")
        assert perf_counter() - begin < 0.3  # it is not even tried
        assert (caught.value.status, caught.value.code) == (503, "no_backend")
        assert caught.value.retry_after_s == 1
        assert len(tried.failed) == 3
        await fake.up()
        await asyncio.sleep(0.25)
        assert dispatcher.health.breaker_state("a") == "half_open"
        reply = await tried.open(call(), "a/ok")
        assert dispatcher.health.breaker_state("a") == "closed"
        await reply.close()


async def test_failures_open_the_breaker_and_the_callers_do_not() -> None:
    rule = BreakerRule(failures=3, window=10, open=30)
    for does, state in (("500", "open"), ("400", "closed"), ("404", "closed"), ("429", "closed")):
        async with FakeUpstream() as fake, dispatching(a=backend(fake, breaker=rule)) as dispatcher:
            for _ in range(4):
                try:
                    await (await Tried(dispatcher).open(call(), f"a/{does}")).close()
                except UpstreamError as error:
                    assert error.status in (502, 503)  # noqa: PT017
            assert dispatcher.health.breaker_state("a") == state, does


async def test_a_backend_that_limits_us_is_left_alone() -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        for _ in range(2):
            with pytest.raises(UpstreamError) as caught:
                await Tried(dispatcher).open(call(), "a/429:x")
            assert caught.value.status == 503
            assert caught.value.retry_after_s == 7
        assert len(fake.seen) == 1
        await (await Tried(dispatcher).open(call(), "a/ok")).close()  # the other model's limit


async def test_a_caller_in_a_hurry_is_no_fault_of_the_backend() -> None:
    rule = BreakerRule(failures=1, window=10, open=30)
    async with FakeUpstream() as fake, dispatching(a=backend(fake, breaker=rule)) as dispatcher:
        tried = Tried(dispatcher)
        with pytest.raises(UpstreamError) as caught:
            await tried.open(call(), "a/hang", "a/ok", within_s=0.1)
        assert caught.value.status == 504
        assert [one.model for one in tried.failed] == ["hang"]
        assert dispatcher.health.breaker_state("a") == "closed"


async def test_a_client_that_leaves_cancels_at_the_backend() -> None:
    fake = FakeUpstream(delay_s=0.05)
    async with fake, dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        opening = asyncio.create_task(tried.open(call(), "a/hang"))
        await asyncio.sleep(0.05)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        assert tried.failed[0].status == "client_left"
        await fake.idle()
        reply = await tried.open(call(stream=True), "a/slow")
        async for _ in reply.events():
            break
        attempt = await reply.close(status="client_left")
        assert attempt.status == "client_left"
        assert attempt.tokens.output >= 1
        await fake.idle()
        assert fake.num_cancelled == 2
        assert dispatcher.upstreams["a"].num_open == 0


async def test_a_body_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.gateway.exchange.MAX_ANSWER_BYTES", 1_000_000)
    monkeypatch.setattr("octavo.gateway.sse_events.MAX_EVENT_BYTES", 1_000_000)
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        for stream in (False, True):
            with pytest.raises(UpstreamError, match=r"more than 1000000 bytes|no end"):
                await Tried(dispatcher).open(call(stream=stream), "a/large")
        await fake.idle()


PAGE = (Path(__file__).parents[2] / "docs" / "gateway-backends.md").read_text(encoding="utf-8")
TOLD = {
    "reset": (502, "upstream_broken"),
    "close-mid": (502, "upstream_broken"),
    "garbage": (502, "upstream_garbage"),
    "garbage-body": (502, "upstream_garbage"),
    "redirect": (502, "upstream_error"),
    "500": (502, "upstream_error"),
    "408": (504, "upstream_timeout"),
    "504": (504, "upstream_timeout"),
    "403": (502, "upstream_key_refused"),
    "404": (502, "upstream_error"),
    "429": (503, "upstream_rate_limited"),
    "503": (503, "upstream_busy"),
    "hang": (504, "upstream_timeout"),
}


@pytest.mark.parametrize("fault", TOLD)
async def test_what_the_client_is_told_where_none_is_left(fault: str) -> None:
    hurry = Timeouts(connect=0.3, first_token=0.1, idle=0.1, total=0.1)
    async with FakeUpstream() as fake, dispatching(a=backend(fake, timeouts=hurry)) as dispatcher:
        with pytest.raises(UpstreamError) as caught:
            await Tried(dispatcher).open(call(), f"a/{fault}")
        error = caught.value
        assert (error.status, error.code) == TOLD[fault]
        assert error.retry_after_s == (7 if error.status == 503 else None)
        assert not error.may_retry
        assert "\n" not in error.message
        assert f"{error.status} `{error.code}`" in PAGE
