"""What prefix affinity brings: sessions over two replicas, by the gateway's router and in turn.

    python benchmarks/cpu/gateway_affinity.py --model smollm2 --ways "round robin,affinity"

Starts two servers, each with a KV cache for about half of what all sessions say. Each session asks
about one of some documents, several sessions about the same one, one question after another; none
has a name (`X-Octavo-Session`), so that only how prompts begin tells where they belong. Each way
gets documents of its own, so that nothing is cached before it begins; ways take turns. The time to
the first token is measured here; the hit rate is by the servers' own word
(`usage.prompt_tokens_details.cached_tokens`).
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import logging
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

import aiohttp

from octavo.gateway.config import GatewayConfig
from octavo.gateway.config_backends import Backend, ModelInfo
from octavo.gateway.config_routes import Alias, RoutingSection, TierSection
from octavo.gateway.model import Target
from octavo.gateway.policy import Router
from octavo.gateway.reading import read_call, read_settings

WORDS = sorted(
    {
        word
        for text in (
            argparse.__doc__,
            asyncio.__doc__,
            logging.__doc__,
            random.__doc__,
            json.__doc__,
        )
        for word in re.findall(r"[a-z]{2,9}", text or "")
    }
)
PATH = "/v1/chat/completions"


class Replicas:
    """Servers of this machine, and how many requests each has: a `HealthView` and `LoadView`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.targets = [Target(f"replica-{index}", args.model) for index in range(args.replicas)]
        self.urls: dict[Target, str] = {}
        self._running: Counter[Target] = Counter()
        self._processes = []
        for index, target in enumerate(self.targets):
            port = args.port + index
            self.urls[target] = f"http://127.0.0.1:{port}{PATH}"
            command = [
                *(
                    str(Path(sys.executable).parent / "octavo"),
                    "serve",
                    args.model,
                    "--port",
                    str(port),
                ),
                *("--kv-cache-memory", args.kv_cache_memory, "--max-model-len", "1536"),
                *("--num-threads", str(args.threads)),
            ]
            self._processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )

    def is_usable(self, target: Target) -> bool:
        return target in self.urls

    def load(self, target: Target) -> float:
        return self._running[target]

    async def wait(self, client: aiohttp.ClientSession) -> None:
        for url in self.urls.values():
            for _ in range(900):
                if any(process.poll() is not None for process in self._processes):
                    raise SystemExit("a server has ended: try it alone to see why")
                try:
                    async with client.get(url.replace(PATH, "/health")) as answer:
                        if answer.status == 200:
                            break
                except aiohttp.ClientError:
                    pass
                await asyncio.sleep(0.2)
            else:
                raise SystemExit(f"{url} does not come up")

    async def ask(
        self, client: aiohttp.ClientSession, target: Target, body: dict[str, Any]
    ) -> tuple[str, float, int, int]:
        """The answer, seconds to its first token, and tokens of the prompt: all, and cached."""
        self._running[target] += 1
        begin, first, text, usage = time.perf_counter(), 0.0, [], {}
        try:
            async with client.post(self.urls[target], json=body) as answer:
                answer.raise_for_status()
                async for line in answer.content:
                    if not line.startswith(b"data: {"):
                        continue
                    event = json.loads(line[6:])
                    usage = event.get("usage") or usage
                    for choice in event["choices"]:
                        if choice["delta"].get("content"):
                            first = first or time.perf_counter() - begin
                            text.append(choice["delta"]["content"])
        finally:
            self._running[target] -= 1
        details = usage.get("prompt_tokens_details") or {}
        return "".join(text), first, usage["prompt_tokens"], details.get("cached_tokens", 0)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(30)


def config_of(replicas: Replicas, *, remembers: bool) -> GatewayConfig:
    """One tier of all replicas, with the defaults of a configuration that says no more."""
    routing = RoutingSection() if remembers else RoutingSection(memory_blocks=0)
    return GatewayConfig(
        backends={
            target.backend: Backend(
                url=replicas.urls[target].removesuffix(PATH), models={target.model: ModelInfo()}
            )
            for target in replicas.targets
        },
        routing=routing,
        tiers={
            "all": TierSection(targets=tuple(f"{t.backend}/{t.model}" for t in replicas.targets))
        },
        models={"assistant": Alias(tiers=("all",))},
    )


def text_of(draw: random.Random, num_words: int) -> str:
    """Words in no order, about a token each."""
    return " ".join(draw.choices(WORDS, k=num_words))


