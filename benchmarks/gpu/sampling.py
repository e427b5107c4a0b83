"""Sampling with top-k, top-p and min-p, and log-probabilities: checked against sorting, and timed.

    PYTHONPATH=. python benchmarks/gpu/sampling.py [--no-sweep] [--out sampling.json]

What is kept, and where in it a number falls, is checked in float64 for every case at 64 rows; the
last token kept must be that of sorting, but for rows where the share is met within 1e-5.

Times are of the device alone, of calls captured in a CUDA graph one after the other over several
buffers; medians. `torch` is the path by sorting, launched as it is, timed by events. The parts of a
call are the profiler's. Three distributions: a tail of noise under some fifty likely tokens
(peaked), probabilities that fall with the rank as in text (zipf), standard normal logits (flat).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.gpu.fused import graph_us, host_us
from octavo.kernels.logprobs import NUM_TOP, report_logprobs
from octavo.kernels.sampling import sample_plain
from octavo.kernels.truncated_sampling import sample_truncated
from octavo.runner.sampler import SamplerRows, sample
from octavo.types import RowInit, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

DEVICE, DTYPE = torch.device("cuda:0"), torch.bfloat16
VOCAB_SIZES = (128256, 151936)
ROWS = (1, 64, 256)
KINDS = ("peaked", "zipf", "flat")
NUM_BUFFERS = 3
ALMOST_1 = 1 - 2**-24
PARTS = ("survey", "bracket", "narrow", "draw")


@dataclass(frozen=True)
class Params:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def __str__(self) -> str:
        names = ("temperature", "top_k", "top_p", "min_p")
        defaults = Params()
        said = {n: getattr(self, n) for n in names if getattr(self, n) != getattr(defaults, n)}
        return ", ".join(f"{name} {value}" for name, value in said.items())


CASES = (
    Params(top_p=0.9),
    Params(temperature=0.6, top_p=0.95),
    Params(temperature=0.6, top_k=20, top_p=0.95),
    Params(min_p=0.05),
)
ONLY_CHECKED = (
    Params(top_k=1000),
    Params(top_k=5000, top_p=0.9),
    Params(top_p=0.999),
    Params(temperature=1.5, top_p=0.8, min_p=0.02),
)


def make_logits(kind: str, n: int, v: int) -> torch.Tensor:
    noise = torch.randn(n, v, device=DEVICE)
    if kind == "flat":
        return noise.to(DTYPE)
    ranks = torch.rand(n, v, device=DEVICE).argsort(dim=-1) + 1
    if kind == "zipf":
        return (12 - 1.1 * ranks.log() + 0.3 * noise).to(DTYPE)
    likely = 20 - 0.25 * ranks
    return torch.where(ranks <= 50, likely, 1.5 * noise).to(DTYPE)


class Batch:
    """Arguments of a call for n rows, of which every `every`-th has the parameters."""

    def __init__(self, params: Params, n: int, every: int = 1) -> None:
        def column(value: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.full((n,), value, dtype=dtype, device=DEVICE)

        self.n = n
        self.temperature = column(params.temperature)
        self.top_k = column(params.top_k, torch.int32)
        self.top_p, self.min_p = column(params.top_p), column(params.min_p)
        plain = torch.arange(n, device=DEVICE) % every != 0
        self.top_k[plain], self.top_p[plain], self.min_p[plain] = 0, 1.0, 0.0
        self.u = torch.rand(n, device=DEVICE).clamp(max=ALMOST_1)
        self.rows = torch.randperm(n, device=DEVICE).int()
        self.last_token, self.out = (
            torch.zeros(n, dtype=torch.int32, device=DEVICE) for _ in range(2)
        )

    def call(self, logits: torch.Tensor, **options: int) -> None:
        sample_truncated(
            logits, self.temperature, self.top_k, self.top_p, self.min_p, self.u, self.rows,
            self.last_token, self.out, **options,
        )  # fmt: skip

    def call_plain(self, logits: torch.Tensor) -> None:
        sample_plain(logits, self.temperature, self.u, self.rows, self.last_token, self.out)


def kept_by_sorting(
    logits: torch.Tensor, params: Params, nudge: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """In float64: logits [n, v] in order, their tokens, and how many are kept [n, 1].

    `nudge` moves the bounds of top-p and min-p by such a part.
    """
    temperature, top_p, min_p = (
        float(np.float32(x)) for x in (params.temperature, params.top_p, params.min_p)
    )
    ordered, order = torch.sort(logits.float(), dim=-1, descending=True, stable=True)
    distance = (ordered[:, :1].double() - ordered) / temperature
    num = torch.full((len(logits), 1), logits.shape[1], device=DEVICE)
    if min_p > 0:
        farthest = max(float(-np.log(min_p)) + nudge, 0.0)
        num = torch.minimum(num, (distance <= farthest).sum(-1, keepdim=True))
    if params.top_k > 0:
        num = num.clamp(max=params.top_k)
    if top_p < 1:
        cdf = torch.exp(-distance).cumsum(-1)
        share = (top_p + nudge) * cdf.gather(1, num - 1)
        num = torch.minimum(num, torch.searchsorted(cdf, share) + 1)
    return ordered, order, num


def check(logits: torch.Tensor, params: Params) -> float:
    """Raises AssertionError; returns the part of rows whose last token kept was told exactly."""
    n, v = logits.shape
    batch = Batch(params, n)
    ordered, order, num = kept_by_sorting(logits, params, 0.0)
    fewest, most = (kept_by_sorting(logits, params, nudge)[2] for nudge in (-1e-5, 1e-5))
    place = torch.empty_like(order).scatter_(
        1, order, torch.arange(v, device=DEVICE).expand(n, v).contiguous()
    )
    # The order of drawing: above the least one kept by token, then its ties.
    least = ordered.gather(1, num - 1)
    has_ties_last = params.top_p < 1 or params.top_k > 0
    x = logits.float()
    weights = torch.exp((x - ordered[:, :1]).double() / float(np.float32(params.temperature)))
    weights.masked_fill_(place >= num, 0.0)
    is_tie = (x == least) & has_ties_last
    above = torch.where(is_tie, 0.0, weights)
    ties = torch.where(is_tie, weights, 0.0)
    total = weights.sum(-1, keepdim=True)
    reached = torch.where(
        is_tie, above.sum(-1, keepdim=True) + ties.cumsum(-1), above.cumsum(-1)
    ) / total  # fmt: skip

    for u in (None, ALMOST_1):
        if u is not None:
            batch.u.fill_(u)
        batch.call(logits)
        tokens = batch.out.long()[:, None]
        assert torch.equal(batch.last_token[batch.rows.long()].long(), tokens[:, 0])
        assert bool((place.gather(1, tokens) < most).all()), f"{params}: a token was not kept"
        is_clear = (fewest == most) & (place.gather(1, tokens) < num)
        upper = reached.gather(1, tokens)
        lower = upper - weights.gather(1, tokens) / total
        beside = torch.maximum(lower - batch.u[:, None], batch.u[:, None] - upper)
        wrong = torch.where(is_clear, beside, 0.0).max().item()
        assert wrong < 2e-5, f"{params}: {wrong} beside the token's share of the distribution"
    last = order.gather(1, num - 1)
    if not has_ties_last:  # the last one by token
        last = torch.where(weights > 0, torch.arange(v, device=DEVICE), 0).amax(-1, keepdim=True)
    is_big = weights.gather(1, last) / total > 1e-6
    is_right = (last == tokens) | (fewest != most) | ~is_big
    assert bool(is_right.all()), f"{params}: not the last token kept"
    return float((last == tokens).float().mean())


def check_rows_alone(logits: torch.Tensor) -> None:
    """The same in a batch of all parameters as alone."""
    n = len(logits)
    batch = Batch(Params(), n)
    cases = [*CASES, *ONLY_CHECKED, Params()]
    for name in ("temperature", "top_k", "top_p", "min_p"):
        values = [getattr(cases[i % len(cases)], name) for i in range(n)]
        getattr(batch, name).copy_(torch.tensor(values))
    batch.out.fill_(-1)
    batch.call(logits)
    together = batch.out.clone()
    for i in range(n):
        one = Batch(Params(), 1)
        for name in ("temperature", "top_k", "top_p", "min_p", "u"):
            getattr(one, name).copy_(getattr(batch, name)[i : i + 1])
        one.out.fill_(-1)
        one.call(logits[i : i + 1])
        assert torch.equal(one.out[0], together[i]), f"row {i} depends on the others"
    assert bool((together[len(cases) - 1 :: len(cases)] == -1).all()), "a plain row was written"


def check_report(logits: torch.Tensor) -> None:
    """Log-probabilities and ranks against log-softmax and a stable sort."""
    n = len(logits)
    tokens = torch.randint(logits.shape[1], (n,), device=DEVICE, dtype=torch.int32)
    out = report_logprobs(logits, torch.arange(n, device=DEVICE, dtype=torch.int32), tokens)
    logprobs = torch.log_softmax(logits.double(), dim=-1)
    order = torch.sort(logits, dim=-1, descending=True, stable=True).indices[:, :NUM_TOP]
    picked = tokens.long()[:, None]
    ids, ranks, bits = out[:, 3:].view(n, 3, NUM_TOP).unbind(1)
    assert torch.equal(ids.long(), order), "other tokens than the most probable ones"
    larger = logits[:, None, :] > logits.gather(1, torch.cat((picked, order), 1))[:, :4, None]
    assert torch.equal(torch.cat((out[:, 1:2], ranks[:, :3]), 1).long(), larger.sum(-1) + 1)
    torch.testing.assert_close(
        torch.cat((out[:, 2:3], bits), 1).contiguous().view(torch.float32).double(),
        logprobs.gather(1, torch.cat((picked, order), 1)), rtol=1e-5, atol=1e-4,
    )  # fmt: skip


def torch_us(logits: torch.Tensor, params: Params) -> float:
    """The path by sorting."""
    n = len(logits)
    state = SamplerRows(n)
    for row in range(n):
        init = RowInit(row, [1], 1, SamplingParams(**asdict(params)), row, [])
        state.set(row, init)
    rows = np.arange(n)
    times = []
    for _ in range(4):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        sample(logits, rows, rows, state)
        end.record()
        end.synchronize()
        times.append(float(begin.elapsed_time(end)))
    return statistics.median(times[1:]) * 1000


def parts_us(batch: Batch, buffers: list[torch.Tensor]) -> dict[str, float]:
    """Microseconds of each kernel."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    calls = buffers * 3
    with torch.profiler.profile(activities=activities) as profile:
        for logits in calls:
            batch.call(logits)
        torch.cuda.synchronize()
    times = dict.fromkeys(PARTS, 0.0)
    for event in profile.key_averages():
        for part in PARTS:
            if event.key.startswith(f"{part}_kernel"):
                times[part] = event.self_device_time_total / len(calls)
    return times


