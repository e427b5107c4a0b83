"""Many streaming clients, a third of which leave at random: errors, leaks and memory.

    python benchmarks/cpu/soak.py --model smollm2 --clients 64 --rounds 10

Starts a server of its own. Exits with 1 if a client that stayed saw an error, if a round left
requests running or blocks in use, or if memory grew by more than --growth over the later half.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass

import httpx
import psutil

WORDS = ["river", "stone", "bread", "lamp", "winter", "garden", "clock", "paper", "salt", "window"]


@dataclass
class Round:
    """What one round came to."""

    finished: int = 0
    left: int = 0
    errors: int = 0
    seconds: float = 0.0
    settle_s: float = 0.0
    running: float = 0.0
    waiting: float = 0.0
    kv_usage: float = 0.0
    server_mib: float = 0.0
    engine_mib: float = 0.0


async def client(
    http: httpx.AsyncClient, args: argparse.Namespace, rng: random.Random, result: Round
) -> None:
    leaves_after = rng.randrange(0, 30) if rng.random() < 1 / 3 else None
    words = " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, args.words)))
    body = {
        "model": args.model,
        "messages": [{"role": "user", "content": f"Write about: {words}"}],
        "max_tokens": rng.randrange(8, 64),
        "temperature": 0.7,
        "stream": True,
    }
    await asyncio.sleep(rng.random())
    done, chunks = False, 0
    try:
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                result.errors += 1
                return
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                if line == "data: [DONE]":
                    done = True
                    break
                if "error" in json.loads(line[6:]):
                    result.errors += 1
                    return
                chunks += 1
                if leaves_after is not None and chunks > leaves_after:
                    result.left += 1
                    return  # closes the connection in the middle of the stream
    except httpx.HTTPError as error:
        print(f"client: {error!r}", file=sys.stderr)
        result.errors += 1
        return
    if done:
        result.finished += 1
    else:
        result.errors += 1


async def gauges(http: httpx.AsyncClient) -> dict[str, float]:
    text = (await http.get("/metrics")).text
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    found = {}
    for name in names:
        match = re.search(rf"^{name}{{[^}}]*}} (\S+)$", text, re.M)
        assert match, f"{name} is missing"
        found[name] = float(match[1])
    return found


async def rounds(url: str, args: argparse.Namespace, server: psutil.Process) -> list[Round]:
    rng = random.Random(args.seed)
    results = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as http:
        for number in range(args.rounds):
            result, begin = Round(), time.perf_counter()
            jobs = [client(http, args, rng, result) for _ in range(args.clients)]
            await asyncio.gather(*jobs)
            result.seconds = time.perf_counter() - begin
            while True:
                now = await gauges(http)
                result.settle_s = time.perf_counter() - begin - result.seconds
                if not any(now.values()) or result.settle_s > 5:
                    break
                await asyncio.sleep(0.02)
            result.running, result.waiting, result.kv_usage = now.values()
            result.server_mib = server.memory_info().rss / 2**20
            engine = max(p.memory_info().rss for p in server.children(recursive=True))
            result.engine_mib = engine / 2**20
            results.append(result)
            print(f"round {number + 1}: {result}", flush=True)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--growth", type=float, default=0.03, help="of memory, later half")
    parser.add_argument("--words", type=int, default=120, help="most words of a prompt")
    parser.add_argument("--kv-cache-memory", default="256MiB")
    args = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "octavo.cli.main", "serve", args.model, "--port", str(port)]
    command += ["--kv-cache-memory", args.kv_cache_memory, "--log-level", "warning"]
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                if httpx.get(f"{url}/health", timeout=1).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.1)
        results = asyncio.run(rounds(url, args, psutil.Process(process.pid)))
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    half = results[len(results) // 2 :]
    growth = {
        name: getattr(half[-1], name) / getattr(half[0], name) - 1
        for name in ("server_mib", "engine_mib")
    }
    print(f"growth over the later half: {growth}; the server ended with exit code {code}")
    clean = all(
        r.errors == 0 and r.running == r.waiting == r.kv_usage == 0 and r.left > 0 for r in results
    )
    ok = clean and code == 0 and all(value <= args.growth for value in growth.values())
    print("passed" if ok else "FAILED")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
