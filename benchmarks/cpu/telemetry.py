"""What a trace of every request costs the API server, against a server that tells nobody anything.

    PYTHONPATH=. python benchmarks/cpu/telemetry.py
    PYTHONPATH=. python benchmarks/cpu/telemetry.py --tokens 256 --rounds 10

Two real servers (`launch.serve`) run at the same time over engines that make up tokens; one sends
spans of every request, and metrics, to a collector in a process of its own. Rounds of streams go
to one and the other in turn; what counts is CPU time of the server's process, exporting included,
and the ratio of the pairs. Needs Linux.
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
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from benchmarks.cpu.front_end import ROOT, STEP_S, load, write_model

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
    rest: list[str] = []
    try:
        for line in popen.stderr:
            found = re.search(r"ready at http://127.0.0.1:(\d+)", line)
            if found:
                break
        assert found, "the server did not start"
        reader = threading.Thread(target=rest.extend, args=(popen.stderr,))
        reader.start()  # a full pipe would hold up the server, which logs every request
        yield int(found[1]), popen.pid
        popen.send_signal(signal.SIGTERM)
        popen.wait(60)
        reader.join()
        assert "lost so far" not in "".join(rest), rest[-5:]
    finally:
        popen.kill()


def cpu_ns(pid: int) -> tuple[int, int]:
    """CPU time of a process's event loop, and of its other threads, as Linux has it."""
    spent = {
        int(task.name): int((task / "schedstat").read_text().split()[0])
        for task in Path(f"/proc/{pid}/task").iterdir()
    }
    loop = spent.pop(pid)
    return loop, sum(spent.values())


def measure(port: int, pid: int, streams: int, tokens: int) -> tuple[float, float]:
    """CPU milliseconds per request of a round: of the event loop, and of the other threads with
    what is sent after it.
    """
    before = cpu_ns(pid)
    asyncio.run(load(port, "chat", streams, tokens, pid))
    time.sleep(2 * FLUSH_MS / 1000)
    loop, others = (now - then for now, then in zip(cpu_ns(pid), before, strict=True))
    return loop / streams / 1e6, others / streams / 1e6


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
    spent: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
    for index in range(args.rounds):
        pair = [("off", off), ("on", on)]
        for name, where in pair if index % 2 else reversed(pair):
            spent[name].append(measure(*where, args.streams, tokens))
    median = {
        f"{name}_{what}_ms_per_request": round(statistics.median(x[i] for x in rounds), 3)
        for name, rounds in spent.items()
        for i, what in enumerate(("loop", "threads"))
    }
    ratios = [sum(b) / sum(a) for a, b in zip(spent["off"], spent["on"], strict=True)]
    return {
        "tokens": tokens,
        "streams": args.streams,
        **median,
        "cpu_ratio": round(statistics.median(ratios), 3),
    }


if __name__ == "__main__":
    main()
