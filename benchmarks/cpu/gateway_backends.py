"""What a call to a backend costs the gateway, beside the same call by aiohttp's bare client.

    PYTHONPATH=. python benchmarks/cpu/gateway_backends.py
    PYTHONPATH=. python benchmarks/cpu/gateway_backends.py --calls 20000 --at-once 64 --tokens 500

A backend in a process of its own answers at once. What counts is CPU time of this process, the
kernel's included: per call, and per event of a stream. The gateway's side does all that it does for
a request at a backend (body, headers, salt, health, usage, record); aiohttp's reads the answer and
nothing more. Rounds go to both in turn. Last, streams are cut into events and watched, no socket.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
import uvloop

from octavo.gateway.config_backends import Backend, ModelInfo, PriceSection, Probe
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.model import Call, Target, Tier
from octavo.gateway.secret import Secret
from octavo.gateway.sse_events import EventSplitter, StreamWatch
from octavo.protocol import sse

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

ROOT = Path(__file__).parents[2]
PATH = "/v1/chat/completions"


def body_of(*, stream: bool) -> bytes:
    """A request of some hundred words."""
    message = {"role": "user", "content": "some words " * 100}
    return json.dumps({"model": "ok", "messages": [message], "stream": stream}).encode()


async def cpu_per_call(one: Callable[[], Awaitable[None]], calls: int, at_once: int) -> float:
    """Seconds of this process."""

    async def some() -> None:
        for _ in range(calls // at_once):
            await one()

    await asyncio.gather(*(one() for _ in range(at_once)))
    begin = time.process_time()
    await asyncio.gather(*(some() for _ in range(at_once)))
    return (time.process_time() - begin) / (calls // at_once * at_once)


async def measure(url: str, args: argparse.Namespace) -> dict[str, Any]:
    """Microseconds per call, medians of the rounds."""
    price = msgspec.convert({"input": "1", "output": "3"}, PriceSection)
    section = Backend(
        url=url,
        kind="octavo",
        api_key=Secret("k" * 40),
        models={"ok": ModelInfo(price=price)},
        probe=Probe(interval=0),
    )
    dispatcher = Dispatcher({"a": section})
    tier = Tier(name="t", targets=(Target("a", "ok"),))
    found: dict[str, Any] = {}
    connector = aiohttp.TCPConnector(limit=0)
    cookies = aiohttp.DummyCookieJar()
    async with aiohttp.ClientSession(connector=connector, cookie_jar=cookies) as session:
        for stream in (False, True):
            body = body_of(stream=stream)
            call = Call(
                request_id="r",
                arrived=0.0,
                route="chat",
                path=PATH,
                model="alias",
                stream=stream,
                body={},
                tenant="acme",
                feature="chat",
                tags={"team": "blau"},
            )

            async def ours(call: Call = call, body: bytes = body) -> None:
                deadline = time.perf_counter() + 60
                reply = await dispatcher.open(call, tier, body, deadline=deadline, failed=print)
                if reply.is_stream:
                    async for _ in reply.batches():
                        pass
                attempt = await reply.close()
                assert attempt.status == "ok"

            async def theirs(body: bytes = body) -> None:
                headers = {"Content-Type": "application/json"}
                async with session.post(url + PATH, data=body, headers=headers) as answer:
                    async for _ in answer.content.iter_any():
                        pass

            calls = args.calls // 20 if stream else args.calls
            rounds = [
                [await cpu_per_call(one, calls, args.at_once) for one in (ours, theirs)]
                for _ in range(args.rounds)
            ]
            name = "stream" if stream else "whole"
            for who, values in zip(("gateway", "aiohttp"), zip(*rounds, strict=True), strict=True):
                found[f"{name}_{who}_us"] = round(statistics.median(values) * 1e6, 1)
    await dispatcher.close()
    return found


def events_per_second(num_events: int, num_together: int) -> int:
    """Cut and watched, by one core."""
    choice = {"index": 0, "delta": {"content": " word"}, "logprobs": None, "finish_reason": None}
    chunk = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "m"}
    piece = sse.event(chunk | {"choices": [choice], "usage": None}) * num_together
    splitter, watch = EventSplitter(), StreamWatch("chat", drops_usage=True)
    begin = time.process_time()
    for _ in range(num_events // num_together):
        for event in splitter.feed(piece):
            watch.see(event)
    return round(num_events / (time.process_time() - begin))


def main() -> None:
    """Measure and print, JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--calls", type=int, default=4000, help="not streamed; streams: a 20th")
    parser.add_argument("--at-once", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=100, help="of each answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=9417)
    args = parser.parse_args()
    fake = ROOT / "tests" / "gateway" / "fake_upstream.py"
    command = [sys.executable, fake, "--port", str(args.port), "--tokens", str(args.tokens)]
    with subprocess.Popen(command) as backend:
        try:
            time.sleep(1.5)
            found = uvloop.run(measure(f"http://127.0.0.1:{args.port}", args))
        finally:
            backend.kill()
    found["events_per_s_alone"] = events_per_second(200_000, 1)
    found["events_per_s_by_eight"] = events_per_second(200_000, 8)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
