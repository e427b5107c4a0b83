"""A backend without a model, and a client, for benchmarks of gateways. Each is a process of its
own, and does so little that what is measured is the gateway.

    python benchmarks/cpu/gateway_load.py backend --port 9100
    python benchmarks/cpu/gateway_load.py client --url http://127.0.0.1:8080 --key KEY --model m \
        --concurrency 32 --requests 2000 --tokens 0

The backend answers `/v1/chat/completions`: whole, or as a stream of `max_tokens` events, which it
writes one at a time, those of all streams in turn (`--interval`: seconds from one event of a stream
to its next). The client keeps its connections, sends a request when one has ended, and prints what
it saw as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
from collections import deque
from urllib.parse import urlsplit

import uvloop

WHOLE = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "The answer is 42, as ever. " * 8},
                "finish_reason": "stop",
                "logprobs": None,
            }
        ],
        "usage": {"prompt_tokens": 60, "completion_tokens": 56, "total_tokens": 116},
    }
).encode()


def event(value: dict[str, object]) -> bytes:
    data = b"data: %b\n\n" % json.dumps(value, separators=(",", ":")).encode()
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunk(delta: dict[str, str], finish_reason: str | None = None) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "m",
        "choices": [choice],
    }


TOKEN = event(chunk({"content": " token"}))
FIRST = event(chunk({"role": "assistant", "content": ""}))
USAGE = chunk({}) | {
    "choices": [],
    "usage": {"prompt_tokens": 60, "completion_tokens": 56, "total_tokens": 116},
}
LAST = event(chunk({}, "stop"))
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n"


class Backend(asyncio.Protocol):
    """One connection."""

    ready: deque[Backend] = deque()
    interval = 0.0
    is_turning = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.data = b""
        self.left = 0
        self.is_gone = False
        self.has_usage = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        num_bytes = int(length[1]) if length else 0
        if len(rest) < num_bytes:
            return
        self.data = rest[num_bytes:]
        body = rest[:num_bytes]
        if not re.search(rb'"stream": ?true', body):
            head = HEAD % b"application/json"
            self.transport.write(head + b"Content-Length: %d\r\n\r\n%b" % (len(WHOLE), WHOLE))
            return
        tokens = re.search(rb'"max_tokens": ?(\d+)', body)
        self.left = int(tokens[1]) if tokens else 16
        self.has_usage = b"include_usage" in body
        head = HEAD % b"text/event-stream"
        self.transport.write(head + b"Transfer-Encoding: chunked\r\n\r\n" + FIRST)
        self.ready.append(self)
        if not Backend.is_turning:
            Backend.is_turning = True
            asyncio.get_running_loop().call_later(self.interval, turn)

    def step(self) -> None:
        self.left -= 1
        if self.left >= 0:
            self.transport.write(TOKEN)
            return
        end = LAST + (event(USAGE) if self.has_usage else b"") + DONE
        self.transport.write(end)


def turn() -> None:
    """One event of each stream."""
    for _ in range(len(Backend.ready)):
        stream = Backend.ready.popleft()
        if not stream.is_gone:
            stream.step()
            if stream.left >= 0:
                Backend.ready.append(stream)
    Backend.is_turning = bool(Backend.ready)
    if Backend.is_turning:
        asyncio.get_running_loop().call_later(Backend.interval, turn)


class Client(asyncio.Protocol):
    """One connection of the client: one request after another."""

    def __init__(self, load: Load) -> None:
        self.load = load

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.begin()

    def begin(self) -> None:
        load = self.load
        if load.left <= 0:
            self.transport.close()
            return
        load.left -= 1
        self.data = b""
        self.length: int | None = None
        self.first = 0.0
        self.num_events = 0
        self.tail = b""
        self.sent = time.perf_counter()
        self.transport.write(load.message)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if self.load.is_stream:
            if b"data: " in data:
                self.num_events += data.count(b"data: ")
                if not self.first:
                    self.first = now
            self.tail = (self.tail + data)[-16:]
            if self.num_events == 0 and b"HTTP/1.1 200" not in data:
                self.load.fail(self, data)
            elif self.tail.endswith(b"0\r\n\r\n"):
                self.load.add(now - self.sent, self.first - self.sent, self.num_events - 3)
                self.begin()
            return
        self.data += data
        if self.length is None:
            head, found, _ = self.data.partition(b"\r\n\r\n")
            if not found:
                return
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if not head.startswith(b"HTTP/1.1 200") or not length:
                self.load.fail(self, data)
                return
            self.length = len(head) + 4 + int(length[1])
        if len(self.data) >= self.length:
            self.load.add(now - self.sent, 0.0, 0)
            self.begin()

    def connection_lost(self, exc: Exception | None) -> None:
        self.load.lost()


class Load:
    """All that the client sends, and what it saw."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.left = args.requests
        self.is_stream = args.tokens > 0
        body: dict[str, object] = {
            "model": args.model,
            "messages": [
                {"role": "system", "content": "You are a helpful assistant. " * 4},
                {"role": "user", "content": "What is the answer to everything? " * 4},
            ],
            "max_tokens": args.tokens or 64,
        }
        if self.is_stream:
            body["stream"] = True
        data = json.dumps(body).encode()
        url = urlsplit(args.url)
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\n"
            f"Authorization: Bearer {args.key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(data)}\r\n\r\n"
        )
        self.message = head.encode() + data
        self.num_open = args.concurrency
        self.latencies: list[float] = []
        self.firsts: list[float] = []
        self.num_tokens = 0
        self.failures: list[str] = []
        self.done = asyncio.get_running_loop().create_future()

    def add(self, latency: float, first: float, num_tokens: int) -> None:
        self.latencies.append(latency)
        self.firsts.append(first)
        self.num_tokens += num_tokens

    def fail(self, client: Client, data: bytes) -> None:
        self.failures.append(data[:300].decode("latin-1"))
        client.transport.close()

    def lost(self) -> None:
        self.num_open -= 1
        if not self.num_open:
            self.done.set_result(None)


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(part * len(values)))] if values else 0.0


async def client(args: argparse.Namespace) -> None:
    url = urlsplit(args.url)
    load = Load(args)
    loop = asyncio.get_running_loop()
    begin = time.perf_counter()
    for _ in range(args.concurrency):
        await loop.create_connection(lambda: Client(load), url.hostname, url.port)
    await load.done
    seconds = time.perf_counter() - begin
    result = {
        "seconds": seconds,
        "num_ok": len(load.latencies),
        "num_tokens": load.num_tokens,
        "num_failed": len(load.failures),
        "failure": load.failures[:1],
        "p50_s": quantile(load.latencies, 0.5),
        "p99_s": quantile(load.latencies, 0.99),
        "first_p50_s": quantile(load.firsts, 0.5),
        "first_p99_s": quantile(load.firsts, 0.99),
    }
    print(json.dumps(result))


async def backend(args: argparse.Namespace) -> None:
    Backend.interval = args.interval
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Backend, "127.0.0.1", args.port, backlog=4096)
    print("ready", flush=True)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("backend", "client"))
    parser.add_argument("--port", type=int, default=9100)
    parser.add_argument("--interval", type=float, default=0.0)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--key", default="none")
    parser.add_argument("--model", default="m")
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=0, help="0: not streamed")
    args = parser.parse_args()
    uvloop.run(backend(args) if args.role == "backend" else client(args))


if __name__ == "__main__":
    main()
