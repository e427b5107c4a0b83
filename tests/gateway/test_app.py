"""The gateway from end to end: a real server, real sockets, a backend that fails on command."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from octavo.gateway.model import PATHS
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import QUICK, Counted, Running, running

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

KEY = "a-key-of-the-tests-0123456789"
AUTH = {"Authorization": f"Bearer {KEY}"}
MODELS = (
    "ok", "slow", "hang", "hang-mid", "reset", "reset-mid", "close-mid", "garbage",
    "garbage-body", "empty", "stream-error", "500", "429", "400",
)  # fmt: skip

BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
    "completions": {"prompt": "Hello", "max_tokens": 9},
    "messages": {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 9},
    "responses": {"input": "Hello", "max_output_tokens": 9},
    "embeddings": {"input": "Hello"},
    "score": {"text_1": "Hello", "text_2": "Bye"},
    "rerank": {"query": "Hello", "documents": ["Bye"]},
}
STREAMED = ("chat", "completions", "messages", "responses")


def config(fake: FakeUpstream, more: str = "", key: str = "", server: str = "{}") -> str:
    models = ", ".join(f'"{m}": {{price: {{input: 1, output: 3}}}}' for m in MODELS)
    quick = QUICK
    return f"""
server: {server}
keys:
  inline:
    - {{id: k1, key: {KEY}, tenant: acme{", " if key else ""}{key}}}
