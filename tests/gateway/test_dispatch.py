"""What calls become at backends that answer, and at those that fail in every way (over sockets)."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.errors import InvalidRequestError, UpstreamError
from octavo.gateway.config_backends import (
    Backend,
    BreakerRule,
    Kind,
    ModelInfo,
    PriceSection,
    Probe,
    Timeouts,
)
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.model import PATHS, Attempt, Call, KeyInfo, Target, Tier, Tokens
from octavo.gateway.secret import Secret
from tests.gateway.fake_upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from octavo.gateway.reply import BackendReply

KEY = "sk-proj-0123456789abcdefghij"
QUICK = Timeouts(connect=0.3, first_token=0.3, idle=0.3, total=5.0)
MODELS = {"ok": ModelInfo(price=msgspec.convert({"input": "1", "output": "3"}, PriceSection))}


def backend(fake: FakeUpstream, *, kind: Kind = "openai", **more: Any) -> Backend:
    """A section for a fake, in a hurry."""
    given = {"timeouts": QUICK, "probe": Probe(interval=0), "models": MODELS} | more
    return Backend(url=fake.url, kind=kind, **given)


def call(
    path: str = "/v1/chat/completions", *, stream: bool = False, body: Any = None, **more: Any
) -> Call:
    """A call as it arrives."""
    made = {"model": "alias", "messages": [{"role": "user", "content": "Hello"}]}
    made |= {"stream": True} if stream else {}
    given = {"request_id": "req-1", "num_prompt_tokens": 9, "key": KeyInfo(key_id="k1")} | more
    return Call(
        arrived=perf_counter(),
        route=PATHS[path],
        path=path,
        model="alias",
        stream=stream,
        body=made | (body or {}),
        **given,
    )


@asynccontextmanager
async def dispatching(**backends: Backend) -> AsyncIterator[Dispatcher]:
    """A dispatcher that leaves no connection behind."""
    dispatcher = Dispatcher(backends)
    try:
        yield dispatcher
        assert all(state.num_ours == 0 for state in dispatcher.health.states.values())
    finally:
        await dispatcher.close()


class Tried:
    """One `open`, and what failed before."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.failed: list[Attempt] = []

    async def open(self, asked: Call, *targets: str, within_s: float = 5.0) -> BackendReply:
        """Ask targets, written `backend/model`."""
        made = tuple(Target(*target.split("/")) for target in targets)
        return await self._dispatcher.open(
            asked,
            Tier(name="tier", targets=made),
            msgspec.json.encode(asked.body),
            deadline=perf_counter() + within_s,
            failed=self.failed.append,
            number=len(self.failed),
        )


async def collect(reply: BackendReply) -> list[bytes]:
    """All events of a stream."""
    return [event async for event in reply.events()]


@pytest.mark.parametrize("path", PATHS)
async def test_an_answer_of_each_route(path: str) -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        reply = await Tried(dispatcher).open(call(path), "a/ok")
        body = msgspec.json.decode(await reply.read())
        attempt = await reply.close()
        assert reply.status == 200
        assert body["model"] == "ok"
        assert fake.seen[0].path == path
        assert fake.seen[0].model == "ok"
        has_output = path.endswith(("completions", "messages", "responses"))
        assert attempt.tokens.input == 20
        assert attempt.tokens.output == (5 if has_output else 0)
        assert attempt.status == "ok"
        assert attempt.http_status == 200
        assert attempt.cost_nano == 20_000 + 3000 * attempt.tokens.output
        assert attempt == await reply.close()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("kind", ["octavo", "openai"])
async def test_a_stream_of_each_route(path: str, kind: Kind) -> None:
    fake = FakeUpstream(is_octavo=True)
    async with fake, dispatching(a=backend(fake, kind=kind)) as dispatcher:
        reply = await Tried(dispatcher).open(call(path, stream=True), "a/ok")
        text = b"".join(await collect(reply)).decode()
        assert reply.content_type == "text/event-stream"
        attempt = await reply.close()
        assert attempt.tokens.input == 20
        assert attempt.tokens.cached == 8
        assert attempt.tokens.output == 5
        # Time and money are told by our own engines; another's word on it counts for nothing
        is_ours = kind == "octavo"
        assert attempt.tokens.device_ns == (12_345_678 if is_ours else None)
        assert attempt.tokens.cost_nano == (8573 if is_ours else None)
        assert attempt.ttft_ns is not None
        assert 0 < attempt.ttft_ns < attempt.e2e_ns
        assert "usage" not in text or "chat" not in path
        assert reply.finish_reason in ("stop", "end_turn", "completed")
        await fake.idle(1)
        assert dispatcher.upstreams["a"].num_idle == 1


