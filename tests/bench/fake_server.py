"""A fake OpenAI server with known delays: raw asyncio in a thread, so that it shares no code with
the client it tests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass
class Fake:
    """What the server does, and what it has seen."""

    ttft_s: float = 0.05
    itl_s: float = 0.01
    num_tokens: int | None = None  # None: max_tokens
    usage: bool = True
    cached_tokens: int = 0
    prompt_tokens: int | None = None  # None: ids counted, or words and 7
    fail_every: int = 0
    fail_status: int = 503
    cut_after: int | None = None  # close the connection after this many tokens
    error_after: int | None = None
    hang: bool = False
    rejects: tuple[str, ...] = ()
    text: str = " tok"
    api_key: str | None = None
    keep_alive: bool = True
    bodies: list[dict[str, Any]] = field(default_factory=list)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    num_connections: int = 0
    num_aborted: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    url: str = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        with (
            contextlib.closing(writer),
            contextlib.suppress(ConnectionError, asyncio.IncompleteReadError),
        ):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                line, *headers = head.strip().split("\r\n")
                fields = {k.lower(): v for k, v in (h.split(": ", 1) for h in headers)}
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                self.in_flight += 1
                self.max_in_flight = max(self.max_in_flight, self.in_flight)
                try:
                    await self.answer(line.split()[1], fields, body, writer)
                except ConnectionError:
                    self.num_aborted += 1
                    raise
                finally:
                    self.in_flight -= 1
                if not self.keep_alive:
                    break

    async def plain(self, writer: asyncio.StreamWriter, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (status, len(data))
            + data
        )
        await writer.drain()

    async def answer(
        self, path: str, fields: dict[str, str], raw: bytes, writer: asyncio.StreamWriter
    ) -> None:
        if self.api_key and fields.get("authorization") != f"Bearer {self.api_key}":
            await self.plain(writer, 401, {"error": {"message": "wrong key"}})
            return
        if path == "/v1/models":
            await self.plain(writer, 200, {"object": "list", "data": [{"id": "fake-model"}]})
            return
        if not raw:
            await self.plain(writer, 200, {"what": "something else"})
            return
        body = json.loads(raw)
        self.bodies.append(body)
        for name in self.rejects:
            if name in body:
                await self.plain(writer, 400, {"error": {"message": f"unknown field {name}"}})
                return
        if self.fail_every and len(self.bodies) % self.fail_every == 0:
            await self.plain(writer, self.fail_status, {"error": {"message": "overloaded"}})
            return
        if self.hang:
            await asyncio.sleep(3600)
        await self.stream(path == "/v1/chat/completions", body, writer)

    async def stream(self, chat: bool, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        def send(value: Any) -> None:
            data = b"data: " + (value if isinstance(value, bytes) else json.dumps(value).encode())
            data += b"\n\n"
            writer.write(b"%x\r\n%b\r\n" % (len(data), data))

        def choice(text: str, finish: str | None = None) -> dict[str, Any]:
            part: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            return {"choices": [{"index": 0, **part, "finish_reason": finish}]}

        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
            + (b"" if self.keep_alive else b"Connection: close\r\n")
            + b"\r\n"
        )
        if chat:  # the opening chunk comes before the first token
            send({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
        num = self.num_tokens or body["max_tokens"]
        loop = asyncio.get_running_loop()
        due = loop.time() + self.ttft_s
        for index in range(num):
            await asyncio.sleep(max(0.0, due - loop.time()))
            if self.cut_after == index:
                writer.transport.abort()
                raise ConnectionResetError
            if self.error_after == index:
                send({"error": {"message": "the engine died"}})
                break
            if writer.transport.is_closing():
                raise ConnectionResetError
            send(choice(self.text))
            await writer.drain()
            due += self.itl_s
        else:
            send(choice("", "length"))
        if self.usage and body.get("stream_options", {}).get("include_usage"):
            text = body.get("prompt") or body["messages"][-1]["content"]
            made = len(text) if isinstance(text, list) else 7 + 2 * len(text.split())
            usage: dict[str, Any] = {
                "prompt_tokens": self.prompt_tokens or made,
                "completion_tokens": num,
                "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
            }
            send({"choices": [], "usage": usage})
        send(b"[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()


@contextlib.contextmanager
def serving(fake: Fake) -> Iterator[Fake]:
    """Run `fake` on a free port in a thread; sets its `url`."""
    loop = asyncio.new_event_loop()
    ready = threading.Event()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        # At once, not when the handler first runs: the server may be stopped before that.
        fake.writers.append(writer)
        return fake.handle(reader, writer)

    async def main() -> None:
        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        fake.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        try:
            await asyncio.Event().wait()
        finally:
            server.close()

    def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(task)
        for other in asyncio.all_tasks(loop):
            other.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(other)
        for writer in fake.writers:
            writer.transport.abort()  # whatever is still to be written
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()

    task = loop.create_task(main())
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield fake
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join(10)
        assert not thread.is_alive()
