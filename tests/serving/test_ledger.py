"""Real servers and their ledgers: one record for each request, device time that adds up to them."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
from contextlib import closing
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.config import EngineConfig, ServerConfig
from octavo.errors import ConfigError
from octavo.serving.ledger import DeviceTimes, open_writer
from octavo.serving.offline import local_application
from octavo.types import DeviceTime, EngineStats
from tests.serving.server_process import (
    Stream,
    completion,
    serving,
    wait_until_healthy,
    wait_until_running,
    write_model,
)

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.ledger.record import EngineTime
    from tests.conftest import TinyLlama

LONG = 4000
"""Tokens of a stream that does not end by itself."""

MESSAGES = [{"role": "user", "content": "Say something."}]


def rows(ledger: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(ledger)) as connection:
        return connection.execute(query).fetchall()


async def ask_for_everything(client: httpx.AsyncClient) -> int:
    """Requests of many kinds, many at a time; how many records that makes."""
    chat = {"model": "tiny", "messages": MESSAGES, "max_tokens": 12, "temperature": 0}
    whole = [
        client.post("/v1/chat/completions", json=chat, headers={"X-Octavo-Feature": f"f{n % 2}"})
        for n in range(4)
    ]
    found = (await whole[0]).json()["choices"][0]["message"]["content"]
    stop = {**chat, "max_tokens": 100, "stop": found[3:6], "n": 2}
    asked = {"X-Octavo-Include-Cost": "1"}
    stopped, *answers = await asyncio.gather(
        client.post("/v1/chat/completions", json=stop, headers=asked), *whole[1:]
    )
    assert [choice["finish_reason"] for choice in stopped.json()["choices"]] == ["stop", "stop"]
    usage = stopped.json()["usage"]
    assert usage["cost"] == pytest.approx(usage["gpu_seconds"], abs=1e-8)  # 3600 an hour
    assert all(answer.status_code == 200 for answer in answers)
    beams = {"model": "tiny", "prompt": "a", "max_tokens": 3, "use_beam_search": True, "n": 2}
    assert (await client.post("/v1/completions", json=beams)).status_code == 200
    late = {**chat, "max_tokens": 200, "ignore_eos": True, "timeout": 0.05}
    assert (await client.post("/v1/chat/completions", json=late)).status_code == 200
    gone = asyncio.ensure_future(
        client.post("/v1/chat/completions", json={**chat, "max_tokens": 200, "ignore_eos": True})
    )
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.wait({gone})
    assert (await client.post("/v1/completions", json={"model": "no"})).is_error
    return 4 + 2 + 1 + 1 + 1


def test_records_of_a_real_engine_add_up_to_its_time(tiny_llama: TinyLlama, tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.db"
    engine = EngineConfig(
        model=str(tiny_llama()), dtype="float32", kv_cache_memory=16 * 1024**2, num_threads=1
    )
    server = ServerConfig(
        served_model_names=("tiny",),
        ledger=str(ledger),
        price_per_device_hour=Decimal(3600),
        log_level="warning",
    )

    async def run() -> int:
        async with local_application("octavo.launch:build_engine", engine, server) as app:
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://local") as client:
                num = await ask_for_everything(client)
            await app.context.usage.settle(10)  # what was aborted, too, before the time is read
            return num

    num = asyncio.run(run())
    records = rows(ledger, "SELECT request_id, finish_reason, feature FROM usage")
    assert len(records) == num
    reasons = [reason for _, reason, _ in records]
    assert (reasons.count("stop"), reasons.count("abort")) == (2, 1) or reasons.count("stop") > 2
    assert {feature for *_, feature in records} == {"", "f0", "f1"}
    [(charged, cost, least)] = rows(
        ledger, "SELECT sum(prefill_ns + decode_ns), sum(cost_nano), min(prefill_ns) FROM usage"
    )
    assert cost == charged  # 3600 an hour is one nano-unit per nanosecond
    assert least > 0
    buckets = dict(rows(ledger, "SELECT bucket, sum(device_ns) FROM engine_time GROUP BY bucket"))
    assert buckets["requests"] == charged
    assert buckets["startup"] > 0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("num", [1, 2])
def test_every_request_of_a_server_has_its_record(model: str, tmp_path: Path, num: int) -> None:
    ledger = tmp_path / "ledger.db"
    options = {"api_server_count": num, "ledger": f"sqlite:///{ledger}", "log_usage": True}
    with serving(model, tmp_path, options=options, step_s=0.01) as server:
        base = f"{server.wait_for('ready at')}"
        url = f"{base}/v1" if not base.endswith("/v1") else base
        for _ in range(6):
            assert httpx.post(f"{url}/completions", json=completion(3)).status_code == 200
        lost = Stream(url, LONG)
        wait_until_running(url)
        os.kill(server.engine_pid(), signal.SIGKILL)
        lost.join()
        wait_until_healthy(url.removesuffix("/v1"))
        cut = Stream(url, LONG)
        wait_until_running(url)
        server.popen.send_signal(signal.SIGTERM)
        server.popen.send_signal(signal.SIGTERM)
        assert server.end() == 0
        cut.join()
    found = rows(ledger, "SELECT finish_reason, num_output_tokens, tags FROM usage ORDER BY seq")
    assert sorted(reason for reason, *_ in found) == ["abort", "error", *["length"] * 6]
    assert all(tokens == 3 for reason, tokens, _ in found if reason == "length")
    assert server.log.count('\n{"event":"usage"') == 8


def test_a_ledger_that_cannot_be_opened_is_told(model: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--ledger none"):
        open_writer(ServerConfig(ledger=str(tmp_path)))  # a folder
    with pytest.raises(ConfigError, match="neither sqlite"):
        open_writer(ServerConfig(ledger="mysql://host/name"))
    assert open_writer(ServerConfig()) is None
    with serving(model, tmp_path, options={"ledger": str(tmp_path)}) as server:
        assert server.end() == 1
        assert server.log.splitlines()[-1].startswith("ConfigError the ledger cannot be opened")


class _Engine:
    """Its time passes when it is asked."""

    def __init__(self) -> None:
        self.stats = EngineStats()

    def ask_stats(self) -> None:
        wall = self.stats.device_time.wall_ns + 1000
        time = DeviceTime(num_devices=1, wall_ns=wall, requests_ns=wall - 300, idle_ns=300)
        self.stats = EngineStats(device_time=time)


def test_device_time_of_engines_that_come_one_after_another() -> None:
    put: list[EngineTime] = []

    class Writer:
        def put(self, entry: EngineTime) -> None:
            put.append(entry)

    engine = _Engine()
    times = DeviceTimes(Writer(), ServerConfig(price_per_device_hour=Decimal("2.5")), engine)  # type: ignore[arg-type]

    async def run() -> None:
        await times.read()
        await times.read()
        engine.stats = EngineStats()  # the engine failed
        times._engine.ask_stats = lambda: None  # type: ignore[method-assign]
        await times.read()
        del times._engine.ask_stats  # type: ignore[attr-defined]
        await times.read()

    asyncio.run(run())
    assert [entry.buckets["requests"] for entry in put] == [700, 1700, 700]
    assert put[0].server == put[1].server != put[2].server
    assert {entry.hourly_rate_nano for entry in put} == {2_500_000_000}
