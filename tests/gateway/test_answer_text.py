"""What answers and conversations say, in all routes' shapes; log-probabilities taken out again."""

from __future__ import annotations

import hashlib
import json
import time
from typing import Any

import msgspec
import pytest

from octavo.errors import InvalidRequestError
from octavo.gateway.answer_logprobs import (
    asks_logprobs,
    event_without_logprobs,
    with_logprobs,
    without_logprobs,
)
from octavo.gateway.answer_text import (
    AnswerError,
    Said,
    ToolCall,
    answer_sha256,
    conversation_text,
    read_answer,
)
from octavo.gateway.model import PATHS, Call


def call_of(route: str, **body: Any) -> Call:
    path = next(path for path, name in PATHS.items() if name == route)
    return Call(
        request_id="r",
        arrived=time.perf_counter(),
        route=route,  # type: ignore[arg-type]
        path=path,
        model="m",
        body=body,
    )


def test_what_answers_say() -> None:
    function = {"name": "f", "arguments": "{}"}
    message = {"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    message |= {"reasoning_content": "hm", "tool_calls": [{"function": function}, "?"]}  # type: ignore[dict-item]
    answer = {"choices": [{"message": message, "finish_reason": "tool_calls"}, 3]}
    calls = (ToolCall("f", "{}"), ToolCall("", ""))
    assert read_answer("chat", answer, {}) == [
        Said(text="ab", reasoning="hm", calls=calls, finish="tool_calls")
    ]
    blocks = [
        {"type": "thinking", "thinking": "hm"},
        {"type": "text", "text": "a"},
        {"type": "tool_use", "name": "f", "input": {"n": 1}},
    ]
    answer = {"content": blocks, "stop_reason": "tool_use"}
    assert read_answer("messages", answer, {}) == [
        Said(text="a", reasoning="hm", calls=(ToolCall("f", '{"n":1}'),), finish="tool_calls")
    ]
    items = [
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "function_call", "name": "f", "arguments": "{}"},
    ]
    answer = {"output": items, "status": "completed"}
    assert read_answer("responses", answer, {}) == [
        Said(text="", reasoning="hm", refusal="no", calls=(calls[0],), finish="tool_calls")
    ]


@pytest.mark.parametrize(
    ("route", "answer", "message"),
    [
        ("chat", {}, "no choices"),
        ("chat", {"choices": "x"}, "no choices"),
        ("messages", {}, "no content"),
        ("responses", {}, "no output"),
        ("responses", {"output": [], "status": "failed"}, "the response is failed"),
        ("chat", {"error": {"message": "oh"}}, "oh"),
        ("chat", {"error": "oh"}, "oh"),
    ],
)
def test_answers_that_are_none(route: Any, answer: dict[str, Any], message: str) -> None:
    with pytest.raises(AnswerError, match=message):
        read_answer(route, answer, {})


def test_hashes() -> None:
    said = Said(text="É 1")
    assert answer_sha256([said]) == hashlib.sha256("É 1".encode()).hexdigest()
    called = Said(text="É 1", calls=(ToolCall("f", "{}"),))
    listed = '[["É 1",[["f","{}"]]]]'
    assert answer_sha256([called]) == hashlib.sha256(listed.encode()).hexdigest()
    assert answer_sha256([said, said]) != answer_sha256([said])


TURNS = "system: Be kind\nuser: Hi\nassistant calls: f({})\ntool: 7"


