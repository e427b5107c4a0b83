from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from octavo.config import EngineConfig
from octavo.engine.client import AsyncEngine
from octavo.engine.spawn import EngineProcess
from octavo.errors import (
    EngineUnavailableError,
    InsufficientMemoryError,
    InvalidRequestError,
    QueueFullError,
    StartupError,
)
from octavo.types import Delta, RequestOptions, SamplingParams
from tests.engine.byte_tokenizer import EOS, byte_tokenizer, ids_of
from tests.engine.fake_core import MAX_MODEL_LEN, VOCAB_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

FOREVER = SamplingParams(max_tokens=None, ignore_eos=True)


@asynccontextmanager
async def running(
    monkeypatch: pytest.MonkeyPatch,
    builder: str = "build",
    *,
    max_num_queued_requests: int | None = None,
    watchdog_timeout_s: float = 60.0,
    **core: Any,
) -> AsyncIterator[AsyncEngine]:
    """An engine process with a `FakeCore` made with these arguments."""
    monkeypatch.setenv("FAKE_ENGINE", json.dumps(core))
    process = EngineProcess(f"tests.engine.fake_core:{builder}", EngineConfig(model="fake"))
    engine = await AsyncEngine.connect(
        process,
        tokenizer=byte_tokenizer(),
        eos_token_ids=[EOS, 1_000_000],
        max_num_queued_requests=max_num_queued_requests,
        watchdog_timeout_s=watchdog_timeout_s,
    )
    try:
        yield engine
    finally:
        await engine.close()


async def collect(
    engine: AsyncEngine, prompt: list[int], params: SamplingParams, request_id: str = "r"
) -> list[Delta]:
    return [delta async for delta in engine.generate(prompt, params, request_id=request_id)]


async def until(condition: Callable[[], bool], timeout_s: float = 2.0) -> float:
    """Wait for a condition; the seconds that it took."""
    begin = time.perf_counter()
    while not condition():
        assert time.perf_counter() - begin < timeout_s, "it did not come true in time"
        await asyncio.sleep(0.002)
    return time.perf_counter() - begin


async def test_streams_of_many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, tokens_per_step=3) as engine:
        assert engine.is_alive
        assert engine.info.startup_s == {"load": 0.25}
        assert 0 < engine.process_startup_s < 5

        async def one(index: int) -> None:
            params = SamplingParams(max_tokens=100 + index)
            deltas = await collect(engine, [1, 3 + index], params, f"r{index}")
            ids = [token_id for delta in deltas for token_id in delta.token_ids]
            assert ids == [4 + index + i for i in range(100 + index)]
            text = "".join(delta.text for delta in deltas)
            assert text == byte_tokenizer().decode(ids)
            assert [d.finish_reason for d in deltas] == [None] * (len(deltas) - 1) + ["length"]
            assert deltas[-1].num_output_tokens == 100 + index

        await asyncio.gather(*[one(index) for index in range(40)])
        assert engine.num_in_flight == 0
        assert engine.stats.num_running == 0
        assert engine.stats.num_generation_tokens == sum(range(100, 140))


async def test_end_of_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as engine:
        [*_, last] = await collect(engine, [VOCAB_SIZE - 1], SamplingParams(max_tokens=50))
        assert (last.finish_reason, last.stop_reason, last.num_output_tokens) == ("stop", None, 3)
        params = SamplingParams(max_tokens=50, ignore_eos=True)
        [*_, last] = await collect(engine, [VOCAB_SIZE - 1], params)
        assert (last.finish_reason, last.num_output_tokens) == ("length", 50)


async def test_a_stop_string_ends_the_request_in_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, step_s=0.001) as engine:
        params = SamplingParams(max_tokens=None, stop=["defg"])
        deltas = await collect(engine, ids_of("@"), params)
        assert "".join(delta.text for delta in deltas) == "".join(map(chr, range(65, 100)))
        assert (deltas[-1].finish_reason, deltas[-1].stop_reason) == ("stop", "defg")
        await until(lambda: engine.stats.num_running == 0)
        assert engine.stats.num_generation_tokens < 200


