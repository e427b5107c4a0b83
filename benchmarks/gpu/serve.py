"""How fast `octavo serve` is over HTTP on this card, beside another engine's figures.

    PYTHONPATH=. python benchmarks/gpu/serve.py --concurrency 1,64,256 --out serve.jsonl

Starts the server with dummy weights and sends the 500 requests of lengths_mixed500.json (the first
12 of them for one client at a time), streaming, token ids in, in a closed loop: each client sends
its next request when the last one has ended. Medians of --repeats, with new prompts each time. The
load comes from one process, from four where 256 are in flight; how busy the busiest one is, and how
busy API server and engine are, is told too. Exits with 1 if a request failed, an answer had another
length than asked for, or the server did not end with 0 after SIGTERM.

Inter-token latencies (ITL) are gaps between events of a stream; times per output token (TPOT) are
of a request as a whole.
"""

from __future__ import annotations

import json
import multiprocessing
import random
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from benchmarks.gpu.common import (
    LENGTHS,
    Baselines,
    Measure,
    Records,
    engine_options,
    environment,
    flags_of,
    make_console,
    make_parser,
    print_table,
)
from benchmarks.gpu.server_process import Server
from benchmarks.gpu.shapes import model_folder
from octavo.bench.report import ServeReport, summarize
from octavo.bench.serve import ServeBench, serve_bench

if TYPE_CHECKING:
    import argparse
    from multiprocessing.synchronize import Barrier

    from octavo.bench.client import Outcome

ALONE = 12
"""Requests of the run with one client: the first so many."""
MANY = 128
"""From so many clients on, the load is spread over several processes."""
WARM_UP = (48, 16)
"""Requests before the first measure, and how many of them at a time."""
FIRST_ID, LAST_ID = 1000, 120000
BARRIER_S = 120.0

Lengths = list[tuple[int, int]]

_barrier: Barrier | None = None


def _use_barrier(barrier: Barrier) -> None:
    global _barrier  # a worker process has no other way to get one
    _barrier = barrier


def _wait(_: int) -> None:
    assert _barrier is not None
    _barrier.wait(BARRIER_S)


def _client(url: str, prompts: Path, concurrency: int) -> tuple[ServeReport, list[Outcome]]:
    """One client process: begins together with the others."""
    outcomes: list[Outcome] = []
    bench = ServeBench(url=url, concurrency=concurrency, dataset=prompts, ignore_eos=True, warmup=0)
    return serve_bench(bench, began=_wait, observer=outcomes.append), outcomes


