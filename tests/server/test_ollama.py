"""Ollama's routes: what reaches the template and the engine, and what comes back in either way.

The official client is in `tests/clients/test_ollama.py`.
"""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.errors import QueueFullError
from tests.server.fake_engine import NUM_SPECIAL, FakeEngine, FakeTemplate, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from tests.server.conftest import RunningServer

USER: dict[str, Any] = {"role": "user", "content": "What is the weather in Oslo?"}
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "get_time"}},
]
CALLS = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo — 世界"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
)
ANSWER = "<think>\nI had better look.\n</think>\n\nOne moment.\n" + CALLS
STATS = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)


def pieces_of(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


def chat(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.client.post("/api/chat", json={"model": "fake", "messages": [USER], **fields})


def generate(server: RunningServer, **fields: Any) -> httpx.Response:
    return server.client.post("/api/generate", json={"model": "fake", "prompt": "hello", **fields})


def lines_of(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.text.endswith("\n")
    return [json.loads(line) for line in response.text.removesuffix("\n").split("\n")]


def check_stats(answer: dict[str, Any]) -> None:
    assert all(isinstance(answer[name], int) and answer[name] > 0 for name in STATS)
    parts = sum(answer[f"{name}_duration"] for name in ("load", "prompt_eval", "eval"))
    assert answer["total_duration"] == parts


def message_of(lines: list[dict[str, Any]]) -> dict[str, Any]:
    """What the lines of a chat add up to, call ids left out."""
    content, thinking, calls = "", "", []
    for line in lines:
        message = line["message"]
        assert message["role"] == "assistant"
        content += message["content"]
        thinking += message.get("thinking", "")
        calls += [call["function"] for call in message.get("tool_calls", ())]
    return {"content": content, "thinking": thinking, "calls": calls}


@pytest.fixture
def server(serve: Callable[..., RunningServer]) -> RunningServer:
    return serve(tool_call_parser="hermes", reasoning_parser="qwen3")


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_all_pieces_make_the_same_message(server: RunningServer, size: int) -> None:
    server.engine.pieces = pieces_of(ANSWER, size)
    whole = chat(server, tools=TOOLS, stream=False).json()
    expected = {
        "content": "One moment.",
        "thinking": "I had better look.",
        "calls": [
            {"index": 0, "name": "get_weather", "arguments": {"city": "Oslo — 世界"}},
            {"index": 1, "name": "get_time", "arguments": {}},
        ],
    }
    assert message_of([whole]) == expected
    *lines, last = lines_of(chat(server, tools=TOOLS))
    assert message_of([*lines, last]) == expected
    assert not any(line["done"] for line in lines)
    assert all(set(line) == {"model", "created_at", "done", "message"} for line in lines)
    for answer in (whole, last):
        assert (answer["done"], answer["done_reason"]) == (True, "stop")
        assert answer["eval_count"] == len(ANSWER.encode())
        check_stats(answer)
    assert last["message"] == {"role": "assistant", "content": ""}


def test_durations_are_measured(server: RunningServer) -> None:
    server.engine.first_delay = 0.05
    server.engine.delay = 0.01
    began = time.perf_counter_ns()
    answer = chat(server, stream=False, options={"num_predict": 5}).json()
    assert answer["total_duration"] < time.perf_counter_ns() - began
    assert answer["prompt_eval_duration"] > 50e6
    assert answer["eval_duration"] > 35e6
    assert answer["eval_count"] == 5
    ((prompt, _),) = server.engine.requests.values()
    assert answer["prompt_eval_count"] == len(prompt)


def test_the_conversation_that_the_template_sees(server: RunningServer) -> None:
    def call(name: str, **rest: Any) -> dict[str, Any]:
        return {"function": {"name": name, "arguments": {"a": name}}, **rest}

    messages = [
        {"role": "system", "content": "Be brief."},
        USER,
        {
            "role": "assistant",
            "content": "",
            "thinking": "Hm.",
            "tool_calls": [call("f"), call("g"), call("f"), call("h", id="mine")],
        },
        {"role": "tool", "tool_name": "g", "content": "of g"},
        {"role": "tool", "tool_name": "f", "content": "of the first f"},
        {"role": "tool", "content": "of the second f"},
        {"role": "tool", "tool_name": "h", "content": "of h"},
        {"role": "tool", "tool_name": "x", "content": "of nothing"},
    ]
    assert chat(server, messages=messages, tools=TOOLS).status_code == 200
    (seen,) = server.tokenizer.chat_template.calls
    system, _, assistant, *results = seen["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert assistant["reasoning_content"] == "Hm."
    ids = [call["id"] for call in assistant["tool_calls"]]
    assert ids[:3] == ["000000001", "000000002", "000000003"]
    assert ids[3] == "mine"
    assert [call["function"]["arguments"] for call in assistant["tool_calls"]] == [
        {"a": name} for name in "fgfh"
    ]
    assert [result["tool_call_id"] for result in results] == [
        ids[1],
        ids[0],
        ids[2],
        ids[3],
        "000000004",
    ]
    assert results[0] == {
        "role": "tool",
        "content": "of g",
        "tool_call_id": ids[1],
        "name": "g",
    }


def test_options(server: RunningServer) -> None:
    options = {
        "num_predict": 5,
        "temperature": 0.5,
        "top_k": 9,
        "top_p": 0.75,
        "min_p": 0.125,
        "seed": 7,
        "stop": ["q", "zz"],
        "repeat_penalty": 1.5,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "repeat_last_n": -1,
        "num_ctx": 2048,
        "num_thread": 3,
        "mirostat": 0,
    }
    for ask in (chat, generate):
        server.engine.requests.clear()
        assert ask(server, options=options).status_code == 200
        ((_, params),) = server.engine.requests.values()
        assert params.max_tokens == 5
        assert (params.temperature, params.top_k, params.top_p) == (0.5, 9, 0.75)
        assert (params.min_p, params.seed, params.stop_strings) == (0.125, 7, ("q", "zz"))
        assert params.repetition_penalty == 1.5
        assert (params.presence_penalty, params.frequency_penalty) == (0.5, 0.25)


@pytest.mark.parametrize("stream", [False, True])
def test_reasons_of_the_end(serve: Callable[..., RunningServer], stream: bool) -> None:
    server = serve(engine=FakeEngine(max_model_len=100))

    def end(**options: Any) -> str:
        response = chat(server, stream=stream, options=options)
        answer = lines_of(response)[-1] if stream else response.json()
        reason: str = answer["done_reason"]
        return reason

    assert end(num_predict=4) == "length"
    assert end(num_predict=2000) == end(num_predict=-1) == end(num_predict=-2) == end() == "length"
    for _, params in list(server.engine.requests.values())[1:]:
        assert params.max_tokens is not None
        assert 4 < params.max_tokens < 100
    assert end(stop=["dog", "fox"]) == "stop"


def test_formats(server: RunningServer) -> None:
    for value, kind in (("json", "json_object"), (SCHEMA, "json")):
        server.engine.requests.clear()
        assert chat(server, format=value).status_code == 200
        ((_, params),) = server.engine.requests.values()
        assert getattr(params.structured_outputs, kind) in (True, SCHEMA)
    server.engine.requests.clear()
    assert chat(server, format="").status_code == 200
    ((_, params),) = server.engine.requests.values()
    assert params.structured_outputs is None


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server: RunningServer, stream: bool) -> None:
    for ask in (chat, generate):
        fields = {"logprobs": True, "top_logprobs": 2, "options": {"num_predict": 5}}
        response = ask(server, stream=stream, **fields)
        lines = lines_of(response) if stream else [response.json()]
        positions = [p for line in lines for p in line.get("logprobs", ())]
        assert len(positions) == 5
        assert all(len(position["top_logprobs"]) == 2 for position in positions)
        assert positions[0]["logprob"] == -0.25
        assert b"".join(bytes(p["bytes"]) for p in positions).decode(errors="ignore")


def thinking_server(serve: Callable[..., RunningServer], source: str) -> RunningServer:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = FakeTemplate(source)
    return serve(tokenizer=tokenizer)


def test_think(serve: Callable[..., RunningServer]) -> None:
    server = thinking_server(serve, "{{ enable_thinking }}{{ reasoning_effort }}")
    calls = server.tokenizer.chat_template.calls
    for ask in (chat, generate):
        for think in (True, False):
            assert ask(server, think=think).status_code == 200
            assert calls.pop()["enable_thinking"] is think
        assert ask(server, think="high").status_code == 200
        call = calls.pop()
        assert (call["enable_thinking"], call["reasoning_effort"]) == (True, "high")
        assert ask(server).status_code == 200
        assert "enable_thinking" not in calls.pop()
    for source, refused in (("", True), ("", "low"), ("</think>", False)):
        response = chat(thinking_server(serve, source), think=refused)
        assert response.status_code == 400
        assert response.json()["error"].startswith("think: this model")


def test_generate_is_a_turn(server: RunningServer) -> None:
    server.engine.pieces = pieces_of("<think>Hm.</think>Yes.", 3)
    whole = generate(server, system="Be brief.", stream=False).json()
    assert (whole["response"], whole["thinking"]) == ("Yes.", "Hm.")
    (seen,) = server.tokenizer.chat_template.calls
    assert [message["role"] for message in seen["messages"]] == ["system", "user"]
    lines = lines_of(generate(server, system="Be brief."))
    assert "".join(line["response"] for line in lines) == "Yes."
    assert "".join(line.get("thinking", "") for line in lines) == "Hm."
    last = lines[-1]
    check_stats(last)
    assert "context" not in lines[0]
    assert last["context"] == whole["context"]


def test_generate_goes_on_from_a_context(server: RunningServer) -> None:
    first = generate(server, stream=False, options={"num_predict": 4}).json()
    ((prompt, params),) = server.engine.requests.values()
    answer = server.engine.answer(prompt, params)[:4]
    assert first["context"] == prompt + answer
    second = generate(server, stream=False, prompt="more", context=first["context"]).json()
    ids = list(server.engine.requests.values())[-1][0]
    text = "<user>more\n<assistant>"
    assert ids == first["context"] + [byte + NUM_SPECIAL for byte in text.encode()]
    assert second["prompt_eval_count"] == len(ids)


def test_generate_raw(serve: Callable[..., RunningServer]) -> None:
    for server in (
        serve(tool_call_parser="hermes", reasoning_parser="qwen3"),
        serve(tokenizer=FakeTokenizer(has_template=False)),
    ):
        is_base = server.tokenizer.chat_template is None
        server.engine.pieces = ["<think>Hm.</think>", "Yes."]
        fields = {} if is_base else {"raw": True}
        answer = generate(server, stream=False, **fields).json()
        assert answer["response"] == "<think>Hm.</think>Yes."
        assert "thinking" not in answer
        ((ids, _),) = server.engine.requests.values()
        assert ids == [1, *(byte + NUM_SPECIAL for byte in b"hello")]
        assert ("context" in answer) == is_base
    response = generate(server, system="Be brief.")
    assert (response.status_code, response.json()["error"].split(":")[0]) == (400, "system")


def test_nothing_asked_is_a_load(server: RunningServer) -> None:
    for answer in (chat(server, messages=[]).json(), generate(server, prompt="").json()):
        assert (answer["done"], answer["done_reason"]) == (True, "load")
    assert generate(server, prompt=None, keep_alive="10m").json()["response"] == ""
    for value in (0, "0", "0s", "0h0m"):
        response = generate(server, prompt="", keep_alive=value)
        assert response.status_code == 400
        assert "cannot be unloaded" in response.json()["error"]
        assert generate(server, keep_alive=value).status_code == 200
    assert not chat(server, keep_alive="soon").is_success
    for good in ("5m", "1h30m", "-1", -1, 2.5, "1.5h", "-1m"):
        assert generate(server, keep_alive=good).status_code == 200


@pytest.mark.parametrize("name", ["fake", "fake:latest", "org/alias", "org/alias:latest"])
def test_names(server: RunningServer, name: str) -> None:
    assert chat(server, model=name, stream=False).json()["model"] == name
    assert server.client.post("/api/show", json={"model": name}).status_code == 200
    assert server.client.post("/api/show", json={"name": name}).status_code == 200


@pytest.mark.parametrize("name", ["fake:7b", "fake:latest:latest", ":latest", "", "nothing"])
def test_other_names(server: RunningServer, name: str) -> None:
    for response in (
        chat(server, model=name),
        chat(server, model=name, messages=[]),
        generate(server, model=name),
        server.client.post("/api/show", json={"model": name}),
        server.client.post("/api/embed", json={"model": name, "input": "x"}),
    ):
        assert response.status_code == 404, response.text
        assert "not served here" in response.json()["error"]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{**USER, "images": ["aGk="]}]}, "messages[0].images"),
        ({"messages": [{**USER, "thinking": "hm"}]}, "messages[0].thinking"),
        ({"messages": [{**USER, "tool_call_id": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**USER, "content": []}]}, "messages[0].content"),
        ({"format": "xml"}, "format"),
        ({"format": 5}, "format"),
        ({"think": "very"}, "think"),
        ({"options": {"num_ctx": 4096}}, "options.num_ctx"),
        ({"options": {"num_predict": 0}}, "options.num_predict"),
        ({"options": {"num_predict": -3}}, "options.num_predict"),
        ({"options": {"temperature": -1}}, "options.temperature"),
        ({"options": {"temperature": "hot"}}, "options.temperature"),
        ({"options": {"top_p": 2}}, "options.top_p"),
        ({"options": {"min_p": 2}}, "options.min_p"),
        ({"options": {"repeat_penalty": 0}}, "options.repeat_penalty"),
        ({"options": {"presence_penalty": 3}}, "options.presence_penalty"),
        ({"options": {"stop": [""]}}, "options.stop"),
        ({"options": {"mirostat": 2}}, "options.mirostat"),
        ({"options": {"repeat_penalty": 1.1, "repeat_last_n": 64}}, "options.repeat_last_n"),
        ({"options": {"temprature": 1}}, "options.temprature (did you mean temperature?)"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"truncate": True}, "truncate"),
        ({"n": 2}, "Unknown field: n"),
    ],
)
def test_what_is_refused(server: RunningServer, fields: dict[str, Any], name: str) -> None:
    response = chat(server, **fields)
    assert response.status_code == 400, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert name in body["error"]
    assert not server.engine.requests


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"template": "x"}, "template"),
        ({"images": ["x"]}, "images"),
        ({"raw": True, "system": "x"}, "system"),
        ({"raw": True, "context": [5]}, "context"),
        ({"raw": True, "think": True}, "think"),
        ({"context": [-1]}, "context[0]"),
        ({"prompt": "refuse me"}, "the template refuses"),
        ({"prompt": "x" * 3000}, "prompt has"),
    ],
)
def test_what_generate_refuses(server: RunningServer, fields: dict[str, Any], name: str) -> None:
    response = generate(server, **fields)
    assert response.status_code == 400, response.text
    assert name in response.json()["error"]
    assert not server.engine.requests


