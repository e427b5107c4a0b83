"""Which algorithm of cuBLASLt is fastest for which product, and the table that Octavo then uses.

    PYTHONPATH=. python benchmarks/gpu/products.py --out octavo/kernels/product_tables/h200.json
    PYTHONPATH=. python benchmarks/gpu/products.py --models qwen3-4b --shapes 4096x11008

For each weight [n, k] and each number of rows, every algorithm that the library's heuristics name
for about so many rows is timed (all launches in a CUDA graph, over as many copies of the weight as
L2 cannot hold), then the best of them and torch's product in turns; medians. An algorithm is taken
where it needs at most 1/1.02 of torch's time. What --out has of the same card and version stays,
unless it is measured anew.

Numbers of rows that a kernel of Octavo's own computes (`kernels/skinny_linear.py`) are left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.common import environment, make_console
from benchmarks.gpu.graph_timing import graph_ms
from octavo.kernels.cublaslt import Library
from octavo.kernels.library_products import (
    Card,
    Measured,
    Table,
    card_of,
    read_table,
    write_table,
)
from octavo.runner.queued_steps import DECODE_SIZES, MIXED_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

DEVICE = torch.device("cuda:0")
WINS = 1.02
NUM_CANDIDATES = 32  # of each number of rows
NUM_FINALISTS = 5
COPIES_BYTES = 900 << 20
MORE_ROWS = (2048, 4096, 8192)
"""Of steps that are launched kernel by kernel."""

# Hidden size, outputs of q, k and v, inputs of o, size of the feed-forward block, vocabulary.
MODELS: dict[str, tuple[int, int, int, int, int]] = {
    "llama-3.1-8b": (4096, 6144, 4096, 14336, 128256),
    "qwen3-0.6b": (1024, 4096, 2048, 3072, 151936),
    "qwen3-1.7b": (2048, 4096, 2048, 6144, 151936),
    "qwen3-4b": (2560, 6144, 4096, 9728, 151936),
    "qwen3-8b": (4096, 6144, 4096, 12288, 151936),
    "llama-3.2-1b": (2048, 3072, 2048, 8192, 128256),
    "llama-3.2-3b": (3072, 5120, 3072, 8192, 128256),
}

Shape = tuple[int, int]


def shapes_of(model: str) -> list[Shape]:
    """[n, k] of the layers' weights and of the head's, which comes last."""
    hidden, qkv, heads, inner, vocab = MODELS[model]
    return [(qkv, hidden), (hidden, heads), (2 * inner, hidden), (hidden, inner), (vocab, hidden)]


def rows_of(shape: Shape) -> list[int]:
    """Numbers of rows that graphs have, and a few larger ones; a head has no more than decodes."""
    from octavo.kernels.skinny_linear import choose

    n, k = shape
    rows = set(DECODE_SIZES) if n > 100_000 else {*DECODE_SIZES, *MIXED_TOKENS, *MORE_ROWS}
    return sorted(m for m in rows if choose(m, n, k) is None and m >= 8)


class Weights:
    """One shape, with as many copies as L2 cannot hold."""

    def __init__(self, library: Library, shape: Shape, dtype: torch.dtype) -> None:
        n, k = shape
        self._library, self.n, self.k, self.dtype = library, n, k, dtype
        copies = max(2, min(6, COPIES_BYTES // (n * k * dtype.itemsize)))
        self._weights = [
            torch.randn(n, k, device=DEVICE, dtype=dtype).mul_(0.02) for _ in range(copies)
        ]
        self._pool: dict[int, list[bytes]] = {}

    def candidates(self, m: int, rows: Sequence[int]) -> list[bytes]:
        """What the library names for m rows, or for half to twice as many."""
        found: dict[bytes, None] = {}
        for other in sorted(rows, key=lambda other: abs(other - m)):
            if m <= 2 * other and other <= 2 * m:
                if other not in self._pool:
                    product = self._library.product(other, self.n, self.k, self.dtype)
                    self._pool[other] = product.candidates(NUM_CANDIDATES)
                found |= dict.fromkeys(self._pool[other])
        return list(found)

    def measure(self, m: int, rows: Sequence[int]) -> tuple[float, float, bytes | None]:
        """Microseconds of torch's product and of the best other one, and what that is."""
        x = torch.randn(m, self.k, device=DEVICE, dtype=self.dtype)
        product = self._library.product(m, self.n, self.k, self.dtype)
        weights = self._weights if m <= 512 else self._weights[:2]
        exact = x[:16].float() @ self._weights[0].float().T

        def calls_of(algorithm: Any) -> list[Callable[[], Any]]:
            return [lambda w=w: product.multiply(x, w, algorithm) for w in weights]

        def torch_us() -> float:
            return graph_ms([lambda w=w: F.linear(x, w) for w in weights], 3) * 1e3

        first: dict[bytes, float] = {}
        loaded: dict[bytes, Any] = {}
        for algorithm in self.candidates(m, rows):
            made = product.load(algorithm)
            if made is None:
                continue
            out = product.multiply(x, self._weights[0], made)[:16].float()
            error = float((out - exact).norm() / exact.norm())
            if error > 5e-3:
                raise RuntimeError(f"an algorithm's result is wrong by {error}")
            loaded[algorithm] = made
            first[algorithm] = graph_ms(calls_of(made), 1) * 1e3
        best = sorted(first, key=lambda algorithm: first[algorithm])[:NUM_FINALISTS]
        theirs: list[float] = []
        ours: dict[bytes, list[float]] = {algorithm: [] for algorithm in best}
        for _ in range(5):
            theirs.append(torch_us())
            for algorithm in best:
                ours[algorithm].append(graph_ms(calls_of(loaded[algorithm]), 3) * 1e3)
        base = statistics.median(theirs)
        if not best:
            return base, base, None
        medians = {algorithm: statistics.median(times) for algorithm, times in ours.items()}
        winner = min(medians, key=lambda algorithm: medians[algorithm])
        return base, medians[winner], winner if base >= WINS * medians[winner] else None