@pytest.mark.parametrize(
    ("route", "body", "text"),
    [
        ("completions", {"prompt": "It is"}, "It is"),
        ("completions", {"prompt": ["a", "b"]}, "a\nb"),
        ("completions", {"prompt": [1, 2]}, ""),
        ("responses", {"input": "Hi", "instructions": "Be kind"}, "system: Be kind\nuser: Hi"),
        (
            "chat",
            {
                "messages": [
                    {"role": "system", "content": "Be kind"},
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
                    {
                        "role": "assistant",
                        "content": None,
                        "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}],
                    },
                    {"role": "tool", "content": "7"},
                ]
            },
            TURNS,
        ),
        (
            "messages",
            {
                "system": [{"type": "text", "text": "Be kind"}],
                "messages": [
                    {"role": "user", "content": "Hi"},
                    {
                        "role": "assistant",
                        "content": [{"type": "tool_use", "name": "f", "input": {}}],
                    },
                    {"role": "user", "content": [{"type": "tool_result", "content": "7"}]},
                ],
            },
            TURNS,
        ),
        (
            "responses",
            {
                "instructions": "Be kind",
                "input": [
                    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                    {"type": "function_call", "name": "f", "arguments": "{}"},
                    {"type": "function_call_output", "output": "7"},
                ],
            },
            TURNS,
        ),
    ],
)
def test_conversations(route: str, body: dict[str, Any], text: str) -> None:
    assert conversation_text(call_of(route, **body)) == text


def test_log_probabilities_are_asked_for() -> None:
    body = b'{"model": "m", "messages": [{"content":  "\\u00e9"}], "logprobs": false}'
    assert with_logprobs("chat", body) == (
        b'{"model":"m","messages":[{"content":  "\\u00e9"}],"logprobs":true}'
    )
    assert msgspec.json.decode(with_logprobs("completions", b"{}")) == {"logprobs": 1}
    body = with_logprobs("responses", b'{"include": ["x"]}')
    assert msgspec.json.decode(body) == {"include": ["x", "message.output_text.logprobs"]}
    assert asks_logprobs("responses", msgspec.json.decode(body))
    assert with_logprobs("messages", b"{}") == b"{}"
    assert asks_logprobs("completions", {"logprobs": 0})
    assert not asks_logprobs("chat", {"logprobs": False})
    assert not asks_logprobs("responses", {"include": None})
    with pytest.raises(InvalidRequestError, match="no JSON object"):
        with_logprobs("chat", b"[]")


def test_log_probabilities_are_taken_out() -> None:
    choice = {"index": 0, "delta": {"content": '"logprobs"'}, "logprobs": {"content": [1]}}
    event = b"event: x\nid: 1\ndata: %b\n\n" % json.dumps({"choices": [choice]}).encode()
    stripped = event_without_logprobs("chat", event)
    head, data = stripped[:-2].rsplit(b"\n", 1)
    assert head == b"event: x\nid: 1"
    assert msgspec.json.decode(data[6:]) == {"choices": [choice | {"logprobs": None}]}
    plain = b'data: {"choices":[]}\n\n'
    assert event_without_logprobs("chat", plain) is plain
    assert without_logprobs("chat", b'not JSON "logprobs"') == b'not JSON "logprobs"'


def test_responses_lose_log_probabilities_only_where_the_protocol_has_them() -> None:
    part = {"type": "output_text", "text": "a", "logprobs": [{"token": "a"}]}
    tool = {"type": "function", "parameters": {"properties": {"logprobs": ["mine"]}}}
    response = {"output": [{"type": "message", "content": [part]}], "tools": [tool]}
    events = [
        {"type": "response.output_text.delta", "delta": "a", "logprobs": [{"token": "a"}]},
        {"type": "response.content_part.done", "part": part},
        {"type": "response.output_item.done", "item": response["output"][0]},
        {"type": "response.completed", "response": response},
    ]
    for event in events:
        data = b"event: e\ndata: %b\n\n" % json.dumps(event).encode()
        stripped = event_without_logprobs("responses", data)
        expected = json.dumps(event).replace('"logprobs": [{"token": "a"}]', '"logprobs": []')
        assert msgspec.json.decode(stripped.split(b"data: ")[1]) == json.loads(expected)
    body = without_logprobs("responses", json.dumps(response).encode())
    assert b"mine" in body
    assert b"token" not in body