def write_prompts(path: Path, lengths: Lengths, rng: random.Random, vocab_size: int) -> None:
    high = min(LAST_ID, vocab_size)
    ids = range(min(FIRST_ID, high // 10), high)
    with path.open("w") as file:
        for num_in, num_out in lengths:
            row = {"prompt_ids": rng.choices(ids, k=num_in), "max_tokens": num_out}
            file.write(json.dumps(row) + "\n")


def load(
    url: str,
    lengths: Lengths,
    concurrency: int,
    *,
    num_processes: int,
    seed: int,
    vocab_size: int,
    folder: Path,
) -> ServeReport:
    """Send everything once, from so many processes; one report over all of them."""
    rng = random.Random(seed)
    shares = [lengths[index::num_processes] for index in range(num_processes)]
    paths = [folder / f"prompts-{index}.jsonl" for index in range(num_processes)]
    for path, share in zip(paths, shares, strict=True):
        write_prompts(path, share, rng, vocab_size)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num_processes)
    each = max(1, concurrency // num_processes)
    with ProcessPoolExecutor(
        num_processes, mp_context=context, initializer=_use_barrier, initargs=(barrier,)
    ) as pool:
        futures = [pool.submit(_client, url, path, each) for path in paths]
        done = [future.result() for future in futures]
    outcomes = [outcome for _, some in done for outcome in some]
    report = done[0][0]
    # The busiest process: what matters is whether one of them could have been late.
    busiest = max(one.client_cpu_share * one.duration_s for one, _ in done)
    setup = msgspec.structs.replace(
        report.setup,
        dataset="fixed lengths, random ids",
        num_prompts=len(lengths),
        concurrency=concurrency,
        seed=seed,
    )
    return summarize(
        setup,
        outcomes,
        version=report.octavo_version,
        created=report.created,
        cpu_s=busiest,
        slo_ms={},
        notes=sorted({note for one, _ in done for note in one.notes if "dataset" in note}),
    )


def problems_of(report: ServeReport, lengths: Lengths) -> list[str]:
    """What makes the run worthless."""
    found = [f"{count} x {reason}" for reason, count in report.failures.items()]
    wanted = sum(num_out for _, num_out in lengths)
    if report.output_tokens != wanted:
        found.append(f"{report.output_tokens} output tokens instead of {wanted}")
    return found


def figures_of(report: ServeReport) -> dict[str, float]:
    figures = {"output_tokens_per_s": report.output_tokens_per_s}
    for name in ("ttft", "tpot", "itl"):
        distribution = getattr(report, f"{name}_ms")
        if distribution is not None:
            figures[f"{name}_p50_ms"] = distribution.p50
            figures[f"{name}_p99_ms"] = distribution.p99
    return figures


class Runs:
    """Loads one server again and again; each run has prompts that no other had."""

    def __init__(self, server: Server, args: argparse.Namespace, vocab_size: int) -> None:
        self._server = server
        self._args = args
        self._vocab_size = vocab_size
        self._num_runs = 0
        lengths = json.loads(args.lengths.read_text())
        self.lengths: Lengths = list(zip(lengths["input"], lengths["output"], strict=True))
        if args.limit:
            self.lengths = self.lengths[: args.limit]

    def once(self, lengths: Lengths, concurrency: int, num_processes: int) -> ServeReport:
        self._num_runs += 1
        with tempfile.TemporaryDirectory(prefix="octavo-prompts-") as folder:
            return load(
                self._server.url,
                lengths,
                concurrency,
                num_processes=num_processes,
                seed=self._args.seed * 1000 + self._num_runs,
                vocab_size=self._vocab_size,
                folder=Path(folder),
            )

    def measure(self, concurrency: int, deadline: float) -> tuple[Measure, list[str]]:
        lengths = self.lengths if concurrency > 1 else self.lengths[:ALONE]
        num_processes = self._args.client_processes or (4 if concurrency >= MANY else 1)
        reports: list[ServeReport] = []
        problems: list[str] = []
        shares: list[dict[str, float]] = []
        for index in range(self._args.repeats):
            if index and time.monotonic() > deadline:
                break
            before = self._server.cpu_seconds()
            report = self.once(lengths, concurrency, num_processes)
            after = self._server.cpu_seconds()
            # What the few requests that probe the server cost is in there too.
            shares.append(
                {name: (after[name] - before[name]) / report.duration_s for name in after}
            )
            reports.append(report)
            problems += problems_of(report, lengths)
        figures = [figures_of(report) for report in reports]
        metrics = {
            name: statistics.median(figure[name] for figure in figures if name in figure)
            for name in figures[0]
        }
        busy = {
            "client": max(report.client_cpu_share for report in reports),
            **{name: max(share[name] for share in shares) for name in shares[0]},
        }
        details: dict[str, Any] = {
            "num_requests": len(lengths),
            "num_client_processes": num_processes,
            "runs": figures,
            "cpu_shares": busy,
            "cached_tokens": [report.cached_tokens for report in reports],
            "num_failed": [report.num_failed for report in reports],
            "notes": sorted({note for report in reports for note in report.notes}),
        }
        notes = [
            f"CPU: client {busy['client']:.0%} (of {num_processes}), API server "
            f"{busy['server']:.0%}, engine {busy['engine']:.0%}"
        ]
        return Measure(f"serve/{concurrency}", metrics, details, notes), problems


def numbers_of(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--concurrency", type=numbers_of, default=[1, 64, 256])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--budget-s", type=float, default=540.0, help="begin nothing after this")
    parser.add_argument("--lengths", type=Path, default=LENGTHS)
    parser.add_argument("--limit", type=int, default=0, help="only the first so many requests")
    parser.add_argument("--client-processes", type=int, default=0, help="default: 1, or 4 for many")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.budget_s
    console = make_console()
    records = Records(args.out, script="serve", model=args.model)
    problems: list[str] = []
    with model_folder(args.model) as folder:
        vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
        with Server(folder, flags_of(engine_options(args))) as server:
            setup = environment()
            console.print(
                f"ready after {server.ready_s:.2f} s: {server.parts}", highlight=False, markup=False
            )
            records.write(
                "setup", **setup, options=engine_options(args), seed=args.seed,
                ready_s=server.ready_s, parts=server.parts,
            )  # fmt: skip
            runs = Runs(server, args, vocab_size)
            num_warm, width = WARM_UP
            warm = runs.lengths[:num_warm]
            problems += problems_of(runs.once(warm, width, 1), warm)
            for concurrency in args.concurrency:
                if time.monotonic() > deadline:
                    problems.append(f"no time left for {concurrency} clients")
                    continue
                measure, found = runs.measure(concurrency, deadline)
                problems += found
                records.add(measure)
                console.print(
                    f"{measure.name} {measure.metrics}", highlight=False, markup=False,
                    soft_wrap=True,
                )  # fmt: skip
            stopped = server.stop()
    if stopped.exit_code:
        problems.append(f"the server ended with exit code {stopped.exit_code}")
    records.write(
        "end", exit_code=stopped.exit_code, stop_s=stopped.seconds, problems=problems,
        warnings=[line for line in server.log if "WARNING" in line or "ERROR" in line],
    )  # fmt: skip
    is_whole = args.lengths == LENGTHS and not args.limit
    baselines = Baselines(setup["card"], args.model) if is_whole else None
    title = f"{args.model} on {setup['card']}, octavo {setup['octavo']} ({setup['commit']})"
    print_table(console, records.measures, baselines, title)
    console.print(
        f"the server ended {stopped.seconds:.2f} s after SIGTERM with exit code "
        f"{stopped.exit_code}", highlight=False,
    )  # fmt: skip
    for problem in problems:
        console.print(f"PROBLEM: {problem}", highlight=False, markup=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
