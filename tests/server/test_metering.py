"""Usage records against what happened: one for each request of the engine, whatever its end."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import openai
import pytest

from octavo.config import api_key_digest
from octavo.server import batch_runs
from octavo.server.account import UNKNOWN_TAG
from octavo.types import Charge
from tests.server import test_batches as batches
from tests.server.fake_engine import FakeEngine
from tests.server.test_responses import client_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.ledger.record import UsageRecord
    from tests.server.conftest import RunningServer

PRICE = Decimal("3.6")  # a thousand nano-units per millisecond
ASKS = {"X-Octavo-Include-Cost": "1"}
MESSAGES = [{"role": "user", "content": "hello"}]
COMPLETION = {"model": "fake", "prompt": "hello", "max_tokens": 8}
CHAT = {"model": "fake", "messages": MESSAGES, "max_tokens": 8}


class LateEngine(FakeEngine):
    """Tells its charges a while after a request's end, as of requests that were ended here."""

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        def later(request_id: str, charge: Charge) -> None:
            asyncio.get_running_loop().call_later(0.05, listener, request_id, charge)

        super().listen_for_charges(later)


class UnmeteredEngine(FakeEngine):
    """Charges nothing, as with `--no-metering`."""

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        super().listen_for_charges(lambda request_id, _: listener(request_id, Charge()))


