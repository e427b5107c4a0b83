"""What the device does in decode steps: how long it idles, in which kernels it works.

    PYTHONPATH=. python benchmarks/gpu/trace.py --batch 64 --steps 40 --out decode64.json.gz

Brings a batch to its decode steps, times some of them, and records as many with torch's profiler
(also what a replayed CUDA graph launches). The device idles where no kernel and no copy is on its
timeline: the union of their intervals against the time from the first recorded step to the last.
The profiler itself spreads the kernels of a graph a little, so the time that they take is also set
against the steps that were timed without it. --out gets the trace, gzipped, for chrome://tracing or
ui.perfetto.dev. Exits with 1 if the device idles more than --limit of the recorded time.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu.common import engine_options, environment, make_console, make_parser
from benchmarks.gpu.shapes import model_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from octavo.engine.process import Core

DEVICE_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
MARK = "ProfilerStep#"
WARM_UP = 5
"""Steps that the profiler sees and throws away: its own first ones are slow."""


@dataclass
class Total:
    """All runs of one kernel in the window; microseconds."""

    count: int = 0
    us: float = 0.0


@dataclass
class Analysis:
    """A window of a trace; times are microseconds.

    Attributes:
        num_steps: whole steps in the window.
        span_us: its length.
        busy_us: where at least one kernel or copy was on the device.
        kernels: by name.
        gaps: idle time by the kernel that ended it.
    """

    num_steps: int
    span_us: float
    busy_us: float
    kernels: dict[str, Total] = field(default_factory=dict)
    gaps: dict[str, Total] = field(default_factory=dict)

    @property
    def idle_share(self) -> float:
        return 1 - self.busy_us / self.span_us


def analyze(events: Iterable[dict[str, Any]]) -> Analysis:
    """Of the events of a chrome trace, as torch's profiler writes them.

    The window goes from the second of the profiler's steps to the last one, so that neither the
    recording's start nor its end is in it.

    Raises:
        ValueError: there are fewer than three steps, or nothing ran on a device between them.
    """
    marks: set[float] = set()
    device: list[tuple[float, float, str]] = []
    for event in events:
        category = event.get("cat")
        if category == "user_annotation" and event["name"].startswith(MARK):
            marks.add(event["ts"])
        elif category in DEVICE_CATEGORIES:
            device.append((event["ts"], event["ts"] + event["dur"], event["name"]))
    if len(marks) < 3:
        raise ValueError("the trace has too few steps")
    _, begin, *_, end = sorted(marks)
    device.sort()
    result = Analysis(len(marks) - 2, end - begin, 0.0)
    kernels: defaultdict[str, Total] = defaultdict(Total)
    gaps: defaultdict[str, Total] = defaultdict(Total)
    reached = begin
    for start, stop, name in device:
        if stop <= begin or start >= end:
            continue
        start, stop = max(start, begin), min(stop, end)
        kernels[name].count += 1
        kernels[name].us += stop - start
        if start > reached:
            gaps[name].count += 1
            gaps[name].us += start - reached
        result.busy_us += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
    if not kernels:
        raise ValueError("nothing ran on a device: this needs a GPU")
    if end > reached:
        gaps["(the end)"] = Total(1, end - reached)
    result.kernels, result.gaps = dict(kernels), dict(gaps)
    return result


def short_name(name: str) -> str:
    """Without return type, arguments and all but the beginning of template parameters."""
    name = re.sub(r"^(void|static|__global__)\s+", "", name)
    head = re.split(r"[<(]", name, maxsplit=1)[0]
    rest = name[len(head) : len(head) + 48] if "<" in name else ""
    return f"{head}{rest}"[:90]


def start_decoding(core: Core, vocab_size: int, batch: int, prompt_len: int, num_out: int) -> None:
    """Step until every request has a token.

    Raises:
        RuntimeError: some have ended by then.
    """
    from octavo.engine.messages import AddRequest
    from octavo.types import SamplingParams

    rng = random.Random(1)
    params = SamplingParams(temperature=0.0, max_tokens=num_out, ignore_eos=True)
    waiting = set()
    for index in range(batch):
        prompt = rng.choices(range(vocab_size), k=prompt_len)
        core.add(AddRequest(f"r{index}", prompt, params, []))
        waiting.add(f"r{index}")
    while waiting:
        for output in core.step():
            if output.finish_reason is not None:
                raise RuntimeError(f"a request ended early: {output}")
            waiting.discard(output.request_id)


def step_all(core: Core, batch: int, num_steps: int) -> float:
    """Milliseconds of a step.

    Raises:
        RuntimeError: a step was not one of a token for each request.
    """
    begin = time.perf_counter()
    for _ in range(num_steps):
        if len(core.step()) != batch:
            raise RuntimeError("a step had not the whole batch")
    return (time.perf_counter() - begin) / num_steps * 1e3


def record(core: Core, batch: int, num_steps: int, path: Path) -> None:
    """Write the chrome trace of `num_steps` steps, and two more, to `path`."""
    from torch.profiler import ProfilerActivity, profile, schedule

    activities = [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(
        activities=activities,
        schedule=schedule(wait=0, warmup=WARM_UP, active=num_steps + 2, repeat=1),
        on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
    ) as profiler:
        for _ in range(WARM_UP + num_steps + 2):
            step_all(core, batch, 1)
            profiler.step()


def print_totals(
    console: Console, title: str, totals: dict[str, Total], analysis: Analysis, most: int
) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("us per step", "share", "times per step", "us each"):
        table.add_column(column, justify="right")
    table.add_column("kernel", overflow="fold")
    ordered = sorted(totals.items(), key=lambda item: -item[1].us)
    rest = Total(sum(t.count for _, t in ordered[most:]), sum(t.us for _, t in ordered[most:]))
    rows = [(short_name(name), total) for name, total in ordered[:most]]
    if rest.count:
        rows.append((f"{len(ordered) - most} others", rest))
    for name, total in rows:
        table.add_row(
            f"{total.us / analysis.num_steps:.1f}",
            f"{total.us / analysis.span_us:.1%}",
            f"{total.count / analysis.num_steps:.1f}",
            f"{total.us / total.count:.2f}",
            escape(name),
        )
    console.print(table)


def compress(source: Path, target: Path) -> None:
    with source.open("rb") as plain, gzip.open(target, "wb") as packed:
        shutil.copyfileobj(plain, packed)


def measure(
    options: dict[str, Any], *, batch: int, prompt_len: int, num_steps: int, out: Path | None
) -> tuple[float, Analysis]:
    """Milliseconds of a step without the profiler, and the analysis with it."""
    from octavo.config import EngineConfig
    from octavo.launch import build_engine

    engine = build_engine(EngineConfig(**options))
    try:
        num_out = 2 * num_steps + WARM_UP + 32
        start_decoding(engine.core, engine.info.vocab_size, batch, prompt_len, num_out)
        step_all(engine.core, batch, 5)
        plain_ms = step_all(engine.core, batch, num_steps)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "trace.json"
            record(engine.core, batch, num_steps, path)
            if out is not None:
                compress(path, out)
            analysis = analyze(json.loads(path.read_bytes())["traceEvents"])
        engine.core.abort([f"r{index}" for index in range(batch)])
        while engine.core.has_work:
            engine.core.step()
        return plain_ms, analysis
    finally:
        engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--top", type=int, default=25, help="kernels in the table")
    parser.add_argument("--limit", type=float, default=0.03, help="of the idle share")
    args = parser.parse_args(argv)
    console = make_console()
    with model_folder(args.model) as folder:
        options = {"model": str(folder), **engine_options(args)}
        try:
            plain_ms, analysis = measure(
                options, batch=args.batch, prompt_len=args.prompt_len, num_steps=args.steps,
                out=args.out,
            )  # fmt: skip
        except ValueError as error:
            console.print(f"no analysis: {error}", highlight=False)
            return 1
    setup = environment()
    steps = analysis.num_steps
    busy_ms = analysis.busy_us / steps / 1e3
    print_totals(console, "Kernels by time", analysis.kernels, analysis, args.top)
    print_totals(console, "Idle time by the kernel after it", analysis.gaps, analysis, 8)
    num_kernels = sum(total.count for total in analysis.kernels.values()) / steps
    for line in (
        f"{args.model}, batch {args.batch}, on {setup['card']}, octavo {setup['octavo']} "
        f"({setup['commit']}), {steps} steps",
        f"a step: {plain_ms:.3f} ms; under the profiler {analysis.span_us / steps / 1e3:.3f} ms, "
        f"{num_kernels:.0f} kernels and copies, the device busy for {busy_ms:.3f} ms",
        f"idle: {analysis.idle_share:.2%} of the recorded time; by the steps without the profiler "
        f"{max(0.0, 1 - busy_ms / plain_ms):.2%}",
    ):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return 1 if analysis.idle_share > args.limit else 0


if __name__ == "__main__":
    sys.exit(main())
