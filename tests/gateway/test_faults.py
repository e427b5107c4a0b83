"""Bad luck from end to end, as the table of docs/gateway.md has it: what clients see while Redis,
the database, backends or the gateway itself are gone; and that no record is lost or doubled.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from octavo.ledger.database import Database
from octavo.ledger.store import open_ledger
from octavo.ledger.writer import LedgerWriter
from octavo.server.listen import bind
from tests.gateway.fake_answers import Answer
from tests.gateway.fake_upstream import FakeUpstream
from tests.gateway.redis_server import BINARY, RedisServer
from tests.gateway.running import QUICK, Running, running
from tests.ledger.postgres import PostgresServer, find_binaries

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

ROOT = Path(__file__).resolve().parents[2]
MODELS = ", ".join(f"{m}: {{price: {{input: 1, output: 3}}}}" for m in ("ok", "slow"))


PATIENT = (
    QUICK.replace("first_token: 0.5", "first_token: 20")
    .replace("total: 2", "total: 60")
    .replace("idle: 0.5", "idle: 20")
)


def config(
    fake: FakeUpstream, more: str = "", keys: str = "{required: false}", times: str = QUICK
) -> str:
    return f"""
keys: {keys}
backends:
  fake:
    url: {fake.url}
    models: {{{MODELS}}}
{times}
{more}
"""


@asynccontextmanager
async def both(
    folder: Path, more: str = "", **options: Any
) -> AsyncIterator[tuple[FakeUpstream, Running]]:
    async with FakeUpstream() as fake, running(folder, config(fake, more, **options)) as gateway:
        yield fake, gateway


async def until(check: Any, within_s: float = 8.0) -> None:
    """Return when something holds."""
    async with asyncio.timeout(within_s):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


# Redis.


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    if BINARY is None:
        pytest.skip("redis-server is not installed")
    pytest.importorskip("redis")
    server = RedisServer()
    yield server
    server.remove()


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize("fault", ["kill", "freeze"])
async def test_without_redis_calls_pass_or_are_refused_in_time(
    tmp_path: Path, redis: RedisServer, fault: str, is_open: bool
) -> None:
    more = f"""
redis_url: "{redis.url}"
limits:
  store: redis
  when_redis_fails: {"open" if is_open else "closed"}
  redis_timeout_s: 0.2
  rules: {{all: {{requests_per_minute: 100000}}}}
budgets:
  store: redis
  on_failure: {"allow" if is_open else "refuse"}
  timeout_s: 0.2
  rules: {{all: {{cost: 100, per: []}}}}
