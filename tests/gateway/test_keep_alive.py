"""Streams that are silent: their clients are kept, and what fails then is told where they look."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest

from octavo.gateway.keep_alive import KeepAlive
from octavo.gateway.model import PATHS
from octavo.protocol import sse
from octavo.server.dialect import ANTHROPIC
from tests.gateway.fake_answers import Answer
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import Running, running
from tests.gateway.test_app import AUTH, BODIES, KEY, STREAMED, settled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CONFIG = """
server: {{keep_alive_s: {keep_alive_s}, shutdown_timeout: 0.1}}
keys: {{inline: [{{id: k1, key: {key}}}]}}
limits: {{rules: {{many: {{requests_per_minute: 1000}}}}}}
backends:
  fake:
    url: {url}
    timeouts: {{connect: 1, first_token: 0.3, idle: 1, total: 5}}
    probe: {{interval: 0}}
    models: {{slow: {price}, hang: {price}, ok: {price}, "400": {price}, "500": {price}}}
judges:
  answers: {{kind: refusal}}
escalation: {{if_next_fails: error, if_tier_fails: error}}
tiers:
  slow: {{targets: [fake/slow], judge: answers}}
  good: {{targets: [fake/ok]}}
  broken: {{targets: [fake/500]}}
  refusing: {{targets: [fake/hang, fake/400], balance: order}}
models:
  held: {{tiers: [slow, good]}}
  held-broken: {{tiers: [slow, broken]}}
  late-400: {{tiers: [refusing]}}