async def test_closing_a_stream_aborts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, step_s=0.005) as engine:
        async with aclosing(engine.generate([5], FOREVER, request_id="r")) as deltas:
            async for delta in deltas:
                assert delta.finish_reason is None
                break
            await until(lambda: engine.stats.num_running == 1)
        assert engine.num_in_flight == 0
        assert await until(lambda: engine.stats.num_running == 0) < 0.5

        task = asyncio.create_task(collect(engine, [5], FOREVER))
        await until(lambda: engine.stats.num_running == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await until(lambda: engine.stats.num_running == 0)


async def test_abort_by_id_gives_a_last_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, step_s=0.002) as engine:
        tasks = [asyncio.create_task(collect(engine, [5], FOREVER, name)) for name in "abb"]
        await until(lambda: engine.stats.num_running == 3)
        await engine.abort("unknown")
        await engine.abort("b")
        for task in tasks[1:]:
            assert (await task)[-1].finish_reason == "abort"
        await until(lambda: engine.stats.num_running == 1)
        await engine.close()
        assert (await tasks[0])[-1].finish_reason == "abort"
        assert not engine.is_alive
        with pytest.raises(EngineUnavailableError, match="shutting down"):
            await collect(engine, [5], FOREVER)


async def test_a_slow_reader_gets_many_tokens_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as engine:
        ids: list[int] = []
        num_deltas = 0
        params = SamplingParams(max_tokens=3000, ignore_eos=True)
        async for delta in engine.generate([5], params, request_id="r"):
            ids += delta.token_ids
            num_deltas += 1
            await asyncio.sleep(0.05)
        assert ids == [(6 + i) % VOCAB_SIZE for i in range(3000)]
        assert num_deltas < 100


@pytest.mark.parametrize(
    ("prompt", "params", "param", "code", "words"),
    [
        ([], {}, "prompt", None, "no tokens"),
        ([1, VOCAB_SIZE], {}, "prompt", None, f"{VOCAB_SIZE - 1}"),
        ([-1], {}, "prompt", None, "-1"),
        ([1], {"stop_token_ids": [VOCAB_SIZE]}, "stop_token_ids", None, f"{VOCAB_SIZE}"),
        ([1] * MAX_MODEL_LEN, {}, "prompt", "context_length_exceeded", f"{MAX_MODEL_LEN}"),
        (
            [1, 2],
            {"max_tokens": MAX_MODEL_LEN},
            "max_tokens",
            "context_length_exceeded",
            f"the prompt has 2 tokens and max_tokens is {MAX_MODEL_LEN}",
        ),
    ],
)
async def test_requests_that_cannot_run(
    monkeypatch: pytest.MonkeyPatch,
    prompt: list[int],
    params: dict[str, Any],
    param: str,
    code: str | None,
    words: str,
) -> None:
    async with running(monkeypatch) as engine:
        with pytest.raises(InvalidRequestError, match=words) as caught:
            await collect(engine, prompt, SamplingParams(**params))
        assert (caught.value.param, caught.value.code) == (param, code)
        [*_, last] = await collect(engine, [5], SamplingParams())
        assert last.finish_reason == "length"


async def test_what_the_core_refuses_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as engine:
        [delta] = await collect(engine, [13], SamplingParams())
        assert (delta.finish_reason, delta.error) == ("error", "thirteen is refused")
        [delta] = await collect(engine, [14], SamplingParams())
        assert delta.error is not None
        assert "fourteen is a bug" in delta.error
        assert (await collect(engine, [5], SamplingParams()))[-1].finish_reason == "length"


@pytest.mark.parametrize(
    ("how", "words"),
    [("killed", "SIGKILL"), ("terminated", "143"), ("die_at", "SIGKILL"), ("raise_at", "70")],
)
async def test_the_end_of_the_process_ends_every_request(
    monkeypatch: pytest.MonkeyPatch, how: str, words: str
) -> None:
    core = {how: 20} if how.endswith("_at") else {}
    async with running(monkeypatch, step_s=0.002, **core) as engine:
        tasks = [asyncio.create_task(collect(engine, [5], FOREVER, f"r{i}")) for i in range(8)]
        await until(lambda: engine.stats.num_running == 8)
        if how == "killed":
            os.kill(engine._process.pid, signal.SIGKILL)
        elif how == "terminated":
            os.kill(engine._process.pid, signal.SIGTERM)
        assert words in await asyncio.wait_for(engine.died(), 1.0)
        for deltas in await asyncio.wait_for(asyncio.gather(*tasks), 0.5):
            assert deltas[-1].finish_reason == "error"
            assert words in (deltas[-1].error or "")
            assert sum(delta.finish_reason is not None for delta in deltas) == 1
        assert not engine.is_alive
        with pytest.raises(EngineUnavailableError, match=words):
            await collect(engine, [5], FOREVER)