async def run(
    way: str, seed: str, replicas: Replicas, client: aiohttp.ClientSession, args: argparse.Namespace
) -> dict[str, Any]:
    """All sessions with all their turns, once."""
    draw = random.Random(seed)
    documents = [text_of(draw, args.document_len) for _ in range(args.documents)]
    sessions = [
        [{"role": "system", "content": f"Answer by this text.\n{documents[i % len(documents)]}"}]
        for i in range(args.sessions)
    ]
    config = config_of(replicas, remembers=way != "rendezvous alone")
    router, settings = Router(config), read_settings(config)
    in_turn = itertools.cycle(replicas.targets)
    measured: list[tuple[float, int, int]] = []
    chosen: Counter[str] = Counter()
    places = asyncio.Semaphore(args.concurrency)

    def choose(body: dict[str, Any], name: str) -> Target:
        if way == "round robin":
            return next(in_turn)
        call = read_call(
            json.dumps({**body, "model": "assistant"}).encode(),
            [],
            route="chat",
            path=PATH,
            request_id=name,
            arrived=time.perf_counter(),
            settings=settings,
        )
        return router.route(call, replicas, replicas).tiers[0].targets[0]

    async def turn(number: int, index: int) -> None:
        async with places:
            messages = sessions[index]
            messages.append({"role": "user", "content": text_of(draw, args.question_len)})
            body = {
                "model": args.model,
                "messages": messages,
                "stream": True,
                "temperature": 0,
                "max_tokens": args.output_len,
                "ignore_eos": True,
                "stream_options": {"include_usage": True},
            }
            target = choose(body, f"{number}-{index}")
            chosen[target.backend] += 1
            text, ttft, num_tokens, num_cached = await replicas.ask(client, target, body)
            messages.append({"role": "assistant", "content": text})
            measured.append((ttft, num_tokens, num_cached))

    begin = time.perf_counter()
    for number in range(args.turns):
        order = list(range(args.sessions))
        draw.shuffle(order)
        await asyncio.gather(*(turn(number, index) for index in order))
    seconds = time.perf_counter() - begin
    ttfts = [ttft for ttft, _, _ in measured]
    num_tokens, num_cached = (sum(values) for values in list(zip(*measured, strict=True))[1:])
    return {
        "way": way,
        "hit_rate": round(num_cached / num_tokens, 3),
        "computed_prompt_tokens": num_tokens - num_cached,
        "prompt_tokens": num_tokens,
        "ttft_mean_s": round(mean(ttfts), 3),
        "ttft_p50_s": round(median(ttfts), 3),
        "ttft_p95_s": round(quantiles(ttfts, n=20)[-1], 3),
        "seconds": round(seconds, 1),
        "requests": dict(sorted(chosen.items())),
    }


async def measure(args: argparse.Namespace) -> dict[str, Any]:
    replicas = Replicas(args)
    ways = args.ways.split(",")
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in ways}
    try:
        timeout = aiohttp.ClientTimeout(total=600)
        async with aiohttp.ClientSession(timeout=timeout) as client:
            await replicas.wait(client)
            few = {**vars(args), "sessions": 2 * args.replicas, "turns": 1}
            await run("round robin", "warm", replicas, client, argparse.Namespace(**few))
            for repeat in range(args.repeats):
                for way in ways if repeat % 2 == 0 else reversed(ways):
                    result = await run(way, f"{way} {repeat}", replicas, client, args)
                    print(json.dumps(result), flush=True)
                    results[way].append(result)
    finally:
        replicas.stop()
    names = (
        "hit_rate",
        "computed_prompt_tokens",
        "ttft_mean_s",
        "ttft_p50_s",
        "ttft_p95_s",
        "seconds",
    )
    medians = {
        way: {name: median(one[name] for one in found) for name in names}
        for way, found in results.items()
    }
    base = medians["round robin"]
    return {
        "setup": vars(args),
        "medians": medians,
        "over_round_robin": {
            way: {name: round(found[name] / base[name], 3) for name in names if base[name]}
            for way, found in medians.items()
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of each replica")
    parser.add_argument("--port", type=int, default=18100, help="of the first replica")
    parser.add_argument("--kv-cache-memory", default="150MiB", help="of each replica")
    parser.add_argument("--sessions", type=int, default=40)
    parser.add_argument("--documents", type=int, default=16)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--document-len", type=int, default=400, help="words")
    parser.add_argument("--question-len", type=int, default=20, help="words")
    parser.add_argument("--output-len", type=int, default=4, help="tokens")
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ways", default="affinity,rendezvous alone,round robin")
    args = parser.parse_args()
    print(json.dumps(asyncio.run(measure(args)), indent=1))


if __name__ == "__main__":
    main()
