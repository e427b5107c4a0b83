"""Tool calls and reasoning over HTTP, mostly through the official client."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from octavo.errors import ConfigError
from octavo.text.chat import ChatTemplate
from tests.server.fake_engine import NUM_SPECIAL, FakeTemplate, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    from openai.types.chat import ChatCompletion, ChatCompletionMessage

    from tests.server.conftest import RunningServer

USER: dict[str, Any] = {"role": "user", "content": "What is the weather in Oslo?"}
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather.", "parameters": PARAMETERS},
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time"}}
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo — 世界"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
THOUGHTS = "<think>\nI had better look.\n</think>\n\n"
EXPECTED = [("get_weather", {"city": "Oslo — 世界"}), ("get_time", {})]


def pieces_of(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def ask(server: RunningServer, **fields: Any) -> ChatCompletion:
    """One answer."""
    with httpx.Client(trust_env=False, verify=False) as http:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http)
        asked: dict[str, Any] = {"model": "fake", "messages": [USER], **fields}
        return client.chat.completions.create(**asked)


def ask_streaming(server: RunningServer, **fields: Any) -> ChatCompletion:
    """One answer, put together by the official client's own accumulator of streams."""
    with httpx.Client(trust_env=False, verify=False) as http:
        client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", http_client=http)
        asked: dict[str, Any] = {"model": "fake", "messages": [USER], **fields}
        with client.chat.completions.stream(**asked) as stream:
            return stream.get_final_completion()


def calls_of(message: ChatCompletionMessage) -> list[tuple[str, Any]]:
    calls = message.tool_calls or []
    assert len({call.id for call in calls}) == len(calls)
    assert all(call.id.startswith("call_") for call in calls)
    assert {call.type for call in calls} <= {"function"}
    return [(c.function.name, json.loads(c.function.arguments)) for c in calls]  # type: ignore[union-attr]


def reasoning_of(message: ChatCompletionMessage) -> Any:
    return (message.model_extra or {}).get("reasoning")


@pytest.fixture
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(tool_call_parser="hermes", reasoning_parser="qwen3")


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("how", [ask, ask_streaming])
def test_calls(server: RunningServer, how: Callable[..., ChatCompletion], size: int) -> None:
    server.engine.pieces = pieces_of(THOUGHTS + "One moment.\n" + CALLS, size)
    choice = how(server, tools=[WEATHER, TIME]).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "One moment."
    assert calls_of(choice.message) == EXPECTED
    assert reasoning_of(choice.message) == "I had better look."


@pytest.mark.parametrize("how", [ask, ask_streaming])
def test_calls_alone_have_null_content(
    server: RunningServer, how: Callable[..., ChatCompletion]
) -> None:
    server.engine.pieces = pieces_of(CALLS, 3)
    choice = how(server, tools=[WEATHER, TIME]).choices[0]
    assert choice.message.content is None or how is ask_streaming
    assert not choice.message.content
    assert calls_of(choice.message) == EXPECTED
    assert reasoning_of(choice.message) is None


@pytest.mark.parametrize("how", [ask, ask_streaming])
def test_one_call_at_a_time(server: RunningServer, how: Callable[..., ChatCompletion]) -> None:
    server.engine.pieces = pieces_of(CALLS, 5)
    message = how(server, tools=[WEATHER, TIME], parallel_tool_calls=False).choices[0].message
    assert calls_of(message) == EXPECTED[:1]
    message = how(server, tools=[WEATHER, TIME], parallel_tool_calls=True).choices[0].message
    assert calls_of(message) == EXPECTED


