"""`/v1/messages`: what reaches the template and the engine, and what comes back in either way.

The official client is in `tests/clients/test_anthropic.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import EngineUnavailableError, QueueFullError
from tests.server.fake_engine import FakeEngine, FakeTemplate, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.server.conftest import RunningServer

USER: dict[str, Any] = {"role": "user", "content": "What is the weather in Oslo?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"name": "get_weather", "description": "The weather.", "input_schema": SCHEMA},
    {"name": "get_time", "input_schema": {"type": "object"}},
]
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo — 世界"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
ANSWER = "<think>\nI had better look.\n</think>\n\nOne moment.\n" + CALLS


def pieces_of(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def post(server: RunningServer, path: str = "/v1/messages", **fields: Any) -> httpx.Response:
    body = {"model": "fake", "messages": [USER], "max_tokens": 64, **fields}
    return server.client.post(path, json={k: v for k, v in body.items() if v is not ...})


def events_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["request-id"] == response.headers["x-request-id"]
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def message_of(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that a stream's events make, put together without any of our code."""
    assert events[0]["type"] == "message_start"
    assert events[-1] == {"type": "message_stop"}
    message: dict[str, Any] = events[0]["message"]
    assert message["content"] == []
    assert message["stop_reason"] is None
    inputs: dict[int, str] = {}
    open_index: int | None = None
    for event in events[1:-1]:
        match event["type"]:
            case "content_block_start":
                assert open_index is None
                open_index = event["index"]
                assert open_index == len(message["content"])
                message["content"].append(event["content_block"])
            case "content_block_delta":
                assert event["index"] == open_index
                block, delta = message["content"][event["index"]], event["delta"]
                match delta["type"]:
                    case "text_delta":
                        block["text"] += delta["text"]
                    case "thinking_delta":
                        block["thinking"] += delta["thinking"]
                    case "signature_delta":
                        block["signature"] = delta["signature"]
                    case "input_json_delta":
                        inputs[open_index] = inputs.get(open_index, "") + delta["partial_json"]
            case "content_block_stop":
                assert event["index"] == open_index
                open_index = None
            case "message_delta":
                assert open_index is None
                message |= event["delta"]
                message["usage"] = event["usage"]
    for index, text in inputs.items():
        message["content"][index]["input"] = json.loads(text)
    return message


def steady(message: dict[str, Any]) -> dict[str, Any]:
    """Without ids, which are new each time."""
    blocks = [{k: v for k, v in block.items() if k != "id"} for block in message["content"]]
    return {**message, "id": "", "content": blocks}


@pytest.fixture
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(tool_call_parser="hermes", reasoning_parser="qwen3")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_all_pieces_make_the_same_message(server: RunningServer, size: int) -> None:
    server.engine.pieces = pieces_of(ANSWER, size)
    whole = post(server, tools=TOOLS).json()
    thinking, text, weather, time = whole["content"]
    assert (thinking["type"], thinking["thinking"]) == ("thinking", "I had better look.")
    assert len(thinking["signature"]) == 64
    assert (text["type"], text["text"]) == ("text", "One moment.")
    assert weather["input"] == {"city": "Oslo — 世界"}
    assert (time["type"], time["name"], time["input"]) == ("tool_use", "get_time", {})
    assert weather["id"] != time["id"]
    assert whole["stop_reason"] == "tool_use"
    assert whole["usage"]["output_tokens"] == len(ANSWER.encode())
    streamed = message_of(events_of(post(server, tools=TOOLS, stream=True)))
    assert steady(streamed) == steady(whole)


def test_hidden_thinking(server: RunningServer) -> None:
    server.engine.pieces = pieces_of(ANSWER, 5)
    shown = post(server).json()["content"][0]
    for stream in (False, True):
        response = post(server, thinking={"type": "adaptive", "display": "omitted"}, stream=stream)
        message = message_of(events_of(response)) if stream else response.json()
        assert message["content"][0] == {**shown, "thinking": ""}


def test_the_conversation_that_the_template_sees(server: RunningServer) -> None:
    response = post(
        server,
        system=[{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        tools=TOOLS,
        messages=[
            {"role": "user", "content": "One"},
            {"role": "user", "content": [{"type": "text", "text": "and two."}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                    {"type": "text", "text": "I look."},
                    {"type": "tool_use", "id": "a", "name": "get_time", "input": {}},
                ],
            },
            {
                "role": "assistant",
                "content": [
                    {"type": "tool_use", "id": "b", "name": "get_weather", "input": {"city": "X"}}
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "a", "content": "noon"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "b",
                        "is_error": True,
                        "content": [{"type": "text", "text": "no such city"}],
                    },
                    {"type": "tool_result", "tool_use_id": "c"},
                    {"type": "text", "text": "Well?"},
                ],
            },
        ],
    )
    assert response.status_code == 200
    (call,) = server.tokenizer.chat_template.calls
    assert call["add_generation_prompt"] is True
    calls = [
        {"id": "a", "type": "function", "function": {"name": "get_time", "arguments": {}}},
        {
            "id": "b",
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "X"}},
        },
    ]
    assert call["messages"] == [
        {
            "role": "system",
            "content": [{"type": "text", "text": text} for text in ("Be brief.", "Be kind.")],
        },
        {
            "role": "user",
            "content": [{"type": "text", "text": text} for text in ("One", "and two.")],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": calls,
        },
        {"role": "tool", "content": "noon", "tool_call_id": "a"},
        {"role": "tool", "content": "Error: no such city", "tool_call_id": "b"},
        {"role": "tool", "content": "", "tool_call_id": "c"},
        {"role": "user", "content": "Well?"},
    ]
    assert [tool["function"]["name"] for tool in call["tools"]] == ["get_weather", "get_time"]
    assert call["tools"][0]["function"]["parameters"] == SCHEMA