def measure_shape(library: Library, shape: Shape, dtype: torch.dtype) -> tuple[Measured, str]:
    """Its rows of the table, and a line about them."""
    weights, rows = Weights(library, shape, dtype), rows_of(shape)
    found = {m: weights.measure(m, rows) for m in rows}
    cells = [
        f"{m}: {base:.1f}/{best:.1f}" + ("" if algorithm else " torch")
        for m, (base, best, algorithm) in found.items()
    ]
    measured = Measured(tuple(rows), tuple(algorithm for _, _, algorithm in found.values()))
    return measured, "  ".join(cells)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="*", choices=MODELS, default=["llama-3.1-8b"])
    parser.add_argument("--shapes", nargs="*", default=[], metavar="NxK", help="more weights")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--seconds", type=float, default=300.0, help="no shape begun after that")
    parser.add_argument("--out", type=Path, help="the table; other shapes in it stay")
    args = parser.parse_args(argv)
    console, begin = make_console(), time.monotonic()
    library, dtype = Library(DEVICE), getattr(torch, args.dtype)
    card = card_of(library)
    table: Table = _kept(args.out, card)
    measured_on = str(environment()["card"])
    shapes = dict.fromkeys(shape for model in args.models for shape in shapes_of(model))
    shapes |= dict.fromkeys(_parse(text) for text in args.shapes)
    for shape in shapes:
        if time.monotonic() - begin > args.seconds:
            console.print(f"no time for {shape}")
            continue
        started = time.monotonic()
        table[dtype, *shape], line = measure_shape(library, shape, dtype)
        torch.cuda.empty_cache()
        took = time.monotonic() - started
        console.print(f"{shape[0]}x{shape[1]}, {took:.1f} s, torch/best us: {line}", markup=False,
                      highlight=False, soft_wrap=True)  # fmt: skip
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(
                write_table(card, table, measured_on=measured_on, torch=torch.__version__)
            )
    return 0


def _kept(file: Path | None, card: Card) -> Table:
    if file is None or not file.exists():
        return {}
    other, table = read_table(file.read_text())
    return table if other == card else {}


def _parse(text: str) -> Shape:
    n, _, k = text.partition("x")
    return int(n), int(k)


if __name__ == "__main__":
    sys.exit(main())
