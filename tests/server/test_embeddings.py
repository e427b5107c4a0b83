"""`/v1/embeddings`, `/pooling`, `/classify`: every field works or is refused by name."""

from __future__ import annotations

import base64
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import openai
import pytest

from octavo.types import PoolingInfo
from tests.server.fake_engine import FakeEngine, FakeTokenizer, fake_vector

if TYPE_CHECKING:
    from collections.abc import Callable

    import httpx

    from octavo.types import Task
    from tests.server.conftest import RunningServer


def ask(server: RunningServer, path: str = "/v1/embeddings", **fields: Any) -> httpx.Response:
    return server.client.post(path, json={"model": "fake", "input": "hello", **fields})


def vectors(response: httpx.Response, key: str = "embedding") -> list[list[float]]:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [item["index"] for item in data] == list(range(len(data)))
    return [item[key] for item in data]


def error_of(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


def of_tasks(*tasks: Task, **pooling: Any) -> FakeEngine:
    engine = FakeEngine()
    info = PoolingInfo(pooling_type="mean", num_dimensions=4, **pooling)
    engine.info = msgspec.structs.replace(engine.info, tasks=tasks, pooling=info)
    return engine


def expected(ids: list[int], **params: Any) -> list[float]:
    from octavo.types import PoolingParams

    return list(np.frombuffer(fake_vector(ids, PoolingParams(**params)), "<f4"))


def test_all_kinds_of_input_mean_the_same(server: RunningServer) -> None:
    ids = [FakeTokenizer().encode(text) for text in ("hello", "world", "")]
    texts = ["hello", "world", ""]
    assert vectors(ask(server, input=texts)) == [expected(i) for i in ids]
    assert vectors(ask(server, input=ids)) == [expected(i) for i in ids]
    assert vectors(ask(server, input="hello")) == [expected(ids[0])]
    answer = ask(server, input=ids[0]).json()
    assert answer["data"][0] == {
        "object": "embedding",
        "index": 0,
        "embedding": expected(ids[0]),
    }
    assert (answer["object"], answer["model"]) == ("list", "fake")
    assert answer["usage"] == {"prompt_tokens": 6, "total_tokens": 6}
    assert vectors(ask(server, add_special_tokens=False)) == [expected(ids[0][1:])]
    server.assert_serves()


def test_the_official_client_reads_floats_and_base64(server: RunningServer) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    ids = FakeTokenizer().encode("hello")
    plain = client.embeddings.create(model="fake", input=["hello"], encoding_format="float")
    packed = client.embeddings.create(model="fake", input=["hello"])  # base64 on the wire
    assert plain.data[0].embedding == packed.data[0].embedding == expected(ids)
    cut = client.embeddings.create(model="fake", input="hello", dimensions=2, user="me")
    assert cut.data[0].embedding == expected(ids, dimensions=2)
    assert cut.usage.total_tokens == 6
    raw = vectors(ask(server, encoding_format="base64"))[0]
    assert struct.unpack("<4f", base64.b64decode(raw)) == tuple(expected(ids))  # type: ignore[arg-type]


def test_fields_reach_the_engine(server: RunningServer) -> None:
    for fields, activated in (
        ({}, None),
        ({"normalize": False}, False),
        ({"use_activation": True}, True),
        ({"use_activation": False, "normalize": False}, False),
    ):
        ask(server, priority=3, timeout=9, **fields)
        ids, params, options = list(server.engine.pooled.values())[-1]
        assert params.is_activated is activated
        assert options.priority == 3
        assert options.timeout_s == pytest.approx(9, abs=1)
        assert ids == FakeTokenizer().encode("hello")
    ask(server, input="hello" * 4, truncate_prompt_tokens=3)
    assert list(server.engine.pooled.values())[-1][0] == FakeTokenizer().encode("he")
    ask(server, input=[7] * 5000, truncate_prompt_tokens=-1)
    assert list(server.engine.pooled.values())[-1][0] == [7] * 2048


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[1], []]}, "input[1]"),
        ({"input": [[1], [9999]]}, "input[1][0]"),
        ({"input": [-1]}, "input[0]"),
        ({"input": ["a", "b" * 2048]}, "input[1]"),
        ({"input": "b" * 2048}, "input"),
        ({"input": "b" * 10_000_000}, "input"),
        ({"input": ["a"] * 2049}, "input"),
        ({"input": 5}, "input"),
        ({"input": None}, "input"),
        ({"encoding_format": "int8"}, "encoding_format"),
        ({"dimensions": 0}, "dimensions"),
        ({"dimensions": 5}, "dimensions"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens"),
        ({"truncate_prompt_tokens": 2049}, "truncate_prompt_tokens"),
        ({"timeout": 0}, "timeout"),
        ({"normalize": True, "use_activation": False}, "normalize"),
        ({"embed_dtype": "float16"}, "embed_dtype"),
    ],
)
def test_bad_fields_are_refused_by_name(
    server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    assert error_of(ask(server, **fields))["param"] == param
    assert not server.engine.pooled
    server.assert_serves()


def test_too_long_says_what_helps(server: RunningServer) -> None:
    error = error_of(ask(server, input="b" * 2048))
    assert error["code"] == "context_length_exceeded"
    assert "2049 tokens" in error["message"]
    assert "truncate_prompt_tokens" in error["message"]


def test_only_matryoshka_models_are_cut(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=of_tasks("embed"))
    assert "no Matryoshka model" in error_of(ask(server, dimensions=2))["message"]
    server = serve(engine=of_tasks("embed", is_matryoshka=True, matryoshka_dimensions=[2, 4]))
    assert "one of 2, 4" in error_of(ask(server, dimensions=3))["message"]
    assert len(vectors(ask(server, dimensions=2))[0]) == 2


def test_texts_are_lowercased_where_the_folder_says_so(
    serve: Callable[..., RunningServer],
) -> None:
    server = serve(engine=of_tasks("embed", lowercases=True))
    assert vectors(ask(server, input="HeLLo")) == vectors(ask(server, input="hello"))


def test_other_servers_say_what_to_do(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=of_tasks("generate"))
    for path, fields in {
        "/v1/embeddings": {"input": "a"},
        "/pooling": {"input": "a"},
        "/rerank": {"query": "a", "documents": ["b"]},
        "/score": {"text_1": "a", "text_2": "b"},
        "/classify": {"input": "a"},
    }.items():
        error = error_of(server.client.post(path, json={"model": "fake", **fields}))
        assert error["code"] == "task_not_supported"
        assert "octavo serve MODEL --task" in error["message"]
    server = serve(engine=of_tasks("embed"))
    for response in (server.completion(), server.chat(), server.chat(stream=True)):
        error = error_of(response)
        assert error["code"] == "task_not_supported"
        assert "use /v1/embeddings" in error["message"]
    assert "cannot classify" in error_of(ask(server, "/classify"))["message"]


def test_time_limits_and_failures(server: RunningServer) -> None:
    server.engine.delay = 0.5
    begin = time.perf_counter()
    error = error_of(ask(server, input=["a", "b"], timeout=0.05), 504)
    assert error["type"] == "timeout_error"
    assert time.perf_counter() - begin < 0.4
    server.engine.delay = 0
    server.engine.fail_at = 0
    for failure in ("boom at /secret/path", RuntimeError("boom at /secret/path")):
        server.engine.failure = failure
        response = ask(server, input=["a", "b"])
        assert "boom" not in error_of(response, 500)["message"]
        assert "/secret" not in response.text
    server.engine.fail_at = None
    assert server.metrics.finished["timeout"] >= 1
    assert server.metrics.finished["error"] >= 2
    server.assert_serves()


def test_a_client_that_goes_away_aborts_its_inputs(server: RunningServer) -> None:
    server.engine.delay = 30
    body = msgspec.json.encode({"model": "fake", "input": ["a"] * 5})
    head = (
        f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: application/json\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as sock:
        sock.sendall(head.encode() + body)
        deadline = time.monotonic() + 5
        while server.engine.num_open < 5:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    server.wait_until_idle()
    assert len(server.engine.aborted) == 5
    assert server.metrics.finished["abort"] == 5
    server.engine.delay = 0
    server.assert_serves()


def test_pooling_gives_what_the_server_is_for(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=of_tasks("embed"))
    ids = FakeTokenizer().encode("hello")
    answer = ask(server, "/pooling")
    assert vectors(answer, "data") == [expected(ids)]
    assert answer.json()["data"][0]["object"] == "pooling"
    assert vectors(ask(server, "/pooling", task="embed", use_activation=False), "data") == [
        expected(ids, is_activated=False)
    ]
    assert "cannot classify" in error_of(ask(server, "/pooling", task="classify"))["message"]
    assert error_of(ask(server, "/pooling", task="token_embed"))["param"] == "task"
    server = serve(engine=of_tasks("classify", labels=["low", "high"]))
    assert vectors(ask(server, "/pooling"), "data") == [expected(ids, task="classify")]
    assert error_of(ask(server, "/pooling", dimensions=1))["param"] == "dimensions"


def test_labels(serve: Callable[..., RunningServer]) -> None:
    for labels in (["low", "high"], []):
        server = serve(engine=of_tasks("classify", labels=labels))
        answer = ask(server, "/classify", input=["hello", "world"])
        assert answer.status_code == 200
        for text, item in zip(("hello", "world"), answer.json()["data"], strict=True):
            probs = expected(FakeTokenizer().encode(text), task="classify")
            assert item["probs"] == probs
            assert item["num_classes"] == 2
            best = int(np.argmax(probs))
            assert item["label"] == (labels[best] if labels else None)