backends:
  fake:
    url: {fake.url}
    models: {{{models}}}
{quick}
{more}
"""


@asynccontextmanager
async def both(folder: Path, **more: Any) -> AsyncIterator[tuple[FakeUpstream, Running]]:
    async with FakeUpstream() as fake, running(folder, config(fake, **more)) as gateway:
        gateway.client.headers.update(AUTH)
        yield fake, gateway


async def settled(gateway: Running, counted: Counted, num: int = 1) -> None:
    await gateway.idle()
    counted.check(num)


@pytest.mark.parametrize(("path", "route"), PATHS.items())
async def test_every_route_is_forwarded_and_accounted_for(
    tmp_path: Path, path: str, route: str
) -> None:
    async with both(tmp_path) as (fake, gateway):
        counted = gateway.counted()
        answer = await gateway.client.post(path, json={"model": "ok"} | BODIES[route])
        assert answer.status_code == 200, answer.text
        assert fake.seen[-1].path == path
        assert answer.headers["x-octavo-target"] == "fake/ok"
        await settled(gateway, counted)
        (attempt,) = counted.all_attempts
        assert (attempt.status, attempt.tokens.input) == ("ok", 20)
        assert counted.permits == [attempt.tokens.input + attempt.tokens.output]
        (used,) = counted.reservations
        assert used is not None
        assert used.cost_nano == attempt.cost_nano > 0
        assert counted.order == ["permit", "reservation", "records"]


@pytest.mark.parametrize("route", STREAMED)
async def test_a_stream_is_passed_on_as_it_came(tmp_path: Path, route: str) -> None:
    path = next(path for path, name in PATHS.items() if name == route)
    body = {"model": "ok", "stream": True} | BODIES[route]
    if route in ("chat", "completions"):
        body["stream_options"] = {"include_usage": True}
    async with both(tmp_path) as (fake, gateway):
        counted = gateway.counted()
        answer = await gateway.client.post(path, json=body)
        direct = await gateway.client.post(fake.url + path, json=fake.seen[-1].body)
        assert answer.content == direct.content
        assert answer.headers["content-type"].startswith("text/event-stream")
        await settled(gateway, counted)
        assert counted.all_attempts[0].status == "ok"
        assert counted.all_attempts[0].tokens.output == 5
        assert counted.all_attempts[0].ttft_ns is not None


FAULTS = {
    "500": (502, "error"), "429": (503, "rate_limited"), "reset": (502, "error"),
    "hang": (504, "timeout"), "garbage": (502, "error"), "garbage-body": (502, "error"),
    "empty": (502, "error"), "400": (400, "refused"), "reset-mid": (502, "error"),
    "close-mid": (502, "error"), "hang-mid": (504, "timeout"),
}  # fmt: skip


@pytest.mark.parametrize("model", FAULTS)
async def test_what_fails_before_an_answer_is_an_error_and_on_record(
    tmp_path: Path, model: str
) -> None:
    status, ended = FAULTS[model]
    async with both(tmp_path) as (_, gateway):
        counted = gateway.counted()
        answer = await gateway.chat(model, max_tokens=5)
        assert answer.status_code == status, answer.text
        assert answer.json()["error"]["message"]
        await settled(gateway, counted)
        assert counted.all_attempts[0].status == ended


@pytest.mark.parametrize("route", STREAMED)
@pytest.mark.parametrize("model", ["reset-mid", "hang-mid", "close-mid"])
async def test_a_stream_that_breaks_ends_with_an_error_event(
    tmp_path: Path, route: str, model: str
) -> None:
    path = next(path for path, name in PATHS.items() if name == route)
    async with both(tmp_path) as (_, gateway):
        counted = gateway.counted()
        body = {"model": model, "stream": True} | BODIES[route]
        answer = await gateway.client.post(path, json=body)
        assert answer.status_code == 200
        events = [line for line in answer.text.split("\n\n") if line]
        if route in ("chat", "completions"):
            assert events.pop() == "data: [DONE]"
        assert "error" in events[-1]
        await settled(gateway, counted)
        assert counted.all_attempts[0].status == ("timeout" if model == "hang-mid" else "error")
        assert counted.all_attempts[0].tokens.output > 0


@pytest.mark.parametrize(("model", "stream"), [("hang", False), ("hang", True), ("slow", True)])
async def test_a_client_that_goes_ends_its_request_at_the_backend(
    tmp_path: Path, model: str, stream: bool
) -> None:
    async with both(tmp_path) as (fake, gateway):
        fake.delay_s = 5.0 if model == "slow" else 0.0
        counted = gateway.counted()
        with pytest.raises(httpx.ReadTimeout):
            await gateway.client.post(
                "/v1/chat/completions",
                json={"model": model, "stream": stream, "messages": [], "max_tokens": 5},
                timeout=0.2,
            )
        await settled(gateway, counted)
        assert counted.all_attempts[0].status == "client_left"
        await fake.idle()
        assert fake.num_cancelled == 1
        assert gateway.gateway.parts.num_open == gateway.gateway.metrics.num_open == 0


async def test_a_client_that_goes_in_the_midst_of_a_stream_pays_for_what_it_got(
    tmp_path: Path,
) -> None:
    async with both(tmp_path) as (fake, gateway):
        fake.delay_s = 0.05
        counted = gateway.counted()
        body = {"model": "slow", "stream": True, "messages": [], "max_tokens": 5}
        async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                break
        await settled(gateway, counted)
        (attempt,) = counted.all_attempts
        assert attempt.status == "client_left"
        assert attempt.tokens.output > 0
        assert counted.reservations[0].cost_nano == attempt.cost_nano > 0  # type: ignore[union-attr]
        await fake.idle()
        assert fake.num_cancelled == 1


async def unread(gateway: Running, model: str) -> asyncio.StreamWriter:
    """A stream whose client reads nothing of it."""
    _, writer = await asyncio.open_connection(
        gateway.client.base_url.host, gateway.client.base_url.port, limit=1024
    )
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    body = json.dumps({"model": model, "stream": True, "messages": [], "max_tokens": 10**6})
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return writer


async def test_a_client_that_reads_nothing_does_not_hold_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("octavo.gateway.relay.SEND_S", 0.3)
    async with both(tmp_path) as (fake, gateway):
        counted = gateway.counted()
        fake.answer.tokens = ("x" * 65_536,) * 400
        writer = await unread(gateway, "ok")
        while not fake.seen:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await settled(gateway, counted)
        (attempt,) = counted.all_attempts
        assert attempt.status == "client_left"
        assert "reads nothing" in attempt.reason
        writer.transport.abort()


async def test_a_drain_leaves_nobody_unrecorded(tmp_path: Path) -> None:
    """Neither who waits for an answer, nor who reads nothing of a stream."""
    async with both(tmp_path) as (fake, gateway):
        counted = gateway.counted()
        fake.answer.tokens = ("x" * 65_536,) * 400
        writer = await unread(gateway, "ok")
        waiting = asyncio.ensure_future(gateway.chat("hang", max_tokens=5))
        while len(fake.seen) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        at_once: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        at_once.set_result(2)
        await gateway.gateway.drain(at_once)
        assert (await waiting).status_code == 503
        await gateway.gateway.stop()
        counted.check(2)
        writer.transport.abort()


@pytest.mark.parametrize("failing", ["permit", "reservation"])
async def test_what_fails_at_the_end_does_not_keep_the_rest_from_ending(
    tmp_path: Path, failing: str
) -> None:
    async with both(tmp_path) as (_, gateway):
        counted = gateway.counted()
        counted.failing = {failing}
        assert (await gateway.chat(max_tokens=5)).status_code == 200
        await settled(gateway, counted)
        assert counted.order == ["permit", "reservation", "records"]


async def test_two_hundred_at_once_end_once_each(tmp_path: Path) -> None:
    async with both(tmp_path) as (fake, gateway):
        counted = gateway.counted()
        fake.delay_s = 0.001
        names = ["ok", "slow", "500", "reset", "reset-mid", "garbage", "400", "ok"] * 25
        await asyncio.gather(
            *(
                gateway.chat(name, max_tokens=5, stream=index % 2 == 0)
                for index, name in enumerate(names)
            )
        )
        await settled(gateway, counted, 200)
        assert len(counted.all_attempts) == 200
        gateway.gateway.parts.dispatcher.health.states["fake"].num_ours = 0


@pytest.mark.parametrize("route", STREAMED)
async def test_a_stream_at_its_ceiling_is_cut_and_says_so(tmp_path: Path, route: str) -> None:
    path = next(path for path, name in PATHS.items() if name == route)
    async with both(tmp_path) as (fake, gateway):
        fake.delay_s = 0.001
        fake.answer.tokens = tuple(f" {number}" for number in range(200))
        counted = gateway.counted()
        body = {"model": "slow", "stream": True} | BODIES[route]  # which asks for 9 tokens
        text = (await gateway.client.post(path, json=body)).text
        assert "budget" in text
        assert " 199" not in text
        values = [
            json.loads(line.removeprefix("data: "))
            for line in text.splitlines()
            if line.startswith("data: {")
        ]
        if route in ("chat", "completions"):
            assert text.endswith("data: [DONE]\n\n")
            assert values[-1]["choices"][0]["finish_reason"] == "budget"
            assert values[-1]["id"] == values[0]["id"]
        elif route == "messages":
            assert [value["type"] for value in values[-3:]] == [
                "content_block_stop", "message_delta", "message_stop",
            ]  # fmt: skip
            assert values[-2]["delta"]["stop_reason"] == "budget"
        else:
            assert values[-1]["type"] == "response.incomplete"
            assert values[-1]["response"]["incomplete_details"] == {"reason": "budget"}
            assert values[-1]["response"]["id"] == values[0]["response"]["id"]
        await settled(gateway, counted)
        (attempt,) = counted.all_attempts
        assert attempt.status == "over_budget"
        assert attempt.cost_nano > 0
        await fake.idle()
        assert fake.num_cancelled == 1


async def test_a_stream_without_a_bound_costs_what_is_left_at_the_most(tmp_path: Path) -> None:
    async with FakeUpstream() as fake:
        text = config(fake).replace("{price: {", "{context_length: 80, price: {")
        async with running(tmp_path, text) as gateway:
            fake.answer.tokens = tuple(f" {number}" for number in range(500))
            counted = gateway.counted()
            answer = await gateway.chat("slow", stream=True, headers=AUTH)
            assert '"finish_reason":"budget"' in answer.text
            assert answer.text.count("data: ") < 80
            await settled(gateway, counted)
            assert counted.all_attempts[0].cost_nano <= counted.worst[0].cost_nano


BUDGET = """
budgets: {rules: {small: {cost: 0.001, period: total}}}
"""


async def test_an_unknown_cost_is_refused_where_a_budget_holds(tmp_path: Path) -> None:
    async with both(tmp_path, more=BUDGET) as (fake, gateway):
        answer = await gateway.chat()  # nothing bounds the answer
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "price_unknown")
        assert not fake.seen
        assert (await gateway.chat(max_tokens=5)).status_code == 200


async def test_a_budget_is_never_overspent_and_little_of_it_is_left(tmp_path: Path) -> None:
    async with both(tmp_path, more=BUDGET) as (fake, gateway):
        fake.answer.num_prompt = 5
        fake.answer.num_cached = 0
        answers = await asyncio.gather(*(gateway.chat(max_tokens=5) for _ in range(40)))
        answers += [await gateway.chat(max_tokens=5) for _ in range(50)]
        statuses = [answer.status_code for answer in answers]
        assert statuses.count(200) + statuses.count(429) == 90
        assert statuses.count(200) == len(fake.seen)
        cost = len(fake.seen) * (5 * 1_000 + 5 * 3_000)
        text = (await gateway.client.get("/metrics")).text
        ratio = cost / 1_000_000
        assert f'octavo_gateway_budget_used_ratio{{budget="small"}} {ratio}' in text.splitlines()
        assert 'octavo_gateway_budget_alerts_total{budget="small",threshold="0.8"} 1' in text
        assert 1_000_000 - 113_000 < cost <= 1_000_000  # the worst case of one does not fit more


CEILINGS = [
    ("max_tokens: 50", {"max_tokens": 80}, {"max_tokens": 50}),
    ("max_tokens: 50", {"max_completion_tokens": 80}, {"max_completion_tokens": 50}),
    ("max_tokens: 50", {"max_tokens": 30}, {"max_tokens": 30}),
    ("max_tokens: 50", {}, {"max_completion_tokens": 11}),
    ("default_max_tokens: 7", {}, {"max_completion_tokens": 7}),
    ("default_max_tokens: 7", {"max_tokens": 9}, {"max_tokens": 9}),
    ("max_tokens: 5, default_max_tokens: 7", {}, {"max_completion_tokens": 5}),
    ("", {}, {"max_completion_tokens": 11}),
]


@pytest.mark.parametrize(("key", "asked", "sent"), CEILINGS)
async def test_answers_are_bounded_as_the_key_says(
    tmp_path: Path, key: str, asked: dict[str, int], sent: dict[str, int]
) -> None:
    async with both(tmp_path, key=key, server="{default_max_tokens: 11}") as (fake, gateway):
        assert (await gateway.chat(**asked)).status_code == 200
        body = fake.seen[-1].body
        assert {k: v for k, v in body.items() if k.startswith("max_")} == sent
        assert body["messages"] == [{"role": "user", "content": "Hello"}]


async def test_a_key_may_demand_a_bound(tmp_path: Path) -> None:
    async with both(tmp_path, key="requires_max_tokens: true") as (_, gateway):
        answer = await gateway.chat()
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "max_tokens_required")
        assert (await gateway.chat(max_tokens=5)).status_code == 200
        embedded = await gateway.client.post(
            "/v1/embeddings", json={"model": "ok", "input": "Hello"}
        )
        assert embedded.status_code == 200  # there is nothing to bound


async def test_keys_and_scopes(tmp_path: Path) -> None:
    async with both(tmp_path, key="models: [ok, 'slo*'], routes: [chat]") as (fake, gateway):
        client = gateway.client
        assert (await gateway.chat()).status_code == 200
        assert (await gateway.chat("500")).status_code == 403
        refused = await client.post("/v1/completions", json={"model": "ok", "prompt": "Hello"})
        assert refused.json()["error"]["code"] == "route_not_allowed"
        models = (await client.get("/v1/models")).json()["data"]
        assert [model["id"] for model in models] == ["ok", "slow"]
        assert (await client.get("/v1/models/slow")).status_code == 200
        assert (await client.get("/v1/models/hang")).status_code == 404
        for wrong in ({"Authorization": "Bearer wrong-wrong-wrong"}, {"Authorization": "Basic x"}):
            assert (await gateway.chat(headers=wrong)).status_code == 401
        del client.headers["authorization"]
        for path in ("/v1/models", "/v1/models/ok"):
            assert (await client.get(path)).status_code == 401
        assert (await gateway.chat()).status_code == 401
        assert (await gateway.chat(headers={"x-api-key": KEY})).status_code == 200
        assert len(fake.seen) == 2


async def test_models_are_described_to_those_who_may_use_them(tmp_path: Path) -> None:
    more = """
