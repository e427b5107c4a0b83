"""Many streams at once through one gateway process: errors, memory, tokens, first tokens.

    python benchmarks/cpu/gateway_streams.py --streams 1000 --tokens 200 --interval 0.25

The backend (`gateway_load.py`) writes an event of every stream each `--interval` seconds. Memory is
the gateway's resident set before the streams, at its highest while they run, and after two waves of
them: what the second adds is what would be lost.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.cpu.gateway_overhead import KEY, LOAD, OURS, ROOT, cpu_s, running

if TYPE_CHECKING:
    import psutil


class Peak(threading.Thread):
    """Looks at a process's memory while it runs."""

    def __init__(self, process: psutil.Process) -> None:
        super().__init__(daemon=True)
        self.process = process
        self.most = 0
        self.is_over = False

    def run(self) -> None:
        while not self.is_over:
            self.most = max(self.most, self.process.memory_info().rss)
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--interval", type=float, default=0.25)
    parser.add_argument("--waves", type=int, default=3)
    parser.add_argument("--port", type=int, default=19300, help="and the next one")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        backend = subprocess.Popen(
            [
                *(sys.executable, LOAD, "backend", "--port", str(args.port)),
                *("--interval", str(args.interval)),
            ],
            stdout=subprocess.PIPE,
        )
        assert backend.stdout is not None
        backend.stdout.readline()
        path = folder / "gateway.yaml"
        text = OURS.format(port=args.port + 1, backend=args.port, key=KEY)
        path.write_text(text.replace("    probe:", "    max_connections: 20000\n    probe:"))
        command = [sys.executable, "-m", "octavo.cli.main", "gateway", "--config", str(path)]
        url = f"http://127.0.0.1:{args.port + 1}"
        try:
            with running(command, f"{url}/health", folder / "log", PYTHONPATH=str(ROOT)) as gateway:
                waves(gateway, url, args)
        finally:
            backend.terminate()
            backend.wait()


def waves(gateway: psutil.Process, url: str, args: argparse.Namespace) -> None:
    """Run and print."""
    print(f"load of the machine: {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    print(f"memory before: {gateway.memory_info().rss / 2**20:.0f} MiB")
    for wave in range(args.waves):
        peak = Peak(gateway)
        peak.start()
        before = cpu_s(gateway)
        command = [sys.executable, LOAD, "client", "--url", url, "--key", KEY]
        command += ["--concurrency", str(args.streams), "--requests", str(args.streams)]
        command += ["--tokens", str(args.tokens)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result = json.loads(done.stdout)
        seconds = cpu_s(gateway) - before
        peak.is_over = True
        peak.join()
        print(
            f"wave {wave + 1}: {result['num_ok']} streams whole, {result['num_failed']} failed, "
            f"{result['num_tokens']} tokens in {result['seconds']:.1f} s, "
            f"{result['num_tokens'] / seconds:,.0f} tokens/s and core; "
            f"first token p50 {result['first_p50_s']:.3f} s, p99 {result['first_p99_s']:.3f} s; "
            f"memory at most {peak.most / 2**20:.0f} MiB, "
            f"after it {gateway.memory_info().rss / 2**20:.0f} MiB"
        )
        if result["num_failed"] or result["num_ok"] != args.streams:
            sys.exit(f"failed: {result['failure']}")


if __name__ == "__main__":
    main()
