"""Escalations in front of Octavo's own server: its reasoning, calls and log-probabilities, read by
the official clients.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from octavo.gateway.answer_collect import Collector
from octavo.gateway.config_backends import Backend
from octavo.gateway.config_judges import JudgeSection
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.escalate import Escalation
from octavo.gateway.judge_build import build_judges
from octavo.gateway.judge_process import JudgeProcesses
from octavo.gateway.model import PATHS, Amount, Call, Plan, Target, Tier
from octavo.gateway.sse_events import data_of
from tests.server.conftest import RunningServer, running_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from octavo.gateway.model import Attempt

THOUGHTS = "<think>\nI had better look.\n</think>\n\n"
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo — 世界"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
NAMES = ("get_weather", "get_time")
TOOLS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"type": "function", "function": {"name": NAMES[0], "parameters": PARAMETERS}},
        {"type": "function", "function": {"name": NAMES[1]}},
    ],
    "responses": [
        {"type": "function", "name": NAMES[0], "parameters": PARAMETERS},
        {"type": "function", "name": NAMES[1]},
    ],
    "messages": [
        {"name": NAMES[0], "input_schema": PARAMETERS},
        {"name": NAMES[1], "input_schema": {"type": "object"}},
    ],
    "completions": [],
}
JUDGES = {
    "schema": {"kind": "json_schema"},
    "sure": {"kind": "logprob", "mean": -1e9},
    "unsure": {"kind": "logprob", "mean": 0},
}


class _Nowhere:
    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        raise AssertionError("there are no shadows")


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_servers() as start:
        yield start(tool_call_parser="hermes", reasoning_parser="qwen3")


@pytest.fixture
async def escalation(server: RunningServer) -> AsyncIterator[Escalation]:
    price = {"input": 0, "output": 0}
    backend = msgspec.convert(
        {"url": server.url, "kind": "octavo", "models": {"fake": {"price": price}}},
        Backend,
        strict=False,
    )
    dispatcher = Dispatcher({"octavo": backend})
    processes = JudgeProcesses(1)
    judges = build_judges(
        msgspec.convert(JUDGES, dict[str, JudgeSection], strict=False),
        tier_of=lambda name: Tier(name=name, targets=()),
        processes=processes,
    )
    escalation = Escalation(
        dispatcher,
        judges,
        worst=lambda call, target: Amount(),
        records=_Nowhere(),
        processes=processes,
    )
    yield escalation
    await escalation.aclose()
    await dispatcher.close()


async def asked(
    escalation: Escalation, route: str, judge: str, **body: Any
) -> tuple[list[bytes] | bytes, list[Attempt]]:
    path = next(path for path, name in PATHS.items() if name == route)
    body = {"model": "fake", **body}
    if route == "completions":
        body["prompt"] = "hello"
    elif route == "responses":
        body["input"] = "hello"
    else:
        body["messages"] = [{"role": "user", "content": "hello"}]
    if route == "messages":
        body["max_tokens"] = 99
    if TOOLS[route]:
        body["tools"] = TOOLS[route]
    call = Call(
        request_id="r1",
        arrived=time.perf_counter(),
        route=route,  # type: ignore[arg-type]
        path=path,
        model="fake",
        stream=bool(body.get("stream")),
        body=body,
        num_prompt_tokens=9,
    )
    target = (Target("octavo", "fake"),)
    tiers = (Tier(name="a", targets=target, judge=judge), Tier(name="b", targets=target))
    attempts: list[Attempt] = []
    outcome = await escalation.run(
        call, Plan(rule="", tiers=tiers), msgspec.json.encode(body), attempts=attempts
    )
    assert outcome.status == 200
    data: list[bytes] | bytes
    if call.stream:
        data = [event async for event in outcome.events()]
    else:
        data = await outcome.read()
    await outcome.close(tokens=outcome.tokens)
    return data, attempts


_CHANGING = re.compile(
    r'"(?:id|call_id|signature)":"[^"]*"|"(?:created|\w+_at|gpu_seconds)":[\d.e-]+'
)


def plain(value: Any) -> Any:
    """Without what differs from answer to answer: ids and times."""
    text = msgspec.json.encode(value).decode()
    return json.loads(_CHANGING.sub(lambda m: m[0].partition(":")[0] + ":0", text))


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("route", ["chat", "completions", "responses", "messages"])
async def test_a_collected_stream_is_the_answer_without_streaming(
    server: RunningServer, escalation: Escalation, route: str, size: int
) -> None:
    text = THOUGHTS + "One moment.\n" + CALLS
    server.engine.pieces = [text[i : i + size] for i in range(0, len(text), size)]
    has_options = route in ("chat", "completions")
    options = {"stream_options": {"include_usage": True}} if has_options else {}
    events, attempts = await asked(escalation, route, "schema", stream=True, **options)
    assert [attempt.status for attempt in attempts] == ["ok"]
    whole, whole_attempts = await asked(escalation, route, "schema")
    assert isinstance(whole, bytes)
    collector = Collector(route)  # type: ignore[arg-type]
    for event in events:
        assert isinstance(event, bytes)
        collector.add(event)
    found, expected = plain(collector.whole()), plain(msgspec.json.decode(whole))
    assert found.pop("usage") == expected.pop("usage")
    assert found == expected
    assert attempts[0].answer_sha256 == whole_attempts[0].answer_sha256
    tokens, whole_tokens = attempts[0].tokens, whole_attempts[0].tokens
    assert (tokens.input, tokens.output) == (whole_tokens.input, whole_tokens.output)


@pytest.mark.parametrize("route", ["chat", "completions", "responses"])
async def test_log_probabilities_of_a_real_server_are_read_and_taken_out(
    server: RunningServer, escalation: Escalation, route: str
) -> None:
    server.engine.pieces = ["One", " moment", "."]
    for stream in (False, True):
        data, attempts = await asked(escalation, route, "sure", stream=stream)
        sent = data if isinstance(data, bytes) else b"".join(data)
        assert attempts[0].score is not None
        assert attempts[0].score < 0
        assert b'"logprob"' not in sent
        assert b"token_logprobs" not in sent
        plainly, _ = await asked(escalation, route, "", stream=stream)
        if isinstance(data, bytes):
            assert plain(msgspec.json.decode(data)) == plain(msgspec.json.decode(plainly))
        _, attempts = await asked(escalation, route, "unsure", stream=stream)
        assert [attempt.status for attempt in attempts] == ["escalated", "ok"]


async def test_the_official_client_reads_a_stream_from_memory(
    server: RunningServer, escalation: Escalation
) -> None:
    server.engine.pieces = list(THOUGHTS + CALLS)
    options = {"stream_options": {"include_usage": True}}
    events, _ = await asked(escalation, "chat", "sure", stream=True, **options)
    state = ChatCompletionStreamState()
    for event in events:
        assert isinstance(event, bytes)
        if data_of(event) != b"[DONE]":
            state.handle_chunk(ChatCompletionChunk.model_validate_json(data_of(event)))
    final = state.get_final_completion()
    choice = final.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.logprobs is None or not choice.logprobs.content
    made = [call.function for call in choice.message.tool_calls or ()]
    assert [function.name for function in made] == list(NAMES)
    assert json.loads(made[0].arguments) == {"city": "Oslo — 世界"}
    assert final.usage is not None
    assert final.usage.completion_tokens == len((THOUGHTS + CALLS).encode())
