"""How fast paged attention is on this card, against bytes over bandwidth and torch's own kernels.

    PYTHONPATH=. python benchmarks/gpu/attention.py [--sweep] [--pages 16 32 64 128]

Times are of the device alone: calls are captured in a CUDA graph, one after the other over as many
caches as 256 MB take (so that none is found in the L2 cache), and replayed; medians. Every shape of
a sweep is compared with the default one before it is timed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.graph_timing import graph_ms
from octavo.attention.interface import AttentionSpec, BatchLayout, LayerAttention
from octavo.attention.triton_paged import TritonAttention, default_tunings
from octavo.attention.tunings import Sharing, Tuning
from octavo.attention.work import StepShape

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HEADS, KV_HEADS, DIM = 32, 8, 128
DTYPE, DEVICE = torch.bfloat16, torch.device("cuda:0")
L2_BYTES = 256 * 1024**2
Seqs = list[tuple[int, int]]

DECODES: dict[str, Seqs] = {
    f"{batch} x {context}": [(1, context - 1)] * batch
    for batch, context in [
        (1, 128), (1, 1024), (1, 8192), (8, 1024), (8, 8192), (32, 512), (32, 4096),
        (64, 256), (64, 1024), (64, 4096), (128, 256), (128, 1024), (256, 256), (256, 1024),
    ]
}  # fmt: skip
DECODES["256, lengths 100..2048"] = [
    (1, n - 1) for n in np.random.default_rng(1).integers(100, 2048, 256).tolist()
]
DECODES["1 x 8192 and 63 x 256"] = [(1, 8191)] + [(1, 255)] * 63
PREFILLS: dict[str, Seqs] = {
    "1 x 4096": [(4096, 0)],
    "16 x 512": [(512, 0)] * 16,
    "2048 after 2048": [(2048, 2048)],
    "512 after 3584": [(512, 3584)],
    "64 after 4032": [(64, 4032)],
}
# Tokens that all begin with; then steps of which each sequence has some of its own.
SHARED: dict[str, tuple[int, Seqs]] = {
    f"{batch} x ({prefix} + {own})": (prefix, [(1, prefix + own - 1)] * batch)
    for batch, prefix, own in [
        (4, 2048, 96), (8, 2048, 96), (16, 512, 96), (64, 256, 96), (64, 1024, 512),
        (64, 2048, 96), (256, 512, 96), (256, 2048, 96),
    ]
}  # fmt: skip
# What a step costs in a graph that is larger than itself.
PADDED: dict[str, tuple[Seqs, list[StepShape | None]]] = {
    "64 x 1024": (
        [(1, 1023)] * 64,
        [None, StepShape(64, 64), StepShape(128, 128), StepShape(256, 256),
         StepShape(64, 64, shares=True), StepShape(256, 256, shares=True),
         StepShape(256, 128), StepShape(1024, 256)],
    ),
    "63 x 1024 and 512": (
        [(1, 1023)] * 63 + [(512, 0)],
        [None, StepShape(1024, 64), StepShape(1024, 256)],
    ),
}  # fmt: skip
SWEPT_DECODES = ("1 x 1024", "1 x 8192", "8 x 8192", "64 x 256", "64 x 1024", "256 x 1024")
SWEPT_PREFILLS = ("1 x 4096", "16 x 512", "512 after 3584")


def spec_of(page: int) -> AttentionSpec:
    return AttentionSpec(HEADS, KV_HEADS, DIM, DTYPE, DEVICE, page, frozenset({None}))


def layout_of(seqs: Seqs, page: int, prefix: int = 0) -> tuple[BatchLayout, int]:
    """Blocks in random order, as in a cache that has been in use for a while.

    All sequences have the full blocks of the first `prefix` tokens in common.
    """
    query, context = (np.array(x, np.int64) for x in zip(*seqs, strict=True))
    counts = -(-(query + context) // page)
    free = np.random.default_rng(0).permutation(int(counts.sum()))
    tables = np.zeros((len(seqs), int(counts.max())), np.int64)
    for seq, count in enumerate(counts):
        tables[seq, :count], free = free[:count], free[count:]
    tables[:, : prefix // page] = tables[0, : prefix // page]
    return BatchLayout(np.concatenate([[0], np.cumsum(query)]), context, tables), int(counts.sum())


NEVER_SHARES = TritonAttention(sharing=Sharing(min_seqs=10**6))


class Problem:
    """A step of one layer, with as many caches as defeat the L2 cache."""

    def __init__(self, seqs: Seqs, page: int, prefix: int = 0) -> None:
        self.spec = spec_of(page)
        self.layout, num_blocks = layout_of(seqs, page, prefix)
        tokens = int(self.layout.query_starts[-1])
        self.kv_bytes = int(self.layout.seq_lens.sum()) * KV_HEADS * DIM * 2 * DTYPE.itemsize
        new, old = self.layout.query_lens, self.layout.context_lens
        self.flops = 4 * HEADS * DIM * int((new * old + new * (new + 1) // 2).sum())
        spared = (len(seqs) - 1) * (prefix // page * page) * KV_HEADS * DIM * 2 * DTYPE.itemsize
        num_caches = min(max(L2_BYTES // (self.kv_bytes - spared), 2), 100)
        self.q = torch.randn(tokens, HEADS, DIM, device=DEVICE, dtype=DTYPE)
        self.kv = torch.randn(2, tokens, KV_HEADS, DIM, device=DEVICE, dtype=DTYPE)
        shape = TritonAttention().allocate(self.spec, num_blocks).shape
        self.caches = [torch.randn(shape, device=DEVICE, dtype=DTYPE) for _ in range(num_caches)]
        self.expected = self.call(NEVER_SHARES)(self.caches[0])

    def call(
        self, backend: TritonAttention, pad_to: StepShape | None = None
    ) -> Callable[[torch.Tensor], torch.Tensor]:
        meta = backend.plan(self.spec, self.layout, pad_to)
        layer = LayerAttention(DIM**-0.5)
        return lambda cache: backend.forward(layer, self.q, *self.kv, cache, meta)

    def check(self, out: torch.Tensor) -> None:
        """Raise AssertionError if a result is not the default shape's."""
        error = (out.float() - self.expected.float()).norm() / self.expected.float().norm()
        assert error < 1e-2, f"relative error {error}"

    def time(self, backend: TritonAttention, pad_to: StepShape | None = None) -> float:
        """Milliseconds; raises AssertionError if the result is not the default shape's."""
        call = self.call(backend, pad_to)
        self.check(call(self.caches[0]))
        return graph_ms([lambda c=c: call(c) for c in self.caches], num_warm_ups=2)


