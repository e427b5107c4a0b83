"""Models, tokenize, health, version, metrics, request ids, and how chats become prompts."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import octavo
from octavo.config import ServerConfig
from octavo.errors import ConfigError
from octavo.server.app import create_app
from octavo.types import EngineStats
from tests.server.fake_engine import FakeEngine, FakeTokenizer
from tests.server.test_bad_input import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import RunningServer


def test_models(server: RunningServer) -> None:
    listed = server.client.get("/v1/models").json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["fake", "org/alias"]
    for card in listed["data"]:
        assert card["object"] == "model"
        assert card["max_model_len"] == 2048
        assert server.client.get(f"/v1/models/{card['id']}").json() == card
    head = server.client.head("/v1/models")
    assert (head.status_code, head.content) == (200, b"")


def test_tokenize_and_back(server: RunningServer) -> None:
    def tokenize(**fields: Any) -> dict[str, Any]:
        response = server.client.post("/tokenize", json=fields)
        assert response.status_code == 200
        answer: dict[str, Any] = response.json()
        assert set(answer) == {"count", "max_model_len", "tokens", "token_strs"}
        assert answer["count"] == len(answer["tokens"])
        return answer

    text = "naïve 🙂 \x00"
    answer = tokenize(prompt=text, model="fake")
    assert answer["tokens"] == server.tokenizer.encode(text)
    assert answer["max_model_len"] == 2048
    assert answer["token_strs"] is None
    bare = tokenize(prompt=text, add_special_tokens=False, return_token_strs=True)
    assert bare["tokens"] == answer["tokens"][1:]
    assert bare["token_strs"][:2] == ["n", "a"]
    back = server.client.post("/detokenize", json={"tokens": answer["tokens"]})
    assert back.json() == {"prompt": "<s>" + text}
    assert server.client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}

    messages = [{"role": "user", "content": "hello"}]
    chat = tokenize(messages=messages)
    assert server.chat(messages=messages).status_code == 200
    (prompt, _), *_ = server.engine.requests.values()
    assert chat["tokens"] == prompt
    open_end = tokenize(messages=messages, add_generation_prompt=False)
    assert len(open_end["tokens"]) < len(chat["tokens"])


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": []}, "prompt"),
        ("/tokenize", {"prompt": 5}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"prompt": "", "add_special_tokens": False}, "prompt"),
        ("/tokenize", {"prompt": "a", "add_generation_prompt": True}, "add_generation_prompt"),
        ("/tokenize", {"prompt": "a", "extra": 1}, "extra"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": "abc"}, "tokens"),
        ("/detokenize", {"tokens": [1, "a"]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, -1]}, "tokens[1]"),
        ("/detokenize", {"tokens": [1, 10**5]}, "tokens[1]"),
    ],
)
def test_bad_tokenize(server: RunningServer, path: str, body: dict[str, Any], param: str) -> None:
    assert error_of(server.client.post(path, json=body))["param"] == param
    wrong_model = server.client.post(path, json={"prompt": "a", "tokens": [1], "model": "x"})
    assert wrong_model.status_code in (400, 404)
    server.assert_serves()


def test_long_texts_do_not_block_the_loop(serve: Callable[..., RunningServer]) -> None:
    class SlowTokenizer(FakeTokenizer):
        threads: list[str] = []

        def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
            if len(text) > 2000:
                self.threads.append(threading.current_thread().name)
                time.sleep(0.4)
            return super().encode(text, add_special_tokens=add_special_tokens)

    tokenizer = SlowTokenizer()
    server = serve(tokenizer=tokenizer, engine=FakeEngine(max_model_len=8192))
    answers: list[Any] = []
    slow = threading.Thread(target=lambda: answers.append(server.completion(prompt="x" * 3000)))
    slow.start()
    while not tokenizer.threads:
        time.sleep(0.001)
    start = time.monotonic()
    assert server.client.get("/health").status_code == 200
    assert time.monotonic() - start < 0.2
    slow.join()
    assert answers[0].status_code == 200


def test_chat_messages_reach_the_template(server: RunningServer) -> None:
    messages = [
        {"role": "developer", "content": "rules", "name": "dev"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "annotations": [],
            "tool_calls": [
                {
                    "id": "call_1",
                    "type": "function",
                    "function": {"name": "f", "arguments": '{"x": [1]}'},
                }
            ],
        },
        {"role": "tool", "content": "42", "tool_call_id": "call_1"},
        {"role": "assistant", "content": "hm", "reasoning_content": "why"},
    ]
    assert (
        server.chat(
            messages=messages,
            continue_final_message=True,
            chat_template_kwargs={"enable_thinking": True},
        ).status_code
        == 200
    )
    (call,) = server.tokenizer.chat_template.calls
    assert call == {
        "messages": [
            {"role": "system", "content": "rules", "name": "dev"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            },
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "f", "arguments": {"x": [1]}},
                    }
                ],
            },
            {"role": "tool", "content": "42", "tool_call_id": "call_1"},
            {"role": "assistant", "content": "hm", "reasoning_content": "why"},
        ],
        "add_generation_prompt": False,
        "continue_final_message": True,
        "enable_thinking": True,
    }


def test_special_tokens(server: RunningServer) -> None:
    server.completion(prompt="ab")
    server.completion(prompt="ab", add_special_tokens=False)
    server.chat(messages=[{"role": "user", "content": "ab"}])
    first, second, chat = (ids for ids, _ in server.engine.requests.values())
    assert first == [1, *second]
    assert chat[0] != 1


def test_return_token_ids(server: RunningServer) -> None:
    choice = server.completion(return_token_ids=True).json()["choices"][0]
    (prompt, params), *_ = server.engine.requests.values()
    expected = server.engine.answer(prompt, params)[:8]
    assert choice["token_ids"] == expected
    assert choice["prompt_token_ids"] == prompt
    chat = server.chat(return_token_ids=True).json()
    (prompt, params) = list(server.engine.requests.values())[1]
    assert chat["prompt_token_ids"] == prompt
    assert chat["choices"][0]["token_ids"] == server.engine.answer(prompt, params)[:8]


@pytest.mark.parametrize("tokens_per_delta", [1, 3, 1000])
@pytest.mark.parametrize("kind", ["completion", "chat"])
def test_streamed_token_ids_and_usage(
    server: RunningServer, kind: str, tokens_per_delta: int
) -> None:
    server.engine.tokens_per_delta = tokens_per_delta
    whole = getattr(server, kind)(max_tokens=100, return_token_ids=True).json()
    response = getattr(server, kind)(
        max_tokens=100,
        return_token_ids=True,
        stream=True,
        stream_options={"include_usage": True, "continuous_usage_stats": True},
    )
    events = [e.removeprefix("data: ") for e in response.text.split("\n\n") if e]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    assert chunks[-1]["usage"] == whole["usage"]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    choices = [chunk["choices"][0] for chunk in chunks[:-1]]
    ids = [token_id for choice in choices for token_id in choice.get("token_ids", [])]
    assert ids == whole["choices"][0]["token_ids"]
    if kind == "chat":
        text = "".join(choice["delta"].get("content", "") for choice in choices)
        assert text == whole["choices"][0]["message"]["content"]
        assert chunks[0]["prompt_token_ids"] == whole["prompt_token_ids"]
    else:
        assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
        assert choices[0]["prompt_token_ids"] == whole["choices"][0]["prompt_token_ids"]


def test_streams_are_not_buffered(server: RunningServer) -> None:
    server.engine.delay = 0.02
    body = {"model": "fake", "prompt": "x", "max_tokens": 25, "stream": True}
    times: list[float] = []
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache"
        times += [time.monotonic() for line in response.iter_lines() if line]
    assert times[-1] - times[0] > 0.2


def test_request_ids(server: RunningServer) -> None:
    given = server.completion().headers["x-request-id"]
    assert len(given) == 32
    for path in ("/v1/models", "/no/such", "/health"):
        response = server.client.get(path, headers={"X-Request-Id": "my-id.1"})
        assert response.headers["x-request-id"] == "my-id.1"
    for bad in ("x" * 129, "a b", ""):
        response = server.client.get("/health", headers={"X-Request-Id": bad})
        assert len(response.headers["x-request-id"]) == 32
    ids = {
        server.client.post(
            "/v1/completions",
            json={"model": "fake", "prompt": "x"},
            headers={"X-Request-Id": "same"},
        ).json()["id"]
        for _ in range(3)
    }
    assert len(ids) == 3


def test_health_and_version(server: RunningServer) -> None:
    assert server.client.get("/health").json() == {"status": "ok"}
    assert server.client.head("/health").status_code == 200
    assert server.client.get("/version").json() == {"version": octavo.__version__}


def test_metrics_route(server: RunningServer) -> None:
    server.engine.stats = EngineStats(
        num_running=3,
        num_waiting=2,
        kv_cache_usage=0.5,
        num_preemptions=1,
        num_prompt_tokens=70,
        num_generation_tokens=30,
        prefix_cache_queries=90,
        prefix_cache_hits=64,
        device_ns=2_500_000_000,
        scheduler_ns=1_000_000,
        num_restarts=2,
    )
    server.completion(max_tokens=5)
    server.completion(prompt=["a", "b"], max_tokens=5)
    server.chat(stream=True, stop="q", max_tokens=500)
    server.chat(temperature=-1)
    server.engine.fail_at = 2
    server.chat()
    server.engine.fail_at = None
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    samples = {
        (s.name, *sorted(s.labels.items())): s.value
        for family in text_string_to_metric_families(response.text)
        for s in family.samples
    }
    own = (("engine", "0"), ("model_name", "fake"))

    def value(name: str, *labels: tuple[str, str]) -> float:
        return samples[name, *sorted([*own, *labels])]

    assert value("vllm:num_requests_running") == 3
    assert value("vllm:num_requests_waiting") == 2
    assert value("vllm:kv_cache_usage_perc") == value("vllm:gpu_cache_usage_perc") == 0.5
    assert value("vllm:prompt_tokens_total") == 70
    assert value("vllm:generation_tokens_total") == 30
    assert value("vllm:num_preemptions_total") == 1
    assert value("vllm:prefix_cache_queries_total") == 90
    assert value("vllm:prefix_cache_hits_total") == 64
    assert value("octavo:device_seconds_total") == 2.5
    assert value("octavo:scheduler_seconds_total") == 0.001
    assert value("octavo:engine_restarts_total") == 2
    assert value("octavo:engine_up") == 1
    ends = {
        reason: value("vllm:request_success_total", ("finished_reason", reason))
        for reason in ("stop", "length", "abort", "error", "timeout")
    }
    assert ends == {"stop": 1, "length": 3, "abort": 0, "error": 1, "timeout": 0}
    assert value("vllm:time_to_first_token_seconds_count") == 5
    assert value("vllm:e2e_request_latency_seconds_count") == 5
    num_tokens = sum(3 * [4]) + 1 + value("vllm:inter_token_latency_seconds_count") - 13
    assert num_tokens == value("vllm:time_per_output_token_seconds_count")
    open_metrics = server.client.get(
        "/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    assert open_metrics.text.endswith("# EOF\n")


def test_unusable_set_ups() -> None:
    parts: Any = (FakeEngine(), FakeTokenizer())
    with pytest.raises(ConfigError, match="name"):
        create_app(*parts, ServerConfig())
    named = ServerConfig(served_model_names=("m",))
    with pytest.raises(ConfigError, match="top_p"):
        create_app(*parts, named, defaults={"top_p": 3})
    with pytest.raises(ConfigError, match="generation_config"):
        create_app(*parts, named, defaults={"temperature": "hot"})


def test_import_is_light() -> None:
    code = """if True:
        import sys, time
        start = time.process_time()
        import octavo.server.app
        took = time.process_time() - start
        heavy = {"torch", "transformers", "tokenizers", "jinja2", "numpy", "httpx"}
        assert not heavy & set(sys.modules), heavy & set(sys.modules)
        print(took)
    """
    run = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(run) < 0.6