def test_errors_of_the_layers(serve: Callable[..., RunningServer]) -> None:
    server = serve(api_keys=("sk-1",), max_body_bytes=300)

    def error(status: int, response: httpx.Response) -> None:
        assert response.status_code == status
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]

    error(401, chat(server))
    server.client.headers["Authorization"] = "Bearer sk-1"
    assert server.client.get("/").text == "Octavo is running"
    assert server.client.head("/").status_code == 200
    error(405, server.client.get("/api/chat"))
    error(400, server.client.post("/api/chat", content=b"{"))
    error(413, generate(server, prompt="x" * 300))
    server.engine.fail_at = 0
    for failure, status in ((RuntimeError("secret"), 500), (QueueFullError("too many wait"), 503)):
        server.engine.failure = failure
        error(status, chat(server))
        error(status, chat(server, stream=False))
    server.engine.is_alive = False
    error(503, generate(server))


def test_an_error_in_the_midst_of_a_stream(server: RunningServer) -> None:
    server.engine.fail_at = 12
    for ask in (chat, generate):
        *lines, error = lines_of(ask(server))
        assert lines
        assert not any(line["done"] for line in lines)
        assert list(error) == ["error"]
        assert "secret" not in error["error"]


@pytest.mark.parametrize("reason", ["abort", "timeout"])
def test_an_answer_that_was_ended_from_outside(server: RunningServer, reason: str) -> None:
    server.engine.pieces, server.engine.pieces_end = ["Hi.", ""], reason
    response = chat(server, stream=False)
    assert response.status_code == 503
    assert reason in response.json()["error"]
    assert reason in lines_of(chat(server))[-1]["error"]


