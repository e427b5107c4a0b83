"""`/v1/batches` with the official client: every line's result, cancelling, leases, restarts."""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import TYPE_CHECKING, Any

import openai
import pytest

from octavo.server import batch_run, batch_runs
from octavo.server.state.batches import SCHEMA, BatchStore
from octavo.server.state.database import StateFolder
from tests.server.fake_engine import FakeEngine
from tests.server.test_responses import client_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from openai.types import Batch

    from tests.server.conftest import RunningServer

MESSAGES = [{"role": "user", "content": "hello"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "hello", "max_tokens": 8},
    "/v1/chat/completions": {"messages": MESSAGES, "max_tokens": 8},
    "/v1/responses": {"input": "hello", "max_output_tokens": 8},
    "/v1/embeddings": {"input": "hello"},
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for seconds."""
    monkeypatch.setattr(batch_runs, "POLL_S", 0.05)
    monkeypatch.setattr(batch_runs, "NEWS_S", 0.02)
    monkeypatch.setattr(batch_runs, "PAUSE_S", 0.05)


@pytest.fixture
def client(server: RunningServer) -> Iterator[openai.OpenAI]:
    yield from client_of(server)


def line(custom_id: str, url: str = "/v1/completions", **body: Any) -> dict[str, Any]:
    whole = {"model": "fake", **BODIES[url], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": whole}


def start(client: openai.OpenAI, *lines: Any, url: Any = "/v1/completions", **more: Any) -> Batch:
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    data = "".join(f"{text}\n" for text in texts).encode()
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    asked: dict[str, Any] = {"completion_window": "24h", **more}
    return client.batches.create(input_file_id=file.id, endpoint=url, **asked)


def until(client: openai.OpenAI, batch: Batch, *statuses: str) -> Batch:
    deadline = time.monotonic() + 10
    while (now := client.batches.retrieve(batch.id)).status not in statuses:
        assert time.monotonic() < deadline, now
        assert now.status not in ("completed", "failed", "expired", "cancelled"), now
        time.sleep(0.01)
    return now


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    if file_id is None:
        return {}
    lines = client.files.content(file_id).text.splitlines()
    keyed = {result["custom_id"]: result for result in map(json.loads, lines)}
    assert len(keyed) == len(lines)
    return keyed


@pytest.mark.parametrize("url", list(BODIES))
def test_every_request_gets_its_result(
    client: openai.OpenAI, server: RunningServer, url: str
) -> None:
    lines = [line(f"r{n}", url) for n in range(5)]
    batch = start(client, *lines, line("bad", url, temperature=-1), url=url, metadata={"a": "b"})
    assert batch.id.startswith("batch_")
    assert (batch.status, batch.metadata) == ("validating", {"a": "b"})
    over = until(client, batch, "completed")
    counts = over.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (6, 5, 1)
    answered = results(client, over.output_file_id)
    assert set(answered) == {"r0", "r1", "r2", "r3", "r4"}
    direct = server.client.post(url, json=lines[0]["body"]).json()
    got = answered["r3"]["response"]
    assert got["status_code"] == 200
    assert got["request_id"]
    assert said(got["body"]) == said(direct)
    (bad,) = results(client, over.error_file_id).values()
    assert bad["response"]["body"]["error"]["param"] == "temperature"
    assert over.usage is not None
    assert over.usage.input_tokens >= 5 * len("hello")
    if url != "/v1/embeddings":
        assert over.usage.output_tokens == 5 * 8
        assert over.usage.input_tokens_details.cached_tokens > 0
    assert over.created_at <= (over.in_progress_at or 0) <= (over.completed_at or 0)
    output = client.files.retrieve(over.output_file_id or "")
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")
    assert client.batches.list().data == [over]
    assert client.batches.cancel(batch.id).status == "completed"  # it stays as it is


def said(body: dict[str, Any]) -> Any:
    if body["object"] == "list":
        return body["data"]
    if body["object"] == "response":
        return body["output"][0]["content"]
    return [choice.get("text") or choice["message"] for choice in body["choices"]]


def test_requests_of_batches_count_and_give_way(
    serve: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch_runs, "CONCURRENCY", 3)
    server = serve(api_keys=("sk-1",))
    server.engine.delay = 0.002
    for client in client_of(server, "sk-1"):
        batch = start(client, *(line(str(n)) for n in range(9)), line("mine", priority=5))
        until(client, batch, "completed")
    assert server.engine.most_open == 3
    options = list(server.engine.options.values())
    assert {o.priority for o in options} == {batch_runs.LOW_PRIORITY, 5}
    assert {len(o.tenant) for o in options} == {16}
    metrics = server.client.get("/metrics", headers={"Authorization": "Bearer sk-1"}).text
    assert re.search(r'request_success_total\{[^}]*"length"[^}]*\} 10$', metrics, re.M)


def test_a_wrong_input_fails_the_batch(client: openai.OpenAI, server: RunningServer) -> None:
    lines = [line("a"), "nonsense", line("b", "/v1/responses"), line("a"), line("c", stream=True)]
    over = until(client, start(client, *lines), "failed")
    assert over.errors is not None
    assert over.errors.data is not None
    assert [(e.line, e.code, e.param) for e in over.errors.data] == [
        (2, "invalid_request", None),
        (3, "mismatched_endpoint", "url"),
        (4, "duplicate_custom_id", "custom_id"),
        (5, "invalid_request", "body.stream"),
    ]
    assert over.output_file_id is None
    assert not server.engine.requests
    empty = until(client, start(client, ""), "failed")
    assert empty.errors is not None
    assert empty.errors.data is not None
    assert empty.errors.data[0].code == "empty_file"


def test_bounds_of_an_input(client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_run, "MAX_LINES", 3)
    over = until(client, start(client, *(line(str(n)) for n in range(5))), "failed")
    assert over.errors is not None
    assert over.errors.data is not None
    assert over.errors.data[0].code == "too_many_requests"


def test_cancel(client: openai.OpenAI, server: RunningServer) -> None:
    server.engine.delay = 0.01
    batch = start(client, *(line(str(n)) for n in range(200)))
    deadline = time.monotonic() + 10
    while not (counts := client.batches.retrieve(batch.id).request_counts) or not counts.completed:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(openai.BadRequestError, match="cancel"):
        client.files.delete(batch.input_file_id)
    assert client.batches.cancel(batch.id).status == "cancelling"
    over = until(client, batch, "cancelled")
    server.wait_until_idle()
    answered = results(client, over.output_file_id)
    assert over.request_counts is not None
    assert 0 < len(answered) == over.request_counts.completed < 200
    assert over.cancelled_at
    client.files.delete(batch.input_file_id)


def test_what_is_not_done_in_time_expires(client: openai.OpenAI, server: RunningServer) -> None:
    server.engine.delay = 0.02
    batch = start(client, *(line(str(n)) for n in range(300)), completion_window="1h")
    assert batch.expires_at == batch.created_at + 3600

    async def expire() -> None:
        """Bring the end of the window near, as if the batch had been made an hour ago."""
        state = server.app.context.state

        def work(connection: Any) -> None:
            (body,) = connection.execute("SELECT body FROM batches").fetchone()
            changed = json.loads(body)
            changed["expires_at"] = int(time.time())
            connection.execute(
                "UPDATE batches SET body = ?, owner = '', lease_until = 0",
                (json.dumps(changed).encode(),),
            )

        await state.folder.call(work)

    asyncio.run(expire())
    over = until(client, batch, "expired")
    failed, answered = results(client, over.error_file_id), results(client, over.output_file_id)
    assert len(failed) + len(answered) == 300
    assert {result["error"]["code"] for result in failed.values()} == {"batch_expired"}
    assert over.expired_at


def test_another_server_goes_on(
    serve: Callable[..., RunningServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first one stops in the middle; the second takes what is left, and only that."""
    monkeypatch.setattr(batch_runs, "CONCURRENCY", 2)
    first = serve(state_dir=str(tmp_path))
    first.engine.delay = 0.01
    for client in client_of(first):
        batch = start(client, *(line(str(n)) for n in range(60)))
        deadline = time.monotonic() + 10
        while len(first.engine.finished) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.005)
    first.app.context.lifecycle.drain()
    deadline = time.monotonic() + 10
    task = first.app.batch_runs._task
    while task is None or not task.done():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    with (tmp_path / "scratch" / f"{batch.id}.output.jsonl").open("ab") as file:
        file.write(b'{"id": "batch_req_1", "custom_id": "4')  # as if it had been killed
    second = serve(state_dir=str(tmp_path))
    for client in client_of(second):
        until(client, start(client, "nonsense"), "failed")  # its runs have begun
        over = until(client, batch, "completed")
        assert len(results(client, over.output_file_id)) == 60
        assert over.request_counts is not None
        assert over.request_counts.completed == 60
    assert 0 < len(second.engine.finished) <= 60 - 20
    assert len(first.engine.finished) + len(second.engine.finished) == 60


