"""What an answer cost: taken out of engines' answers, and told to those who ask for it."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.gateway.model import PATHS, Attempt, DevicePrice, Route, Target, TokenPrice, Tokens
from octavo.gateway.sse_events import data_of, event_with_cost
from octavo.gateway.usage_cost import NAMES, cost_of, with_cost
from octavo.protocol import sse
from tests.gateway.fake_answers import Answer
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.running import QUICK, Running, running
from tests.gateway.test_app import AUTH, BODIES, KEY, STREAMED

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

ASKS = {"X-Octavo-Include-Cost": "1"}
COST = {"gpu_seconds": 0.25, "cost": 0.000000001, "currency": "EUR"}
CONFIG = """
keys: {{inline: [{{id: k1, key: {key}}}]}}
backends:
  engine:
    url: {url}
    kind: octavo
    models: {{ok: {{price: {{device_hour: 3.6}}}}, free: {{}}}}
{quick}
  cloud:
    url: {url}
    models: {{big: {{price: {{input: 10, cached_input: 1, output: 20}}}}}}
{quick}
judges:
  answers: {{kind: refusal}}
tiers:
  small: {{targets: [engine/ok], judge: answers}}
  large: {{targets: [cloud/big]}}
models:
  assistant: {{tiers: [small, large]}}
"""

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text('ab"\\\n{}:,', max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["usage", "cost", "message", "a"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@asynccontextmanager
async def gateway_at(folder: Path, fake: FakeUpstream) -> AsyncIterator[Running]:
    text = CONFIG.format(url=fake.url, key=KEY, quick=QUICK.strip("\n"))
    async with running(folder, text) as gateway:
        gateway.client.headers.update(AUTH)
        yield gateway


@given(
    rest=st.dictionaries(st.sampled_from(["choices", "id", "model", "Usage"]), JSON_VALUES),
    usage=st.dictionaries(st.sampled_from(["prompt_tokens", "details", *NAMES]), JSON_VALUES),
    indent=st.sampled_from([None, 1]),
    has_cost=st.booleans(),
)
def test_only_the_usage_changes(
    rest: dict[str, Any], usage: dict[str, Any], indent: int | None, has_cost: bool
) -> None:
    cost = COST if has_cost else {}
    left = {name: value for name, value in usage.items() if name not in NAMES}
    for route, inner in (("chat", ""), ("responses", "response"), ("messages", "message")):
        whole: dict[str, Any] = {**rest, "usage": usage}
        expected: dict[str, Any] = {**rest, "usage": left | cost}
        if inner:
            whole, expected = {"type": "x", inner: whole}, {"type": "x", inner: expected}
        data = json.dumps(whole, indent=indent).encode()
        assert json.loads(with_cost(route, data, cost)) == expected  # type: ignore[arg-type]
        event = b"event: x\ndata: %b\n\n" % data.replace(b"\n", b"\ndata: ")
        if not (cost and route == "messages"):
            changed = event_with_cost(route, event, cost)  # type: ignore[arg-type]
            assert json.loads(data_of(changed)) == expected
            assert changed.startswith(b"event: x\ndata: ")


@pytest.mark.parametrize(
    "data", [b"", b"[1]", b'{"usage":', b'{"usage":null}', b'{"usage":[1]}', b'{"a":{"usage":{}}}']
)
@pytest.mark.parametrize("cost", [{}, COST])
def test_what_has_no_usage_stays(data: bytes, cost: dict[str, Any]) -> None:
    for route in ("chat", "messages", "responses"):
        assert with_cost(route, data, cost) is data  # type: ignore[arg-type]
        for event in (b"data: %b\n\n" % data, b': "usage":{}\n\n'):
            assert event_with_cost(route, event, cost) is event  # type: ignore[arg-type]


def test_what_a_model_writes_is_not_taken_for_usage() -> None:
    """Arguments of a call are JSON that a model makes, on `/v1/messages` not even in a string."""
    block = {"type": "tool_use", "input": {"usage": {"gpu_seconds": 9, "cost": 9}}}
    answer = {"content": [block], "usage": {"input_tokens": 1, **COST}}
    for given_ in (answer, {"type": "message_start", "message": answer}):
        changed = json.loads(with_cost("messages", json.dumps(given_).encode()))
        told = changed.get("message", changed)
        assert told == {"content": [block], "usage": {"input_tokens": 1}}
    event = sse.event({"type": "content_block_start", "content_block": block})
    assert event_with_cost("messages", event, {}) == event


def attempt(backend: str, tokens: Tokens, cost_nano: int) -> Attempt:
    return Attempt(
        request_id="r", number=0, upstream_id="r", time_ns=0, tier="t", backend=backend,
        model="m", status="ok", tokens=tokens, cost_nano=cost_nano,
    )  # fmt: skip


def test_the_cost_of_a_chain() -> None:
    prices = {
        "cloud": TokenPrice(input=1000, output=2000, currency="EUR"),
        "engine": DevicePrice(
            hourly_nano=3600 * 10**9, worst_input_ns=5, worst_output_ns=7, currency="EUR"
        ),
    }

    def price_of(backend: str, model: str) -> Any:
        return prices.get(backend)

    cloud = attempt("cloud", Tokens(10, 0, 2), 14_000)
    engine = attempt("engine", Tokens(10, 0, 2, device_ns=500_000_000), 500_000_000)
    silent = attempt("engine", Tokens(10, 0, 2), 64)
    unknown = attempt("other", Tokens(10, 0, 2), 0)
    refused = attempt("other", Tokens(), 0)
    own_word = attempt("other", Tokens(1, 0, 1, device_ns=10**9, cost_nano=5), 5)
    eur = {"currency": "EUR"}
    assert cost_of([], price_of) == {"cost": 0.0, "currency": "USD"}
    assert cost_of([cloud], price_of) == {"cost": 0.000014} | eur
    assert cost_of([cloud, engine], price_of) == {"gpu_seconds": 0.5, "cost": 0.500014} | eur
    assert cost_of([engine, silent], price_of) == {"gpu_seconds": None, "cost": 0.500000064} | eur
    assert cost_of([cloud, unknown], price_of) == {"cost": None} | eur
    assert cost_of([refused, cloud], price_of) == {"cost": 0.000014} | eur
    assert cost_of([own_word], price_of)["cost"] == 0.000000005
    now = (Target("engine", "m"), Tokens(10, 0, 2, device_ns=10**9))
    assert cost_of([cloud], price_of, now) == {"gpu_seconds": 1.0, "cost": 1.000014} | eur
    now = (Target("other", "m"), Tokens(10, 0, 2))
    assert cost_of([engine], price_of, now) == {"gpu_seconds": 0.5, "cost": None} | eur


def values(text: str) -> list[Any]:
    """The JSON of an answer, or of a stream's events."""
    if text.startswith("{"):
        return [json.loads(text)]
    events = [data_of(event.encode() + b"\n") for event in text.split("\n\n") if event]
    return [json.loads(event) if event != b"[DONE]" else None for event in events]


