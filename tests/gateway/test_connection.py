"""HTTP as servers really send it, down to the byte: what is read of it, and what is refused."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from octavo.errors import UpstreamError
from octavo.gateway.connection import MAX_HEAD_BYTES, MAX_WAITING_BYTES, Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\n"
OK = HEAD + b"Content-Length: 2\r\n\r\nhi"
CLOSE = b""


@asynccontextmanager
async def connected(*pieces: bytes, pause_s: float = 0.005) -> AsyncIterator[Connection]:
    """A connection to a server that answers every request with these pieces; `CLOSE` closes."""

    tasks: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.extend(task for task in (asyncio.current_task(),) if task)
        try:
            while await reader.readuntil(b"\r\n\r\n"):
                for piece in pieces:
                    if piece == CLOSE:
                        return
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(pause_s)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    lost = asyncio.Event()
    _, connection = await asyncio.get_running_loop().create_connection(
        lambda: Connection("b", lambda _: lost.set()), "127.0.0.1", port
    )
    try:
        yield connection
    finally:
        connection.abort()
        async with asyncio.timeout(1):
            await lost.wait()
        server.close()
        await asyncio.gather(*tasks)


async def exchange(connection: Connection, limit_s: float = 1.0) -> bytes:
    """One exchange, to its end."""
    connection.send(REQUEST, b"", limit_s=limit_s)
    try:
        await connection.head()
        return await connection.body(10**7)
    finally:
        connection.finish()


ANSWERS: dict[str, tuple[Sequence[bytes], bytes, bool]] = {
    "length": ([OK], b"hi", True),
    "byte by byte": ([bytes([byte]) for byte in OK], b"hi", True),
    "chunks": (
        [HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\nh", b"i\r\n1;x=y\r\n!\r\n0\r\n\r\n"],
        b"hi!",
        True,
    ),
    "trailers": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nh\r\n0\r\nX-A: b\r\n\r\n"],
        b"h",
        True,
    ),
    "no length": ([b"HTTP/1.1 200 OK\r\n\r\nhi", CLOSE], b"hi", False),
    "HTTP/1.0": ([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi"], b"hi", False),
    "closes": ([HEAD + b"Connection: close\r\nContent-Length: 2\r\n\r\nhi"], b"hi", False),
    "continue": (
        [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 E\r\nLink: a\r\n\r\n" + OK],
        b"hi",
        True,
    ),
    "no body": ([b"HTTP/1.1 204 No Content\r\n\r\n"], b"", True),
}


@pytest.mark.parametrize("name", ANSWERS)
async def test_answers(name: str) -> None:
    pieces, body, is_reusable = ANSWERS[name]
    pause_s = 0.0 if len(pieces) > 9 else 0.005
    async with connected(*pieces, pause_s=pause_s) as connection:
        assert await exchange(connection) == body
        assert connection.is_reusable == is_reusable
        assert connection.header(b"link") == b""
        if is_reusable:
            assert await exchange(connection) == body
            assert connection.num_exchanges == 2


FAULTS: dict[str, tuple[Sequence[bytes], str, bool]] = {
    "nothing": ([CLOSE], "closed the connection before it answered", False),
    "half a head": ([b"HTTP/1.1 200 OK\r\nA: b", CLOSE], "broke off", True),
    "half a body": ([b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi", CLOSE], "broke off", True),
    "half a chunk": (
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhi", CLOSE],
        "broke off",
        True,
    ),
    "not HTTP": ([b"220 smtp.example ESMTP\r\n"], "not HTTP", True),
    "two lengths": (
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nhi!"],
        "not HTTP",
        True,
    ),
    "length and chunks": (
        [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"],
        "not HTTP",
        True,
    ),
    "bad chunk": ([HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n"], "not HTTP", True),
    "endless head": ([b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * MAX_HEAD_BYTES], "without end", True),
    "upgrade": (
        [b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nabc"],
        "not HTTP",
        True,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_faults(name: str) -> None:
    pieces, message, has_answer = FAULTS[name]
    async with connected(*pieces) as connection:
        with pytest.raises(UpstreamError, match=message):
            await exchange(connection)
        assert connection.has_answer == has_answer
        assert not connection.is_reusable


async def test_an_answer_that_nobody_asked_for_belongs_to_no_request() -> None:
    other = b"HTTP/1.1 500 Evil\r\nContent-Length: 1\r\nX-A: b\r\n\r\n!"
    async with connected(OK + other) as connection:
        assert await exchange(connection) == b"hi"
        assert connection.status == 200
        assert connection.header(b"x-a") == b""
        assert not connection.is_reusable
    async with connected(OK, other, pause_s=0.03) as connection:
        assert await exchange(connection) == b"hi"
        await asyncio.sleep(0.06)
        assert not connection.is_reusable
        assert not connection.is_open


async def test_silence_ends_in_time() -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi"
    async with connected(begun) as connection:
        connection.send(REQUEST, b"", limit_s=5)
        connection.expect(1, "a head")
        await connection.head()
        connection.expect_each(0.05, "more")
        assert await connection.piece() == b"hi"
        async with asyncio.timeout(0.3):
            with pytest.raises(UpstreamError, match="did not send more in time") as caught:
                await connection.piece()
        assert caught.value.status == 504
        connection.finish()


async def test_the_limit_holds_whatever_comes() -> None:
    begun = b"HTTP/1.1 200 OK\r\nContent-Length: 900\r\n\r\n"
    async with connected(begun, *[b"hi"] * 400) as connection:
        connection.send(REQUEST, b"", limit_s=0.1)
        await connection.head()
        connection.expect_each(0.05, "more")
        async with asyncio.timeout(0.3):
            with pytest.raises(UpstreamError, match="the end of its answer in time"):
                await connection.body(10**6)
        connection.finish()


async def test_a_server_waits_for_a_slow_reader() -> None:
    size = 16 * 1024**2
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    async with connected(head + bytes(size)) as connection:
        connection.send(REQUEST, b"", limit_s=10)
        await connection.head()
        connection.expect_each(0.05, "more")
        await asyncio.sleep(0.2)  # much longer than the time between pieces: our silence, not its
        assert connection._num_waiting < MAX_WAITING_BYTES + 1024**2
        num_bytes = 0
        while piece := await connection.piece():
            num_bytes += len(piece)
        assert num_bytes == size
        connection.finish()
        assert connection.is_reusable


async def test_an_answer_that_is_whole_waits_for_its_reader() -> None:
    async with connected(OK) as connection:
        connection.send(REQUEST, b"", limit_s=0.05)
        await asyncio.sleep(0.1)
        await connection.head()
        assert await connection.body(10) == b"hi"
        connection.finish()
        assert connection.is_reusable
        assert connection.is_open


async def test_too_long_a_body() -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n"
    async with connected(head, bytes(1000), bytes(1000)) as connection:
        connection.send(REQUEST, b"", limit_s=1)
        await connection.head()
        with pytest.raises(UpstreamError, match="more than 1500 bytes"):
            await connection.body(1500)
        connection.finish()
        assert not connection.is_open


async def test_a_large_request_body_arrives() -> None:
    got = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        got.set_result(await reader.readexactly(3_000_000))
        writer.write(OK)
        await writer.drain()
        await reader.read()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(
        lambda: Connection("b", lambda _: None), "127.0.0.1", port
    )
    body = bytes(range(250)) * 12_000
    connection.send(REQUEST, body, limit_s=2)
    await connection.head()
    assert await got == body
    connection.abort()
    await asyncio.sleep(0.01)
    server.close()
