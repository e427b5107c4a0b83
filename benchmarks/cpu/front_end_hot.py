"""The Python of a streamed token in the API server, without sockets, processes or the kernel.

    PYTHONPATH=. python benchmarks/cpu/front_end_hot.py [--profile]

The real protocol, application, output processor and detokenizer, between an engine that hands out
tokens and transports that count. Warm caches and nothing but the path of a token: the figures are
lower than in service, but steady to a few percent, so that two versions can be compared. See
`front_end.py` for what a token costs in service.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import tempfile
import time
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks.cpu.front_end import TEXT, request_of, write_model
from octavo.config import ServerConfig
from octavo.engine.messages import TokenOutput
from octavo.engine.output import OutputProcessor
from octavo.engine.pending import PendingStream
from octavo.server.app import create_app
from octavo.server.http_protocol import bounded
from octavo.text.tokenizer import load_tokenizer
from octavo.types import EngineInfo, EngineStats, KVCacheLayout, RequestOptions

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from octavo.text.tokenizer import Tokenizer
    from octavo.types import Charge, Delta, SamplingParams

NUM_TOKENS = 1 << 19  # more than anybody asks for: no stream ends
NO_OPTIONS = RequestOptions()


class HandedEngine:
    """The client's half of the engine: `step` hands every request a token."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.info = EngineInfo(
            architecture="none",
            dtype="none",
            device="none",
            vocab_size=256,
            max_model_len=2 * NUM_TOKENS,
            kv_cache=KVCacheLayout(num_blocks=1, block_size=1, bytes_per_block=1),
            startup_s={},
        )
        self.stats = EngineStats()
        self.streams: list[PendingStream] = []
        self._tokenizer = tokenizer

    def check_health(self) -> None:
        """It never fails."""

    def step(self, outputs: Sequence[TokenOutput]) -> None:
        for stream, output in zip(self.streams, outputs, strict=True):
            stream.push(output)

    async def generate(
        self,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        request_id: str,
        options: RequestOptions = NO_OPTIONS,
    ) -> AsyncGenerator[Delta, None]:
        processor = OutputProcessor(prompt_token_ids, params, self._tokenizer)
        stream = PendingStream(request_id, processor, asyncio.get_running_loop())
        self.streams.append(stream)
        while True:
            yield await stream.next()

    def listen_for_charges(self, listener: Callable[[str, Charge], None]) -> None:
        """Nothing is charged."""

    async def abort(self, request_id: str) -> None:
        """Streams are just dropped."""

    async def close(self) -> None:
        """Nothing to close."""


class CountingTransport(asyncio.Transport):
    """A client that reads at once."""

    num_writes = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def write(self, data: Any) -> None:
        CountingTransport.num_writes += 1

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """Stays."""

    def pause_reading(self) -> None:
        """Sends no more anyway."""

    def resume_reading(self) -> None:
        """Likewise."""


async def measure(args: argparse.Namespace, route: str) -> dict[str, Any]:
    """Microseconds per token and stream, over the steps."""
    with tempfile.TemporaryDirectory() as folder:
        write_model(Path(folder))
        tokenizer = load_tokenizer(Path(folder))
    engine = HandedEngine(tokenizer)
    app = create_app(engine, tokenizer, ServerConfig(served_model_names=("bench",)))
    protocol = bounded(1 << 16)
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    connections = []
    for _ in range(args.streams):
        connection = protocol(config, ServerState(), {}, asyncio.get_running_loop())
        connection.connection_made(CountingTransport())
        connection.data_received(request_of(route, NUM_TOKENS))
        connections.append(connection)
    for _ in range(1000):
        await asyncio.sleep(0)
    assert len(engine.streams) == args.streams
    gc.freeze()
    outputs = [TokenOutput(f"r{i}", [TEXT[i % len(TEXT)]]) for i in range(args.streams)]
    profiler = cProfile.Profile()
    times = []
    for _ in range(args.steps):
        target = CountingTransport.num_writes + args.streams
        if args.profile:
            profiler.enable()
        begin = time.perf_counter()
        engine.step(outputs)
        while CountingTransport.num_writes < target:  # noqa: ASYNC110
            await asyncio.sleep(0)
        times.append((time.perf_counter() - begin) / args.streams * 1e6)
        profiler.disable()
    if args.profile:
        pstats.Stats(profiler).sort_stats("tottime").print_stats(30)
    for connection in connections:
        connection.connection_lost(ConnectionResetError())
    await asyncio.sleep(0.2)
    quarter, half, _ = quantiles(times, n=4)
    return {
        "route": route,
        "streams": args.streams,
        "us_per_token": {
            "least": round(min(times), 2),
            "quarter": round(quarter, 2),
            "half": round(half, 2),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--profile", action="store_true", help="by function; several times slower")
    args = parser.parse_args()
    for route in ("chat", "completions"):
        print(json.dumps(uvloop.run(measure(args, route))), flush=True)


if __name__ == "__main__":
    main()
