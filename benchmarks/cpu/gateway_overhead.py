"""What a gateway costs: added latency, and requests and tokens per second and core, beside the
proxy of LiteLLM.

    python3 -m venv /tmp/peer && /tmp/peer/bin/pip install 'litellm[proxy]'
    python benchmarks/cpu/gateway_overhead.py --peer-python /tmp/peer/bin/python

Both are one process each before the same backend (`gateway_load.py`), with keys and a rate limit in
memory, and without a database. They take turns, round by round. Per core: by the processor time
that the gateway's process took, so that it holds on a machine where others work, too; latencies are
by the wall clock, with one request at a time, and what the backend alone takes is taken off.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator

KEY = "sk-benchmark-0123456789"
LOAD = str(Path(__file__).with_name("gateway_load.py"))
ROOT = Path(__file__).resolve().parents[2]

OURS = """
server: {{port: {port}, log_level: warning}}
keys: {{inline: [{{id: bench, key: {key}}}]}}
limits: {{rules: {{all: {{requests_per_minute: 100000000}}}}}}
backends:
  fake:
    url: http://127.0.0.1:{backend}
    models: {{m: {{price: {{input: 1, output: 2}}}}}}
    probe: {{interval: 0}}
"""
PEERS = """
model_list:
  - model_name: m
    litellm_params:
      model: openai/m
      api_base: http://127.0.0.1:{backend}/v1
      api_key: none
      rpm: 100000000
general_settings: {{master_key: {key}}}
litellm_settings: {{num_retries: 0, request_timeout: 60}}
"""


@contextmanager
def running(command: list[str], url: str, log: Path, **env: str) -> Iterator[psutil.Process]:
    """A server, once it answers."""
    with log.open("wb") as out:
        popen = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **env}
        )
    try:
        until = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    break
            except OSError:
                if popen.poll() is not None or time.monotonic() > until:
                    sys.exit(f"{command[0]} does not start:\n{log.read_text()[-3000:]}")
                time.sleep(0.1)
        yield psutil.Process(popen.pid)
    finally:
        popen.terminate()
        try:
            popen.wait(10)
        except subprocess.TimeoutExpired:
            popen.kill()
            popen.wait()


def cpu_s(process: psutil.Process | None) -> float:
    """Processor time of a process and its children."""
    if process is None:
        return 0.0
    total = 0.0
    for one in (process, *process.children(recursive=True)):
        times = one.cpu_times()
        total += times.user + times.system
    return total


def load(port: int, process: psutil.Process | None, **flags: Any) -> dict[str, float]:
    """Send, and say what it took."""
    before = cpu_s(process)
    command = [sys.executable, LOAD, "client", "--url", f"http://127.0.0.1:{port}", "--key", KEY]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    if result["num_failed"]:
        sys.exit(f"port {port}: {result['failure']}")
    result["cpu_s"] = cpu_s(process) - before
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", type=Path, help="of an environment with litellm[proxy]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of requests")
    parser.add_argument("--port", type=int, default=19200, help="and the next two")
    args = parser.parse_args()
    ports = {"backend": args.port, "octavo": args.port + 1, "litellm": args.port + 2}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        values = {"backend": ports["backend"], "key": KEY}
        backend = subprocess.Popen(
            [
                *(sys.executable, LOAD, "backend", "--port", str(ports["backend"])),
                *("--interval", "0.005"),
            ],
            stdout=subprocess.PIPE,
        )
        stack.callback(backend.wait)
        stack.callback(backend.terminate)
        assert backend.stdout is not None
        backend.stdout.readline()
        processes: dict[str, psutil.Process | None] = {"backend": None}
        (folder / "ours.yaml").write_text(OURS.format(port=ports["octavo"], **values))
        processes["octavo"] = stack.enter_context(
            running(
                [
                    *(sys.executable, "-m", "octavo.cli.main", "gateway"),
                    *("--config", str(folder / "ours.yaml")),
                ],
                f"http://127.0.0.1:{ports['octavo']}/health",
                folder / "ours.log",
                PYTHONPATH=str(ROOT),
            )
        )
        if args.peer_python is not None:
            (folder / "peer.yaml").write_text(PEERS.format(**values))
            processes["litellm"] = stack.enter_context(
                running(
                    [
                        *(str(args.peer_python.with_name("litellm")), "--config"),
                        *(str(folder / "peer.yaml"), "--port", str(ports["litellm"])),
                        *("--num_workers", "1", "--telemetry", "False"),
                    ],
                    f"http://127.0.0.1:{ports['litellm']}/health/liveliness",
                    folder / "peer.log",
                    LITELLM_LOG="ERROR",
                    LITELLM_MODE="PRODUCTION",
                    LITELLM_LOCAL_MODEL_COST_MAP="True",
                )
            )
        report(measure(processes, ports, args.rounds, args.scale))


def measure(
    processes: dict[str, psutil.Process | None], ports: dict[str, int], rounds: int, scale: float
) -> dict[str, dict[str, float]]:
    """The median of the rounds of each figure, by gateway."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in processes}
    for round_ in range(rounds + 1):
        for name, process in processes.items():
            size = scale * (0.25 if name == "litellm" else 1.0) * (0.2 if round_ == 0 else 1.0)
            one = load(ports[name], process, concurrency=1, requests=int(1200 * size))
            stream = load(ports[name], process, concurrency=1, requests=int(80 * size), tokens=4)
            many = load(ports[name], process, concurrency=16, requests=int(4000 * size))
            streams = load(
                ports[name], process, concurrency=32, requests=int(320 * size), tokens=200
            )
            if round_ == 0:
                continue  # to warm up
            figures = {
                "p50_ms": one["p50_s"] * 1e3,
                "p99_ms": one["p99_s"] * 1e3,
                "first_p50_ms": stream["first_p50_s"] * 1e3,
                "first_p99_ms": stream["first_p99_s"] * 1e3,
                "requests_s": many["num_ok"] / many["seconds"],
                "tokens_s": streams["num_tokens"] / streams["seconds"],
            }
            if process is not None:
                figures["requests_core_s"] = many["num_ok"] / many["cpu_s"]
                figures["cpu_us"] = many["cpu_s"] / many["num_ok"] * 1e6
                figures["tokens_core_s"] = streams["num_tokens"] / streams["cpu_s"]
            for figure, value in figures.items():
                found[name].setdefault(figure, []).append(value)
    return {
        name: {figure: median(values) for figure, values in of.items()}
        for name, of in found.items()
    }


