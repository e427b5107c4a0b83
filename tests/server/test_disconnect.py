"""Clients that go away: the engine hears of it at once, whatever they were waiting for."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.server.conftest import RunningServer

CHAT = {"messages": [{"role": "user", "content": "hello"}]}
PROMPTS = {"prompt": ["one", "two", "three"]}


def request_bytes(path: str, **fields: Any) -> bytes:
    body = json.dumps({"model": "fake", "max_tokens": 1000, **fields}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def wait_for(condition: Callable[[], bool], timeout: float = 2.0) -> float:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < timeout
        time.sleep(0.001)
    return time.monotonic() - start


@pytest.mark.parametrize("http", ["httptools", "h11"])
@pytest.mark.parametrize("reset", [False, True], ids=["close", "reset"])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before_first_token", [False, True])
@pytest.mark.parametrize(
    ("path", "fields", "num_prompts"),
    [
        ("/v1/chat/completions", CHAT, 1),
        ("/v1/completions", {"prompt": "one"}, 1),
        ("/v1/completions", PROMPTS, 3),
    ],
    ids=["chat", "completion", "completions"],
)
def test_disconnect_aborts(
    serve: Callable[..., RunningServer],
    http: str,
    reset: bool,
    stream: bool,
    before_first_token: bool,
    path: str,
    fields: dict[str, Any],
    num_prompts: int,
) -> None:
    server = serve(http=http)
    server.engine.delay = 0.01
    server.engine.first_delay = 30.0 if before_first_token else 0.0
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=5)
    connection.sendall(request_bytes(path, stream=stream, **fields))
    wait_for(lambda: server.engine.num_open == num_prompts)
    if stream and not before_first_token:
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
    if reset:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
    took = wait_for(lambda: server.engine.num_open == 0)
    assert took < 0.5
    assert len(server.engine.aborted) == num_prompts
    assert not server.engine.finished
    wait_for(lambda: server.metrics.finished["abort"] == num_prompts)
    assert sum(server.metrics.finished.values()) == num_prompts
    server.engine.first_delay = 0.0
    server.engine.delay = 0.0
    server.assert_serves()


def test_disconnect_within_the_body(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(request_bytes("/v1/completions", prompt="x")[:-5])
    server.assert_serves()
    assert sum(server.metrics.finished.values()) == 2


async def test_many_streams_a_third_of_which_leave(server: RunningServer) -> None:
    """The rest get all of their text; every request is counted once."""
    server.engine.delay = 0.001
    rng = random.Random(7)

    async def talk(client: httpx.AsyncClient, number: int) -> bool:
        leaves_after = rng.randrange(1, 30) if number % 3 == 0 else None
        body = {"model": "fake", "prompt": [5 + number], "max_tokens": 60, "stream": True}
        num_lines = 0
        done = False
        async with client.stream("POST", "/v1/completions", json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                assert '"error"' not in line
                num_lines += line.startswith("data: ")
                done = line == "data: [DONE]"
                if leaves_after is not None and num_lines >= leaves_after:
                    return False
                if done:
                    break
        return done

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(
        base_url=server.url, timeout=30, trust_env=False, verify=False, limits=limits
    ) as client:
        ends = await asyncio.gather(*(talk(client, number) for number in range(64)))
    stayed = [number for number in range(64) if number % 3]
    assert all(ends[number] for number in stayed)
    await asyncio.to_thread(server.wait_until_idle)
    assert server.metrics.finished["length"] == len(server.engine.finished)
    assert server.metrics.finished["abort"] == len(server.engine.aborted)
    assert len(server.engine.finished) + len(server.engine.aborted) == 64
    assert len(server.engine.aborted) > 10
    server.engine.delay = 0
    await asyncio.to_thread(server.assert_serves)


def test_one_failing_prompt_aborts_its_siblings(server: RunningServer) -> None:
    server.engine.delay = 0.001
    server.engine.fail_at = 3
    assert server.completion(prompt=["a", "b", "c"], max_tokens=500).status_code == 500
    server.wait_until_idle()
    assert sum(server.metrics.finished.values()) == 3
    assert server.metrics.finished["error"] >= 1
    server.engine.fail_at = None
    server.assert_serves()
