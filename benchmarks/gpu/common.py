"""What the benchmarks of this folder share: the card's name, records, baselines and their table.

Knows no engine. A measure's name and metrics are those of `baselines_*.json`, a file for each card,
whose figures are shown beside ours only when card, shape and all lengths are the same.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LENGTHS = HERE / "lengths_mixed500.json"


class Metric(NamedTuple):
    """How a figure is shown, and which way is better."""

    label: str
    digits: int
    is_rate: bool = False


METRICS: dict[str, Metric] = {
    "ms_per_step": Metric("ms per step", 3),
    "ms_per_token": Metric("ms per token", 3),
    "first_token_ms": Metric("first token, ms", 1),
    "output_tokens_per_s": Metric("output tokens/s", 0, is_rate=True),
    "prompt_tokens_per_s": Metric("prompt tokens/s", 0, is_rate=True),
    "total_ms": Metric("ms", 1),
    "total_s": Metric("s", 3),
    "cold_s": Metric("s, cache empty", 3),
    "warm_s": Metric("s, prefix cached", 3),
    "ttft_p50_ms": Metric("TTFT p50, ms", 1),
    "ttft_p99_ms": Metric("TTFT p99, ms", 1),
    "tpot_p50_ms": Metric("TPOT p50, ms", 2),
    "tpot_p99_ms": Metric("TPOT p99, ms", 2),
    "itl_p50_ms": Metric("ITL p50, ms", 2),
    "itl_p99_ms": Metric("ITL p99, ms", 2),
    "ready_s": Metric("s to ready", 2),
    "first_token_s": Metric("s to first token", 2),
}


@dataclass
class Measure:
    """One line of results: `metrics` are named in `METRICS`, `details` are whatever explains them.

    `notes` are short texts for the table's last column.
    """

    name: str
    metrics: dict[str, float]
    details: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def environment() -> dict[str, Any]:
    """Card, versions, commit and time: what a figure is worth nothing without.

    Does not touch the card: a process that measures another one's start must not warm the driver
    up, nor take memory.
    """
    from octavo.version import __version__

    return {
        **_card(),
        "octavo": __version__,
        "commit": _commit(),
        "torch": _version("torch"),
        "triton": _version("triton"),
        "python": platform.python_version(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _card() -> dict[str, str]:
    """What the driver's own tool says of the first card; without it, the processor's kind."""
    fields = ("name", "driver_version", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"card": platform.machine()}
    values = [value.strip() for value in done.stdout.splitlines()[0].split(",")]
    return dict(zip(("card", "driver", "power_limit"), values, strict=True))


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """`unknown` where the tree came without its history, also if it lies in another repository."""
    top = _git("rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != ROOT:
        return "unknown"
    return _git("describe", "--always", "--dirty") or "unknown"


def _git(*arguments: str) -> str:
    """What git says in the tree's root, empty if it fails."""
    command = ["git", "-C", str(ROOT), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


class Records:
    """Appends JSON lines to a file, and keeps the measures for the table."""

    def __init__(self, path: Path | None, **common: Any) -> None:
        self._path = path
        self._common = common
        self.measures: list[Measure] = []

    def write(self, kind: str, **fields: Any) -> None:
        """One line; nothing without a file."""
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"record": kind, **self._common, **fields}) + "\n")

    def add(self, measure: Measure) -> None:
        """Keep it and write it at once: a run that is cut off leaves what it measured."""
        self.measures.append(measure)
        self.write(
            "measure", name=measure.name, metrics=measure.metrics, details=measure.details,
            notes=measure.notes,
        )  # fmt: skip


class Baselines:
    """The other engine's figures for one shape on one card; for another of either there are none.

    A file's `card` begins with the name that the driver gives it; what else tells it apart from its
    kin stands behind that in brackets.

    Args:
        card: the driver's name, which is also `torch.cuda.get_device_name`'s.
        shape: of `shapes.py`.

    Attributes:
        source: a line that says whose figures they are, and of which card.
    """

    def __init__(self, card: str, shape: str) -> None:
        self._figures: dict[str, dict[str, float]] = {}
        self.source = f"compared with nothing: no figures of {shape} on {card}"
        for path in sorted(HERE.glob("baselines_*.json")):
            content = json.loads(path.read_text())
            if content["card"].partition(" (")[0] == card and shape in content["shapes"]:
                self._figures = content["shapes"][shape]
                self.source = f"theirs: {content['engine']} on {content['card']}, {content['date']}"

    def get(self, name: str, metric: str) -> float | None:
        return self._figures.get(name, {}).get(metric)


def times_better(metric: str, ours: float, theirs: float) -> float:
    """Above 1: ours is better, whichever way the metric goes."""
    return ours / theirs if METRICS[metric].is_rate else theirs / ours


def print_table(
    console: Console, measures: Sequence[Measure], baselines: Baselines | None, title: str
) -> None:
    """Ours, theirs, and how many times better ours is; a dry run has no `baselines`."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), title_justify="left", box=None, pad_edge=False)
    for column in ("measure", "figure"):
        table.add_column(column, no_wrap=True)
    for column in ("ours", "theirs", "times better"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("what else", overflow="fold")
    for measure in measures:
        notes = "; ".join(measure.notes)
        for index, (name, value) in enumerate(measure.metrics.items()):
            metric = METRICS[name]
            theirs = baselines.get(measure.name, name) if baselines is not None else None
            table.add_row(
                escape(measure.name) if not index else "",
                metric.label,
                f"{value:,.{metric.digits}f}",
                "" if theirs is None else f"{theirs:,.{metric.digits}f}",
                "" if theirs is None else f"{times_better(name, value, theirs):.3f}",
                escape(notes) if not index else "",
            )
    console.print(table)
    if baselines is not None:
        console.print(baselines.source, highlight=False, markup=False)


def make_console() -> Console:
    """Wide enough for the tables also where the output goes to a file."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=150)


def make_parser(description: str | None, **defaults: Any) -> argparse.ArgumentParser:
    """A parser with the flags that all scripts have."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        default="llama-3.1-8b",
        help="a shape of shapes.py, or a model folder (default: %(default)s)",
    )
    parser.add_argument("--load-format", default="dummy", help="default: %(default)s")
    parser.add_argument(
        "--max-model-len", type=int, default=8192, help="default: %(default)s, as theirs"
    )
    parser.add_argument(
        "--kw",
        type=json.loads,
        default={},
        metavar="JSON",
        help="more fields of the engine's configuration, such as '{\"enforce_eager\": true}'",
    )
    parser.add_argument("--out", type=Path, default=None, help="file for the results")
    parser.set_defaults(**defaults)
    return parser


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """Fields of `EngineConfig`, without `model`, out of the flags of `make_parser`."""
    return {"load_format": args.load_format, "max_model_len": args.max_model_len, **args.kw}


def flags_of(options: dict[str, Any]) -> list[str]:
    """The same fields as flags of `octavo serve`; what is the default anyway is left out."""
    from octavo.config import EngineConfig

    defaults = {field.name: field.default for field in msgspec.structs.fields(EngineConfig)}
    flags: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value == defaults[name]:
            continue
        if isinstance(value, bool):
            flags.append(flag if value else flag.replace("--", "--no-", 1))
        else:
            flags += [flag, str(value)]
    return flags
