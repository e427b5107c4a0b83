"""What calls become at backends that answer (over sockets)."""

from __future__ import annotations

import asyncio
import logging
from time import perf_counter
from typing import TYPE_CHECKING

import msgspec
import pytest

from octavo.errors import InvalidRequestError, UpstreamError
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.model import PATHS, Target, Tier
from octavo.gateway.secret import Secret
from tests.gateway.dispatching import KEY, Tried, backend, call, collect, dispatching
from tests.gateway.fake_upstream import FakeUpstream

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.gateway.config_backends import Kind


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