def report(found: dict[str, dict[str, float]]) -> None:
    """A table, and what is claimed."""
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors\n")
    names = [name for name in found if name != "backend"]
    print("| | " + " | ".join(names) + " |")
    print("|---|" + "---:|" * len(names))
    rows = (
        ("requests/s and core", "requests_core_s", 0, False),
        ("processor time per request, µs", "cpu_us", 0, False),
        ("tokens/s and core, streamed", "tokens_core_s", 0, False),
        ("added latency p50, ms", "p50_ms", 2, True),
        ("added latency p99, ms", "p99_ms", 2, True),
        ("added to the first token p50, ms", "first_p50_ms", 2, True),
        ("added to the first token p99, ms", "first_p99_ms", 2, True),
    )
    shown: dict[str, list[float]] = {}
    for title, figure, digits, is_added in rows:
        base = found["backend"][figure] if is_added else 0.0
        shown[figure] = [found[name][figure] - base for name in names]
        print(f"| {title} | " + " | ".join(f"{v:,.{digits}f}" for v in shown[figure]) + " |")
    if len(names) == 2:
        per_core, p99 = shown["requests_core_s"], shown["p99_ms"]
        tokens = shown["tokens_core_s"]
        print(f"\nrequests per core: {per_core[0] / per_core[1]:.1f} times the peer's")
        print(f"tokens per core: {tokens[0] / tokens[1]:.1f} times the peer's")
        print(f"added p99: 1/{p99[1] / max(p99[0], 1e-6):.1f} of the peer's")


if __name__ == "__main__":
    main()