@pytest.mark.parametrize("how", [ask, ask_streaming])
@pytest.mark.parametrize("fields", [{}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_text_is_text(
    server: RunningServer, how: Callable[..., ChatCompletion], fields: dict[str, Any]
) -> None:
    server.engine.pieces = pieces_of(CALLS, 5)
    choice = how(server, **fields).choices[0]
    assert choice.message.content == CALLS
    assert choice.message.tool_calls is None
    assert choice.finish_reason == "stop"
    assert all("tools" not in call for call in server.tokenizer.chat_template.calls)


def test_the_template_gets_tools_complete(server: RunningServer) -> None:
    ask(server, tools=[WEATHER, TIME], max_tokens=4)
    (call,) = server.tokenizer.chat_template.calls
    nothing = {"type": "object", "properties": {}}
    assert call["tools"] == [
        WEATHER,
        {
            "type": "function",
            "function": {"name": "get_time", "description": "", "parameters": nothing},
        },
    ]


def test_several_choices(server: RunningServer) -> None:
    server.engine.pieces = pieces_of(THOUGHTS + CALLS, 4)
    server.engine.delay = 0.0005
    for how in (ask, ask_streaming):
        answer = how(server, tools=[WEATHER, TIME], n=3)
        assert len(answer.choices) == 3
        ids = set()
        for choice in answer.choices:
            assert calls_of(choice.message) == EXPECTED
            assert reasoning_of(choice.message) == "I had better look."
            ids |= {call.id for call in choice.message.tool_calls or []}
        assert len(ids) == 6


@pytest.mark.parametrize("how", [ask, ask_streaming])
def test_a_cut_call_ends_with_length(
    serve: Callable[..., RunningServer], how: Callable[..., ChatCompletion]
) -> None:
    server = serve(tool_call_parser="mistral")
    server.engine.pieces = ['[TOOL_CALLS]get_weather[ARGS]{"city": "Os']
    server.engine.pieces_end = "length"
    if how is ask_streaming:  # the client itself refuses to go on
        with pytest.raises(openai.LengthFinishReasonError):
            how(server, tools=[WEATHER])
        return
    choice = how(server, tools=[WEATHER]).choices[0]
    assert choice.message.tool_calls is not None
    call = choice.message.tool_calls[0]
    assert call.function.arguments == '{"city": "Os'  # type: ignore[union-attr]
    assert len(call.id) == 9
    assert choice.finish_reason == "length"


def test_chunks(server: RunningServer) -> None:
    """One thing in each chunk; a call's id, type and name once, in its first chunk."""
    text = THOUGHTS + CALLS
    server.engine.pieces = pieces_of(text, 6)
    fields = {"tools": [WEATHER, TIME], "logprobs": True, "return_token_ids": True}
    response = server.chat(**fields, stream=True)
    chunks = [json.loads(line[6:]) for line in response.text.split("\n\n")[:-2]]
    choices = [chunk["choices"][0] for chunk in chunks]
    first: set[int] = set()
    for choice in choices[1:-1]:
        delta = choice["delta"]
        assert len(delta) <= 1
        for call in delta.get("tool_calls", ()):
            is_first = call["index"] not in first
            first.add(call["index"])
            assert ("id" in call) == ("type" in call) == ("name" in call["function"]) == is_first
    assert first == {0, 1}
    assert choices[-1] == {
        **choices[-1],
        "delta": {},
        "finish_reason": "tool_calls",
    }
    tokens = [byte + NUM_SPECIAL for byte in text.encode()]
    assert [t for choice in choices for t in choice.get("token_ids", ())] == tokens
    positions = [p for c in choices for p in (c["logprobs"] or {"content": ()})["content"]]
    assert len(positions) == len(tokens)


@pytest.mark.parametrize("stream", [False, True])
def test_history(server: RunningServer, stream: bool) -> None:
    """An answer with calls goes back as it came, with results, as agents do."""
    server.engine.pieces = [THOUGHTS + CALLS]
    how = ask_streaming if stream else ask
    message = how(server, tools=[WEATHER, TIME]).choices[0].message
    sent = message.model_dump(exclude_none=True)
    sent.pop("parsed", None)
    for call in sent["tool_calls"]:
        call.pop("index", None)
        call["function"].pop("parsed_arguments", None)
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "12 °C"}
        for call in sent["tool_calls"]
    ]
    server.tokenizer.chat_template.calls.clear()
    server.engine.pieces = ["It is cold."]
    answer = how(server, messages=[USER, sent, *results], tools=[WEATHER, TIME])
    assert answer.choices[0].message.content == "It is cold."
    _, assistant, *tools = server.tokenizer.chat_template.calls[0]["messages"]
    assert assistant["reasoning_content"] == "I had better look."
    assert [c["function"]["arguments"] for c in assistant["tool_calls"]] == [
        {"city": "Oslo — 世界"},
        {},
    ]
    assert [t["tool_call_id"] for t in tools] == [c["id"] for c in assistant["tool_calls"]]


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_reasoning_in_the_history(server: RunningServer, name: str) -> None:
    earlier = {"role": "assistant", "content": "Hi.", name: "Hm."}
    assert server.chat(messages=[USER, earlier, USER]).status_code == 200
    (call,) = server.tokenizer.chat_template.calls
    assert call["messages"][1]["reasoning_content"] == "Hm."


@pytest.mark.parametrize("end", ["<think>\n", "<think>\n\n</think>\n\n"])
def test_a_template_that_opens_or_closes_the_reasoning(
    serve: Callable[..., RunningServer], end: str
) -> None:
    class Opening(FakeTemplate):
        def render(self, messages: Any, **kwargs: Any) -> str:
            return super().render(messages, **kwargs) + end

    tokenizer = FakeTokenizer()
    tokenizer.chat_template = Opening("{{ '</think>' }}")
    server = serve(tokenizer=tokenizer)
    server.engine.pieces = ["Hm.", "\n</think>\n\nYes."]
    is_open = end == "<think>\n"
    for how in (ask, ask_streaming):
        message = how(server).choices[0].message
        assert reasoning_of(message) == ("Hm." if is_open else None)
        assert message.content == ("Yes." if is_open else "Hm.\n</think>\n\nYes.")


