"""How fast attention of decodes in graphs is on this card, by each of the kernels for them.

    PYTHONPATH=. python benchmarks/gpu/decode_attention.py [--out decodes.json]

A layer's attention alone, in tables as a graph of so many decodes has them: by the kernel for all
GPUs, and by what Octavo takes here (on a Hopper GPU a kernel of its own). Contexts are all the
same, those of nano-vllm's benchmark, or what the mixed workload (lengths_mixed500.json, all
requests begun at once) has left when so many are still running. Times are of the device, medians,
as in `attention.py`; results are compared with each other before.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu.attention import DIM, DTYPE, HEADS, KV_HEADS, Problem, Seqs
from benchmarks.gpu.common import LENGTHS
from benchmarks.gpu.graph_timing import graph_ms
from octavo.attention.interface import LayerAttention
from octavo.attention.triton_paged import TritonAttention, default_tunings
from octavo.attention.work import StepShape

EQUAL = (
    (1, 128), (1, 600), (1, 2048), (1, 8192), (4, 4096), (8, 1024), (16, 512), (32, 512),
    (32, 4096), (64, 256), (64, 1024), (128, 256), (256, 300), (256, 1024),
)  # fmt: skip
LEFT = (500, 310, 160, 106, 68, 45, 22, 15, 8)


def mixed(num_left: int) -> Seqs:
    """Decodes of the mixed workload when so many requests have tokens to come, or fewer."""
    lengths = json.loads(LENGTHS.read_text())
    pairs = list(zip(lengths["input"], lengths["output"], strict=True))
    done = sorted(out for _, out in pairs)[-num_left - 1] if num_left < len(pairs) else 0
    return [(1, given + done) for given, out in pairs if out > done]


def steps() -> dict[str, Seqs]:
    """Names, and new and cached tokens of each sequence."""
    nano = np.random.default_rng(3).integers(100, 1500, 256).tolist()
    return (
        {f"{batch} x {context}": [(1, context - 1)] * batch for batch, context in EQUAL}
        | {f"mixed, {num} left": mixed(num) for num in LEFT}
        | {"256 x 100..1500": [(1, context) for context in nano]}
    )


def time_us(problem: Problem, backend: TritonAttention) -> float:
    """Microseconds; raises AssertionError if the result is not that of other kernels."""
    num = len(problem.layout.context_lens)
    meta = backend.plan(problem.spec, problem.layout, StepShape(num, num))
    layer = LayerAttention(DIM**-0.5)
    backend.write(*problem.kv, problem.caches[0], meta)
    problem.check(backend.attend(layer, problem.q, problem.caches[0], meta))
    calls = [lambda c=c: backend.attend(layer, problem.q, c, meta) for c in problem.caches]
    return graph_ms(calls, num_warm_ups=2) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bandwidth", type=float, default=4230, help="of the card, GB/s")
    parser.add_argument("--out", type=Path, help="all numbers as JSON")
    args = parser.parse_args()
    import triton

    card = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{card}, {versions}; {HEADS}/{KV_HEADS} heads of {DIM}, {DTYPE}")
    rows = []
    for name, seqs in steps().items():
        problem = Problem(seqs, 16)
        least = problem.kv_bytes / args.bandwidth / 1e3
        portable = time_us(problem, TritonAttention(default_tunings(DIM, DTYPE)))
        here = time_us(problem, TritonAttention())
        rows.append({"step": name, "bytes_us": least, "portable_us": portable, "here_us": here})
        print(
            f"{name:16} {least:6.1f} us of bytes; for all GPUs {portable:6.1f}, here {here:6.1f}: "
            f"{portable / here:.2f} times as fast, {least / here:4.0%} of the bandwidth",
            flush=True,
        )
        del problem
    if args.out:
        args.out.write_text(json.dumps({"card": card, "versions": versions, "steps": rows}))


if __name__ == "__main__":
    main()
