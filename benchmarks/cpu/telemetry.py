"""What a trace of every request costs the API server, against a server that tells nobody anything.

    PYTHONPATH=. python benchmarks/cpu/telemetry.py
    PYTHONPATH=. python benchmarks/cpu/telemetry.py --tokens 16 --rounds 10

Two real servers (`launch.serve`) run at the same time over engines that make up tokens; one sends
spans of every request, and metrics, to a collector in a process of its own. Rounds of streams go
to one and the other in turn; what counts is CPU seconds of the server's process, exporting
included, and the ratio of the pairs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.cpu.front_end import ROOT, STEP_S, load, processes_of, write_model

if TYPE_CHECKING:
    from collections.abc import Iterator

FLUSH_MS = 250


def collect(protocol: str) -> None:
    """A collector's process: counts, and says where it listens and, at the end, what came."""
    from tests.observability.otlp_collectors import grpc_collector, http_collector

    with (grpc_collector if protocol == "grpc" else http_collector)() as received:
        print(received.url, flush=True)
        sys.stdin.read()
        print(len(received.spans), flush=True)


@contextmanager
def collector(protocol: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, __file__, "--collect", protocol]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment({})
    ) as popen:
        assert popen.stdout is not None
        try:
            yield popen.stdout.readline().strip(), popen
        finally:
            popen.kill()


def environment(more: dict[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), STEP_S: "0.002", **more}


@contextmanager
def server(folder: Path, more: dict[str, str]) -> Iterator[tuple[int, int]]:
    """Port and process id of a server of `front_end`, with more variables in its environment."""
    script = str(Path(__file__).with_name("front_end.py"))
    popen = subprocess.Popen(
        [sys.executable, script, "--serve", str(folder)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(more),
    )
    assert popen.stderr is not None
    try:
        for line in popen.stderr:
            found = re.search(r"ready at http://127.0.0.1:(\d+)", line)
            if found:
                yield int(found[1]), popen.pid
                break
        popen.send_signal(signal.SIGTERM)
        rest = popen.communicate(timeout=60)[1]
        assert "lost so far" not in rest, rest
    finally:
        popen.kill()


def cpu_s(pid: int) -> float:
    processes, _ = processes_of(pid)
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def measure(port: int, pid: int, streams: int, tokens: int) -> tuple[float, float]:
    """CPU and wall seconds of a round; the CPU's with what is sent after it."""
    before, begin = cpu_s(pid), time.perf_counter()
    asyncio.run(load(port, "chat", streams, tokens, pid))
    wall = time.perf_counter() - begin
    time.sleep(2 * FLUSH_MS / 1000)
    return cpu_s(pid) - before, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 128])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--protocol", choices=("grpc", "http/protobuf"), default="grpc")
    parser.add_argument("--ratio", type=float, default=1.0)
    parser.add_argument("--collect", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.collect:
        collect(args.collect)
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_model(folder)
        url, popen = stack.enter_context(collector(args.protocol))
        told = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": args.protocol,
            "OTEL_BSP_SCHEDULE_DELAY": str(FLUSH_MS),
            "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
            "OTEL_TRACES_SAMPLER_ARG": str(args.ratio),
        }
        with server(folder, {}) as off, server(folder, told) as on:
            for port, pid in (off, on):
                measure(port, pid, 8, 50)
            for tokens in args.tokens:
                print(json.dumps(compare(args, tokens, off, on)), flush=True)
            sizes = {name: psutil.Process(pid).memory_info().rss / 2**20
                     for name, (_, pid) in (("off_mib", off), ("on_mib", on))}  # fmt: skip
            print(json.dumps({name: round(size) for name, size in sizes.items()}), flush=True)
        out, _ = popen.communicate(timeout=30)
        print(json.dumps({"spans": int(out)}))


def compare(
    args: argparse.Namespace, tokens: int, off: tuple[int, int], on: tuple[int, int]
) -> dict[str, Any]:
    cpu: dict[str, list[float]] = {"off": [], "on": []}
    wall: dict[str, list[float]] = {"off": [], "on": []}
    for index in range(args.rounds):
        pair = [("off", off), ("on", on)]
        for name, where in pair if index % 2 else reversed(pair):
            used, took = measure(*where, args.streams, tokens)
            cpu[name].append(used)
            wall[name].append(took)
    ratios = [b / a for a, b in zip(cpu["off"], cpu["on"], strict=True)]
    added = [1e3 * (b - a) / args.streams for a, b in zip(cpu["off"], cpu["on"], strict=True)]
    return {
        "tokens": tokens,
        "streams": args.streams,
        "off_ms_per_request": round(1e3 * statistics.median(cpu["off"]) / args.streams, 3),
        "on_ms_per_request": round(1e3 * statistics.median(cpu["on"]) / args.streams, 3),
        "added_ms_per_request": round(statistics.median(added), 3),
        "cpu_ratio": round(statistics.median(ratios), 3),
        "wall_ratio": round(
            statistics.median(b / a for a, b in zip(wall["off"], wall["on"], strict=True)), 3
        ),
    }


if __name__ == "__main__":
    main()