tiers:
  all: {targets: [fake/ok]}
models:
  assistant: {tiers: [all], description: "small first, then large"}
  secret: {tiers: [all], description: for others}
rules:
  - {name: theirs, when: {models: [hidden], keys: [other]}, tiers: [all]}
  - {name: ours, when: {models: [open], keys: [k1]}, tiers: [all]}
"""
    key = "models: [assistant, open, hidden]"
    async with both(tmp_path, more=more, key=key) as (_, gateway):
        listed = await gateway.client.get("/v1/models")
        cards = {card["id"]: card for card in listed.json()["data"]}
        assert list(cards) == ["assistant", "open"]
        assert cards["assistant"]["description"] == "small first, then large"
        assert "description" not in cards["open"]
        assert (await gateway.client.get("/v1/models/assistant")).json() == cards["assistant"]
        for name in ("secret", "hidden", "ok"):
            missing = await gateway.client.get(f"/v1/models/{name}")
            assert missing.status_code == 404
            assert "others" not in missing.text
        async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client:
            assert [model.id async for model in client.models.list()] == list(cards)


async def test_anybody_may_call_where_no_keys_are_asked_for(tmp_path: Path) -> None:
    async with FakeUpstream() as fake:
        text = config(fake).replace("keys:\n", "keys:\n  required: false\n")
        async with running(tmp_path, text) as gateway:
            assert (await gateway.chat()).status_code == 200
            wrong = {"Authorization": "Bearer not-a-key-of-ours"}
            assert (await gateway.chat(headers=wrong)).status_code == 401


async def test_what_is_no_request_gets_an_error_that_says_so(tmp_path: Path) -> None:
    async with both(tmp_path, server="{max_body_bytes: 2048}") as (fake, gateway):
        client = gateway.client
        path = "/v1/chat/completions"
        assert (await client.post(path, content=b"{")).status_code == 400
        assert (await client.post(path, content=b"[]")).status_code == 400
        assert (await client.post(path, content=b"x" * 4096)).status_code == 413
        assert (await client.get(path)).status_code == 405
        assert (await client.get("/v1/nothing")).status_code == 404
        assert (await gateway.chat("nowhere")).status_code == 404
        wrong = await client.post("/v1/messages", json={"model": "nowhere", "max_tokens": 3})
        assert wrong.json()["type"] == "error"
        assert wrong.headers["request-id"] == wrong.headers["x-request-id"]
        assert not fake.seen


async def test_the_gateway_tells_of_itself(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, gateway):
        await gateway.chat(stream=True)
        await gateway.chat("500")
        await gateway.idle()
        del gateway.client.headers["authorization"]
        for path in ("/health", "/health/live", "/ready", "/health/ready", "/version", "/load"):
            assert (await gateway.client.get(path)).status_code == 200
        text = (await gateway.client.get("/metrics")).text
        for line in (
            'octavo_gateway_requests_total{route="chat",status="200"} 1',
            'octavo_gateway_attempts_total{backend="fake",model="500",status="error"} 1',
            'octavo_gateway_output_tokens_total{backend="fake",model="ok"} 5',
            'octavo_gateway_breaker_state{backend="fake",state="closed"} 1',
            "octavo_gateway_overhead_seconds_count 2",
            "octavo_gateway_open_requests 0",
        ):
            assert line in text.splitlines()
        openmetrics = await gateway.client.get(
            "/metrics", headers={"accept": "application/openmetrics-text; version=1.0.0"}
        )
        assert openmetrics.text.endswith("# EOF\n")
        health = gateway.gateway.parts.dispatcher.health
        for _ in range(2):
            health.states["fake"].put_probe("gone", 0.0)
        assert (await gateway.client.get("/ready")).status_code == 503
        assert (await gateway.client.get("/health")).status_code == 200


async def test_request_ids_go_through_the_chain(tmp_path: Path) -> None:
    more = """
