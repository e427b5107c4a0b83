"""A backend without a model: a real HTTP server whose behaviour depends on the model's name.

What a name does, up to its first `:` (so `500:large` is another model that does the same):

    ok           answers; any name that is not below does, too
    slow         as ok, with `delay_s` before the first token and between tokens
    hang         takes the request and never answers
    hang-mid     answers the head and, in a stream, some events; then nothing more
    reset        resets the connection in place of an answer
    reset-mid    resets it after the head and, in a stream, some events
    close-mid    closes it there, in good order
    garbage      sends bytes that are no HTTP
    garbage-body sends HTTP with a body that is no JSON and no events
    empty        sends a stream or a body of nothing
    comments     sends comments every `delay_s` and no event, in a stream; else as ok
    no-end       sends all events of a stream, and does not end it; else as ok
    stream-error sends an event with an error in place of the first token
    large        sends a body, or one event, that does not end
    redirect     302 to /elsewhere
    <status>     answers with that status and an error (`429` with `Retry-After: retry_after`)
    flaky-<n>    answers 500 to the first n requests, then as ok

`down()` and `up()` make the whole server die, and return at the same address. Everything that came
is in `seen`.

Run `python tests/gateway/fake_upstream.py --port 9000` for one in a process of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import struct
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.gateway.fake_answers import Answer, RouteAnswer, Seen

NUM_BEFORE_FAULT = 2


@dataclass
class FakeUpstream:
    """The server; `async with FakeUpstream() as upstream: upstream.url`.

    Attributes:
        socket_path: a Unix socket to listen on; empty: a port of 127.0.0.1.
        port: 0: any.
        behaviours: model to what it does, over what its name says.
        answers: model to what it says; `answer` for others.
        delay_s: of `slow`.
        retry_after: header of 429 and 503; empty: none.
        is_octavo: usage has device time and cost where the request asks for them, /load answers.
        requires_key: other keys get 401; empty: none is needed.
        load: what /load and /metrics tell to be running; `waiting` likewise.
        is_well: /health answers 200.
        adds_to_errors: a text at the end of what errors say.
        seen: requests, probes left out; probes: those.
        num_cancelled: requests whose client went before the answer's end.
    """

    socket_path: str = ""
    port: int = 0
    behaviours: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    answer: Answer = field(default_factory=Answer)
    delay_s: float = 0.02
    retry_after: str = "7"
    is_octavo: bool = False
    requires_key: str = ""
    load: int = 0
    waiting: int = 0
    kv_usage: float = 0.0
    is_well: bool = True
    adds_to_errors: str = ""
    seen: list[Seen] = field(default_factory=list)
    probes: list[Seen] = field(default_factory=list)
    num_cancelled: int = 0
    num_connections: int = 0

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._counts: dict[str, int] = {}

    async def __aenter__(self) -> Self:
        await self.up()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.down()

    @property
    def url(self) -> str:
        """As the configuration of a backend has it."""
        return f"unix:{self.socket_path}" if self.socket_path else f"http://127.0.0.1:{self.port}"

    @property
    def num_open(self) -> int:
        """Connections that are open now."""
        return len(self._tasks)

    async def up(self) -> None:
        """Listen; after `down` at the same address."""
        assert self._server is None
        if self.socket_path:
            self._server = await asyncio.start_unix_server(self._accept, self.socket_path)
        else:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, backlog=4096
            )
            self.port = self._server.sockets[0].getsockname()[1]

    async def down(self) -> None:
        """Die: no one listens, and all connections are gone."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for writer in self._writers:  # also of tasks that were cancelled before they began
            writer.transport.abort()
        self._tasks.clear()
        self._writers.clear()
        await asyncio.sleep(0)  # the loop closes what was aborted

    async def idle(self, num_open: int = 0, timeout_s: float = 2.0) -> None:
        """Return when at most so many connections are open.

        Raises:
            TimeoutError: they stay open.
        """
        async with asyncio.timeout(timeout_s):
            while self.num_open > num_open:  # noqa: ASYNC110
                await asyncio.sleep(0.005)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        self._writers.add(writer)
        self._tasks.add(asyncio.create_task(self._serve(reader, writer)))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether another may follow."""
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ")
        raw = [(n, v.strip()) for n, _, v in (line.partition(":") for line in lines[1:] if line)]
        headers = {name.lower(): value for name, value in raw}
        data = await reader.readexactly(int(headers.get("content-length", 0)))
        seen = Seen(method, path, headers, raw, json.loads(data) if data else {})
        connection = _Connection(self, reader, writer)
        if method == "GET":
            self.probes.append(seen)
            return await self._probe(connection, path.partition("?")[0])
        self.seen.append(seen)
        if self.requires_key and headers.get("authorization") != f"Bearer {self.requires_key}":
            return await connection.error(401, "Incorrect API key provided")
        return await self._answer(connection, seen)

    async def _probe(self, connection: _Connection, path: str) -> bool:
        name = path.removeprefix("/v1")
        if name == "/health":
            return await connection.json({"status": "ok"}, 200 if self.is_well else 503)
        if name == "/load":
            return await connection.json({"server_load": self.load + self.waiting})
        if name == "/metrics":
            label = '{model_name="m",engine="0"}'
            lines = (
                "# TYPE vllm:num_requests_running gauge",
                f"vllm:num_requests_running{label} {float(self.load)}",
                "# TYPE vllm:num_requests_waiting gauge",
                f"vllm:num_requests_waiting{label} {float(self.waiting)}",
                "# TYPE vllm:kv_cache_usage_perc gauge",
                f"vllm:kv_cache_usage_perc{label} {self.kv_usage}",
                "",
            )
            return await connection.send(200, "text/plain", "\n".join(lines).encode())
        if name == "/models":
            models = [{"id": model, "object": "model"} for model in self.answers or ("ok",)]
            return await connection.json(
                {"object": "list", "data": models}, 200 if self.is_well else 503
            )
        return await connection.error(404, "no such route")

    async def _answer(self, connection: _Connection, seen: Seen) -> bool:
        does = self.behaviours.get(seen.model) or seen.model.partition(":")[0]
        kind, _, number = does.partition("-")
        if kind == "flaky":
            count = self._counts[seen.model] = self._counts.get(seen.model, 0) + 1
            does = "500" if count <= int(number) else "ok"
        if does.isdigit():
            return await connection.error(int(does), f"the fake answers {does}")
        if does == "hang":
            return await connection.hang()
        if does == "reset":
            return connection.reset()
        if does == "garbage":
            connection.writer.write(b"\x16\x03\x01 this is not HTTP\r\n\r\n\0\0")
            await connection.writer.drain()
            return False
        if does == "redirect":
            head = (("Location", "/elsewhere"), ("Set-Cookie", "a=b"))
            return await connection.send(302, "text/plain", b"", head)
        if does == "garbage-body":
            kind = "text/event-stream" if seen.body.get("stream") else "application/json"
            return await connection.send(200, kind, b"\xff\xfe<html>nothing of the kind")
        answer = self.answers.get(seen.model, self.answer)
        route = RouteAnswer(answer, seen, is_octavo=self.is_octavo)
        if seen.body.get("stream"):
            return await self._stream(connection, does, route.events())
        if does == "slow":
            await asyncio.sleep(self.delay_s)
        if does == "large":
            return await connection.endless(b'{"text":"', "application/json")
        body = b"" if does == "empty" else json.dumps(route.answer()).encode()
        if does in ("hang-mid", "reset-mid", "close-mid"):
            await connection.start(200, "application/json", len(body))
            connection.writer.write(body[: len(body) // 2])
            return await connection.fault(does)
        return await connection.send(200, "application/json", body)

    async def _stream(self, connection: _Connection, does: str, events: list[bytes]) -> bool:
        if does == "large":
            return await connection.endless(b'data: {"text":"', "text/event-stream")
        await connection.start(200, "text/event-stream", None)
        while does == "comments":
            connection.chunk(b": keep-alive\n\n")
            await connection.sleep(self.delay_s)
        if does == "stream-error":
            error = {"error": {"message": "the engine has died", "type": "server_error"}}
            events = [b"data: %b\n\n" % json.dumps(error).encode()]
        elif does == "empty":
            events = []
        for index, event in enumerate(events):
            if does in ("hang-mid", "reset-mid", "close-mid") and index == NUM_BEFORE_FAULT:
                return await connection.fault(does)
            if does == "slow":
                await connection.sleep(self.delay_s)
            connection.chunk(event)
            await connection.writer.drain()
        if does == "no-end":
            return await connection.hang()
        connection.writer.write(b"0\r\n\r\n")
        await connection.writer.drain()
        return True


class _Connection:
    """Writes answers."""

    def __init__(
        self, fake: FakeUpstream, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.fake = fake
        self.reader = reader
        self.writer = writer

    async def start(
        self,
        status: int,
        content_type: str,
        body_len: int | None,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> None:
        """The head; `body_len` None: chunks follow."""
        lines = [f"HTTP/1.1 {status} Fake", f"Content-Type: {content_type}"]
        lines += [f"{name}: {value}" for name, value in headers]
        lines.append(
            "Transfer-Encoding: chunked" if body_len is None else f"Content-Length: {body_len}"
        )
        self.writer.write("\r\n".join([*lines, "", ""]).encode())
        await self.writer.drain()

    def chunk(self, data: bytes) -> None:
        self.writer.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def send(
        self,
        status: int,
        content_type: str,
        body: bytes,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> bool:
        await self.start(status, content_type, len(body), headers)
        self.writer.write(body)
        await self.writer.drain()
        return True

    async def json(self, value: Any, status: int = 200) -> bool:
        return await self.send(status, "application/json", json.dumps(value).encode())

    async def error(self, status: int, message: str) -> bool:
        headers: tuple[tuple[str, str], ...] = ()
        if status in (429, 503) and self.fake.retry_after:
            headers = (("Retry-After", self.fake.retry_after),)
        message += self.fake.adds_to_errors
        error = {"message": message, "type": "fake_error", "param": None, "code": None}
        body = json.dumps({"error": error}).encode()
        return await self.send(status, "application/json", body, headers)

    async def fault(self, does: str) -> bool:
        await self.writer.drain()
        if does == "hang-mid":
            return await self.hang()
        await asyncio.sleep(0.01)  # what was written shall arrive before the end does
        return self.reset() if does == "reset-mid" else False

    async def hang(self) -> bool:
        """Until the client goes."""
        await self.reader.read(1)
        self.fake.num_cancelled += 1
        return False

    async def sleep(self, delay_s: float) -> None:
        """Raises ConnectionError as soon as the client goes."""
        try:
            async with asyncio.timeout(delay_s):
                await self.reader.read(1)
        except TimeoutError:
            return
        self.fake.num_cancelled += 1
        raise ConnectionResetError

    def reset(self) -> bool:
        sock = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        return False

    async def endless(self, begin: bytes, content_type: str) -> bool:
        await self.start(200, content_type, None)
        self.chunk(begin)
        piece = b"x" * 65536
        while True:
            self.chunk(piece)
            await self.writer.drain()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--socket", default="")
    parser.add_argument("--delay", type=float, default=0.02, help="of `slow`, seconds")
    parser.add_argument("--tokens", type=int, default=5)
    args = parser.parse_args()
    answer = Answer(tokens=tuple(f" {n}" for n in range(args.tokens)))
    fake = FakeUpstream(socket_path=args.socket, port=args.port, delay_s=args.delay, answer=answer)
    async with fake:
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