"""
PATH_OF = {route: path for path, route in PATHS.items()}
SORRY = Answer(tokens=("I cannot", " help with that"))


@asynccontextmanager
async def both(
    folder: Path, keep_alive_s: float = 0.05, slow: Answer | None = None
) -> AsyncIterator[tuple[FakeUpstream, Running]]:
    fake = FakeUpstream(delay_s=0.06, answers={"slow": slow or Answer()})
    async with fake:
        price = "{price: {input: 1, output: 3}}"
        text = CONFIG.format(url=fake.url, key=KEY, price=price, keep_alive_s=keep_alive_s)
        async with running(folder, text) as gateway:
            gateway.client.headers.update(AUTH)
            yield fake, gateway


def comment_of(route: str) -> bytes:
    return ANTHROPIC.keep_alive if route == "messages" else sse.KEEP_ALIVE


def body_of(route: str, model: str) -> dict[str, Any]:
    return {"model": model, "stream": True} | BODIES[route]


@pytest.mark.parametrize("route", STREAMED)
async def test_a_stream_that_is_held_back_shows_that_it_lives(tmp_path: Path, route: str) -> None:
    async with both(tmp_path) as (_, gateway):
        counted = gateway.counted()
        silent = await gateway.client.post(PATH_OF[route], json=body_of(route, "ok"))
        begun = asyncio.get_running_loop().time()
        async with gateway.client.stream(
            "POST", PATH_OF[route], json=body_of(route, "held")
        ) as answer:
            waited_s = asyncio.get_running_loop().time() - begun
            data = b"".join([piece async for piece in answer.aiter_raw()])
        assert waited_s < 0.2 < asyncio.get_running_loop().time() - begun  # the head came early
        comment = comment_of(route)
        assert data.count(comment) >= 3
        assert data.startswith(comment)
        plain = data.replace(comment, b"").replace(b'"slow"', b'"ok"')
        assert plain == silent.content
        assert answer.status_code == 200
        assert answer.headers["content-type"] == silent.headers["content-type"]
        assert answer.headers["x-octavo-rule"] == "model:held"
        assert "x-ratelimit-limit-requests" in answer.headers
        assert "x-octavo-target" not in answer.headers  # nobody knew it
        await settled(gateway, counted, 2)
        assert [one.status for one in counted.all_attempts] == ["ok", "ok"]


async def test_official_clients_read_past_it(tmp_path: Path) -> None:
    async with (
        both(tmp_path) as (_, gateway),
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0) as client,
        anthropic.AsyncAnthropic(base_url=gateway.url, api_key=KEY, max_retries=0) as other,
    ):
        messages: Any = [{"role": "user", "content": "Hello"}]
        stream = await client.chat.completions.create(
            model="held", messages=messages, max_tokens=9, stream=True
        )
        text = "".join([c.choices[0].delta.content or "" async for c in stream if c.choices])
        assert text == Answer().text
        events = await client.responses.create(model="held", input="Hello", stream=True)
        assert [event async for event in events][-1].type == "response.completed"
        async with other.messages.stream(model="held", messages=messages, max_tokens=9) as said:
            assert await said.get_final_text() == Answer().text


@pytest.mark.parametrize("route", STREAMED)
@pytest.mark.parametrize("model", ["held-broken", "late-400", "hang"])
async def test_what_fails_after_the_head_is_an_event(
    tmp_path: Path, route: str, model: str
) -> None:
    async with both(tmp_path, slow=SORRY) as (_, gateway):
        counted = gateway.counted()
        answer = await gateway.client.post(PATH_OF[route], json=body_of(route, model))
        assert answer.status_code == 200
        events = [event for event in answer.text.split("\n\n") if event]
        if route in ("chat", "completions"):
            assert events.pop() == "data: [DONE]"
        event = events.pop()
        assert all(f"{one}\n\n".encode() == comment_of(route) for one in events)
        has_name = route in ("messages", "responses")
        assert event.startswith("event: error\n" if has_name else "data: ")
        told = json.loads(event.partition("data: ")[2])
        error = told["error"]
        what = {"held-broken": "500", "late-400": "400", "hang": "first token"}[model]
        assert what in error["message"]
        if model == "late-400":  # the caller's own fault, in the backend's words
            kind = "invalid_request_error" if route == "messages" else "fake_error"
            assert (error["type"], error["message"]) == (kind, "the fake answers 400")
        await settled(gateway, counted)
        assert counted.all_attempts[-1].status != "ok"


@pytest.mark.parametrize(("model", "status"), [("held-broken", 502), ("500", 502), ("400", 400)])
@pytest.mark.parametrize("keep_alive_s", [0, 30])
async def test_what_fails_before_the_first_comment_has_its_status(
    tmp_path: Path, model: str, status: int, keep_alive_s: float
) -> None:
    async with both(tmp_path, keep_alive_s, slow=SORRY) as (_, gateway):
        answer = await gateway.chat(model, stream=True)
        assert answer.status_code == status
        assert answer.json()["error"]["message"]


async def test_answers_without_streams_wait_in_silence(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, gateway):
        answer = await gateway.chat("slow")
        assert answer.json()["choices"][0]["message"]["content"] == Answer().text


async def test_a_silent_backend_is_bridged_in_the_midst_of_a_stream(tmp_path: Path) -> None:
    async with both(tmp_path, 0.02) as (_, gateway):
        counted = gateway.counted()
        answer = await gateway.chat("slow", stream=True, max_tokens=9)
        comment = sse.KEEP_ALIVE.decode()
        first = answer.text.index("data: ")
        assert answer.text[:first].count(comment) >= 1
        assert answer.text[first:].count(comment) >= 5
        assert answer.text.endswith("data: [DONE]\n\n")
        await settled(gateway, counted)


async def test_a_client_that_goes_while_it_waits_ends_it(tmp_path: Path) -> None:
    async with both(tmp_path) as (fake, gateway):
        counted = gateway.counted()
        body = body_of("chat", "hang")
        async with gateway.client.stream("POST", PATH_OF["chat"], json=body) as answer:
            async for piece in answer.aiter_raw():
                assert piece == sse.KEEP_ALIVE
                break
        await settled(gateway, counted)
        assert counted.all_attempts[0].status == "client_left"
        await fake.idle()


async def test_a_shutdown_is_told_in_the_stream(tmp_path: Path) -> None:
    async with both(tmp_path) as (_, gateway):
        counted = gateway.counted()
        waiting = asyncio.ensure_future(gateway.chat("hang", stream=True, max_tokens=9))
        await asyncio.sleep(0.2)
        gateway.gateway.app.end_all()
        answer = await waiting
        assert answer.status_code == 200
        assert "shutting_down" in answer.text
        assert answer.text.endswith("data: [DONE]\n\n")
        await settled(gateway, counted)


async def test_silence_is_broken_and_only_silence() -> None:
    said: list[float] = []
    loop = asyncio.get_running_loop()

    async def say() -> None:
        said.append(loop.time())

    keep_alive = KeepAlive(say, 0.02)
    await asyncio.sleep(0.13)
    assert 3 <= len(said) <= 6
    num = len(said)
    for _ in range(20):
        keep_alive.num_sent += 1
        await asyncio.sleep(0.005)
    assert len(said) <= num + 1
    keep_alive.is_sending = True
    num = len(said)
    await asyncio.sleep(0.06)
    assert len(said) == num
    keep_alive.is_sending = False
    await keep_alive.stop()
    await asyncio.sleep(0.05)
    assert len(said) <= num + 1
    never = KeepAlive(say, 0.0)
    num = len(said)
    await asyncio.sleep(0.02)
    assert len(said) == num
    await never.stop()


async def test_what_cannot_be_said_is_raised_to_who_stops() -> None:
    async def say() -> None:
        raise ConnectionResetError("gone")

    keep_alive = KeepAlive(say, 0.01)
    await asyncio.sleep(0.03)
    with pytest.raises(ConnectionResetError):
        await keep_alive.settle()
    with pytest.raises(ConnectionResetError):
        await keep_alive.stop()
