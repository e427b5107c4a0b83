"""Products of few rows on this card: the library's (cuBLAS) and ours, against the bandwidth.

    PYTHONPATH=. python benchmarks/gpu/matmul.py [--quick] [--seconds 230] [--models 8B 0.6B]

Times are of the device alone: calls are captured in a CUDA graph, one after the other over as many
copies of the weight as take 256 MB (so that none is found in the L2 cache), and replayed; medians.
First all tiles without dependent launch, then the best of them with it. Every configuration is
compared with float32 before it is timed, with itself, and with other values in the other rows.

Then all products of a model's step in one graph, one weight after the other, with and without a
norm before each: in a model a product never follows a product. Without one, dependent launch loses
what it gains, because a product's programs settle where the one before happens to end first.

Prints the best of each shape, the sums, and two tables for `octavo/kernels/skinny_linear.py` that
need few compiled kernels. With OUT in the environment all numbers are left there as matmul.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.graph_timing import graph_ms
from octavo.kernels import skinny_linear as skinny
from octavo.kernels.norm import rms_norm
from octavo.kernels.skinny_linear import Config, compile_all, skinny_linear

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

DTYPE, DEVICE = torch.bfloat16, torch.device("cuda:0")
ROTATED_BYTES = 256 * 1024**2
ROWS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128)
BUCKETS = (1, 16, 32, 64, 128)
PREFETCHES = (0, 1, 2, 4)
WINS = 0.99  # of the library's time, or the library is taken


@dataclass(frozen=True)
class Shape:
    """A layer's weight [n, k], `count` of them in a step."""

    model: str
    name: str
    n: int
    k: int
    count: int

    @property
    def label(self) -> str:
        return f"{self.model} {self.name}"

    @property
    def num_bytes(self) -> int:
        return self.n * self.k * DTYPE.itemsize


SHAPES = [
    Shape("8B", "qkv", 6144, 4096, 32),
    Shape("8B", "o", 4096, 4096, 32),
    Shape("8B", "gate_up", 28672, 4096, 32),
    Shape("8B", "down", 4096, 14336, 32),
    Shape("8B", "head", 128256, 4096, 1),
    Shape("0.6B", "qkv", 4096, 1024, 28),
    Shape("0.6B", "o", 1024, 2048, 28),
    Shape("0.6B", "gate_up", 6144, 1024, 28),
    Shape("0.6B", "down", 1024, 3072, 28),
    Shape("0.6B", "head", 151936, 1024, 1),
]

# (block_n, block_k, warps, stages), the first ones are what --quick takes.
GEMV = [
    (8, 512, 4, 1), (4, 1024, 4, 1), (16, 512, 4, 3), (8, 512, 4, 4), (8, 1024, 8, 1),
    (4, 512, 4, 1), (16, 512, 8, 1), (4, 1024, 4, 3), (16, 256, 4, 4), (2, 1024, 2, 1),
    (4, 512, 2, 4), (32, 256, 8, 4),
]  # fmt: skip
DOT = {
    16: [
        (32, 256, 4, 4), (64, 128, 4, 4), (16, 256, 2, 4), (16, 512, 4, 3), (32, 128, 4, 6),
        (32, 512, 4, 3), (64, 128, 4, 6), (64, 256, 4, 3), (64, 64, 4, 6), (128, 64, 4, 6),
        (128, 128, 4, 4),
    ],
    32: [
        (64, 128, 4, 4), (32, 256, 4, 4), (64, 128, 4, 6), (128, 64, 4, 6), (32, 128, 4, 6),
    ],
    64: [
        (64, 128, 4, 4), (64, 128, 4, 3), (32, 128, 4, 5), (32, 256, 4, 3), (64, 64, 4, 6),
        (64, 256, 4, 2), (128, 64, 4, 4), (128, 64, 4, 6), (128, 64, 8, 4), (128, 128, 8, 3),
    ],
    128: [
        (64, 128, 4, 3), (128, 64, 8, 4), (64, 64, 4, 5), (128, 64, 8, 6), (128, 128, 8, 3),
    ],
}  # fmt: skip
TMA = {
    16: [(64, 128, 4, 4), (64, 128, 4, 6), (64, 256, 4, 4), (64, 256, 4, 5), (128, 64, 4, 6),
         (128, 128, 4, 4), (128, 128, 4, 6)],
    32: [(64, 128, 4, 6), (64, 256, 4, 4), (64, 128, 4, 4), (128, 64, 4, 6), (128, 128, 4, 4),
         (128, 128, 8, 5)],
    64: [(64, 128, 4, 6), (64, 128, 4, 4), (64, 64, 4, 6), (128, 64, 4, 4), (128, 64, 8, 6),
         (128, 128, 8, 4), (64, 256, 4, 3)],
    128: [(64, 128, 4, 4), (64, 64, 4, 8), (128, 64, 8, 6), (128, 64, 4, 6), (128, 128, 8, 3)],
}  # fmt: skip
NUM_QUICK = {"gemv": 3, "dot": 2, "tma": 2}


