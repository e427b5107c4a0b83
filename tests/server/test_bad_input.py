"""Every bad input gets OpenAI's error body naming its field, and the server goes on serving."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING, Any

import pytest

from octavo.errors import EngineError
from tests.server.fake_engine import VOCAB_SIZE, FakeEngine, FakeTokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import httpx

    from tests.server.conftest import RunningServer

USER = {"role": "user", "content": "hi"}


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    body = response.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"", "byte 0"),
        (b"{", "byte 1"),
        (b'{"model": "fake",}', "byte 17"),
        (b'{"model": NaN}', "byte 10"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b'{"model": "\\ud800 alone"}', "surrogate"),
        (b"\xef\xbb\xbf{}", "byte 0"),
        (b'{"metadata": {"a": ' + b"[" * 100_000, "nested too deeply"),
        (b"[]", "object"),
        (b"null", "object"),
        (b'"text"', "object"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/tokenize"])
def test_malformed_json(server: RunningServer, path: str, body: bytes, expected: str) -> None:
    if path == "/tokenize":
        body = body.replace(b"metadata", b"chat_template_kwargs")
        expected = expected if b"chat" not in body else "nested"
    error = error_of(server.client.post(path, content=body))
    assert error["type"] == "invalid_request_error"
    assert error["param"] is None
    assert expected in error["message"]
    server.assert_serves()


COMMON: list[tuple[dict[str, Any], str]] = [
    ({"model": None}, "model"),
    ({"model": 5}, "model"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": [1]}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"top_k": 1.5}, "top_k"),
    ({"top_k": 10**10}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"seed": 2**63}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"seed": 10**400}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": "16"}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"max_tokens": 10**6}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"min_tokens": 9}, "min_tokens"),
    ({"max_tokens": None, "min_tokens": 5000}, "min_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stop": ["a"] * 17}, "stop"),
    ({"stop": "a" * 1025}, "stop"),
    ({"stop": [1]}, "stop[0]"),
    ({"stop": {}}, "stop"),
    ({"stop_token_ids": ["a"]}, "stop_token_ids[0]"),
    ({"stop_token_ids": [5, VOCAB_SIZE]}, "stop_token_ids[1]"),
    ({"stop_token_ids": [-1]}, "stop_token_ids"),
    ({"ignore_eos": 1}, "ignore_eos"),
    ({"stream": "yes"}, "stream"),
    ({"stream": False, "stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_use": True}}, "stream_options.include_use"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
    ),
    ({"temprature": 1}, "temprature"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"cache_salt": "s" * 1025}, "cache_salt"),
    ({"timeout": 0}, "timeout"),
    ({"timeout": -1.5}, "timeout"),
    ({"priority": 2**31}, "priority"),
    ({"n": 0}, "n"),
    ({"n": -1}, "n"),
    ({"n": 129}, "n"),
    ({"n": 2, "best_of": 1}, "best_of"),
    ({"best_of": 129}, "best_of"),
    ({"stream": True, "n": 2, "best_of": 3}, "best_of"),
    ({"presence_penalty": 2.5}, "presence_penalty"),
    ({"frequency_penalty": -2.1}, "frequency_penalty"),
    ({"frequency_penalty": "x"}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"repetition_penalty": 11}, "repetition_penalty"),
    ({"logit_bias": {"5": -101}}, "logit_bias"),
    ({"logit_bias": {"five": 1}}, "logit_bias.five"),
    ({"logit_bias": {"-5": 1}}, "logit_bias.-5"),
    ({"logit_bias": {"\u0665": 1}}, "logit_bias.\u0665"),
    ({"logit_bias": {"5": "x"}}, "logit_bias[...]"),
    ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
    ({"allowed_token_ids": []}, "allowed_token_ids"),
    ({"allowed_token_ids": [-1]}, "allowed_token_ids"),
    ({"bad_words": [""]}, "bad_words"),
    ({"bad_words": [5]}, "bad_words[0]"),
    ({"bad_words": ["a"] * 257}, "bad_words"),
    ({"prompt_logprobs": 21}, "prompt_logprobs"),
    ({"prompt_logprobs": -1}, "prompt_logprobs"),
    ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
    ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
    ({"length_penalty": 2}, "length_penalty"),
    ({"early_stopping": True}, "early_stopping"),
    ({"spaces_between_special_tokens": False}, "spaces_between_special_tokens"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
    ),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": ""}}, "structured_outputs"),
    ({"structured_outputs": {"whitespace": "a"}}, "structured_outputs.whitespace"),
    ({"guided_regex": ""}, "guided_regex"),
    ({"guided_choice": []}, "guided_choice"),
    ({"guided_json": 5}, "guided_json"),
    ({"guided_regex": "a", "guided_grammar": "b"}, "guided_grammar"),
    (
        {"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
    ),
    ({"service_tier": "priority"}, "service_tier"),
    ({"store": True}, "store"),
]

BEAMS: dict[str, Any] = {"use_beam_search": True, "n": 2, "stream": False}

COMPLETION: list[tuple[dict[str, Any], str]] = [
    *COMMON,
    ({"logit_bias": {"5": 1, str(VOCAB_SIZE): 1}}, f"logit_bias.{VOCAB_SIZE}"),
    ({"logit_bias": {"9" * 30: 1}}, "logit_bias." + "9" * 20),
    ({"allowed_token_ids": [5, VOCAB_SIZE]}, "allowed_token_ids[1]"),
    ({"echo": True, "max_tokens": 0, "min_tokens": 1}, "min_tokens"),
    ({"echo": True, "max_tokens": -1}, "max_tokens"),
    ({"prompt": ["a"] * 1000, "best_of": 3, "stream": False}, "best_of"),
    ({**BEAMS, "n": 11}, "n"),
    ({**BEAMS, "stream": True}, "use_beam_search"),
    ({**BEAMS, "best_of": 3}, "best_of"),
    ({**BEAMS, "temperature": 0.5}, "temperature"),
    ({**BEAMS, "top_p": 0.5}, "top_p"),
    ({**BEAMS, "stop": "a"}, "stop"),
    ({**BEAMS, "logit_bias": {"5": 1}}, "logit_bias"),
    ({**BEAMS, "repetition_penalty": 1.1}, "repetition_penalty"),
    ({**BEAMS, "guided_regex": "a"}, "guided_regex"),
    ({**BEAMS, "response_format": {"type": "json_object"}}, "response_format"),
    ({**BEAMS, "echo": True, "max_tokens": 0}, "max_tokens"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [""]}, "prompt[0]"),
    ({"prompt": ["a", ""]}, "prompt[1]"),
    ({"prompt": [[1], []]}, "prompt[1]"),
    ({"prompt": None}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": {"text": "a"}}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": [1, [1]]}, "prompt"),
    ({"prompt": [1, 2.5]}, "prompt[1]"),
    ({"prompt": [[1], [True]]}, "prompt[1][0]"),
    ({"prompt": [5, -1]}, "prompt[1]"),
    ({"prompt": [5, VOCAB_SIZE]}, "prompt[1]"),
    ({"prompt": [[5], [6, VOCAB_SIZE]]}, "prompt[1][1]"),
    ({"prompt": [2**40]}, "prompt[0]"),
    ({"prompt": ["a"] * 2049}, "prompt"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"suffix": "end"}, "suffix"),
]

CHAT: list[tuple[dict[str, Any], str]] = [
    *COMMON,
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": ["hi"]}, "messages[0]"),
    ({"messages": [{"content": "hi"}]}, "messages[0].role"),
    ({"messages": [{"role": "boss", "content": "hi"}]}, "messages[0].role"),
    ({"messages": [USER, {"role": 5, "content": "hi"}]}, "messages[1].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "assistant"}]}, "messages[0].content"),
    ({"messages": [{**USER, "tool_calls": []}]}, "messages[0].tool_calls"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
    (
        {
            "messages": [
                {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
            ]
        },
        "messages[0].content[0].type",
    ),
    (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "[]"}}],
                }
            ]
        },
        "messages[0].tool_calls[0].function.arguments",
    ),
    ({"messages": [{"role": "user", "content": "refuse me"}]}, "messages"),
    ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_tokens": None, "max_completion_tokens": 10**6}, "max_completion_tokens"),
    ({"max_tokens": 4, "max_completion_tokens": 5}, "max_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": -1}, "top_logprobs"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"reasoning_effort": "low"}, "reasoning_effort"),
    ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
    ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs.messages"),
    ({"chat_template_kwargs": {"self": 1}}, "chat_template_kwargs.self"),
    ({"chat_template_kwargs": []}, "chat_template_kwargs"),
]


@pytest.mark.parametrize("stream", [False, True])
def test_bad_completion_fields(server: RunningServer, stream: bool) -> None:
    for fields, param in COMPLETION:
        response = server.completion(**{"stream": stream, **fields})
        assert error_of(response)["param"] == param, fields
        assert param in response.json()["error"]["message"], fields
        assert not server.engine.requests
    server.assert_serves()


@pytest.mark.parametrize("stream", [False, True])
def test_bad_chat_fields(server: RunningServer, stream: bool) -> None:
    for fields, param in CHAT:
        response = server.chat(**{"stream": stream, **fields})
        assert error_of(response)["param"] == param, fields
        if fields.get("messages") != [{"role": "user", "content": "refuse me"}]:
            name = param.removeprefix("chat_template_kwargs.")
            assert name in response.json()["error"]["message"], fields
        assert not server.engine.requests
    server.assert_serves()


def test_messages_say_what_is_allowed(server: RunningServer) -> None:
    def message(**fields: Any) -> str:
        text: str = error_of(server.chat(**fields))["message"]
        return text

    assert "'system', 'developer', 'user', 'assistant', 'tool'" in message(
        messages=[{"role": "boss", "content": "hi"}]
    )
    assert "from n up" in message(n=2, best_of=1)
    assert "set it to true" in message(spaces_between_special_tokens=False)
    assert "did you mean temperature?" in message(temprature=1)
    assert "did you mean content?" in message(messages=[{"role": "user", "contents": "hi"}])
    assert "'auto', 'default'" in message(service_tier="flex")
    assert "expected int or null, got str" in message(seed="x")


@pytest.mark.parametrize("missing", ["model", "prompt"])
def test_missing_field(server: RunningServer, missing: str) -> None:
    body = {"model": "fake", "prompt": "x"}
    del body[missing]
    error = error_of(server.client.post("/v1/completions", json=body))
    assert error["param"] == missing
    assert error_of(server.client.post("/v1/chat/completions", json={"model": "fake"}))[
        "param"
    ] == ("messages")
    server.assert_serves()


@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_unknown_model(server: RunningServer, kind: str) -> None:
    error = error_of(getattr(server, kind)(model="gpt-5"), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "fake, org/alias" in error["message"]
    assert getattr(server, kind)(model="org/alias").status_code == 200
    server.assert_serves()


@pytest.mark.parametrize("stream", [False, True])
def test_context_length(serve: Callable[..., RunningServer], stream: bool) -> None:
    server = serve(engine=FakeEngine(max_model_len=32))

    def refused(response: httpx.Response) -> tuple[str, str]:
        error = error_of(response)
        assert error["code"] == "context_length_exceeded"
        return error["param"], error["message"]

    param, message = refused(server.completion(prompt=[5] * 30, max_tokens=3, stream=stream))
    assert param == "max_tokens"
    assert all(number in message for number in ("32", "30", "3", "at most 2"))
    assert refused(server.completion(prompt=[5] * 32, stream=stream))[0] == "prompt"
    assert refused(server.completion(prompt=[[5], [5] * 40], stream=stream))[0] == "prompt[1]"
    long = [{"role": "user", "content": "x" * 40}]
    assert refused(server.chat(messages=long, stream=stream))[0] == "messages"
    assert refused(server.chat(max_tokens=None, max_completion_tokens=31))[0] == (
        "max_completion_tokens"
    )
    assert server.completion(prompt=[5] * 30, max_tokens=2).status_code == 200
    server.assert_serves()


def test_max_tokens_fills_the_context(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=FakeEngine(max_model_len=64))
    usage = server.completion(prompt=[5] * 20, max_tokens=None).json()["usage"]
    assert usage["completion_tokens"] == 44
    assert server.chat(max_tokens=None).json()["usage"]["total_tokens"] == 64
    body = {"model": "fake", "prompt": [5] * 20}
    usage = server.client.post("/v1/completions", json=body).json()["usage"]
    assert usage["completion_tokens"] == 16


def test_absurdly_long_texts_are_not_encoded(serve: Callable[..., RunningServer]) -> None:
    class Tokenizer(FakeTokenizer):
        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            assert len(text) <= 32 * 256
            return super().encode(text, add_special_tokens=add_special_tokens)

    server = serve(engine=FakeEngine(max_model_len=32), tokenizer=Tokenizer())
    text = "x" * (32 * 256 + 1)
    assert error_of(server.completion(prompt=text))["code"] == "context_length_exceeded"
    messages = [{"role": "user", "content": text}]
    error = error_of(server.chat(messages=messages))
    assert (error["code"], error["param"]) == ("context_length_exceeded", "messages")
    error = error_of(server.client.post("/tokenize", json={"prompt": text}))
    assert error["code"] == "context_length_exceeded"


def test_no_chat_template(serve: Callable[..., RunningServer]) -> None:
    server = serve(tokenizer=FakeTokenizer(has_template=False))
    error = error_of(server.chat())
    assert error["param"] == "messages"
    assert "/v1/completions" in error["message"]
    assert server.completion().status_code == 200


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("chunked", [False, True])
def test_body_too_large(serve: Callable[..., RunningServer], http: str, chunked: bool) -> None:
    server = serve(max_body_bytes=1000, http=http)

    def chunks() -> Iterator[bytes]:
        for _ in range(50):
            yield b"x" * 1000

    content = chunks() if chunked else b"x" * 50_000
    response = server.client.post("/v1/completions", content=content)
    error = error_of(response, 413)
    assert "1000" in error["message"]
    assert server.client.post("/v1/completions", content=b"x" * 1000).status_code == 400
    server.assert_serves()


@pytest.mark.parametrize("http", ["httptools", "h11"])
def test_an_announced_body_too_large_is_refused_unread(
    serve: Callable[..., RunningServer], http: str
) -> None:
    server = serve(max_body_bytes=1000, http=http)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(
            b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n"
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413 ")
    server.assert_serves()


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "unknown_url"),
        ("GET", "/v1", 404, "unknown_url"),
        ("POST", "/v1/chat/completions/", 404, "unknown_url"),
        ("POST", "/v1/audio/speech", 404, "unknown_url"),
        ("GET", "/v1/../etc/passwd", 404, "unknown_url"),
        ("GET", "/v1/models/none/such", 404, "model_not_found"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("OPTIONS", "/v1/chat/completions", 405, "method_not_allowed"),
    ],
)
def test_routes(server: RunningServer, method: str, path: str, status: int, code: str) -> None:
    response = server.client.request(method, path)
    error = error_of(response, status)
    assert error["code"] == code
    if status == 405:
        assert "GET" in response.headers["allow"] or "POST" in response.headers["allow"]
    server.assert_serves()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "failure", ["boom at /secret/path", RuntimeError("secret"), EngineError("secret")]
)
def test_failures_before_the_first_token(
    server: RunningServer, stream: bool, failure: Exception | str
) -> None:
    server.engine.fail_at = 0
    server.engine.failure = failure
    for response in (
        server.completion(stream=stream),
        server.completion(stream=stream, prompt=["a", "b", "c"]),
        server.chat(stream=stream),
    ):
        error = error_of(response, 500)
        assert error["type"] == "server_error"
        assert "secret" not in response.text
        assert response.headers["x-request-id"] in error["message"]
    server.engine.fail_at = None
    server.assert_serves()


@pytest.mark.parametrize("failure", ["boom at /secret/path", RuntimeError("secret")])
def test_failures_in_mid_stream(server: RunningServer, failure: Exception | str) -> None:
    server.engine.fail_at = 5
    server.engine.failure = failure
    for response in (
        server.completion(stream=True, max_tokens=60),
        server.completion(stream=True, max_tokens=60, prompt=["a", "b"]),
        server.completion(stream=True),  # Nothing to show before it fails, but a first delta.
        server.chat(stream=True),
    ):
        assert response.status_code == 200
        *_, error, done = [line for line in response.text.split("\n\n") if line]
        assert done == "data: [DONE]"
        assert json.loads(error.removeprefix("data: "))["error"]["type"] == "server_error"
        assert "secret" not in response.text
    server.wait_until_idle()
    assert error_of(server.chat(), 500)
    server.engine.fail_at = None
    server.assert_serves()


@pytest.mark.parametrize("stream", [False, True])
def test_dead_engine(server: RunningServer, stream: bool) -> None:
    server.engine.is_alive = False
    for response in (
        server.completion(stream=stream),
        server.chat(stream=stream),
        server.completion(stream=stream, prompt=["a", "b"]),
        server.client.get("/health"),
    ):
        assert error_of(response, 503)["type"] == "service_unavailable_error"
        assert response.headers["retry-after"] == "4"
    assert sum(server.metrics.finished.values()) == 0
    server.engine.is_alive = True
    server.assert_serves()


def test_garbage_on_the_socket(server: RunningServer) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"POST /v1/models HTTP/1.1\r\nA\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)
    server.assert_serves()


def test_neutral_values_are_accepted(server: RunningServer) -> None:
    neutral: dict[str, Any] = {
        "n": 1,
        "best_of": 1,
        "presence_penalty": 0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": {},
        "echo": False,
        "stream": None,
        "stream_options": None,
        "response_format": {"type": "text"},
        "stop": None,
        "temperature": None,
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
    }
    assert server.completion(**neutral, suffix="").status_code == 200
    chat = {"tools": [], "tool_choice": "auto", "modalities": ["text"], "top_logprobs": None}
    assert server.chat(**neutral, **chat).status_code == 200
