from __future__ import annotations

import asyncio
import contextlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from octavo.bench.client import OpenAIClient, Outcome, api_base
from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.bench.fake_server import Fake


def body(num: int = 5) -> bytes:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({"prompt": [1, 2, 3], "max_tokens": num, **options}).encode()


async def one(fake: Fake, timeout_s: float = 20.0) -> Outcome:
    client = OpenAIClient(fake.url, timeout_s=timeout_s)
    try:
        return await client.stream("completions", body())
    finally:
        await client.aclose()


@asynccontextmanager
async def answering(response: bytes, *, close: bool = True) -> AsyncIterator[str]:
    """A server that says one thing whatever it is asked."""

    idle = asyncio.Event()
    idle.set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        idle.clear()
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(response)
            await writer.drain()
            if not close:
                await reader.read()  # until the client goes
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        idle.set()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await asyncio.wait_for(idle.wait(), 10)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("http://h:1/v1", "http://h:1/v1"),
        ("https://h/api/v3/", "https://h/api/v3"),
    ],
)
def test_api_base(url: str, base: str) -> None:
    assert api_base(url) == base


@pytest.mark.parametrize("url", ["", "h:1", "ftp://h", "http://", "http://h:x"])
async def test_bad_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="not a URL"):
        OpenAIClient(url)


async def test_a_key_with_a_line_break_is_refused() -> None:
    with pytest.raises(ConfigError, match="printable"):
        OpenAIClient("http://h", api_key="a\r\nX: y")


async def test_a_stream_is_read(fake: Fake) -> None:
    fake.cached_tokens = 2
    outcome = await one(fake)
    assert outcome.error is None
    assert outcome.status == 200
    assert outcome.finish_reason == "length"
    assert len(outcome.token_times) == outcome.num_output_tokens == 5
    assert (outcome.num_prompt_tokens, outcome.num_cached_tokens) == (3, 2)
    assert outcome.has_usage


async def test_tokens_without_text_are_tokens(fake: Fake) -> None:
    fake.text = ""
    outcome = await one(fake)
    assert len(outcome.token_times) == 5


async def test_connections_are_used_again(fake: Fake) -> None:
    client = OpenAIClient(fake.url)
    for _ in range(3):
        assert (await client.stream("completions", body())).error is None
    await client.aclose()
    assert fake.num_connections == 1


async def test_a_server_that_closes_each_connection(fake: Fake) -> None:
    fake.keep_alive = False
    client = OpenAIClient(fake.url)
    for _ in range(3):
        assert (await client.stream("completions", body())).error is None
    await client.aclose()
    assert fake.num_connections == 3


async def test_models_and_keys(fake: Fake) -> None:
    fake.api_key = "sesame"
    client = OpenAIClient(fake.url, api_key="sesame")
    assert await client.models() == ["fake-model"]
    await client.aclose()
    client = OpenAIClient(fake.url)
    with pytest.raises(ConfigError, match="401: wrong key"):
        await client.models()
    await client.aclose()


async def test_failures_say_why(fake: Fake) -> None:
    fake.fail_every = 1
    assert (await one(fake)).error == "HTTP 503: overloaded"
    fake.fail_every, fake.cut_after = 0, 2
    assert (await one(fake)).error == "the server closed the connection within its answer"
    fake.cut_after, fake.error_after = None, 2
    assert (await one(fake)).error == "error in the stream: the engine died"
    fake.error_after, fake.hang = None, True
    outcome = await one(fake, timeout_s=0.2)
    assert outcome.error == "no complete answer within 0.2 s"
    assert 0.2 <= outcome.e2e < 2


async def test_no_server() -> None:
    client = OpenAIClient("http://127.0.0.1:9")
    outcome = await client.stream("completions", body())
    assert outcome.error is not None
    assert outcome.error.startswith("cannot connect to 127.0.0.1:9")
    with pytest.raises(ConfigError, match="no server answers"):
        await client.models()
    await client.aclose()


CHUNK = b'data: {"choices": [{"text": "a", "finish_reason": null}]}\n\n'
LAST = b'data: {"choices": [{"text": "", "finish_reason": "stop"}]}\n\n'


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "the answer is not HTTP"),
        (b"", "the server closed the connection before it answered"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + CHUNK, "the stream ended before the answer did"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + LAST, "the answer has no tokens"),
        (b"HTTP/1.1 200 OK\r\n\r\ndata: {oops\n\n", "not a chunk of OpenAI's stream"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": 3}\n\n', "not a chunk of OpenAI's stream"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 4\r\n\r\noops", "HTTP 500: oops"),
        (b'HTTP/1.1 422 No\r\nContent-Length: 15\r\n\r\n{"detail": "x"}', "HTTP 422: x"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "HTTP 404: (empty body)"),
    ],
)
async def test_odd_answers_are_failures(response: bytes, error: str) -> None:
    async with answering(response) as url:
        client = OpenAIClient(url, timeout_s=5)
        outcome = await client.stream("completions", body())
        await client.aclose()
    assert outcome.error is not None
    assert outcome.error.startswith(error)


async def test_a_body_that_ends_with_its_connection_is_whole() -> None:
    async with answering(b"HTTP/1.1 200 OK\r\n\r\n" + CHUNK + LAST) as url:
        client = OpenAIClient(url)
        outcome = await client.stream("completions", body())
        await client.aclose()
    assert outcome.error is None
    assert not outcome.has_usage
    assert outcome.num_output_tokens == 1


async def test_a_stream_left_open_after_done_does_not_hang() -> None:
    response = b"HTTP/1.1 200 OK\r\n\r\n" + CHUNK + LAST + b"data: [DONE]\n\n"
    async with answering(response, close=False) as url:
        client = OpenAIClient(url, timeout_s=20)
        outcome = await client.stream("completions", body())
        await client.aclose()
    assert outcome.error is None
    assert outcome.e2e < 5


async def test_cancelling_closes_the_connection(fake: Fake) -> None:
    client = OpenAIClient(fake.url)
    task = asyncio.create_task(client.stream("completions", body(500)))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for _ in range(100):
        if fake.num_aborted == 1:
            break
        await asyncio.sleep(0.02)
    assert fake.num_aborted == 1
    await client.aclose()