def bucket(m: int) -> int:
    """Rows that the kernel for m rows is compiled for."""
    return next(size for size in BUCKETS if m <= size)


def tiles_for(m: int, quick: bool) -> list[Config]:
    """Configurations for m rows, undivided and without dependent launch."""
    size = max(bucket(m), 16)
    lists = {"gemv": GEMV if m == 1 else [], "dot": DOT[size], "tma": TMA[size]}
    return [
        Config(kind, *tile)
        for kind, tiles in lists.items()
        for tile in (tiles[: NUM_QUICK[kind]] if quick else tiles)
    ]


def divided(config: Config, shape: Shape, num_sms: int) -> list[Config]:
    """With as many parts as can pay: a wave or a few of programs, two steps at least for each."""
    tiles, steps = -(-shape.n // config.block_n), -(-shape.k // config.block_k)
    splits = [
        s
        for s in (1, 2, 4, 8)
        if s == 1 or (steps >= 2 * s and num_sms // 2 <= tiles * s <= num_sms * 8)
    ]
    return [replace(config, split_k=s) for s in splits]


class Problem:
    """One shape's weights, and inputs of up to 128 rows with their products in float32."""

    def __init__(self, shape: Shape) -> None:
        copies = min(max(-(-ROTATED_BYTES // shape.num_bytes), 2), 64)
        self.weights = torch.randn(copies, shape.n, shape.k, device=DEVICE, dtype=DTYPE)
        self.x = torch.randn(max(ROWS), shape.k, device=DEVICE, dtype=DTYPE)
        self.expected = torch.empty(max(ROWS), shape.n, device=DEVICE)
        for at in range(0, shape.n, 16384):
            part = self.weights[0, at : at + 16384].float()
            self.expected[:, at : at + 16384] = self.x.float() @ part.T

    def library_ms(self, m: int) -> float:
        x = self.x[:m]
        return graph_ms([lambda w=w: F.linear(x, w) for w in self.weights], 11)

    def check(self, m: int, config: Config) -> None:
        """Raises AssertionError: not float32's result, or not the same twice, or rows mix."""
        weight = self.weights[0]
        for rows in {m, max(m - 1, 1)}:
            x = self.x[:rows]
            out = skinny_linear(x, weight, None, config)
            expected = self.expected[:rows]
            error = float((out.float() - expected).norm() / expected.norm())
            assert error < 3e-3, f"relative error {error} of {rows} rows"
            assert torch.equal(out, skinny_linear(x, weight, None, config)), "differs from itself"
            other = torch.randn_like(x)
            other[-1] = x[-1]
            out_other = skinny_linear(other, weight, None, config)
            assert torch.equal(out[-1], out_other[-1]), "a row depends on the others"

    def ms(self, m: int, config: Config) -> float:
        self.check(m, config)
        x = self.x[:m]
        return graph_ms([lambda w=w: skinny_linear(x, w, None, config) for w in self.weights], 11)


Cell = tuple[Shape, int]


class Results:
    """Milliseconds by (shape, m), of the library (None) and of configurations."""

    def __init__(self) -> None:
        self.ms: dict[Cell, dict[Config | None, float]] = defaultdict(dict)
        self.errors: list[dict[str, Any]] = []

    def library(self, shape: Shape, m: int) -> float:
        return self.ms[shape, m][None]

    def ours(self, cells: Sequence[Cell], *, pdl: bool) -> list[tuple[float, Config]]:
        """Mean ratio to the library, best first, of what was measured in all cells.

        Args:
            cells: pairs of a shape and a number of rows.
            pdl: whether dependent launch is allowed.
        """
        common = set.intersection(*(set(self.ms[cell]) for cell in cells)) - {None}
        ratios = [
            (statistics.mean(self.ms[cell][c] / self.library(*cell) for cell in cells), c)
            for c in common
            if c is not None and (pdl or not c.pdl)
        ]
        return sorted(ratios, key=lambda r: r[0])

    def cells(self, size: int) -> dict[Shape, list[Cell]]:
        """What was measured in a bucket of rows, by shape."""
        found: dict[Shape, list[Cell]] = defaultdict(list)
        for shape, m in self.ms:
            if bucket(m) == size:
                found[shape].append((shape, m))
        return {s: cells for s, cells in found.items() if self.ours(cells, pdl=True)}

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"shape": asdict(shape), "m": m, "config": c and asdict(c), "ms": ms}
            for (shape, m), found in self.ms.items()
            for c, ms in found.items()
        ]


def try_all(
    results: Results, problem: Problem, shape: Shape, m: int, configs: Iterable[Config],
    deadline: float,
) -> bool:  # fmt: skip
    """False if the time was not enough for all."""
    for config in configs:
        if time.monotonic() > deadline:
            return False
        try:
            results.ms[shape, m][config] = problem.ms(m, config)
        except torch.AcceleratorError:
            raise  # nothing works after a fault
        except Exception as error:  # tiles that do not fit the card, or are wrong
            record = {"shape": shape.label, "m": m, "config": asdict(config)}
            results.errors.append(record | {"error": repr(error)[:200]})
    return True


def sweep(shapes: list[Shape], rows: Sequence[int], quick: bool, deadline: float) -> Results:
    results = Results()
    num_sms = torch.cuda.get_device_properties(DEVICE).multi_processor_count
    begin = time.monotonic()
    calls = [(m, 1024, c) for m in {max(bucket(m), 1) for m in rows} for c in tiles_for(m, quick)]
    calls += [(m, k, replace(c, pdl=True)) for m, k, c in calls]
    failures = compile_all(calls, DTYPE, DEVICE, num_threads=os.cpu_count() or 8)
    for config, error in failures.items():
        results.errors.append({"config": asdict(config), "error": error})
    print(f"{len(calls)} kernels compiled in {time.monotonic() - begin:.1f} s", flush=True)
    for shape in shapes:
        begin = time.monotonic()
        problem = Problem(shape)
        finished = True
        for size in BUCKETS:
            cells = [(shape, m) for m in rows if bucket(m) == size]
            for _, m in cells:
                results.ms[shape, m][None] = problem.library_ms(m)
                configs = [c for t in tiles_for(m, quick) for c in divided(t, shape, num_sms)]
                finished &= try_all(results, problem, shape, m, configs, deadline)
            finalists = [c for _, c in results.ours(cells, pdl=False)[:4]] if cells else []
            with_pdl = [replace(c, pdl=True, prefetch=p) for c in finalists for p in PREFETCHES]
            for _, m in cells:
                finished &= try_all(results, problem, shape, m, with_pdl, deadline)
        del problem
        torch.cuda.empty_cache()
        took = time.monotonic() - begin
        print(f"{shape.label}: {took:.1f} s{'' if finished else ', CUT SHORT'}", flush=True)
    assert not skinny._counters(DEVICE).any(), "a divided product left its counters behind"
    return results


def text_of(config: Config | None) -> str:
    if config is None:
        return "library"
    c = config
    pdl = f" pdl {c.prefetch}" if c.pdl else ""
    return (f"{c.kind} {c.block_n}x{c.block_k} w{c.num_warps} s{c.num_stages} "
            f"/{c.split_k}{pdl}")  # fmt: skip


def print_best(results: Results, bandwidth: float) -> None:
    print(f"\n{'shape':14}{'m':>4}  {'library':>22}  {'ours, plain':>23}  {'with pdl':>23}")
    for (shape, m), found in results.ms.items():
        if not results.ours([(shape, m)], pdl=True):
            continue
        library = found[None]
        cells = [f"{library * 1e3:7.1f} us {shape.num_bytes / library / 1e6:5.0f} GB/s"]
        names = []
        for pdl in (False, True):
            ratio, config = results.ours([(shape, m)], pdl=pdl)[0]
            ms = ratio * library
            rate = shape.num_bytes / ms / 1e6
            cells.append(f"{ms * 1e3:7.1f} us {rate / bandwidth:4.0%} x{ratio:.2f}")
            names.append(text_of(config))
        print(f"{shape.label:14}{m:4}  {'  '.join(cells)}  {names[0]} | {names[1]}")


def print_sums(results: Results, bandwidth: float) -> None:
    print("\nsums over a step, ms")
    models = {s.model: [t for t in SHAPES if t.model == s.model] for s, _ in results.ms}
    for model, shapes in models.items():
        floor = sum(s.num_bytes * s.count for s in shapes) / bandwidth / 1e6
        for m in sorted({m for s, m in results.ms if s.model == model}):
            if not all((s, m) in results.ms and results.ours([(s, m)], pdl=True) for s in shapes):
                continue
            library = sum(results.library(s, m) * s.count for s in shapes)
            ours = [
                sum(
                    results.library(s, m) * min(1, results.ours([(s, m)], pdl=pdl)[0][0]) * s.count
                    for s in shapes
                )
                for pdl in (False, True)
            ]
            print(f"  {model:5} m {m:3}: library {library:.3f}, ours plain {ours[0]:.3f}, "
                  f"with pdl {ours[1]:.3f}, bytes over bandwidth {floor:.3f}")  # fmt: skip


Table = dict[tuple[Shape, int], Config | None]
"""By shape and bucket of rows: one configuration for all m in it, so that results depend on m
little; None: the library."""


def few_kernels(results: Results, pdl: bool, most: int) -> Table:
    """For each shape the best that `most` compiled kernels for each bucket of rows can do."""
    chosen: Table = {}
    for size in BUCKETS:
        ranked = {
            shape: results.ours(cells, pdl=pdl) for shape, cells in results.cells(size).items()
        }
        if not ranked:
            continue

        def best(
            shape: Shape, kernels: set[Config], ranked: dict[Shape, Any] = ranked
        ) -> tuple[float, Config | None]:
            usable = (r for r in ranked[shape] if kernel_of(r[1]) in kernels and r[0] < WINS)
            return next(usable, (1.0, None))

        def cost(kernels: set[Config], ranked: dict[Shape, Any] = ranked) -> float:
            return statistics.mean(best(shape, kernels, ranked)[0] for shape in ranked)

        kernels: set[Config] = set()
        everything = {kernel_of(c) for found in ranked.values() for _, c in found}
        for _ in range(most):
            added = min(everything, key=lambda c: cost(kernels | {c}))
            if cost(kernels | {added}) > cost(kernels) - 0.002:
                break
            kernels.add(added)
        print(f"  up to {size:3} rows: {cost(kernels):.3f} of the library's time, with all kernels "
              f"{cost(everything):.3f}: {', '.join(text_of(c) for c in kernels)}")  # fmt: skip
        chosen |= {(shape, size): best(shape, kernels)[1] for shape in ranked}
    return chosen


def general_rules(results: Results, pdl: bool) -> list[tuple[int, int, Config]]:
    """For shapes not measured: what won on every measured one from some n on, the widest range."""
    rules: list[tuple[int, int, Config]] = []
    for size in BUCKETS:
        found = results.cells(size)
        for least in sorted({shape.n for shape in found}):
            cells = [c for shape, cs in found.items() if shape.n >= least for c in cs]
            safe = (
                config
                for _, config in results.ours(cells, pdl=pdl)
                if all(results.ms[cell][config] < WINS * results.library(*cell) for cell in cells)
            )
            if config := next(safe, None):
                rules.append((size, least, config))
                break
    return rules


def kernel_of(config: Config) -> Config:
    return replace(config, split_k=min(config.split_k, 2), prefetch=0)


def source_of(config: Config | None) -> str:
    if config is None:
        return "None"
    c = config
    tail = f", {c.split_k}" if c.split_k > 1 else ""
    tail += f", pdl=True, prefetch={c.prefetch}" if c.pdl else ""
    tile = f"{c.block_n}, {c.block_k}, {c.num_warps}, {c.num_stages}"
    return f'Config("{c.kind}", {tile}{tail})'


def table_source(table: Table) -> str:
    by_shape: dict[tuple[int, int], list[str]] = defaultdict(list)
    for (shape, size), config in sorted(table.items(), key=lambda r: r[0][1]):
        by_shape[shape.n, shape.k].append(f"        ({size}, {source_of(config)}),")
    lines = [f"    {key}: (\n" + "\n".join(rows) + "\n    )," for key, rows in by_shape.items()]
    return "\n".join(["{", *lines, "}"])


class Step:
    """All weights of a model, and its products in the order of a step."""

    def __init__(self, model: str) -> None:
        self.shapes = [s for s in SHAPES if s.model == model]
        self.weights = {
            s: torch.empty(s.count, s.n, s.k, device=DEVICE, dtype=DTYPE).normal_()
            for s in self.shapes
        }
        *layer, head = self.shapes
        self.order = [(s, i) for i in range(layer[0].count) for s in layer] + [(head, 0)]

    def ms(self, m: int, table: Table, between: bool) -> float:
        inputs = {s: torch.randn(m, s.k, device=DEVICE, dtype=DTYPE) for s in self.shapes}
        norms = {s: torch.ones(s.k, device=DEVICE, dtype=DTYPE) for s in self.shapes}

        def run() -> None:
            for shape, i in self.order:
                x, weight, config = (
                    inputs[shape],
                    self.weights[shape][i],
                    table.get((shape, bucket(m))),
                )
                if between:
                    x = rms_norm(x, norms[shape], 1e-5)
                if config is None:
                    F.linear(x, weight)
                else:
                    skinny_linear(x, weight, None, config)

        return graph_ms([run])


def print_steps(tables: dict[str, Table], models: Sequence[str], rows: Sequence[int]) -> list[Any]:
    print("\nall products of a step in one graph, ms: alone | with a norm before each")
    records = []
    for model in models:
        step = Step(model)
        for m in rows:
            cells = []
            for name, table in ({"library": {}} | tables).items():
                ms = [step.ms(m, table, between) for between in (False, True)]
                records.append({"model": model, "m": m, "table": name, "ms": ms})
                cells.append(f"{name} {ms[0]:.3f} | {ms[1]:.3f}")
            print(f"  {model:5} m {m:3}: {', '.join(cells)}", flush=True)
        del step
        torch.cuda.empty_cache()
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few configurations, m of 1, 8, 64")
    parser.add_argument("--seconds", type=float, help="for the sweep; 190, or 60 with --quick")
    parser.add_argument("--models", nargs="*", default=["8B", "0.6B"])
    parser.add_argument("--rows", type=int, nargs="*", choices=ROWS)
    parser.add_argument("--kernels", type=int, default=2, help="most, for a bucket of rows")
    parser.add_argument("--bandwidth", type=float, default=3003, help="of the card, GB/s")
    args = parser.parse_args()
    import triton

    start = time.monotonic()
    rows = args.rows or ((1, 8, 64) if args.quick else ROWS)
    deadline = start + (args.seconds or (60 if args.quick else 190))
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}, {DTYPE}")
    shapes = [s for s in SHAPES if s.model in args.models]
    results = sweep(shapes, rows, args.quick, deadline)
    print_best(results, args.bandwidth)
    print_sums(results, args.bandwidth)
    tables = {}
    for name, pdl in (("plain", False), ("pdl", True)):
        print(f"\nfew kernels, {name}:")
        tables[name] = few_kernels(results, pdl, args.kernels)
    for name, table in tables.items():
        print(f"\nTABLE, {name} = {table_source(table)}")
        rules = general_rules(results, pdl=name == "pdl")
        print(f"GENERAL, {name} = (")
        for size, least, config in rules:
            print(f"    ({size}, {least}, {source_of(config)}),")
        print(")")
    steps = print_steps(tables, args.models, [m for m in rows if m in (1, 8, 32, 64)])
    for error in results.errors[:20]:
        print("failed:", error)
    if len(results.errors) > 20:
        print(f"and {len(results.errors) - 20} more")
    print(f"{time.monotonic() - start:.0f} s")
    if out := os.environ.get("OUT"):
        report = {"card": torch.cuda.get_device_name(), "versions": versions, "steps": steps,
                  "results": results.as_json(), "errors": results.errors}  # fmt: skip
        Path(out, "matmul.json").write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