def usages(route: Route, text: str) -> list[dict[str, Any]]:
    """All usages that an answer tells, in order."""
    found = []
    for value in values(text):
        inner = value and (value.get("message") or value.get("response") or value)
        if value and inner.get("usage"):
            found.append(inner["usage"])
    return found


CASES = [(path, route, False) for path, route in PATHS.items()]
CASES += [(path, route, True) for path, route in PATHS.items() if route in STREAMED]


@pytest.mark.parametrize(("path", "route", "stream"), CASES)
async def test_only_those_who_ask_are_told(
    tmp_path: Path, path: str, route: Route, stream: bool
) -> None:
    async with FakeUpstream(is_octavo=True) as fake, gateway_at(tmp_path, fake) as gateway:
        counted = gateway.counted()
        body = {"model": "ok", **BODIES[route]} | ({"stream": True} if stream else {})
        if stream and route in ("chat", "completions"):
            body["stream_options"] = {"include_usage": True}
        plain = await gateway.client.post(path, json=body)
        assert fake.seen[-1].headers["x-octavo-include-cost"] == "1"
        direct = await gateway.client.post(fake.url + path, json=fake.seen[-1].body)
        assert values(plain.text) == values(direct.text)
        assert not any(name in plain.text for name in NAMES)
        told = await gateway.client.post(path, json=body, headers=ASKS)
        await gateway.idle()
        first, second = counted.all_attempts
        assert first.tokens == second.tokens  # records lose nothing
        assert first.cost_nano == 12_346  # 12.345678 ms at 3.6 an hour
        *_, usage = usages(route, told.text)
        assert usage.pop("gpu_seconds") == 0.012345678
        assert usage.pop("cost") * 10**9 == first.cost_nano
        assert usage.pop("currency") == "USD"
        assert usage == usages(route, plain.text)[-1]
        others = "".join(map(str, usages(route, told.text)[:-1]))
        assert "cost" not in others


@pytest.mark.parametrize("stream", [False, True])
async def test_the_cost_is_that_of_the_whole_chain(tmp_path: Path, stream: bool) -> None:
    fake = FakeUpstream(
        is_octavo=True, answers={"ok": Answer(tokens=("I cannot", " help with that"))}
    )
    async with fake, gateway_at(tmp_path, fake) as gateway:
        counted = gateway.counted()
        answer = await gateway.chat("assistant", max_tokens=9, stream=stream, headers=ASKS)
        assert answer.headers["x-octavo-escalation"] == "escalated"
        (usage,) = usages("chat", answer.text)
        await gateway.idle()
        (used,) = counted.reservations
        assert used is not None
        assert [one.status for one in counted.all_attempts] == ["escalated", "ok"]
        assert usage["cost"] * 10**9 == used.cost_nano
        assert used.cost_nano == 12_346 + 12 * 10_000 + 8 * 1000 + 5 * 20_000
        assert usage["gpu_seconds"] == 0.012345678  # of the engine; a cloud tells none
        assert usage["completion_tokens"] == 5


async def test_openais_client_reads_it(tmp_path: Path) -> None:
    """From a model that passed its judge; a stream tells even those who do not ask for usage."""
    async with (
        FakeUpstream(is_octavo=True) as fake,
        gateway_at(tmp_path, fake) as gateway,
        openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=KEY) as client,
    ):
        for model in ("assistant", "ok", "big", "free"):
            stream = await client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Hello"}],
                max_tokens=9,
                stream=True,
                extra_headers=ASKS,
            )
            *_, last = [chunk async for chunk in stream]
            usage: Any = last.usage
            assert usage.currency == "USD"
            cost = {"big": 0.000228, "free": 0.000008573}.get(model, 0.000012346)
            assert usage.cost == cost, model
            assert hasattr(usage, "gpu_seconds") == (model != "big")
