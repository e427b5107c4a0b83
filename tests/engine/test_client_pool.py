"""Vectors through the engine's process: answers, deadlines, aborts, bounds, and a death."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from octavo.config import EngineConfig
from octavo.engine.client import AsyncEngine
from octavo.engine.messages import AddPooling, PoolingOutput, StepOutputs
from octavo.engine.pooling import PoolingCore
from octavo.engine.spawn import EngineProcess
from octavo.errors import EngineUnavailableError, InvalidRequestError, QueueFullError
from octavo.types import Pooled, PoolingParams, RequestOptions, SamplingParams
from tests.engine.fake_pooling import MAX_LEN, VOCAB_SIZE, FakePoolingExecutor, vector_of
from tests.engine.test_clients import loop_with_clients
from tests.engine.test_process import next_message

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EMBED = PoolingParams()


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch,
    *,
    max_num_queued_requests: int | None = None,
    policy: Any = "fcfs",
    **executor: Any,
) -> AsyncIterator[AsyncEngine]:
    monkeypatch.setenv("FAKE_POOLING", json.dumps(executor))
    config = EngineConfig(model="fake", scheduling_policy=policy)
    engine = await AsyncEngine.connect(
        EngineProcess("tests.engine.fake_pooling:build", config),
        max_num_queued_requests=max_num_queued_requests,
    )
    try:
        yield engine
    finally:
        await engine.close()


def pool(engine: AsyncEngine, ids: list[int], name: str = "r", **options: Any) -> Any:
    return engine.pool(ids, EMBED, request_id=name, options=RequestOptions(**options))


async def test_many_vectors_a_failure_and_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, step_s=0.01) as engine:
        assert engine.info.tasks == ("embed",)
        texts = [[20 + i] * (1 + i % MAX_LEN) for i in range(100)]
        found = await asyncio.gather(*(pool(engine, text) for text in texts))
        assert found == [Pooled(vector=vector_of(text)) for text in texts]
        assert engine.num_in_flight == 0
        assert engine.stats.num_prompt_tokens == sum(map(len, texts))

        failed = await pool(engine, [13])
        assert (failed.vector, failed.finish_reason) == (b"", "error")
        assert "the engine failed" in failed.error
        late = await pool(engine, [1], timeout_s=1e-4)
        assert late == Pooled(finish_reason="timeout")
        assert (await pool(engine, [1], timeout_s=30)).finish_reason == "stop"


async def test_cancelling_aborts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, step_s=0.05, max_num_seqs=1) as engine:
        tasks = [asyncio.ensure_future(pool(engine, [1], f"r{i}")) for i in range(20)]
        await asyncio.sleep(0.02)
        for task in tasks[1:19]:
            task.cancel()
        await engine.abort("r19")
        assert (await tasks[19]).finish_reason == "abort"
        assert (await tasks[0]).finish_reason == "stop"
        assert engine.num_in_flight == 0
        # Nothing of what was cancelled is computed any more.
        assert (await pool(engine, [2])).vector == vector_of([2])
        assert engine.stats.num_steps <= 4


async def test_the_queue_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(
        monkeypatch, max_num_queued_requests=3, step_s=0.1, max_num_seqs=1
    ) as engine:
        tasks = [asyncio.ensure_future(pool(engine, [1])) for _ in range(10)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        refused = [r for r in results if isinstance(r, QueueFullError)]
        assert 0 < len(refused) <= 7
        assert all(isinstance(r, QueueFullError | Pooled) for r in results)
        assert (await pool(engine, [1])).finish_reason == "stop"


async def test_what_the_engine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as engine:
        cases: list[tuple[list[int], PoolingParams, str | None, str]] = [
            ([], EMBED, "input", "no tokens"),
            ([VOCAB_SIZE], EMBED, "input", "token id 1000"),
            ([1] * (MAX_LEN + 1), EMBED, "input", "truncate_prompt_tokens"),
            ([1], PoolingParams(task="classify"), None, "cannot classify"),
            ([1], PoolingParams(dimensions=1), "dimensions", "no Matryoshka"),
        ]
        for ids, params, param, match in cases:
            with pytest.raises(InvalidRequestError, match=match) as caught:
                await engine.pool(ids, params, request_id="r")
            assert caught.value.param == param
        with pytest.raises(InvalidRequestError, match="scheduling-policy priority"):
            await pool(engine, [1], priority=1)
        with pytest.raises(InvalidRequestError, match="use /v1/embeddings") as caught:
            await anext(engine.generate([1], SamplingParams(), request_id="r"))
        assert caught.value.code == "task_not_supported"


def test_several_api_servers_get_their_own_vectors() -> None:
    core = PoolingCore(FakePoolingExecutor())
    with loop_with_clients(core) as (_, clients):  # type: ignore[arg-type]
        for index, client in enumerate(clients):
            client.send(AddPooling(f"{index}", [20 + index], EMBED))
            client.send(AddPooling(f"{index}-long", [1] * 100, EMBED))
        for index, client in enumerate(clients):
            found: dict[str, PoolingOutput] = {}
            while len(found) < 2:
                message = next_message(client)
                assert isinstance(message, StepOutputs)
                assert message.outputs == []
                found |= {output.request_id: output for output in message.pooled}
            assert found[f"{index}"].vector == vector_of([20 + index])
            refused = found[f"{index}-long"]
            assert refused.finish_reason == "error"
            assert "100 tokens" in (refused.error or "")


async def test_a_death_ends_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, step_s=30) as engine:
        tasks = [asyncio.ensure_future(pool(engine, [1])) for _ in range(5)]
        await asyncio.sleep(0.05)
        os.kill(engine._process.pid, signal.SIGKILL)
        for ended in await asyncio.gather(*tasks):
            assert ended.finish_reason == "error"
            assert "SIGKILL" in (ended.error or "")
        with pytest.raises(EngineUnavailableError):
            await pool(engine, [1])