def test_one_batch_has_one_owner(tmp_path: Path) -> None:
    async def run() -> None:
        stores = [BatchStore(StateFolder(str(tmp_path), SCHEMA)) for _ in range(4)]
        from octavo.protocol.batches import Batch

        for n in range(3):
            made = Batch(
                id=f"b{n}",
                endpoint="/v1/completions",
                input_file_id="f",
                completion_window="24h",
                created_at=n,
                expires_at=n,
            )
            await stores[0].add(made, "t")
        claims = await asyncio.gather(*(s.claim(str(n)) for n, s in enumerate(stores)))
        ids = [claim.batch.id for claim in claims if claim is not None]
        assert sorted(ids) == ["b0", "b1", "b2"]
        owner, claim = next((n, c) for n, c in enumerate(claims) if c is not None)
        assert await stores[0].save(claim.batch, str(owner))
        assert not await stores[0].save(claim.batch, "somebody else")
        await stores[0].release(claim.batch.id, str(owner))
        again = await stores[1].claim("new")
        assert again is not None
        assert again.batch.id == claim.batch.id
        assert not await stores[0].save(claim.batch, str(owner)), "it is another's now"
        await stores[2].cancel(claim.batch.id, "t")
        assert not await stores[1].save(again.batch, "new")
        assert await stores[1].save(again.batch, "new", is_over=True) is False
        assert not await stores[1].needs_file("g")
        assert await stores[1].needs_file("f")

    asyncio.run(run())