def sweep(kind: str, base: Tuning) -> Iterator[Tuning]:
    if kind == "decode":
        for tile, warps, stages in itertools.product((32, 64, 128), (2, 4, 8), (2, 3, 4)):
            for programs in (2, 4, 8):
                yield replace(base, key_tile=tile, num_warps=warps, num_stages=stages,
                              programs_per_sm=programs)  # fmt: skip
        return
    for rows, tile, warps, stages in itertools.product((64, 128), (32, 64, 128), (4, 8), (2, 3)):
        if rows == 64 and warps == 8:
            continue
        yield replace(base, rows=rows, key_tile=tile, num_warps=warps, num_stages=stages)


def backend_of(kind: str, tuning: Tuning) -> TritonAttention:
    defaults = default_tunings(DIM, DTYPE)
    if kind == "decode":
        return TritonAttention(replace(defaults, short=tuning, many=None))
    return TritonAttention(replace(defaults, long=tuning))


def run_sweep(kind: str, deadline: float) -> list[dict[str, Any]]:
    defaults = default_tunings(DIM, DTYPE)
    base = defaults.short if kind == "decode" else defaults.long
    names = SWEPT_DECODES if kind == "decode" else SWEPT_PREFILLS
    problems = {n: Problem((DECODES | PREFILLS)[n], 16) for n in names}
    rows = []
    for tuning in sweep(kind, base):
        if time.monotonic() > deadline:
            print("sweep cut short")
            break
        try:
            ms = {n: p.time(backend_of(kind, tuning)) for n, p in problems.items()}
        except Exception as error:  # a shape that does not fit the card
            rows.append({"tuning": asdict(tuning), "error": repr(error)[:100]})
            continue
        rows.append({"tuning": asdict(tuning), "ms": ms})
    good = [r for r in rows if "ms" in r]
    best = {n: min(r["ms"][n] for r in good) for n in names}
    for row in good:
        row["mean_ratio"] = statistics.mean(row["ms"][n] / best[n] for n in names)
    good.sort(key=lambda r: r["mean_ratio"])
    print(f"{kind} sweep, {len(good)} of {len(rows)} shapes ran; best us: ",
          {n: round(t * 1000, 1) for n, t in best.items()})  # fmt: skip
    for row in good[:8]:
        t = row["tuning"]
        print(
            f"  rows {t['rows']} tile {t['key_tile']} warps {t['num_warps']} "
            f"stages {t['num_stages']} programs {t['programs_per_sm']}: "
            f"mean {row['mean_ratio']:.3f} of the best, us "
            f"{[round(row['ms'][n] * 1000, 1) for n in names]}"
        )
    return rows


