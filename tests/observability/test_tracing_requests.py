"""Requests as spans: names, parents, attributes and states, for every way that one can end."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBasedTraceIdRatio
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as gen_ai
from opentelemetry.semconv._incubating.attributes import (
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
    user_agent_attributes,
)
from opentelemetry.semconv._incubating.metrics import gen_ai_metrics
from opentelemetry.semconv.attributes import client_attributes, error_attributes
from opentelemetry.trace import SpanKind, StatusCode

from octavo.errors import QueueFullError
from octavo.observability import tracing_names as names
from octavo.observability.trace_context import parse_traceparent, trace_context_of
from octavo.observability.tracing_spans import MAX_CALLS
from octavo.server import batch_runs
from octavo.server.routes import ENDPOINTS
from octavo.server.tracing import OPERATIONS
from tests.observability.telemetry import PREFILL_NS, QUEUE_NS, Traced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from opentelemetry.sdk.trace import ReadableSpan

CHAT = "POST /v1/chat/completions"
CALL = "chat fake"
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def traced() -> Iterator[Traced]:
    server = Traced()
    yield server
    server.telemetry.shutdown(1.0)


def test_names_are_those_of_the_conventions() -> None:
    modules = (
        gen_ai,
        http_attributes,
        network_attributes,
        server_attributes,
        url_attributes,
        user_agent_attributes,
        client_attributes,
        error_attributes,
        gen_ai_metrics,
    )
    known = {value for module in modules for value in vars(module).values() if type(value) is str}
    ours = {value for key, value in vars(names).items() if key.isupper() and type(value) is str}
    assert {name for name in ours if not name.startswith("octavo.")} <= known
    known_operations = {member.value for member in gen_ai.GenAiOperationNameValues}
    assert set(OPERATIONS.values()) - known_operations == {"classify", "score", "rerank"}
    paths = {endpoint.path for endpoint in ENDPOINTS}
    assert set(OPERATIONS) <= paths


async def test_a_chat_is_a_server_span_over_a_call_over_its_phases(traced: Traced) -> None:
    answer = await traced.chat(temperature=0.5, top_p=0.9, top_k=7, seed=3, presence_penalty=0.1)
    spans = traced.end()
    server, call = spans.one(CHAT), spans.one(CALL)
    assert server.kind is SpanKind.SERVER
    assert server.parent is None
    assert server.attributes == {
        http_attributes.HTTP_REQUEST_METHOD: "POST",
        http_attributes.HTTP_ROUTE: "/v1/chat/completions",
        http_attributes.HTTP_RESPONSE_STATUS_CODE: 200,
        url_attributes.URL_PATH: "/v1/chat/completions",
        url_attributes.URL_SCHEME: "http",
        network_attributes.NETWORK_PROTOCOL_VERSION: "1.1",
        server_attributes.SERVER_ADDRESS: "octavo.test",
        server_attributes.SERVER_PORT: 8000,
        client_attributes.CLIENT_ADDRESS: "127.0.0.1",
        client_attributes.CLIENT_PORT: 123,
        user_agent_attributes.USER_AGENT_ORIGINAL: "a test",
        "octavo.request_id": answer.headers["x-request-id"],
    }
    assert call.kind is SpanKind.INTERNAL
    assert spans.below(server) == [call]
    attributes = dict(call.attributes or {})
    to_first = attributes.pop("octavo.time_to_first_token")
    usage = answer.json()["usage"]
    assert attributes == {
        gen_ai.GEN_AI_OPERATION_NAME: "chat",
        gen_ai.GEN_AI_PROVIDER_NAME: "octavo",
        gen_ai.GEN_AI_REQUEST_MODEL: "fake",
        gen_ai.GEN_AI_RESPONSE_MODEL: "fake",
        gen_ai.GEN_AI_RESPONSE_ID: answer.json()["id"],
        gen_ai.GEN_AI_REQUEST_TEMPERATURE: 0.5,
        gen_ai.GEN_AI_REQUEST_TOP_P: 0.9,
        gen_ai.GEN_AI_REQUEST_TOP_K: 7,
        gen_ai.GEN_AI_REQUEST_SEED: 3,
        gen_ai.GEN_AI_REQUEST_PRESENCE_PENALTY: 0.1,
        gen_ai.GEN_AI_REQUEST_MAX_TOKENS: 8,
        gen_ai.GEN_AI_RESPONSE_FINISH_REASONS: ("length",),
        gen_ai.GEN_AI_USAGE_INPUT_TOKENS: usage["prompt_tokens"],
        gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS: 8,
        gen_ai.GEN_AI_USAGE_CACHE_READ_INPUT_TOKENS: usage["prompt_tokens"] // 2,
        "octavo.num_preemptions": 1,
        "octavo.gpu_seconds": (1000 * usage["prompt_tokens"] + 16000) / 1e9,
        "octavo.gpu_seconds.prefill": usage["prompt_tokens"] / 1e6,
        "octavo.gpu_seconds.decode": 16000 / 1e9,
        "octavo.gpu_seconds.waste": 0.0,
    }
    queue, prefill, decode = spans.below(call)
    assert [s.name for s in (queue, prefill, decode)] == ["queue", "prefill", "decode"]
    assert queue.start_time == call.start_time
    assert length_of(queue) == QUEUE_NS
    assert queue.end_time == prefill.start_time
    assert length_of(prefill) == PREFILL_NS
    assert prefill.end_time == decode.start_time
    assert decode.end_time == call.end_time
    assert server.start_time <= call.start_time  # type: ignore[operator]
    assert call.end_time <= server.end_time  # type: ignore[operator]
    assert 0 < to_first <= length_of(server) / 1e9  # type: ignore[operator]
    assert len(spans.all) == 5
    assert {s.status.status_code for s in spans.all} == {StatusCode.UNSET}
    assert {s.context.trace_id for s in spans.all} == {server.context.trace_id}
    assert len({s.context.span_id for s in spans.all}) == 5


async def test_a_price_makes_a_cost(traced: Traced) -> None:
    traced.telemetry.tracer.hourly_rate_nano = 3_600_000_000_000  # 3600 an hour, 1 a second
    traced.telemetry.tracer.currency = "EUR"
    await traced.chat()
    attributes = traced.end().one(CALL).attributes or {}
    assert attributes["octavo.cost"] == pytest.approx(attributes["octavo.gpu_seconds"])
    assert attributes["octavo.currency"] == "EUR"


def length_of(span: ReadableSpan) -> int:
    assert span.start_time is not None
    assert span.end_time is not None
    return span.end_time - span.start_time


async def test_no_words_of_callers_and_models_are_told(traced: Traced) -> None:
    answer = await traced.post(
        "/v1/completions?key=hunter2", prompt="my secret is 42", max_tokens=20, stop=["secret stop"]
    )
    text = answer.json()["choices"][0]["text"]
    told = "".join(span.to_json() for span in traced.end().all)
    assert "secret" not in told
    assert "hunter2" not in told
    assert text[:8] not in told


async def test_the_caller_s_trace_goes_on(traced: Traced) -> None:
    answer = await traced.chat(headers={"traceparent": CALLER, "tracestate": "congo=1,rojo=2"})
    spans = traced.end()
    server = spans.one(CHAT)
    assert f"{server.context.trace_id:032x}" == CALLER[3:35]
    assert server.parent is not None
    assert server.parent.is_remote
    assert f"{server.parent.span_id:016x}" == CALLER[36:52]
    assert list(server.context.trace_state.items()) == [("congo", "1"), ("rojo", "2")]
    told = parse_traceparent(answer.headers["traceresponse"])
    assert told is not None
    assert (told.trace_id, told.is_sampled) == (CALLER[3:35], True)
    assert told.parent_id == f"{server.context.span_id:016x}"


async def test_what_the_caller_does_not_record_is_not_sent_but_counted(traced: Traced) -> None:
    answer = await traced.chat(headers={"traceparent": CALLER[:-1] + "0"})
    assert traced.end().all == []
    assert answer.headers["traceresponse"].startswith(CALLER[:35])
    assert answer.headers["traceresponse"].endswith("-00")
    assert traced.metrics()[gen_ai_metrics.GEN_AI_SERVER_REQUEST_DURATION][0][1] == 1


async def test_a_broken_parent_begins_a_trace(traced: Traced) -> None:
    for value in ("nonsense", "00-" + "0" * 32 + "-b7ad6b7169203331-01"):
        await traced.chat(headers={"traceparent": value, "tracestate": "congo=1"})
    servers = traced.end().named(CHAT)
    assert [span.parent for span in servers] == [None, None]
    assert not any(span.context.trace_state for span in servers)


async def test_a_ratio_holds_for_traces_that_begin_here() -> None:
    for ratio, headers, num in ((0.0, {}, 0), (0.0, {"traceparent": CALLER}, 5), (1.0, {}, 5)):
        traced = Traced(ParentBasedTraceIdRatio(ratio))
        await traced.chat(headers=headers)
        assert len(traced.end().all) == num
    traced = Traced(ALWAYS_OFF)
    await traced.chat(headers={"traceparent": CALLER})
    assert traced.end().all == []


async def test_what_we_send_along_is_the_request_s_place(traced: Traced) -> None:
    trace = traced.telemetry.tracer.begin("x", "chat", {}, trace_context_of(
        [(b"traceparent", CALLER.encode()), (b"tracestate", b"congo=1")]
    ))  # fmt: skip
    onward = trace_context_of(trace.headers())
    assert onward is not None
    assert onward.parent == trace.place
    assert onward.parent.trace_id == trace.trace_id == CALLER[3:35]
    assert onward.parent.parent_id != CALLER[36:52]
    assert onward.state == (("congo", "1"),)


async def test_a_stream_is_traced_to_its_end(traced: Traced) -> None:
    traced.engine.delay = 0.002
    answer = await traced.chat(stream=True)
    assert answer.headers["traceresponse"]
    spans = traced.end()
    server, call = spans.one(CHAT), spans.one(CALL)
    assert length_of(server) >= length_of(call) >= 8 * 2_000_000
    assert len(spans.below(call)) == 3


async def test_each_choice_is_a_call(traced: Traced) -> None:
    answer = await traced.chat(n=3)
    spans = traced.end()
    calls = spans.below(spans.one(CHAT))
    assert [call.name for call in calls] == [CALL] * 3
    ids = {(call.attributes or {})[gen_ai.GEN_AI_RESPONSE_ID] for call in calls}
    assert ids == {answer.json()["id"]}
    assert (spans.one(CHAT).attributes or {})["octavo.num_calls"] == 3
    assert traced.metrics()[names.REQUEST_DURATION][0][1] == 3


async def test_a_request_of_many_prompts_shows_some(traced: Traced) -> None:
    await traced.post("/v1/completions", prompt=["x"] * 100, max_tokens=2)
    spans = traced.end()
    assert len(spans.named("text_completion fake")) == MAX_CALLS
    assert (spans.one("POST /v1/completions").attributes or {})["octavo.num_calls"] == 100
    assert traced.metrics()[names.REQUEST_DURATION][0][1] == 100


async def test_beams_are_one_call(traced: Traced) -> None:
    await traced.post("/v1/completions", prompt="x", max_tokens=3, use_beam_search=True, n=2)
    spans = traced.end()
    call = spans.one("text_completion fake")
    assert (call.attributes or {})[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("length",)
    assert (call.attributes or {})[gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS] == 3


@pytest.mark.parametrize(
    ("path", "operation", "num_inputs", "fields"),
    [
        ("/v1/embeddings", "embeddings", 2, {"input": ["one", "two"], "dimensions": 2}),
        ("/pooling", "embeddings", 2, {"input": ["one", "two"]}),
        ("/score", "score", 3, {"text_1": "one", "text_2": ["two", "three"]}),
        ("/rerank", "rerank", 3, {"query": "one", "documents": ["two", "three"]}),
        ("/classify", "classify", 2, {"input": ["one", "two"]}),
    ],
)
async def test_vectors_are_one_call(
    traced: Traced, path: str, operation: str, num_inputs: int, fields: dict[str, Any]
) -> None:
    answer = await traced.post(path, **fields)
    assert answer.status_code == 200
    spans = traced.end()
    call = spans.one(f"{operation} fake")
    assert spans.below(spans.one(f"POST {path}")) == [call]
    attributes = call.attributes or {}
    usage = answer.json()["usage"]
    assert attributes[gen_ai.GEN_AI_OPERATION_NAME] == operation
    assert attributes[gen_ai.GEN_AI_USAGE_INPUT_TOKENS] == usage["total_tokens"]
    assert attributes["octavo.num_inputs"] == num_inputs
    assert attributes.get(gen_ai.GEN_AI_EMBEDDINGS_DIMENSION_COUNT) == fields.get("dimensions")
    assert gen_ai.GEN_AI_USAGE_OUTPUT_TOKENS not in attributes
    [(told, count, total)] = traced.metrics()[names.TOKEN_USAGE]
    assert (told["gen_ai.token.type"], count, total) == ("input", 1, usage["total_tokens"])


@pytest.mark.parametrize("stream", [False, True])
async def test_an_engine_s_failure_marks_all_of_it(traced: Traced, stream: bool) -> None:
    traced.engine.fail_at = 4
    await traced.chat(stream=stream)
    spans = traced.end()
    server, call = spans.one(CHAT), spans.one(CALL)
    assert call.status.status_code is server.status.status_code is StatusCode.ERROR
    assert (call.attributes or {})["error.type"] == "engine_error"
    assert (call.attributes or {})[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("error",)
    status = (server.attributes or {})[http_attributes.HTTP_RESPONSE_STATUS_CODE]
    expected = (200, "engine_error") if stream else (500, "500")
    assert (status, (server.attributes or {})["error.type"]) == expected
    assert "secret" not in call.to_json()
    [(told, _, _)] = traced.metrics()[names.REQUEST_DURATION]
    assert told["error.type"] == "engine_error"
    assert names.SERVER_TIME_TO_FIRST_TOKEN not in traced.metrics()  # of successful answers only


async def test_a_client_that_leaves_is_told_of(traced: Traced) -> None:
    traced.engine.first_delay = 60.0
    body = json.dumps({"model": "fake", "prompt": "x", "max_tokens": 8}).encode()
    messages = iter([{"type": "http.request", "body": body}])

    async def receive() -> Any:
        message = next(messages, None)
        if message is None:
            await asyncio.sleep(0.01)
            return {"type": "http.disconnect"}
        return message

    async def send(message: Any) -> None:
        raise AssertionError("nobody is there")

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await traced.app({**scope, "query_string": b"", "state": {}}, receive, send)
    spans = traced.end()
    server, call = spans.one("POST /v1/completions"), spans.one("text_completion fake")
    assert (server.attributes or {})["error.type"] == "client_disconnected"
    assert http_attributes.HTTP_RESPONSE_STATUS_CODE not in (server.attributes or {})
    assert (call.attributes or {})["error.type"] == "aborted"
    assert (call.attributes or {})[gen_ai.GEN_AI_RESPONSE_FINISH_REASONS] == ("abort",)
    assert spans.below(call) == []
    [(told, count, _)] = traced.metrics()[names.REQUEST_DURATION]
    assert (told["error.type"], count) == ("aborted", 1)


async def test_refused_requests_have_no_call_and_no_error(traced: Traced) -> None:
    assert (await traced.chat(temperature=-1)).status_code == 400
    assert (await traced.client.get("/nowhere/at/all")).status_code == 404
    assert (await traced.client.get("/v1/models/fake")).status_code == 200
    assert (await traced.client.request("BREW", "/v1/models/fake")).status_code == 405
    refused, nowhere, model, brewed = traced.end().all
    assert (refused.name, refused.status.status_code) == (CHAT, StatusCode.UNSET)
    assert nowhere.name == "GET"  # a path is no name: there would be any number of them
    assert http_attributes.HTTP_ROUTE not in (nowhere.attributes or {})
    assert (model.attributes or {})[http_attributes.HTTP_ROUTE] == "/v1/models/{name:path}"
    assert model.name == "GET /v1/models/{name:path}"
    assert (brewed.attributes or {})[http_attributes.HTTP_REQUEST_METHOD] == "_OTHER"
    assert brewed.name.startswith("HTTP")
    assert traced.metrics() == {}


async def test_a_full_queue_is_an_error_that_is_not_counted(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: Any, **__: Any) -> AsyncIterator[Any]:
        raise QueueFullError("too many requests wait", code="queue_full", retry_after_s=1)
        yield

    monkeypatch.setattr(traced.engine, "generate", refuse)
    assert (await traced.chat()).status_code == 503
    spans = traced.end()
    server, call = spans.one(CHAT), spans.one(CALL)
    assert (server.attributes or {})["error.type"] == "503"
    assert (call.attributes or {})["error.type"] == "queue_full"
    assert traced.metrics() == {}


async def test_probes_and_scrapes_are_not_traced(traced: Traced) -> None:
    for path in ("/health", "/metrics", "/version", "/load", "/openapi.json"):
        answer = await traced.client.get(path)
        assert answer.status_code == 200
        assert "traceresponse" not in answer.headers
    assert traced.end().all == []


async def test_lines_of_a_batch_are_traces_without_a_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(batch_runs, "POLL_S", 0.05)
    traced = Traced(state_dir=str(tmp_path))
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    lines = [
        {"custom_id": str(i), "method": "POST", "url": "/v1/chat/completions", "body": body}
        for i in range(2)
    ]
    file = "\n".join(map(json.dumps, lines)).encode()
    uploaded = await traced.client.post(
        "/v1/files", files={"file": ("in.jsonl", file)}, data={"purpose": "batch"}
    )
    batch = await traced.client.post(
        "/v1/batches",
        json={
            "input_file_id": uploaded.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    )
    async with asyncio.timeout(10):
        while True:
            now = await traced.client.get(f"/v1/batches/{batch.json()['id']}")
            if now.json()["status"] == "completed":
                break
            await asyncio.sleep(0.01)
    traced.app.context.lifecycle.drain()
    spans = traced.end()
    chats = spans.named(CHAT)
    assert [span.kind for span in chats] == [SpanKind.INTERNAL] * 2
    assert [span.parent for span in chats] == [None, None]
    assert [len(spans.below(span)) for span in chats] == [1, 1]
    assert spans.below(spans.one("POST /v1/batches")) == []