def device_us(batch: Batch, buffers: list[torch.Tensor], **options: int) -> float:
    return graph_us([partial(batch.call, b, **options) for b in buffers * (12 // len(buffers))])


def run_case(kind: str, params: Params, buffers: list[torch.Tensor]) -> dict[str, Any]:
    n, v = buffers[0].shape
    batch = Batch(params, n)
    result: dict[str, Any] = {"kind": kind, "params": str(params), "n": n, "v": v}
    result["us"] = device_us(batch, buffers)
    result["torch_us"] = torch_us(buffers[0], params)
    result["parts_us"] = parts_us(batch, buffers)
    parts = " + ".join(f"{part} {us:.1f}" for part, us in result["parts_us"].items())
    print(
        f"{kind:7}{params!s:40}{n:4} rows: {result['us']:8.1f} us, torch {result['torch_us']:9.0f}"
        f"   {parts}",
        flush=True,
    )
    return result


def run_around(buffers: list[torch.Tensor]) -> dict[str, Any]:
    """What a batch pays: the plain kernels, all rows plain, a quarter of the rows truncating."""
    n, v = buffers[0].shape
    batch = Batch(Params(), n)
    calls: list[Callable[[], Any]] = [
        partial(batch.call_plain, b) for b in buffers * (12 // len(buffers))
    ]
    batch.out.zero_()
    places = torch.arange(n, device=DEVICE, dtype=torch.int32)
    reports: list[Callable[[], Any]] = [
        partial(report_logprobs, b, places, batch.out) for b in buffers * (12 // len(buffers))
    ]
    result = {
        "n": n,
        "v": v,
        "plain_us": graph_us(calls),
        "none_us": device_us(batch, buffers),
        "quarter_us": device_us(Batch(CASES[0], n, every=4), buffers),
        "host_us": host_us(partial(batch.call, buffers[0])),
        "report_us": graph_us(reports),
    }
    print(
        f"{n:4} rows: sample_plain {result['plain_us']:.1f} us; sample_truncated where no row "
        f"truncates {result['none_us']:.1f}, where every fourth does {result['quarter_us']:.1f}; "
        f"host {result['host_us']:.1f}; log-probabilities of all rows {result['report_us']:.1f}",
        flush=True,
    )
    return result


SWEEP: tuple[dict[str, int], ...] = (
    {},
    {"few_groups": 32},
    {"few_groups": 512},
    {"num_warps": 8},
    {"num_warps_draw": 8},
    {"split": 8192, "num_warps": 8},
    {"split": 2048, "num_warps": 4, "num_warps_draw": 8},
    {"group": 64},
    {"group": 256},
)


def run_sweep(deadline: float) -> Iterable[dict[str, Any]]:
    v = VOCAB_SIZES[0]
    problems = []
    for kind in KINDS:
        for n in ROWS:
            buffers = [make_logits(kind, n, v) for _ in range(NUM_BUFFERS)]
            problems += [(Batch(params, n), buffers) for params in (CASES[0], CASES[2])]
    names = "; ".join(f"{kind} {', '.join(map(str, ROWS))} x (p, k+p)" for kind in KINDS)
    print(f"us of {names}")
    for options in SWEEP:
        if time.monotonic() > deadline:
            print("sweep cut short")
            return
        times = [device_us(batch, buffers, **options) for batch, buffers in problems]
        label = ", ".join(f"{k} {v}" for k, v in options.items()) or "as it is"
        print(f"  {label:46}", " ".join(f"{us:6.1f}" for us in times), flush=True)
        yield {"options": options, "us": times}


def main() -> None:
    begin = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-sweep", action="store_true")
    parser.add_argument("--until-s", type=float, default=55, help="the sweep ends by then")
    parser.add_argument("--out", type=Path, help="all numbers as JSON")
    args = parser.parse_args()
    import triton

    torch.manual_seed(0)
    card = torch.cuda.get_device_name()
    versions = f"torch {torch.__version__}, triton {triton.__version__}"
    print(f"{card}, {versions}, {DTYPE}")
    report: dict[str, Any] = {"card": card, "versions": versions, "cases": [], "around": []}
    for v in VOCAB_SIZES:
        start = time.monotonic()
        Batch(CASES[0], 1).call(make_logits("flat", 1, v))
        torch.cuda.synchronize()
        print(f"vocabulary of {v}; the first call took {time.monotonic() - start:.1f} s")
        for kind in KINDS:
            logits = make_logits(kind, 64, v)
            told = {str(p): check(logits, p) for p in (*CASES, *ONLY_CHECKED)}
            print(f"{kind}: right. Rows whose last token kept is that of sorting:", told)
            check_report(logits)
        check_rows_alone(logits)
        for n in ROWS:
            for kind in KINDS:
                buffers = [make_logits(kind, n, v) for _ in range(NUM_BUFFERS)]
                cases = CASES if v == VOCAB_SIZES[0] else CASES[:1]
                report["cases"] += [run_case(kind, params, buffers) for params in cases]
            report["around"].append(run_around(buffers))
    if not args.no_sweep:
        report["sweep"] = list(run_sweep(begin + args.until_s))
    print(f"{time.monotonic() - begin:.0f} s")
    if args.out:
        args.out.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