def sdpa_ms(backend: torch.nn.attention.SDPBackend) -> float:
    q = torch.randn(1, HEADS, 4096, DIM, device=DEVICE, dtype=DTYPE)
    k, v = (torch.randn(1, HEADS, 4096, DIM, device=DEVICE, dtype=DTYPE) for _ in range(2))
    with torch.nn.attention.sdpa_kernel(backend):
        attend = torch.nn.functional.scaled_dot_product_attention
        return graph_ms([lambda: attend(q, k, v, is_causal=True)] * 10, num_warm_ups=2)


def host_us(backend: TritonAttention, seqs: Seqs) -> tuple[float, float]:
    """Microseconds of the host for a plan and for one layer's launches, launched eagerly."""
    problem = Problem(seqs, 16)
    plans, calls = [], []
    for _ in range(50):
        begin = time.perf_counter()
        meta = backend.plan(problem.spec, problem.layout)
        middle = time.perf_counter()
        backend.forward(LayerAttention(DIM**-0.5), problem.q, *problem.kv, problem.caches[0], meta)
        calls.append(time.perf_counter() - middle)
        plans.append(middle - begin)
        torch.cuda.synchronize()
    return statistics.median(plans) * 1e6, statistics.median(calls) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweep", action="store_true", help="shapes of tiles, pages of 16")
    parser.add_argument("--sweep-s", type=float, default=200, help="seconds for each sweep")
    parser.add_argument("--pages", type=int, nargs="*", default=[16, 32, 64, 128])
    parser.add_argument("--bandwidth", type=float, default=3003, help="of the card, GB/s")
    parser.add_argument("--out", type=Path, help="all numbers as JSON")
    args = parser.parse_args()
    import triton

    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{torch.cuda.get_device_name()}, {versions}; {HEADS}/{KV_HEADS} heads of {DIM}, {DTYPE}")
    report: dict[str, Any] = {"card": torch.cuda.get_device_name(), "versions": versions}

    if args.sweep:
        for kind in ("decode", "prefill"):
            report[kind] = run_sweep(kind, time.monotonic() + args.sweep_s)
            torch.cuda.empty_cache()

    report["pages"] = table = []
    for name, seqs in (DECODES | PREFILLS).items():
        cells = []
        for page in args.pages:
            problem = Problem(seqs, page)
            ms = problem.time(TritonAttention())
            table.append({"step": name, "page": page, "ms": ms})
            if name in DECODES:
                rate = problem.kv_bytes / ms / 1e6
                cells.append(f"{ms * 1000:7.1f} us {rate:5.0f} GB/s {rate / args.bandwidth:4.0%}")
            else:
                cells.append(f"{ms * 1000:7.1f} us {problem.flops / ms / 1e9:5.0f} TFLOP/s")
            del problem
        print(f"{name:24}", " | ".join(cells), flush=True)
    always, page = TritonAttention(sharing=Sharing(2, 16, 0)), args.pages[0]
    report["shared"] = shared = []
    for name, (prefix, seqs) in SHARED.items():
        problem = Problem(seqs, page, prefix)
        apart, together = problem.time(NEVER_SHARES), problem.time(always)
        by_default = TritonAttention().find_shared(
            problem.spec, problem.layout, np.arange(len(seqs)), problem.layout.block_tables
        )
        shared.append({"step": name, "apart_ms": apart, "together_ms": together})
        print(f"{name:24} read apart {apart * 1000:7.1f} us, together {together * 1000:7.1f} us, "
              f"by default {'together' if by_default else 'apart'}", flush=True)  # fmt: skip
        del problem
    report["padded"] = padded = []
    for name, (seqs, shapes) in PADDED.items():
        problem = Problem(seqs, page)
        for shape in shapes:
            ms = problem.time(TritonAttention(), shape)
            padded.append({"step": name, "shape": asdict(shape) if shape else None, "ms": ms})
            print(f"{name:24} {ms * 1000:7.1f} us in {shape or 'tables of its own size'}")
        del problem
    for backend in ("FLASH_ATTENTION", "CUDNN_ATTENTION"):
        ms = sdpa_ms(getattr(torch.nn.attention.SDPBackend, backend))
        rate = 4 * HEADS * DIM * 4096 * 4097 / 2 / ms / 1e9
        report[backend] = ms
        print(f"torch SDPA {backend}, 1 x 4096 causal: {ms * 1000:.0f} us, {rate:.0f} TFLOP/s")
    for name in ("1 x 1024", "64 x 1024", "256 x 1024"):
        plan, call = host_us(TritonAttention(), DECODES[name])
        print(f"host, {name}: plan {plan:.0f} us a step, launches {call:.0f} us a layer")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