def test_prefill(server: RunningServer) -> None:
    for content in ("The answer is (", [{"type": "text", "text": "The answer is ("}]):
        server.tokenizer.chat_template.calls.clear()
        messages = [USER, {"role": "assistant", "content": content}]
        assert post(server, messages=messages).status_code == 200
        (call,) = server.tokenizer.chat_template.calls
        assert call["continue_final_message"] is True
        assert call["messages"][-1]["content"] == "The answer is ("
    server.tokenizer.chat_template.calls.clear()
    assert post(server, messages=[USER, {"role": "assistant", "content": ""}]).status_code == 200
    (call,) = server.tokenizer.chat_template.calls
    assert (call["continue_final_message"], call["add_generation_prompt"]) == (False, True)
    assert len(call["messages"]) == 1


def test_parameters(server: RunningServer) -> None:
    fields = {"temperature": 0.5, "top_p": 0.75, "top_k": 9, "stop_sequences": ["q", "zz"]}
    assert post(server, **fields).status_code == 200
    ((_, params),) = server.engine.requests.values()
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.75, 9)
    assert params.stop_strings == ("q", "zz")
    assert params.max_tokens == 64


@pytest.mark.parametrize("stream", [False, True])
def test_reasons_of_the_end(serve: Callable[..., RunningServer], stream: bool) -> None:
    server = serve(engine=FakeEngine(max_model_len=100))

    def end(**fields: Any) -> tuple[str, str | None]:
        response = post(server, stream=stream, **fields)
        assert response.status_code == 200
        message = message_of(events_of(response)) if stream else response.json()
        return message["stop_reason"], message["stop_sequence"]

    assert end(max_tokens=4) == ("max_tokens", None)
    assert end(stop_sequences=["dog", "fox"], max_tokens=50) in (
        ("stop_sequence", "dog"),
        ("stop_sequence", "fox"),
    )
    assert end(max_tokens=2000) == ("model_context_window_exceeded", None)
    (_, params) = list(server.engine.requests.values())[-1]
    assert params.max_tokens is not None
    assert params.max_tokens < 100
    server.engine.pieces = ["Hi."]
    assert end() == ("end_turn", None)


def test_a_cut_call_has_what_was_whole(server: RunningServer) -> None:
    server.engine.pieces = ['<tool_call>\n{"name": "f", "arguments": {"a": [1, 2], "b": "Os']
    server.engine.pieces_end = "length"
    message = post(server, tools=[{"name": "f", "input_schema": {}}]).json()
    assert message["content"][-1]["input"] == {"a": [1, 2]}
    assert message["stop_reason"] == "max_tokens"


def thinking_server(serve: Callable[..., RunningServer], source: str, **rest: Any) -> RunningServer:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = FakeTemplate(source)
    return serve(tokenizer=tokenizer, **rest)


ON, OFF = {"type": "enabled", "budget_tokens": 2048}, {"type": "disabled"}


@pytest.mark.parametrize("name", ["enable_thinking", "thinking"])
def test_the_switch_of_thinking(serve: Callable[..., RunningServer], name: str) -> None:
    server = thinking_server(serve, "{{ m.thinking }}{% if " + name + " %}<think>{% endif %}")
    calls = server.tokenizer.chat_template.calls
    for thinking, expected in ((ON, True), ({"type": "adaptive"}, True), (OFF, False)):
        assert post(server, thinking=thinking).status_code == 200
        assert calls.pop()[name] is expected
    assert post(server).status_code == 200
    assert name not in calls.pop()


def test_thinking_that_cannot_be_kept(serve: Callable[..., RunningServer]) -> None:
    plain = thinking_server(serve, "{{ message.thinking }}")
    always = thinking_server(serve, "</think>")
    for server, refused in ((plain, ON), (always, OFF)):
        response = post(server, thinking=refused)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("thinking: this model ")
        for fine in (OFF if refused is ON else ON, {"type": "adaptive"}):
            assert post(server, thinking=fine).status_code == 200