async def test_usage_is_passed_on_where_the_client_asked() -> None:
    asked = call(stream=True, body={"stream_options": {"include_usage": True}})
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        reply = await Tried(dispatcher).open(asked, "a/ok")
        events = await collect(reply)
        await reply.close()
        assert b'"prompt_tokens": 20' in events[-2]
        assert b'"usage": null' in events[0]
        assert events[-1] == b"data: [DONE]\n\n"


async def test_what_a_backend_gets_of_who_asks() -> None:
    asked = call(
        body={"metadata": {"tenant": "evil", "x": "1"}, "cache_salt": "mine"},
        feature="chat",
        tenant="acme",
        session_id="s1",
        tags={"team": "blau", "Öl": "no header's name", "note": "a\r\nX-Evil: 1"},
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        headers={"cookie": "c", "authorization": "Bearer client", "baggage": "tenant=evil"},
    )
    async with FakeUpstream(requires_key=KEY) as fake:
        ours = backend(fake, kind="octavo", api_key=Secret(KEY))
        cloud = backend(fake, api_key=Secret(KEY), headers={"X-Org": Secret("org-1")})
        async with dispatching(ours=ours, cloud=cloud) as dispatcher:
            tried = Tried(dispatcher)
            for target in ("ours/ok", "cloud/ok"):
                await (await tried.open(asked, target)).close()
        engine, provider = fake.seen
    for seen in fake.seen:
        assert seen.headers["authorization"] == f"Bearer {KEY}"
        assert seen.headers["x-request-id"] == "req-1"
        assert seen.headers["traceparent"] == asked.traceparent
        assert seen.headers["accept-encoding"] == "identity"
        assert not {"cookie", "baggage", "x-evil"} & set(seen.headers)
        assert len(seen.headers) == len(seen.raw_headers)  # no name twice
    assert engine.headers["x-octavo-feature"] == "chat"
    assert engine.headers["x-octavo-tenant"] == "acme"
    assert engine.headers["x-octavo-session"] == "s1"
    assert engine.headers["x-octavo-tag-team"] == "blau"
    assert engine.headers["x-octavo-parent-request"] == "req-1"
    assert engine.headers["x-octavo-include-cost"] == "1"
    assert engine.body["metadata"] == {"x": "1"}
    assert len(engine.body["cache_salt"]) == 64
    assert not [name for name in provider.headers if name.startswith("x-octavo")]
    assert provider.headers["x-org"] == "org-1"
    assert "cache_salt" not in provider.body
    assert "acme" not in str(provider)


async def test_tenants_have_salts_of_their_own() -> None:
    async with FakeUpstream() as fake:
        async with dispatching(a=backend(fake, kind="vllm")) as dispatcher:
            tried = Tried(dispatcher)
            for tenant, salt in (("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", None)):
                body = {} if salt is None else {"cache_salt": salt}
                await (await tried.open(call(tenant=tenant, body=body), "a/ok")).close()
        salts = [seen.body["cache_salt"] for seen in fake.seen]
        assert salts[0] == salts[2]
        assert len(set(salts)) == 4


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
        assert 0.15 < perf_counter() - begin < 0.5
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
        assert perf_counter() - begin < 1.0
        assert not caught.value.may_retry
        attempt = await reply.close()
        assert attempt.status == ("timeout" if fault == "hang-mid" else "error")
        assert attempt.tokens.input == 9  # an estimate: the usage never came
        assert 2 <= attempt.tokens.output <= 6
        assert tried.failed == []
        await fake.idle()


async def test_a_slow_stream_is_no_fault() -> None:
    fake = FakeUpstream(delay_s=0.1)
    hurry = Timeouts(connect=0.3, first_token=0.3, idle=0.25, total=5.0)
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
        assert perf_counter() - begin < 1.0
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
        assert perf_counter() - begin < 0.1  # it is not even tried
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


async def test_a_stale_connection_is_replaced() -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        tried = Tried(dispatcher)
        await (await tried.open(call(), "a/ok")).close()
        connection = dispatcher.upstreams["a"]._idle[0]
        await fake.down()
        connection.is_reusable = True
        await fake.up()
        await (await tried.open(call(), "a/ok")).close()
        assert tried.failed == []
        assert fake.num_connections == 2