async def test_a_full_queue_refuses_newcomers(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(
        monkeypatch, max_num_queued_requests=2, max_num_running=3, step_s=0.002
    ) as engine:
        # All at once: the engine has not heard of any when the last one is checked.
        tasks = [asyncio.create_task(collect(engine, [5], FOREVER, f"r{i}")) for i in range(9)]
        done, running_tasks = await asyncio.wait(tasks, timeout=0.3)
        assert len(done) == 4
        for task in done:
            error = task.exception()
            assert isinstance(error, QueueFullError)
            assert (error.status, error.code, error.retry_after_s) == (503, "queue_full", 1)
        assert (engine.stats.num_running, engine.stats.num_waiting) == (3, 2)
        with pytest.raises(QueueFullError, match="2 requests wait already"):
            await collect(engine, [5], SamplingParams())
        for task in running_tasks:
            task.cancel()
        await until(lambda: engine.stats.num_running == 0)
        assert (await collect(engine, [5], SamplingParams()))[-1].finish_reason == "length"


async def test_a_deadline_ends_a_request_with_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, step_s=0.002, max_num_running=1) as engine:
        soon = RequestOptions(timeout_s=0.2)

        async def timed(name: str, options: RequestOptions) -> tuple[list[Delta], float]:
            begin = time.perf_counter()
            stream = engine.generate([5], FOREVER, request_id=name, options=options)
            deltas = [delta async for delta in stream]
            return deltas, time.perf_counter() - begin

        ran, waited = await asyncio.gather(timed("a", soon), timed("b", soon))
        for deltas, seconds in (ran, waited):
            assert deltas[-1].finish_reason == "timeout"
            assert 0.19 < seconds < 0.4
        assert 1 < ran[0][-1].num_output_tokens < 200
        assert waited[0][-1].num_output_tokens == 0
        await until(lambda: engine.stats.num_running == 0)
        late = RequestOptions(timeout_s=5.0)
        stream = engine.generate([5], SamplingParams(), request_id="c", options=late)
        assert [delta async for delta in stream][-1].finish_reason == "length"


async def test_a_deadline_holds_while_a_step_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch, hang_at=2) as engine:
        options = RequestOptions(timeout_s=0.2)
        stream = engine.generate([5], FOREVER, request_id="r", options=options)
        deltas = await asyncio.wait_for(_all(stream), 1.0)
        assert (deltas[-1].finish_reason, deltas[-1].num_output_tokens) == ("timeout", 2)
        await engine.close(timeout_s=0.0)


async def _all(stream: AsyncIterator[Delta]) -> list[Delta]:
    return [delta async for delta in stream]


async def test_priorities_need_their_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(monkeypatch) as engine:
        stream = engine.generate(
            [5], SamplingParams(), request_id="r", options=RequestOptions(priority=1)
        )
        with pytest.raises(InvalidRequestError, match="--scheduling-policy priority") as caught:
            await anext(stream)
        assert caught.value.param == "priority"


async def test_a_hanging_step_shows_and_does_not_keep_close_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with running(monkeypatch, hang_at=3, watchdog_timeout_s=0.25) as engine:
        assert engine.stalled_s == 0.0
        engine.check_health()
        task = asyncio.create_task(collect(engine, [5], FOREVER))
        await until(lambda: engine.stalled_s > 0.3)
        assert engine.stats.num_steps == 3
        with pytest.raises(EngineUnavailableError, match="has been stuck for 0 s"):
            engine.check_health()
        begin = time.perf_counter()
        await engine.close(timeout_s=0.1)
        assert time.perf_counter() - begin < 2
        assert (await task)[-1].finish_reason == "abort"


@pytest.mark.parametrize(
    ("builder", "kind", "words"),
    [
        (
            "build_without_memory",
            InsufficientMemoryError,
            "the KV cache needs 3 GiB, 1 GiB is free",
        ),
        ("build_with_bug", StartupError, "KeyError.*embed_tokens"),
        ("build_and_die", StartupError, "SIGSEGV"),
        ("no_such_builder", StartupError, "no_such_builder"),
    ],
)
async def test_failures_to_start(
    monkeypatch: pytest.MonkeyPatch, builder: str, kind: type[Exception], words: str
) -> None:
    with pytest.raises(StartupError, match=words) as caught:
        async with running(monkeypatch, builder):
            pass
    assert type(caught.value) is kind


async def test_giving_up_while_it_starts_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    process = EngineProcess("tests.engine.fake_core:build_slowly", EngineConfig(model="fake"))
    begin = time.perf_counter()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(AsyncEngine.connect(process), 0.3)
    assert time.perf_counter() - begin < 2
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)