"""
    async with both(tmp_path, more) as (fake, gateway):
        assert (await gateway.chat(max_tokens=5)).status_code == 200
        try:
            redis.kill() if fault == "kill" else redis.freeze()
            begin = time.perf_counter()
            answers = await asyncio.gather(*(gateway.chat(max_tokens=5) for _ in range(10)))
            seconds = time.perf_counter() - begin
        finally:
            redis.start() if fault == "kill" else redis.thaw()
        assert seconds < 3
        if is_open:
            assert {answer.status_code for answer in answers} == {200}
        else:
            assert {answer.status_code for answer in answers} == {503}
            assert all(int(answer.headers["retry-after"]) > 0 for answer in answers)
            assert str(redis.socket) not in answers[0].text
        num_seen = len(fake.seen)
        assert num_seen == (11 if is_open else 1)
        async with asyncio.timeout(8):
            while (await gateway.chat(max_tokens=5)).status_code != 200:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


# The database.


def found(url: str) -> list[tuple[Any, ...]]:
    connection = Database(url).connect()
    try:
        return list(connection.rows("SELECT request_id, number FROM attempts"))
    finally:
        connection.close()


def keys_in(url: str) -> str:
    """A key of the ledger."""
    from octavo.gateway.key_store import KeyStore
    from octavo.gateway.model import KeyInfo

    store = KeyStore(url)
    try:
        _, key = store.create(KeyInfo(key_id="", name="a"), actor="tests")
    finally:
        store.close()
    return key


async def goes_on_without(gateway: Running, url: str, key: str, gone: Any, back: Any) -> None:
    """Calls while the database is gone, and all records when it is back."""
    gateway.client.headers["Authorization"] = f"Bearer {key}"
    writer = gateway.gateway._ledger.writer
    assert writer is not None
    assert (await gateway.chat()).status_code == 200
    assert await writer.flush()
    await asyncio.to_thread(gone)
    try:
        for _ in range(3):
            answers = await asyncio.gather(*(gateway.chat() for _ in range(10)))
            assert {answer.status_code for answer in answers} == {200}
            await asyncio.sleep(0.1)
        wrong = await gateway.client.get("/v1/models", headers={"Authorization": f"Bearer {key}0"})
        assert wrong.status_code == 401
        await until(lambda: writer.num_spilled >= 30)
    finally:
        await asyncio.to_thread(back)
    await until(lambda: len(found(url)) >= 31, 20)
    assert (await gateway.chat()).status_code == 200
    await until(lambda: len(found(url)) >= 32)
    rows = found(url)
    assert len(rows) == len(set(rows)) == 32
    assert writer.num_lost == 0


@pytest.mark.parametrize("fault", ["locked", "moved"])
async def test_sqlite_gone_and_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    path = tmp_path / "ledger.db"
    url = f"sqlite:///{path}"
    open_ledger(url).close()
    key = keys_in(url)
    lock = sqlite3.connect(path, isolation_level=None, check_same_thread=False)

    def gone() -> None:
        if fault == "locked":
            lock.execute("BEGIN EXCLUSIVE")
        else:  # a disk that was unplugged
            lock.close()
            (tmp_path / "away").mkdir()
            for file in tmp_path.glob("ledger.db*"):
                file.rename(tmp_path / "away" / file.name)
            path.mkdir()

    def back() -> None:
        if fault == "locked":
            lock.execute("ROLLBACK")
        else:
            path.rmdir()
            for file in (tmp_path / "away").iterdir():
                file.rename(tmp_path / file.name)

    try:
        async with both(tmp_path, f'ledger: {{url: "{url}"}}', keys="{}") as (_, gateway):
            await goes_on_without(gateway, url, key, gone, back)
    finally:
        lock.close()


async def test_postgresql_stopped_and_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    server = await asyncio.to_thread(PostgresServer, binaries)
    try:
        url = server.new_ledger()
        key = keys_in(url)
        async with both(tmp_path, f'ledger: {{url: "{url}"}}', keys="{}") as (_, gateway):
            await goes_on_without(gateway, url, key, server.stop, server.start)
    finally:
        await asyncio.to_thread(server.remove)


def free_port() -> int:
    with bind("127.0.0.1", 0) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_a_killed_gateway_loses_no_record_that_was_a_second_old(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    open_ledger(url).close()
    async with FakeUpstream() as fake:
        path, port = tmp_path / "gateway.yaml", free_port()
        path.write_text(config(fake, f'ledger: {{url: "{url}"}}'))
        popen = subprocess.Popen(  # noqa: ASYNC220
            [sys.executable, "-m", "octavo.cli.main", "gateway", "--config", str(path),
             "--port", str(port)],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        answered: list[tuple[str, float]] = []
        try:
            base = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=base, timeout=5, trust_env=False) as client:

                async def load() -> None:
                    body = {"model": "ok", "messages": [{"role": "user", "content": "Hello"}]}
                    while True:
                        try:
                            answer = await client.post("/v1/chat/completions", json=body)
                        except httpx.TransportError:
                            if popen.poll() is not None:
                                return
                            await asyncio.sleep(0.1)
                            continue
                        assert answer.status_code == 200
                        answered.append((answer.headers["x-request-id"], time.monotonic()))
                        await asyncio.sleep(0.01)

                loads = [asyncio.create_task(load()) for _ in range(4)]
                await until(lambda: len(answered) > 20, 30)
                await asyncio.sleep(1.5)
                popen.send_signal(signal.SIGKILL)
                killed = time.monotonic()
                popen.wait(10)
                await asyncio.gather(*loads)
        finally:
            popen.kill()
            popen.wait(10)
    writer = LedgerWriter(url)  # as the next gateway does
    writer.start()
    await until(lambda: not list(tmp_path.glob("*.spill")))
    writer.close()
    rows = found(url)
    assert len(rows) == len(set(rows))
    old = {request_id for request_id, at in answered if at < killed - 1}
    assert len(old) > 10
    assert old <= {row[0] for row in rows}


# Backends and clients.


async def test_a_backend_that_dies_amid_many_streams(tmp_path: Path) -> None:
    async with both(tmp_path, times=PATIENT) as (fake, gateway):
        fake.answer = Answer(tokens=tuple(" x" for _ in range(500)))
        counted = gateway.counted()
        num_begun = 0

        async def read() -> str:
            body = {"model": "slow", "messages": [], "stream": True, "max_tokens": 3000}
            nonlocal num_begun
            async with gateway.client.stream("POST", "/v1/chat/completions", json=body) as answer:
                assert answer.status_code == 200
                num_begun += 1
                return "".join([text async for text in answer.aiter_text()])

        tasks = [asyncio.create_task(read()) for _ in range(40)]
        await until(lambda: num_begun == 40)
        await asyncio.sleep(0.2)
        await fake.down()
        texts = await asyncio.gather(*tasks)
        for text in texts:
            assert '"error"' in text
            assert '"code":"upstream_broken"' in text.replace(" ", "")
            assert text.rstrip().endswith("data: [DONE]")
        await gateway.idle()
        counted.check(40)
        assert {attempt.status for attempt in counted.all_attempts} == {"error"}
        assert all(attempt.tokens.output > 0 for attempt in counted.all_attempts)
        assert (await gateway.chat("ok", max_tokens=5)).status_code == 502
        await fake.up()
        assert (await gateway.chat("ok", max_tokens=3000)).status_code == 200


async def test_a_client_that_does_not_read_holds_the_backend_and_little_memory(
    tmp_path: Path,
) -> None:
    async with both(tmp_path, times=PATIENT) as (fake, gateway):
        fake.answer = Answer(tokens=tuple("x" * 4000 for _ in range(10_000)))  # 40 MB
        counted = gateway.counted()
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        body = b'{"model": "ok", "messages": [], "stream": true, "max_tokens": 1000000000}'
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        assert b" 200 OK" in await reader.readline()
        (upstream,) = gateway.gateway.parts.dispatcher.upstreams.values()
        await until(lambda: any(connection._is_paused for connection in upstream._open))
        await asyncio.sleep(0.2)
        (connection,) = upstream._open
        assert connection._is_paused
        assert connection._num_waiting < 1024**2
        held = [
            one.transport.get_write_buffer_size()
            for one in gateway.gateway.http.server_state.connections
        ]
        assert sum(held) < 1024**2
        writer.transport.abort()
        await gateway.idle()
        counted.check()
        (attempt,) = counted.all_attempts
        assert attempt.status == "client_left"
        assert 0 < attempt.tokens.output * 4 < 8 * 1024**2
        await fake.idle()
