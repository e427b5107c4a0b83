"""The fused kernels on this card: checked against plain torch, timed, and a sweep of their shapes.

    PYTHONPATH=. python benchmarks/gpu/fused.py [--only kernels chain sweep] [--out fused.json]

Times are of the device alone: calls are captured in a CUDA graph, one after the other over several
buffers (256 MB of them, but at most 32), and replayed; medians. What few tokens need is then found
in the L2 cache, as it is in a step, where a matmul has just written it; what thousands need is not.
Host times are of a launch without a graph. A minute and a half, much of it spent by compilers.

The chain is a decode step without its attention and sampling: all norms, products, rotations and
activations of a model in the order of a step, each depending on the one before, in one graph. It is
timed with the library's products and with ours (as `kernels/skinny_linear.py` chooses them, and
variations), with kernels apart and overlapping (`kernels/pdl.py`); overlapping must change no bit.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.gpu.graph_timing import replay_ms
from octavo.kernels import pdl
from octavo.kernels.activation import gated
from octavo.kernels.norm import add_rms_norm, rms_norm
from octavo.kernels.prepare import prepare
from octavo.kernels.rotary import rotate_and_write
from octavo.kernels.sampling import sample_plain
from octavo.kernels.skinny_linear import Config, choose, skinny_linear
from octavo.layers.mlp import ACTIVATIONS
from octavo.layers.norm import RMSNorm
from octavo.layers.rotary import rotate

DEVICE, DTYPE = torch.device("cuda:0"), torch.bfloat16
BUFFER_BYTES, MAX_BUFFERS = 256 * 1024**2, 32
TOKENS = (1, 64, 256, 4096)
SAMPLED_ROWS = (1, 64, 256, 512)
CHAIN_ROWS = (1, 8, 16, 32, 64)
PAGE, MAX_LEN, EPS = 16, 8192, 1e-5
PARTS = ("kernels", "chain", "sweep")
Options = dict[str, int]


@dataclass(frozen=True)
class Model:
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    num_layers: int
    qk_norm: bool


MODELS = {
    "Llama-3.1-8B": Model(4096, 14336, 32, 8, 128, 128256, 32, qk_norm=False),
    "Qwen3-0.6B": Model(1024, 3072, 16, 8, 128, 151936, 28, qk_norm=True),
}


class Problem:
    """One kernel at one shape.

    Attributes:
        num_bytes: that a call must read and write.
    """

    num_bytes: int

    def __init__(self, model: Model, num_tokens: int) -> None:
        self.model, self.t = model, num_tokens
        self.prepare()
        self.buffers = [self.buffer() for _ in range(self.num_buffers)]

    @property
    def num_buffers(self) -> int:
        return min(max(BUFFER_BYTES // self.num_bytes, 2), MAX_BUFFERS)

    def prepare(self) -> None:
        """Set `num_bytes`, and what all buffers share."""
        raise NotImplementedError

    def buffer(self) -> Any:
        """Tensors of one call."""
        raise NotImplementedError

    def call(self, buffer: Any, options: Options) -> Any:
        raise NotImplementedError

    def check(self) -> None:
        """AssertionError where the kernel's result is not plain torch's."""
        raise NotImplementedError


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device=DEVICE, dtype=DTYPE)


def ints(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(high, shape, device=DEVICE, dtype=torch.int32)


def assert_rounded_alike(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """A different order of float32 sums may turn the last bit of a few values, no more."""
    step = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(actual, expected, rtol=2 * step, atol=step / 8)
    different = (actual != expected).float().mean().item()
    assert different < 0.02, f"{different:.1%} of the values differ"


class Norm(Problem):
    def prepare(self) -> None:
        self.num_bytes = 2 * self.t * self.model.hidden * DTYPE.itemsize
        self.layer = RMSNorm(self.model.hidden, EPS, DTYPE)
        self.layer.weight = randn(self.model.hidden)

    def buffer(self) -> Any:
        return randn(self.t, self.model.hidden)

    def call(self, buffer: Any, options: Options) -> Any:
        return rms_norm(buffer, self.layer.weight, EPS, 0.0, **options)

    def check(self) -> None:
        assert_rounded_alike(self.call(self.buffers[0], {}), self.layer(self.buffers[0]))


class AddNorm(Norm):
    def prepare(self) -> None:
        super().prepare()
        self.num_bytes *= 2

    def buffer(self) -> Any:
        return super().buffer(), super().buffer()

    def call(self, buffer: Any, options: Options) -> Any:
        x, residual = buffer
        return add_rms_norm(x, residual, self.layer.weight, EPS, 0.0, **options)

    def check(self) -> None:
        x, residual = self.buffer()
        total = x + residual
        out = self.call((x, residual), {})
        assert torch.equal(residual, total)
        assert_rounded_alike(out, self.layer(total))


class Gated(Problem):
    def prepare(self) -> None:
        self.num_bytes = 3 * self.t * self.model.intermediate * DTYPE.itemsize

    def buffer(self) -> Any:
        return randn(self.t, 2 * self.model.intermediate)

    def call(self, buffer: Any, options: Options) -> Any:
        return gated(buffer, "silu", **options)

    def check(self) -> None:
        gate, up = self.buffers[0].chunk(2, dim=-1)
        for kind, activation in ACTIVATIONS.items():
            near = gate > -2  # below, 1 + erf(x) has few digits, here and in torch
            actual = gated(self.buffers[0], kind)
            assert_rounded_alike(actual[near], (activation(gate) * up)[near])
            torch.testing.assert_close(actual, activation(gate) * up, rtol=1e-2, atol=1e-3)


class Rotation(Problem):
    def prepare(self) -> None:
        m = self.model
        self.num_heads = m.num_heads + 2 * m.num_kv_heads
        self.num_bytes = 2 * self.t * self.num_heads * m.head_dim * DTYPE.itemsize
        angles = torch.rand(MAX_LEN, m.head_dim // 2, device=DEVICE) * 6.28
        self.table = torch.cat((angles.cos(), angles.sin()), dim=-1)
        # Few tokens are decodes, one of each sequence; many are one prompt. Blocks in random order.
        count = torch.arange(self.t, device=DEVICE, dtype=torch.int32)
        if self.t <= 512:
            self.rows, self.positions, nth_block = count, ints(MAX_LEN, self.t), count
        else:
            self.rows, self.positions, nth_block = torch.zeros_like(count), count, count // PAGE
        self.num_blocks = int(nth_block[-1]) + 1
        blocks = torch.randperm(self.num_blocks, device=DEVICE).int()[nth_block]
        num_rows = int(self.rows[-1]) + 1
        self.block_tables = torch.zeros(num_rows, MAX_LEN // PAGE, device=DEVICE, dtype=torch.int32)
        self.block_tables[self.rows.long(), (self.positions // PAGE).long()] = blocks
        self.blocks = blocks.long()
        self.norms: list[RMSNorm] = []
        if m.qk_norm:
            self.norms = [RMSNorm(m.head_dim, EPS, DTYPE) for _ in "qk"]
            for norm in self.norms:
                norm.weight = randn(m.head_dim)

    def buffer(self) -> Any:
        m = self.model
        return (
            randn(self.t, self.num_heads * m.head_dim),
            torch.zeros(
                self.num_blocks, 2, m.num_kv_heads, PAGE, m.head_dim, device=DEVICE, dtype=DTYPE
            ),
        )

    def call(self, buffer: Any, options: Options) -> Any:
        qkv, cache = buffer
        m = self.model
        q_norm, k_norm = [norm.weight for norm in self.norms] or (None, None)
        return rotate_and_write(
            qkv, self.table, self.positions, self.rows, self.block_tables, cache,
            m.num_heads, m.num_kv_heads, q_norm, k_norm, EPS, 0.0, **options,
        )  # fmt: skip

    def check(self) -> None:
        qkv, cache = self.buffer()
        m = self.model
        expected = torch.zeros_like(cache)
        heads = qkv.view(self.t, -1, m.head_dim)
        q, k, v = heads.split([m.num_heads, m.num_kv_heads, m.num_kv_heads], dim=1)
        if m.qk_norm:
            q, k = self.norms[0](q), self.norms[1](k)
        cos, sin = self.table[self.positions.long()].unsqueeze(1).chunk(2, dim=-1)
        slot = (self.positions % PAGE).long()
        expected[self.blocks, 0, :, slot] = rotate(k, cos, sin)
        expected[self.blocks, 1, :, slot] = v
        assert_rounded_alike(self.call((qkv, cache), {}), rotate(q, cos, sin))
        assert_rounded_alike(cache, expected)
        assert torch.equal(cache[:, 1], expected[:, 1])


class Sampling(Problem):
    """Every second row is greedy, when checked; when timed, all are random."""

    def prepare(self) -> None:
        self.num_bytes = self.t * self.model.vocab_size * DTYPE.itemsize
        self.temperature = torch.full((self.t,), 0.8, device=DEVICE)
        self.u = torch.rand(self.t, device=DEVICE)
        self.rows = torch.randperm(self.t, device=DEVICE).int()
        self.last_token, self.out = ints(1, self.t), ints(1, self.t)

    @property
    def num_buffers(self) -> int:
        return min(super().num_buffers, 8)

    def buffer(self) -> Any:
        return randn(self.t, self.model.vocab_size) * 3

    def call(self, buffer: Any, options: Options) -> Any:
        sample_plain(
            buffer, self.temperature, self.u, self.rows, self.last_token, self.out, **options
        )

    def check(self) -> None:
        logits = self.buffers[0]
        self.temperature[1::2] = 0
        self.call(logits, {})
        tokens = self.out.long()
        assert torch.equal(self.last_token[self.rows.long()].long(), tokens)
        assert torch.equal(tokens[1::2], logits[1::2].argmax(dim=-1))
        cdf = torch.softmax(logits[::2].double() / 0.8, dim=-1).cumsum(dim=-1)
        below = torch.nn.functional.pad(cdf, (1, 0)).gather(1, tokens[::2, None]).squeeze(1)
        reached = cdf.gather(1, tokens[::2, None]).squeeze(1)
        wrong = torch.maximum(below - self.u[::2], self.u[::2] - reached).max().item()
        assert wrong < 1e-5, f"a token {wrong} beside its share of the distribution"
        self.temperature.fill_(0.8)


class Greedy(Sampling):
    def prepare(self) -> None:
        super().prepare()
        self.temperature.zero_()

    def check(self) -> None:
        self.call(self.buffers[0], {})
        assert torch.equal(self.out.long(), self.buffers[0].argmax(dim=-1))


class Prepare(Problem):
    def prepare(self) -> None:
        self.num_bytes = self.t * 16
        self.rows = ints(1024, self.t) - 1
        self.last_token = ints(self.model.vocab_size, 1024)
        self.tables = ints(99, 1024, 128)
        places = torch.randperm(1024 * 128, device=DEVICE)[: self.t].int()
        self.updates = torch.stack((places, ints(9999, self.t)))
        self.out = ints(1, self.t)

    def buffer(self) -> Any:
        return ints(1000, self.t) - 500

    def call(self, buffer: Any, options: Options) -> Any:
        prepare(buffer, self.rows, self.last_token, self.out, self.updates, self.tables)

    def check(self) -> None:
        ids = self.buffers[0]
        tables = self.tables.clone()
        tables.view(-1)[self.updates[0].long()] = self.updates[1]
        expected = torch.where(ids < 0, self.last_token[self.rows.clamp(min=0).long()], ids)
        self.call(ids, {})
        assert torch.equal(self.out, expected.where(self.rows >= 0, 0))
        assert torch.equal(self.tables, tables)


KERNELS: dict[str, tuple[type[Problem], tuple[int, ...]]] = {
    "rms_norm": (Norm, TOKENS),
    "add_rms_norm": (AddNorm, TOKENS),
    "gated": (Gated, TOKENS),
    "rotate_and_write": (Rotation, TOKENS),
    "sample_plain": (Sampling, SAMPLED_ROWS),
    "sample_plain, greedy": (Greedy, SAMPLED_ROWS),
    "prepare": (Prepare, TOKENS),
}

SWEEPS: dict[str, list[Options]] = {
    "add_rms_norm": [{"num_warps": w} for w in (1, 2, 4, 8, 16)],
    "rotate_and_write": [
        {"tile_heads": h, "num_warps": w} for h, w in ((4, 4), (8, 4), (16, 4), (16, 8), (32, 8))
    ],
    "gated": [
        {"columns": c, "num_warps": w}
        for c, w in ((512, 2), (512, 4), (1024, 4), (2048, 4), (2048, 8))
    ],
    "sample_plain": [
        {"split": s, "num_warps": w}
        for s, w in ((2048, 4), (2048, 8), (4096, 4), (4096, 8), (4096, 16), (8192, 8), (8192, 16))
    ],
}


def graph_us(calls: list[Callable[[], Any]], repeats: int = 9) -> float:
    """Microseconds of one call; the first is made, and compiled, before the capture."""
    graph, results = captured(calls)
    del results
    return replay_ms(graph, repeats) * 1000 / len(calls)


def captured(calls: list[Callable[[], Any]]) -> tuple[torch.cuda.CUDAGraph, list[Any]]:
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = [call() for call in calls]
    return graph, results


def host_us(call: Callable[[], Any]) -> float:
    """Microseconds until a launch returns, the device being idle."""
    times = []
    for _ in range(50):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times) * 1e6


def time_us(problem: Problem, options: Options) -> float:
    # Few buffers would make a graph too short to be measured.
    rounds = -(-16 // len(problem.buffers))
    return graph_us([partial(problem.call, b, options) for b in problem.buffers * rounds])


def run_all(bandwidth: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, model in MODELS.items():
        for kernel, (problem_type, tokens) in KERNELS.items():
            cells = []
            for t in tokens:
                problem = problem_type(model, t)
                problem.check()
                us, host = (
                    time_us(problem, {}),
                    host_us(partial(problem.call, problem.buffers[0], {})),
                )
                rate = problem.num_bytes / us / 1e3
                rows.append({"model": name, "kernel": kernel, "t": t, "us": us, "host_us": host})
                cells.append(f"{t:5}: {us:7.2f} us {rate / bandwidth:4.0%}")
                del problem
            hosts = statistics.median(r["host_us"] for r in rows[-len(tokens) :])
            line = " | ".join(cells)
            print(f"{name:13}{kernel:21}{line} | host {hosts:5.1f} us", flush=True)
    return rows


Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class Chain:
    """A model's weights, and a decode step of `t` sequences without attention and sampling."""

    def __init__(self, model: Model) -> None:
        self.model = m = model
        num_heads = m.num_heads + 2 * m.num_kv_heads
        shapes = (
            (num_heads * m.head_dim, m.hidden),
            (m.hidden, m.num_heads * m.head_dim),
            (2 * m.intermediate, m.hidden),
            (m.hidden, m.intermediate),
        )
        self.layers = list(
            zip(*(self.weights(m.num_layers, n, k).unbind() for n, k in shapes), strict=True)
        )
        self.head = self.weights(m.vocab_size, m.hidden)
        self.embedding = randn(1024, m.hidden)
        self.norms = [1 + randn(m.hidden) / 8 for _ in range(2 * m.num_layers + 1)]
        self.q_norm, self.k_norm = (randn(m.head_dim) if m.qk_norm else None for _ in "qk")
        angles = torch.rand(MAX_LEN, m.head_dim // 2, device=DEVICE) * 6.28
        self.table = torch.cat((angles.cos(), angles.sin()), dim=-1)

    @staticmethod
    def weights(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device=DEVICE, dtype=DTYPE).normal_(std=shape[-1] ** -0.5)

    def begin(self, t: int) -> None:
        m = self.model
        self.ids, self.positions = ints(1024, t), ints(PAGE, t)
        self.rows = torch.arange(t, device=DEVICE, dtype=torch.int32)
        self.block_tables = self.rows.view(t, 1)
        shape = (m.num_layers, t, 2, m.num_kv_heads, PAGE, m.head_dim)
        self.caches = torch.zeros(shape, device=DEVICE, dtype=DTYPE)

    def step(self, product: Product) -> tuple[torch.Tensor, ...]:
        m = self.model
        residual = F.embedding(self.ids, self.embedding)
        norms = iter(self.norms)
        y = rms_norm(residual, next(norms), EPS)
        for (qkv, o, gate_up, down), cache in zip(self.layers, self.caches, strict=True):
            q = rotate_and_write(
                product(y, qkv), self.table, self.positions, self.rows, self.block_tables, cache,
                m.num_heads, m.num_kv_heads, self.q_norm, self.k_norm, EPS,
            )  # fmt: skip
            y = add_rms_norm(product(q.view(len(q), -1), o), residual, next(norms), EPS)
            y = gated(product(y, gate_up), "silu")
            y = add_rms_norm(product(y, down), residual, next(norms), EPS)
        return residual, product(y, self.head)


def chosen(change: Callable[[Config], Config]) -> Product:
    def product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        config = choose(len(x), *weight.shape)
        if config is None:
            return F.linear(x, weight)
        return skinny_linear(x, weight, None, change(config))

    return product


def chain_us(chain: Chain, product: Product, overlap: bool) -> tuple[float, list[torch.Tensor]]:
    """Microseconds of a step, and what it computed, the same in several replays."""
    pdl.set_enabled(overlap)
    try:
        graph, (outputs,) = captured([partial(chain.step, product)])
    finally:
        pdl.set_enabled(True)
    us = replay_ms(graph, 15) * 1000
    first = [out.clone() for out in outputs]
    for _ in range(5):
        for tensor in outputs:
            tensor.fill_(torch.nan)
        chain.caches.zero_()
        graph.replay()
        assert all(map(torch.equal, outputs, first)), "differs from itself"
    return us, [*first, chain.caches.clone()]


def run_chain() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    # Name, product, whether kernels overlap, and which one must give the same bits.
    variants: list[tuple[str, Product, bool, str | None]] = [
        ("library, apart", F.linear, False, None),
        ("library", F.linear, True, "library, apart"),
        ("ours, apart", chosen(lambda c: c), False, None),
        ("ours", chosen(lambda c: c), True, "ours, apart"),
        ("ours, products apart", chosen(lambda c: replace(c, pdl=False, prefetch=0)), True,
         "ours, apart"),
        *((f"prefetch {p}", chosen(lambda c, p=p: replace(c, prefetch=p if c.pdl else 0)), True,
           "ours, apart") for p in (0, 1, 2, 4)),
    ]  # fmt: skip
    one_row = ("one kernel", chosen(lambda c: replace(c, block_n=8, num_stages=1)), True, None)
    many_rows = ("ours, all overlap", chosen(lambda c: replace(c, pdl=True, prefetch=1)), True,
                 "ours, apart")  # fmt: skip
    for name, model in MODELS.items():
        chain = Chain(model)
        for t in CHAIN_ROWS:
            chain.begin(t)
            results: dict[str, list[torch.Tensor]] = {}
            print(f"{name}, {t} rows, us:")
            more = [one_row] if t == 1 else [many_rows] if t > 16 else []
            for variant, product, overlap, same in variants + more:
                us, results[variant] = chain_us(chain, product, overlap)
                if same and not all(map(torch.equal, results[variant], results[same])):
                    raise AssertionError(f"{variant} differs from {same}")
                rows.append({"model": name, "t": t, "variant": variant, "us": us})
                print(f"  {variant:26} {us:8.1f}", flush=True)
        del chain
        torch.cuda.empty_cache()
    return rows


def run_sweep(deadline: float) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name, model in MODELS.items():
        for kernel, shapes in SWEEPS.items():
            problem_type, tokens = KERNELS[kernel]
            problems = [problem_type(model, t) for t in tokens]
            print(f"{name}, {kernel}, us at {tokens}:")
            for options in [{}, *shapes]:
                if time.monotonic() > deadline:
                    print("sweep cut short")
                    return rows
                times = [time_us(problem, options) for problem in problems]
                rows.append({"model": name, "kernel": kernel, "options": options, "us": times})
                label = ", ".join(f"{k} {v}" for k, v in options.items()) or "as it is"
                print(f"  {label:26}", " ".join(f"{us:8.2f}" for us in times), flush=True)
            del problems
            torch.cuda.empty_cache()
    return rows


def main() -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--until-s", type=float, default=90, help="the sweep ends by then")
    parser.add_argument("--bandwidth", type=float, default=3003, help="of the card, GB/s")
    parser.add_argument("--out", type=Path, help="all numbers as JSON")
    args = parser.parse_args()
    import triton

    torch.manual_seed(0)
    card = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{card}, {versions}, {DTYPE}; share of {args.bandwidth:.0f} GB/s")
    report: dict[str, Any] = {"card": card, "versions": versions}
    if "kernels" in args.only:
        report["kernels"] = run_all(args.bandwidth)
    if "chain" in args.only:
        report["chain"] = run_chain()
    if "sweep" in args.only:
        report["sweep"] = run_sweep(begin + args.until_s)
    print(f"{time.monotonic() - begin:.0f} s")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