def test_a_batch_belongs_to_its_key(serve: Callable[..., RunningServer]) -> None:
    server = serve(api_keys=("sk-1", "sk-2"))
    for one, two in zip(client_of(server, "sk-1"), client_of(server, "sk-2"), strict=True):
        batch = start(one, line("a"))
        assert two.batches.list().data == []
        for ask in (two.batches.retrieve, two.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        with pytest.raises(openai.NotFoundError):
            two.batches.create(
                input_file_id=batch.input_file_id,
                endpoint="/v1/completions",
                completion_window="24h",
            )
        until(one, batch, "completed")


def test_a_failed_engine_fails_lines_only(serve: Callable[..., RunningServer]) -> None:
    engine = FakeEngine()
    engine.fail_at = 4
    server = serve(engine=engine)
    for client in client_of(server):
        over = until(client, start(client, line("a"), line("b", max_tokens=3)), "completed")
        assert set(results(client, over.output_file_id)) == {"b"}
        (failed,) = results(client, over.error_file_id).values()
        assert failed["response"]["status_code"] == 500


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/moderations"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "0h"}, "completion_window"),
        ({"completion_window": "999h"}, "completion_window"),
        ({"metadata": {"k": "v" * 513}}, "metadata"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 3600}},
            "output_expires_after",
        ),
        ({"unknown": 1}, "unknown"),
    ],
    ids=str,
)
def test_what_is_not_served_is_named(
    server: RunningServer, fields: dict[str, Any], param: str
) -> None:
    body = {
        "input_file_id": "file-1",
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        **fields,
    }
    response = server.client.post("/v1/batches", json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)