def test_an_answer_that_goes_on_within_its_reasoning(server: RunningServer) -> None:
    server.engine.pieces = ["so.</think>Yes."]
    begun = {"role": "assistant", "content": "<think>Hm, "}
    for text, expected in (("<think>Hm, ", "so."), ("<think>Hm.</think> Well", None)):
        begun["content"] = text
        response = server.chat(messages=[USER, begun], continue_final_message=True)
        assert response.json()["choices"][0]["message"].get("reasoning") == expected


def test_auto_reads_the_template_and_tells_the_log(
    serve: Callable[..., RunningServer], caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = FakeTemplate("{{ tools }}<tool_call></tool_call>", "<think></think>")
    with caplog.at_level(logging.INFO, logger="octavo.server"):
        server = serve(tokenizer=tokenizer)
    assert "tool calls are read as: hermes, by the chat template" in caplog.messages
    assert "reasoning are read as: qwen3, by the chat template" not in caplog.messages
    assert "reasoning is read as: qwen3, by the chat template" in caplog.messages
    server.engine.pieces = [THOUGHTS + CALLS]
    message = ask(server, tools=[WEATHER, TIME]).choices[0].message
    assert calls_of(message) == EXPECTED
    assert reasoning_of(message) == "I had better look."


def test_a_model_without_a_known_format(serve: Callable[..., RunningServer]) -> None:
    server = serve()
    response = server.chat(tools=[WEATHER])
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "tools"
    assert "--tool-call-parser" in response.json()["error"]["message"]
    assert server.chat(tools=[WEATHER], tool_choice="none").status_code == 200


def test_a_format_that_there_is_not(serve: Callable[..., RunningServer]) -> None:
    with pytest.raises(ConfigError, match="--reasoning-parser must be auto, none or one of"):
        serve(reasoning_parser="hermes")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "get_time"}}}, "tool_choice"),
        (
            {
                "tool_choice": {"type": "function", "function": {"name": "get_time"}},
                "tools": [WEATHER],
            },
            "tool_choice.function.name",
        ),
        ({"tool_choice": "any", "tools": [WEATHER]}, "tool_choice"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"function": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "function", "function": {"name": ""}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [TIME, TIME]}, "tools[1].function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "x", "parameters": []}}]},
            "tools[0].function.parameters",
        ),
        ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": "",
                        "reasoning": "a",
                        "reasoning_content": "b",
                    },
                ]
            },
            "messages[1].reasoning_content",
        ),
    ],
)
def test_what_is_refused(server: RunningServer, fields: dict[str, Any], param: str) -> None:
    response = server.chat(**fields)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert not server.engine.requests


def test_markers_that_are_special_tokens_are_kept(serve: Callable[..., RunningServer]) -> None:
    """Only those, and only where a parser needs them."""

    class Tokenizer(FakeTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            known = {"<tool_call>": [0], "</tool_call>": [1]}
            return known.get(text) or super().encode(text, add_special_tokens=add_special_tokens)

    server = serve(tokenizer=Tokenizer(), tool_call_parser="hermes", reasoning_parser="qwen3")
    for fields, shown in (({"tools": [TIME]}, (0, 1)), ({}, ())):
        server.engine.requests.clear()
        assert server.chat(**fields).status_code == 200
        ((_, params),) = server.engine.requests.values()
        assert tuple(params.shown_token_ids) == shown
        assert params.skip_special_tokens


def test_a_real_template_renders_the_whole_loop(serve: Callable[..., RunningServer]) -> None:
    """Tools, a call and its result, in Qwen's manner, through a template of Jinja."""
    source = (
        "{%- for tool in tools or [] %}[{{ tool | tojson }}]{% endfor -%}"
        "{%- for m in messages %}<{{ m.role }}>{{ m.content }}"
        "{%- for c in m.tool_calls or [] %}<tool_call>\n"
        '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}'
        "\n</tool_call>{% endfor %}{% endfor -%}"
        "{%- if add_generation_prompt %}<assistant>{% endif %}"
    )
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = ChatTemplate(source)  # type: ignore[assignment]
    server = serve(tokenizer=tokenizer)
    assistant = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
            }
        ],
    }
    result = {"role": "tool", "tool_call_id": "call_1", "content": "12 °C"}
    assert server.chat(messages=[USER, assistant, result], tools=[WEATHER]).status_code == 200
    ((prompt, _),) = server.engine.requests.values()
    assert tokenizer.decode(prompt) == (
        f"[{json.dumps(WEATHER)}]<user>{USER['content']}<assistant><tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call><tool>12 °C<assistant>'
    )
