"""What a streamed token costs the API server: HTTP, SSE, JSON, detokenizing, messages; no model.

    PYTHONPATH=. python benchmarks/cpu/front_end.py
    PYTHONPATH=. python benchmarks/cpu/front_end.py --front-ends 1 2 --only flooded
    PYTHONPATH=. python benchmarks/cpu/front_end.py --profile front_end.prof --only paced

The real server (`launch.serve`) runs in a process of its own over an engine process that makes up a
token per request and step. The client reads raw sockets and counts. Two rounds:

- paced: a step every `--step-ms`, as a GPU would do it; every token is an event of its own, unless
  the server falls behind. What counts is CPU seconds of the server's process per token.
- flooded: the engine makes tokens as fast as it can; the server merges what it cannot send one by
  one. What counts is how many tokens and events get through.

The client and the engine need cores too: on a machine with fewer than three, the wall clock tells
little, and CPU seconds still tell what the server costs. `--front-ends` says how many API servers
share the engine; their CPU seconds are added up, with the parent's. `busiest_share` is how much of
them the busiest one took: what decides when there are cores for all.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import os
import pstats
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from octavo.types import EngineInfo, EngineStats, KVCacheLayout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.config import EngineConfig
    from octavo.engine.messages import AddRequest, TokenOutput
    from octavo.types import Charge

ROOT = Path(__file__).resolve().parents[2]
STEP_S = "FRONT_END_STEP_S"
TEXT = b"The quick brown fox jumps over the lazy dog, again and again. "
MAX_MODEL_LEN = 1 << 20


class EchoCore:
    """An engine core that gives every request one token per step, at a given pace."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._next = 0.0
        self._requests: dict[str, tuple[AddRequest, list[int]]] = {}
        self._num_received = 0

    @property
    def has_work(self) -> bool:
        return bool(self._requests)

    @property
    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self._requests), num_received=self._num_received)

    def ready(self, began_ns: int) -> None:
        """Nothing is metered."""

    def take_charges(self) -> list[tuple[str, Charge]]:
        return []

    def add(self, request: AddRequest) -> None:
        self._num_received += 1
        self._requests[request.request_id] = (request, [0])

    def abort(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._requests.pop(request_id, None)

    def step(self) -> list[TokenOutput]:
        from octavo.engine.messages import TokenOutput

        now = time.perf_counter()
        self._next = max(self._next + self._step_s, now)
        time.sleep(self._next - now)
        outputs = []
        for request_id, (request, count) in list(self._requests.items()):
            count[0] += 1
            is_last = count[0] == request.params.max_tokens
            if is_last:
                del self._requests[request_id]
            token_id = TEXT[count[0] % len(TEXT)]
            reason: Any = "length" if is_last else None
            outputs.append(TokenOutput(request_id, [token_id], finish_reason=reason))
        return outputs


class Built:
    """What the engine process asks for."""

    def __init__(self) -> None:
        self.core = EchoCore(float(os.environ[STEP_S]))
        self.info = EngineInfo(
            architecture="none",
            dtype="none",
            device="none",
            vocab_size=256,
            max_model_len=MAX_MODEL_LEN,
            kv_cache=KVCacheLayout(num_blocks=1, block_size=16, bytes_per_block=1),
            startup_s={},
        )

    def close(self) -> None:
        """Nothing to free."""


def build(config: EngineConfig) -> Built:
    """Runs in the engine process."""
    return Built()


def write_model(folder: Path) -> None:
    """A tokenizer of bytes (id = byte), and as much of a model as the server opens."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from octavo.text.codec import byte_alphabet

    vocabulary = {char: byte for byte, char in byte_alphabet().items()}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.save(str(folder / "tokenizer.json"))
    config = {"architectures": ["None"], "vocab_size": 256}
    (folder / "config.json").write_text(json.dumps(config))
    template = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(template))
    save_file({"x": np.zeros(2, np.float32)}, folder / "model.safetensors")


def serve(folder: str, profile: str, num_front_ends: int) -> int:
    """The server's process; with a profile of its event loop's thread if there is a name for it."""
    from octavo.config import EngineConfig, ServerConfig
    from octavo.launch import serve as launch
    from octavo.observability.logs import configure_logs

    configure_logs("info")
    profiler = cProfile.Profile(builtins=False) if profile else None
    if profiler is not None:
        profiler.enable()
    code = launch(
        EngineConfig(model=folder),
        ServerConfig(port=0, served_model_names=("bench",), api_server_count=num_front_ends),
        builder="benchmarks.cpu.front_end:build",
    )
    if profiler is not None:
        profiler.disable()
        profiler.dump_stats(profile)
    return code


@dataclass
class Counts:
    """What a client has read."""

    num_events: int = 0
    num_bytes: int = 0
    num_open: int = 0


class Reader(asyncio.Protocol):
    """One streaming request over a raw socket: counts events, parses nothing."""

    def __init__(self, request: bytes, counts: Counts, done: asyncio.Event) -> None:
        self._request = request
        self._counts = counts
        self._done = done
        self._tail = b""

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        counts = self._counts
        counts.num_bytes += len(data)
        seen = self._tail + data
        counts.num_events += seen.count(b"data: ") - self._tail.count(b"data: ")
        self._tail = seen[-16:]

    def connection_lost(self, exc: Exception | None) -> None:
        assert b"[DONE]" in self._tail or b"0\r\n\r\n" in self._tail, self._tail
        self._counts.num_open -= 1
        if not self._counts.num_open:
            self._done.set()


def request_of(route: str, num_tokens: int) -> bytes:
    """The bytes of a request for so many tokens."""
    fields: dict[str, Any] = {"model": "bench", "max_tokens": num_tokens, "stream": True}
    if route == "chat":
        fields["messages"] = [{"role": "user", "content": "Say something."}]
        path = "/v1/chat/completions"
    else:
        fields["prompt"] = "Say something."
        path = "/v1/completions"
    body = json.dumps(fields | {"ignore_eos": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


@dataclass
class Reading:
    """The server's CPU seconds, and the clock, when so many events had come."""

    num_events: int
    user_s: float
    system_s: float
    wall_s: float
    each_s: dict[int, float]
    engine_s: float


def processes_of(pid: int) -> tuple[list[psutil.Process], psutil.Process]:
    """The processes of the server's front ends, its parent included; and its engine's."""
    parent = psutil.Process(pid)
    [engine] = [child for child in parent.children() if "octavo-engine" in child.cmdline()]
    return [parent, *(child for child in parent.children() if child != engine)], engine


async def load(
    port: int, route: str, num_streams: int, num_tokens: int, pid: int
) -> tuple[Counts, list[Reading]]:
    """Run so many streams at once to their end.

    Four readings: before, when all streams are under way, when most of them is over, after. Between
    the middle ones there is nothing but tokens.
    """
    loop = asyncio.get_running_loop()
    processes, engine = processes_of(pid)
    counts, done = Counts(num_open=num_streams), asyncio.Event()
    request = request_of(route, num_tokens)

    def read() -> Reading:
        times = {process.pid: process.cpu_times() for process in processes}
        return Reading(
            counts.num_events,
            sum(each.user for each in times.values()),
            sum(each.system for each in times.values()),
            time.perf_counter(),
            {each_pid: each.user + each.system for each_pid, each in times.items()},
            sum(engine.cpu_times()[:2]),
        )

    readings = [read()]
    for _ in range(num_streams):
        await loop.create_connection(lambda: Reader(request, counts, done), "127.0.0.1", port)
    for least in (0.1 * num_streams * num_tokens, 0.9 * num_streams * num_tokens):
        while counts.num_events < least and not done.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        readings.append(read())
    await done.wait()
    return counts, [*readings, read()]


def measure(
    args: argparse.Namespace, route: str, step_s: float, num_tokens: int, num_front_ends: int
) -> dict[str, Any]:
    """One round on a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        command = [sys.executable, __file__, "--serve", folder, "--profile", args.profile]
        command += ["--front-ends", str(num_front_ends)]
        environment = os.environ | {STEP_S: str(step_s), "PYTHONPATH": str(ROOT)}
        popen = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        assert popen.stderr is not None
        try:
            port = 0
            for line in popen.stderr:
                found = re.search(r"ready at http://127.0.0.1:(\d+)", line)
                if found:
                    port = int(found[1])
                    break
            assert port, "the server did not start"
            asyncio.run(load(port, route, 8, 50, popen.pid))  # warm
            counts, readings = asyncio.run(load(port, route, args.streams, num_tokens, popen.pid))
            popen.send_signal(signal.SIGTERM)
            popen.communicate(timeout=60)
        finally:
            popen.kill()
    begin, steady, late, end = readings
    num_events = late.num_events - steady.num_events
    user, system = late.user_s - steady.user_s, late.system_s - steady.system_s
    per_event = (user + system) / num_events if num_events else 0.0
    cpu = end.user_s + end.system_s - begin.user_s - begin.system_s
    total = args.streams * num_tokens
    around = cpu - per_event * counts.num_events  # what requests cost beside their events
    return {
        "route": route,
        "front_ends": num_front_ends,
        "step_ms": step_s * 1000,
        "streams": args.streams,
        "tokens": total,
        "events": counts.num_events,
        "wall_s": round(end.wall_s - begin.wall_s, 2),
        "cpu_s": round(cpu, 2),
        "tokens_per_s": round(total / (end.wall_s - begin.wall_s)),
        "tokens_per_core_s": round(total / cpu),
        "us_per_token": round(1e6 * cpu / total, 1),
        "busiest_share": round(
            max(seconds - begin.each_s[pid] for pid, seconds in end.each_s.items()) / cpu, 2
        ),
        "engine_cpu_s": round(end.engine_s - begin.engine_s, 2),
        **(
            {}
            if not per_event
            else {
                "steady_tokens_per_core_s": round(0.8 * total / (user + system)),
                "steady_us_per_event": round(1e6 * per_event, 1),
                "steady_system_us_per_event": round(1e6 * system / num_events, 1),
                "ms_per_request_beside_events": round(1e3 * around / args.streams, 2),
            }
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200, help="per stream, in the paced round")
    parser.add_argument("--step-ms", type=float, default=50.0, help="of the paced round")
    parser.add_argument("--only", choices=("paced", "flooded"))
    parser.add_argument("--route", choices=("chat", "completions"))
    parser.add_argument("--front-ends", type=int, nargs="+", default=[1], metavar="N")
    parser.add_argument("--profile", default="", metavar="FILE", help="write a profile, slower")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        sys.exit(serve(args.serve, args.profile, args.front_ends[0]))
    for route in (args.route,) if args.route else ("chat", "completions"):
        for num in args.front_ends:
            if args.only != "flooded":
                paced = measure(args, route, args.step_ms / 1000, args.tokens, num)
                print(json.dumps(paced), flush=True)
            if args.only != "paced":
                print(json.dumps(measure(args, route, 0.0, 4 * args.tokens, num)), flush=True)
    if args.profile:
        pstats.Stats(args.profile).sort_stats("tottime").print_stats(35)


if __name__ == "__main__":
    main()