tiers:
  all: {targets: [fake/500, fake/ok], balance: order}
models:
  any: {tiers: [all]}
"""
    async with both(tmp_path, more=more) as (fake, gateway):
        counted = gateway.counted()
        answer = await gateway.chat("any", headers={"X-Request-Id": "mine-1"}, max_tokens=5)
        assert answer.headers["x-request-id"] == "mine-1"
        first, second = (seen.headers["x-request-id"] for seen in fake.seen)
        assert re.fullmatch(r"mine-1\.[0-9a-f]{12}", first)  # others may send that id, too
        assert second == f"{first}.1"
        await settled(gateway, counted)
        assert [attempt.status for attempt in counted.all_attempts] == ["error", "ok"]
        assert {attempt.request_id for attempt in counted.all_attempts} == {first}
        assert counted.records[0][0].known_as == "mine-1"


async def test_rate_limits_are_told_of_and_kept(tmp_path: Path) -> None:
    more = "limits: {rules: {few: {requests_per_minute: 2, burst_s: 60}}}"
    async with both(tmp_path, more=more) as (fake, gateway):
        first = await gateway.chat()
        assert first.headers["x-ratelimit-limit-requests"] == "2"
        assert first.headers["x-ratelimit-remaining-requests"] == "1"
        assert (await gateway.chat()).status_code == 200
        refused = await gateway.chat()
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) > 0
        assert len(fake.seen) == 2