async def test_connections_are_bounded_and_waited_for() -> None:
    fake = FakeUpstream(delay_s=0.05)
    async with fake, dispatching(a=backend(fake, max_connections=2)) as dispatcher:
        tried = Tried(dispatcher)

        async def one() -> None:
            await (await tried.open(call(), "a/slow")).close()

        await asyncio.gather(*(one() for _ in range(6)))
        assert fake.num_connections == 2
        held = [await tried.open(call(stream=True), "a/slow") for _ in range(2)]
        with pytest.raises(UpstreamError, match="no free connection") as caught:
            await tried.open(call(), "a/ok")
        assert caught.value.status == 503
        for reply in held:
            await reply.close(status="client_left")
        await one()


async def test_a_new_configuration_keeps_what_is_the_same() -> None:
    async with FakeUpstream() as fake, FakeUpstream() as other:
        old = Dispatcher({"a": backend(fake), "b": backend(other)})
        tried = Tried(old)
        for target in ("a/ok", "b/ok"):
            await (await tried.open(call(), target)).close()
        stream = await tried.open(call(stream=True), "b/ok")
        old.health.states["a"].is_well = False
        changed = {"a": backend(fake), "b": backend(other, max_connections=7)}
        unused, new = Dispatcher(changed, before=old), Dispatcher(changed, before=old)
        await unused.close()  # a configuration that was refused after all takes nothing with it
        assert new.upstreams["a"] is old.upstreams["a"]
        assert new.upstreams["b"] is not old.upstreams["b"]
        assert not new.health.states["a"].is_well
        new.health.states["a"].is_well = True
        await old.close()
        assert len(await collect(stream)) == 7  # it began under the old one
        await stream.close()
        await other.idle()
        await (await Tried(new).open(call(), "a/ok")).close()
        assert fake.num_connections == 1
        await new.close()
        await fake.idle()


async def test_over_a_unix_socket(tmp_path: Path) -> None:
    fake = FakeUpstream(socket_path=str(tmp_path / "s"))
    async with fake, dispatching(a=backend(fake)) as dispatcher:
        await (await Tried(dispatcher).open(call(), "a/ok")).close()
        assert fake.seen[0].headers["host"] == "localhost"


async def test_a_body_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.gateway.exchange.MAX_ANSWER_BYTES", 1_000_000)
    monkeypatch.setattr("octavo.gateway.sse_events.MAX_EVENT_BYTES", 1_000_000)
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        for stream in (False, True):
            with pytest.raises(UpstreamError, match=r"more than 1000000 bytes|no end"):
                await Tried(dispatcher).open(call(stream=stream), "a/large")
        await fake.idle()


async def test_what_is_no_json_object_is_refused() -> None:
    async with FakeUpstream() as fake, dispatching(a=backend(fake)) as dispatcher:
        tier = Tier(name="t", targets=(Target("a", "ok"),))
        for body in (b"[1]", b'{"a":', b"", b'{"stream_options":3}'):
            with pytest.raises(InvalidRequestError):
                await dispatcher.open(
                    call(stream=True), tier, body, deadline=perf_counter() + 1, failed=list
                )
        assert fake.seen == []


async def test_keys_are_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with FakeUpstream(requires_key="another", adds_to_errors=f": {KEY}") as fake:
        hidden = {"X-Other": Secret("hidden-header")}
        section = backend(fake, api_key=Secret(KEY), headers=hidden)
        async with dispatching(a=section) as dispatcher:
            tried = Tried(dispatcher)
            with pytest.raises(UpstreamError, match="refuses the gateway's key with 401") as caught:
                await tried.open(call(), "a/ok")
            fake.requires_key = KEY
            with pytest.raises(UpstreamError, match="the fake answers 500") as broken:
                await tried.open(call(), "a/500")
            with pytest.raises(UpstreamError):
                await tried.open(call(stream=True), "a/stream-error")
            refused = await (await tried.open(call(), "a/400")).close()
            await fake.down()
            with pytest.raises(UpstreamError):
                await tried.open(call(), "a/ok")
        shown = (
            f"{caught.value!r} {broken.value!r} {tried.failed} {refused} {section!r} {hidden} "
            f"{dispatcher.upstreams!r} {vars(dispatcher)} {caplog.text}"
        )
        assert "cannot be connected to" in caplog.text
        for secret in (KEY, "hidden-header", "0123456789"):
            assert secret not in shown