def test_silence_stays_silent(serve: Callable[..., RunningServer]) -> None:
    server = serve(sse_keep_alive=0.01)
    server.engine.first_delay = 0.08
    assert len(lines_of(chat(server))) > 1


def test_models(server: RunningServer) -> None:
    tags = server.client.get("/api/tags").json()["models"]
    loaded = server.client.get("/api/ps").json()["models"]
    for models in (tags, loaded):
        assert [model["name"] for model in models] == ["fake:latest", "org/alias:latest"]
        assert all(model["name"] == model["model"] for model in models)
        assert models[0]["details"]["family"] == "FakeForCausalLM"
    assert loaded[0]["context_length"] == 2048
    assert server.client.get("/api/version").json() == {"version": "0.12.11"}


def test_show(serve: Callable[..., RunningServer]) -> None:
    tokenizer = FakeTokenizer()
    tokenizer.chat_template = FakeTemplate("{{ tools }}<tool_call></tool_call></think>")
    server = serve(tokenizer=tokenizer, defaults={"temperature": 0.6, "repetition_penalty": 1.1})
    shown = server.client.post("/api/show", json={"model": "fake"}).json()
    assert shown["template"] == tokenizer.chat_template.sources[0]
    assert shown["parameters"].split("\n") == ["temperature 0.6", "repeat_penalty 1.1"]
    assert shown["capabilities"] == ["completion", "tools", "thinking"]
    assert shown["model_info"]["FakeForCausalLM.context_length"] == 2048
    engine = FakeEngine()
    engine.info = msgspec.structs.replace(engine.info, tasks=("embed",))
    shown = serve(engine=engine).client.post("/api/show", json={"model": "fake"}).json()
    assert shown["capabilities"] == ["embedding"]
    response = server.client.post("/api/show", json={})
    assert (response.status_code, response.json()["error"]) == (
        400,
        "model must say which model is meant",
    )