def test_counted_tokens_are_those_of_the_prompt(server: RunningServer) -> None:
    for fields in (
        {},
        {"system": "Be brief."},
        {"tools": TOOLS},
        {"messages": [USER, {"role": "assistant", "content": "Well, "}]},
    ):
        count = post(server, "/v1/messages/count_tokens", max_tokens=..., **fields)
        assert count.status_code == 200
        usage = post(server, **fields).json()["usage"]
        assert usage["cache_creation_input_tokens"] == 0
        assert usage["cache_read_input_tokens"] > 0
        total = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert count.json() == {"input_tokens": total}


def test_what_does_not_fit_is_counted_all_the_same(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=FakeEngine(max_model_len=32))
    messages = [{"role": "user", "content": "x" * 100}]
    count = post(server, "/v1/messages/count_tokens", max_tokens=..., messages=messages).json()
    assert count["input_tokens"] > 100
    error = post(server, messages=messages)
    assert error.status_code == 400
    assert "messages has" in error.json()["error"]["message"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": ...}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "messages[0].content[0].type: invalid value 'image'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document", "source": {}}]}]},
            "messages[0].content[0].type: invalid value 'document'",
        ),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}],
                    },
                ]
            },
            "messages[1].content",
        ),
        ({"stop_sequences": [""]}, "stop_sequences"),
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": -5}, "top_k"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "tools[1].name"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema"),
        ({"tools": [{"name": "a", "input_schema": {}, "x": 1}]}, "tools[0].x"),
        (
            {"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]},
            "tools[0].type is 'web_search_20250305'",
        ),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "must"}}, "tool_choice.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1}}, "thinking.budget_tokens"),
        ({"thinking": {"type": "between_tools"}}, "thinking.type"),
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"effort": "most"}}, "output_config.effort"),
        ({"thread": {"type": "create"}}, "thread"),
        ({"n": 2}, "Unknown field: n"),
    ],
)
def test_what_is_refused(server: RunningServer, fields: dict[str, Any], name: str) -> None:
    response = post(server, **fields)
    assert response.status_code == 400, response.text
    body = response.json()
    assert body["type"] == "error"
    assert set(body["error"]) - {"details"} == {"type", "message"}
    assert body["error"]["type"] == "invalid_request_error"
    assert name in body["error"]["message"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert not server.engine.requests


def test_tools_of_a_model_without_a_known_format(serve: Callable[..., RunningServer]) -> None:
    server = serve()
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        max_tokens = 8 if path == "/v1/messages" else ...
        response = post(server, path, tools=TOOLS, max_tokens=max_tokens)
        assert response.status_code == 400
        assert response.json()["error"]["message"].startswith("tools: ")


def test_errors_of_the_layers(serve: Callable[..., RunningServer]) -> None:
    server = serve(api_keys=("sk-1",), max_body_bytes=300)

    def error(status: int, response: httpx.Response) -> str:
        assert response.status_code == status
        body = response.json()
        assert body["request_id"] == response.headers["x-request-id"]
        kind: str = body["error"]["type"]
        return kind

    assert error(401, post(server)) == "authentication_error"
    assert error(401, server.client.get("/v1/messages")) == "authentication_error"
    server.client.headers["X-Api-Key"] = "sk-1"
    assert post(server).status_code == 200
    assert error(404, post(server, model="claude")) == "not_found_error"
    assert error(405, server.client.get("/v1/messages")) == "invalid_request_error"
    assert error(400, server.client.post("/v1/messages", content=b"{")) == "invalid_request_error"
    assert error(413, post(server, system="x" * 300)) == "request_too_large"
    server.engine.fail_at = 0
    for failure, status, kind in (
        (RuntimeError("secret"), 500, "api_error"),
        (QueueFullError("too many wait"), 503, "overloaded_error"),
    ):
        server.engine.failure = failure
        assert error(status, post(server)) == kind
        assert error(status, post(server, stream=True)) == kind
    server.engine.is_alive = False
    response = post(server)
    assert error(503, response) == "overloaded_error"
    assert response.headers["retry-after"] == "4"


def test_an_error_in_the_midst_of_a_stream(server: RunningServer) -> None:
    server.engine.fail_at = 5
    *events, error = events_of(post(server, stream=True))
    assert [event["type"] for event in events[:2]] == ["message_start", "content_block_start"]
    assert error["type"] == "error"
    assert error["error"]["type"] == "api_error"
    assert "secret" not in error["error"]["message"]
    assert error["request_id"]


@pytest.mark.parametrize("reason", ["abort", "timeout"])
def test_an_answer_that_was_ended_from_outside(server: RunningServer, reason: str) -> None:
    server.engine.pieces, server.engine.pieces_end = ["Hi.", ""], reason
    response = post(server)
    assert response.status_code == EngineUnavailableError.status
    assert reason in response.json()["error"]["message"]
    assert events_of(post(server, stream=True))[-1]["error"]["type"] == "overloaded_error"


def test_pings_while_nothing_comes(serve: Callable[..., RunningServer]) -> None:
    server = serve(sse_keep_alive=0.02)
    server.engine.first_delay = 0.15
    events = events_of(post(server, stream=True))
    assert events[0] == {"type": "ping"}
    assert message_of([event for event in events if event["type"] != "ping"])["content"]