class Metered:
    """A server, its records, and what its engine charged."""

    def __init__(self, server: RunningServer) -> None:
        self.server = server
        self.book = server.app.context.usage
        self.records: list[UsageRecord] = []
        self.charged: list[Charge] = []
        self.book.sink = self
        inner = server.engine.listener

        def listener(request_id: str, charge: Charge) -> None:
            self.charged.append(charge)
            inner(request_id, charge)

        server.engine.listener = listener

    def put(self, record: UsageRecord, /) -> None:
        self.records.append(record)

    def settled(self) -> list[UsageRecord]:
        """The records when all are there; they are as many as they are different, and add up."""
        deadline = time.monotonic() + 10
        while self.server.engine.num_open or self.book.open_lines:
            assert time.monotonic() < deadline, self.book.open_lines
            time.sleep(0.002)
        assert not self.book.waiting
        assert len({record.request_id for record in self.records}) == len(self.records)
        for name in ("prefill_ns", "decode_ns", "waste_ns"):
            total = sum(getattr(charge, name) for charge in self.charged)
            assert sum(getattr(record, name) for record in self.records) == total
        return self.records

    def post(self, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.server.client.post(path, json=body, headers=given)


@pytest.fixture
def metered(serve: Callable[..., RunningServer]) -> Metered:
    return Metered(serve(price_per_device_hour=PRICE, currency="EUR"))


def test_a_record_says_what_happened(serve: Callable[..., RunningServer]) -> None:
    server = serve(
        api_keys=("sk-1",), headers={"Authorization": "Bearer sk-1"}, price_per_device_hour=PRICE
    )
    metered = Metered(server)
    before = time.time_ns()
    answer = metered.post(
        "/v1/chat/completions",
        {**CHAT, "metadata": {"team": "core", "feature": "lost"}, "user": "u-1"},
        X_Octavo_Feature="search",
        X_Octavo_Tenant="acme",
        X_Octavo_Session="run-1",
        traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    )
    [record] = metered.settled()
    usage = answer.json()["usage"]
    assert record.request_id == answer.headers["X-Request-Id"]
    assert (record.parent_id, record.backend, record.model) == ("", "octavo", "fake")
    assert (record.feature, record.tenant, record.session_id) == ("search", "acme", "run-1")
    assert record.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    assert record.tags == {"team": "core", "user": "u-1"}
    assert record.key == api_key_digest("sk-1").hex()[:16]
    assert record.route == "/v1/chat/completions"
    assert record.num_input_tokens == usage["prompt_tokens"]
    assert record.num_cached_tokens == usage["prompt_tokens_details"]["cached_tokens"] > 0
    assert record.num_output_tokens == usage["completion_tokens"] == 8
    assert record.finish_reason == answer.json()["choices"][0]["finish_reason"] == "length"
    assert (record.prefill_ns, record.decode_ns) == (1000 * usage["prompt_tokens"], 2000 * 8)
    assert record.ttft_ns is not None
    assert 0 < record.ttft_ns <= record.e2e_ns
    assert before < record.time_ns < time.time_ns()
    assert record.e2e_ns < time.time_ns() - before
    assert record.hourly_rate_nano == 3_600_000_000
    assert record.cost_nano == record.total_ns // 1000
    assert "gpu_seconds" not in usage


BEAMS = {"use_beam_search": True, "temperature": 0, "n": 2, "max_tokens": 3}
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "completion": ("/v1/completions", COMPLETION, 1),
    "stream": ("/v1/completions", {**COMPLETION, "stream": True}, 1),
    "choices": ("/v1/chat/completions", {**CHAT, "n": 3}, 3),
    "prompts": ("/v1/completions", {**COMPLETION, "prompt": ["a", "b"], "n": 2}, 4),
    "best of": ("/v1/completions", {**COMPLETION, "best_of": 3}, 3),
    "beams": ("/v1/completions", {**COMPLETION, **BEAMS}, 1),
    "stop": ("/v1/completions", {**COMPLETION, "max_tokens": 64, "stop": "fox"}, 1),
    "no output": ("/v1/completions", {**COMPLETION, "max_tokens": 0, "echo": True}, 1),
    "response": ("/v1/responses", {"model": "fake", "input": "hi", "max_output_tokens": 8}, 1),
    "message": ("/v1/messages", CHAT, 1),
    "ollama chat": ("/api/chat", {"model": "fake", "messages": MESSAGES}, 1),
    "ollama": ("/api/generate", {"model": "fake", "prompt": "hi", "stream": False}, 1),
    "ollama embed": ("/api/embed", {"model": "fake", "input": ["a", "b"]}, 2),
    "ollama old": ("/api/embeddings", {"model": "fake", "prompt": "a"}, 1),
    "embeddings": ("/v1/embeddings", {"model": "fake", "input": ["a", "b", "c"]}, 3),
    "pooling": ("/pooling", {"model": "fake", "input": "a", "task": "embed"}, 1),
    "classify": ("/classify", {"model": "fake", "input": "a"}, 1),
    "score": ("/score", {"model": "fake", "text_1": "a", "text_2": ["b", "c"]}, 3),
    "rerank": ("/rerank", {"model": "fake", "query": "a", "documents": ["b", "c"]}, 3),
    "tokenize": ("/tokenize", {"model": "fake", "prompt": "a"}, 0),
    "load": ("/api/generate", {"model": "fake"}, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_every_route_has_its_records(metered: Metered, case: str) -> None:
    path, body, num = CASES[case]
    answer = metered.post(path, body, X_Octavo_Feature="f", **{"X-Octavo-Include-Cost": "true"})
    assert answer.status_code == 200, answer.text
    records = metered.settled()
    assert len(records) == num
    assert all((record.route, record.feature) == (path, "f") for record in records)
    request_id = answer.headers["X-Request-Id"]
    if num > 1:
        assert {r.request_id for r in records} == {f"{request_id}-{n}" for n in range(num)}
        assert {r.parent_id for r in records} == {request_id}
    if not num:
        return
    usage = cost_in(answer.text)
    assert usage["currency"] == "EUR"
    # Spelt out in decimals, both are exact.
    total_ns, cost_nano = sum(r.total_ns for r in records), sum(r.cost_nano for r in records)
    assert usage["gpu_seconds"] * 10**9 == total_ns > 0
    assert usage["cost"] * 10**9 == cost_nano > 0


def cost_in(text: str) -> dict[str, Any]:
    """The part of an answer, or of a stream, that has `gpu_seconds`; numbers as they are spelt."""

    def find(value: Any) -> dict[str, Any] | None:
        if isinstance(value, dict):
            if "gpu_seconds" in value:
                return value
            value = list(value.values())
        if isinstance(value, list):
            return next(filter(None, map(find, value)), None)
        return None

    found: dict[str, Any] | None = None
    for line in text.splitlines():
        line = line.removeprefix("data: ")
        if line.startswith("{"):
            found = find(json.loads(line, parse_float=Decimal)) or found
    assert found is not None, text
    return found


def test_streams_tell_of_it_at_their_end(metered: Metered) -> None:
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/messages", CHAT)):
        answer = metered.post(path, {**body, "stream": True}, X_Octavo_Include_Cost="1")
        *_, last = metered.settled()
        assert cost_in(answer.text)["gpu_seconds"] * 10**9 == last.total_ns
    body = {"model": "fake", "input": "hi", "max_output_tokens": 8, "stream": True}
    answer = metered.post("/v1/responses", body, X_Octavo_Include_Cost="1")
    *_, last = metered.settled()
    assert cost_in(answer.text)["cost"] * 10**9 == last.cost_nano


def test_the_official_client_reads_the_cost(metered: Metered) -> None:
    for client in client_of(metered.server):
        create = partial(client.chat.completions.create, model="fake", messages=MESSAGES)  # type: ignore[arg-type]
        answer = create(extra_headers=ASKS)
        [record] = metered.settled()
        assert answer.usage.cost == record.cost_nano / 1e9  # type: ignore[union-attr]
        assert answer._request_id == record.request_id
        *_, chunk = create(extra_headers=ASKS, stream=True)
        assert chunk.usage.gpu_seconds == metered.settled()[1].total_ns / 1e9  # type: ignore[union-attr]
        embedded = client.embeddings.create(model="fake", input="a", extra_headers=ASKS)
        assert embedded.usage.gpu_seconds == metered.settled()[2].total_ns / 1e9  # type: ignore[attr-defined]
        with pytest.raises(openai.BadRequestError) as caught:
            create(extra_headers={"X-Octavo-Include-Cost": "perhaps"})
        assert caught.value.param == "X-Octavo-Include-Cost"
        with pytest.raises(openai.BadRequestError) as caught:
            create(extra_headers={"X-Octavo-Feature": "x" * 200})
        assert caught.value.param == "X-Octavo-Feature"
    assert len(metered.settled()) == 3


def test_an_answer_waits_for_a_late_charge(serve: Callable[..., RunningServer]) -> None:
    metered = Metered(serve(engine=LateEngine()))
    for stream in (False, True):
        body = {**COMPLETION, "max_tokens": 64, "stop": "fox", "stream": stream}
        answer = metered.post("/v1/completions", body, X_Octavo_Include_Cost="1")
        usage = cost_in(answer.text)
        *_, record = metered.settled()
        assert record.finish_reason == "stop"
        assert usage["gpu_seconds"] * 10**9 == record.total_ns
        assert usage["cost"] is None  # there is no price
    begin = time.monotonic()
    assert metered.post("/v1/completions", COMPLETION).status_code == 200
    assert time.monotonic() - begin < 5
    assert len(metered.settled()) == 3


def test_an_engine_that_does_not_meter_is_not_free(serve: Callable[..., RunningServer]) -> None:
    server = serve(engine=UnmeteredEngine(), price_per_device_hour=PRICE)
    answer = server.client.post("/v1/completions", json=COMPLETION, headers=ASKS)
    usage = answer.json()["usage"]
    assert (usage["gpu_seconds"], usage["cost"], usage["currency"]) == (None, None, "USD")


def test_requests_that_end_early(metered: Metered) -> None:
    engine = metered.server.engine
    engine.delay = 0.02
    url = f"{metered.server.url}/v1/completions"
    long = {**COMPLETION, "max_tokens": 1000, "stream": True}
    with httpx.stream("POST", url, json=long, trust_env=False) as answer:
        next(answer.iter_lines())
    [record] = metered.settled()
    assert record.finish_reason == "abort"
    assert record.num_output_tokens > 0
    assert record.num_input_tokens == len("hello") + 1
    engine.first_delay = 5.0
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(url, json=COMPLETION, timeout=0.2, trust_env=False)
    record = metered.settled()[1]
    assert (record.finish_reason, record.num_output_tokens, record.ttft_ns) == ("abort", 0, None)
    assert record.num_input_tokens == len("hello") + 1
    body = {"model": "fake", "input": ["a", "b"], "timeout": 0.001}
    assert metered.post("/v1/embeddings", body).status_code == 504
    assert {record.finish_reason for record in metered.settled()[2:]} <= {"timeout", "abort"}
    assert len(metered.settled()) == 4


@pytest.mark.parametrize("failure", ["boom", RuntimeError("boom")])
def test_requests_that_fail(metered: Metered, failure: Any) -> None:
    engine = metered.server.engine
    engine.fail_at, engine.failure = 3, failure
    assert metered.post("/v1/completions", COMPLETION).status_code == 500
    assert metered.post("/v1/embeddings", {"model": "fake", "input": "a"}).status_code == 500
    records = metered.settled()
    assert [record.finish_reason for record in records] == ["error", "error"]
    assert records[0].decode_ns == 3 * 2000
    assert UNKNOWN_TAG not in records[0].tags


def test_what_was_refused_has_none(metered: Metered) -> None:
    assert metered.post("/v1/completions", {**COMPLETION, "temperature": -1}).status_code == 400
    metered.server.engine.is_alive = False
    for path, body in (("/v1/completions", COMPLETION), ("/v1/embeddings", {"input": "a"})):
        assert metered.post(path, {**body, "model": "fake"}).status_code == 503
    assert metered.post("/v1/completions", {**COMPLETION, **BEAMS}).status_code == 503
    assert metered.settled() == []


def test_an_engine_that_died_leaves_the_charge_unknown(metered: Metered) -> None:
    engine = metered.server.engine

    def nothing(request_id: str, charge: Charge) -> None:
        engine.is_alive = False
        metered.book.on_charge(request_id, Charge())

    engine.listener = nothing
    engine.fail_at = 2
    assert metered.post("/v1/completions", COMPLETION, X_Octavo_Include_Cost="1").is_error
    [record] = metered.settled()
    assert (record.finish_reason, record.total_ns) == ("error", 0)
    assert record.tags == {UNKNOWN_TAG: "unknown"}


def test_what_is_never_charged_is_recorded_at_the_end(metered: Metered) -> None:
    engine = metered.server.engine
    engine.listener = lambda request_id, charge: None
    assert metered.post("/v1/completions", COMPLETION).status_code == 200
    assert metered.records == []
    assert len(metered.book.open_lines) == 1
    asyncio.run(metered.book.settle(0.01))
    [record] = metered.settled()
    assert (record.finish_reason, record.num_output_tokens) == ("length", 8)
    assert record.tags == {UNKNOWN_TAG: "unknown"}
    asyncio.run(metered.book.settle(0.01))
    assert len(metered.settled()) == 1


def test_an_id_may_come_twice(metered: Metered) -> None:
    for _ in range(2):
        answer = metered.post("/v1/completions", {**COMPLETION, "n": 2}, X_Request_Id="mine")
        assert answer.headers["X-Request-Id"] == "mine"
    records = metered.settled()
    assert len(records) == 4
    assert {record.parent_id for record in records} == {"mine"}
    assert all(record.request_id.startswith("mine.") for record in records)


def test_background_responses_and_batches(
    serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runs, "POLL_S", 0.05)
    monkeypatch.setattr(batch_runs, "NEWS_S", 0.02)
    metered = Metered(serve())
    body = {"model": "fake", "input": "hi", "background": True, "max_output_tokens": 8}
    body |= {"metadata": {"feature": "night"}}
    response = metered.post("/v1/responses", body).json()
    while response["status"] in ("queued", "in_progress"):
        response = metered.server.client.get(f"/v1/responses/{response['id']}").json()
    [record] = metered.settled()
    assert (record.feature, record.finish_reason) == ("night", "length")
    for client in client_of(metered.server):
        lines = [batches.line(f"r{n}", metadata={"team": str(n)}) for n in range(3)]
        labels = {"feature": "bulk load", "team": "core", "not a token": "x"}
        batch = batches.start(client, *lines, metadata=labels)
        batches.until(client, batch, "completed")
    found = metered.settled()[1:]
    assert {record.feature for record in found} == {"bulk load"}
    assert {record.tags["team"] for record in found} == {"0", "1", "2"}
    assert {record.tags["batch_id"] for record in found} == {batch.id}
    assert len(found) == 3


def test_features_are_bounded(metered: Metered, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metered.book.features, "_limit", 2)
    for feature in ("a", "b", "c", "a", "d"):
        metered.post("/v1/completions", COMPLETION, X_Octavo_Feature=feature)
    assert [record.feature for record in metered.settled()] == ["a", "b", "other", "a", "other"]
    assert metered.book.features.num_capped == 2
    metered.post("/v1/completions", {**COMPLETION, "metadata": {"bad": "a\nb"}})
    told = metered.server.client.get("/metrics").text
    assert re.search(r"^octavo:usage_tags_dropped_total\{.*\} 1(\.0)?$", told, re.M)
    assert re.search(r"^octavo:usage_tags_capped_total\{.*\} 2(\.0)?$", told, re.M)


def test_a_line_of_the_log(
    serve: Callable[..., RunningServer], caplog: pytest.LogCaptureFixture
) -> None:
    metered = Metered(serve(log_usage=True, price_per_device_hour=PRICE))
    with caplog.at_level(logging.INFO, "octavo.usage"):
        metered.post("/v1/completions", COMPLETION, X_Octavo_Feature='a "quoted" one')
        [record] = metered.settled()
    [text] = [r.getMessage() for r in caplog.records if r.name == "octavo.usage"]
    line = json.loads(text, parse_float=Decimal)
    assert "\n" not in text
    assert (line["event"], line["feature"]) == ("usage", 'a "quoted" one')
    assert line["request_id"] == record.request_id
    assert line["gpu_seconds"] == record.gpu_seconds
    assert line["cost"] * 10**9 == record.cost_nano
    assert line["prefill_ns"] + line["decode_ns"] == record.total_ns


def test_a_gateways_attempts_belong_to_its_callers_request(metered: Metered) -> None:
    metered.post("/v1/completions", COMPLETION, X_Request_Id="r1.2", X_Octavo_Parent_Request="r1")
    [record] = metered.settled()
    assert record.parent_id == "r1"
    assert record.request_id.startswith("r1.2.")