@pytest.mark.parametrize("name", ["pull", "push", "create", "copy", "delete"])
def test_models_cannot_be_changed(server: RunningServer, name: str) -> None:
    method = "DELETE" if name == "delete" else "POST"
    response = server.client.request(method, f"/api/{name}", json={"model": "x"})
    assert response.status_code == 400
    assert f"/api/{name} is not served" in response.json()["error"]


def test_embeddings(server: RunningServer) -> None:
    theirs = server.client.post(
        "/v1/embeddings", json={"model": "fake", "input": ["hello", "other"]}
    ).json()
    answer = server.client.post(
        "/api/embed", json={"model": "fake:latest", "input": ["hello", "other"]}
    ).json()
    assert answer["model"] == "fake:latest"
    assert answer["embeddings"] == [one["embedding"] for one in theirs["data"]]
    assert all(math.isclose(sum(x * x for x in v), 1, rel_tol=1e-5) for v in answer["embeddings"])
    assert answer["prompt_eval_count"] == theirs["usage"]["prompt_tokens"]
    assert answer["total_duration"] > answer["load_duration"] > 0
    old = server.client.post("/api/embeddings", json={"model": "fake", "prompt": "hello"}).json()
    assert old == {"embedding": theirs["data"][0]["embedding"]}


def test_embeddings_of_long_texts(server: RunningServer) -> None:
    body: dict[str, Any] = {"model": "fake", "input": "x" * 3000}
    answer = server.client.post("/api/embed", json=body).json()
    assert answer["prompt_eval_count"] == 2048
    response = server.client.post("/api/embed", json={**body, "truncate": False})
    assert response.status_code == 400
    assert response.json()["error"].endswith("shorten it, or leave out truncate")


def test_embeddings_of_nothing(server: RunningServer) -> None:
    answer = server.client.post("/api/embed", json={"model": "fake", "input": []}).json()
    assert answer["embeddings"] == []
    answer = server.client.post("/api/embeddings", json={"model": "fake"}).json()
    assert answer == {"embedding": []}
    response = server.client.post("/api/embed", json={"model": "fake", "input": ["x"] * 2049})
    assert response.status_code == 400
    assert response.json()["error"].startswith("input ")


def test_embeddings_of_a_model_that_generates(serve: Callable[..., RunningServer]) -> None:
    engine = FakeEngine()
    engine.info = msgspec.structs.replace(engine.info, tasks=("generate",))
    server = serve(engine=engine)
    response = server.client.post("/api/embed", json={"model": "fake", "input": "x"})
    assert response.status_code == 400
    assert "embed" in response.json()["error"]
