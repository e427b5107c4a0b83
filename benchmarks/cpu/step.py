"""Where a native step's time goes: decodes of several batch sizes and a prefill, part by part.

    python benchmarks/cpu/step.py --model smollm2 --threads 2
    python benchmarks/cpu/step.py --model smollm2 --streams 1 --context 1000 --profile
    python benchmarks/cpu/step.py --model smollm2 --sampling

Steps run without a scheduler. `step` is the whole of a step, sampling included, `native` the one
call of native code for the model in it; with --profile the operations are timed one by one, which
costs what sharing their rows together gains. Milliseconds, medians of `--repeats`.

With --sampling decodes are repeated for several kinds of requests: `sampling` is what comes after
the logits, reports of log-probabilities included; `by torch` the same with the same logits where
there is no library.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from octavo.config import EngineConfig, default_thread_waiting
from octavo.kernels import cpu
from octavo.runner.runner import ModelRunner
from octavo.runner.sampler import sample
from octavo.types import RowInit, SamplingParams, StepPlan
from octavo.weights.open import open_checkpoint
from octavo.weights.store import resolve

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.layers.batch import ForwardBatch
    from octavo.runner.native_plan import NativePlan

GREEDY = SamplingParams(temperature=0)
KINDS = {
    "greedy": GREEDY,
    "temperature": SamplingParams(temperature=0.7),
    "top-p": SamplingParams(temperature=0.7, top_p=0.9),
    "top-p, hot": SamplingParams(temperature=1.5, top_p=0.95),
    "top-k": SamplingParams(top_k=50),
    "min-p": SamplingParams(min_p=0.05),
    "greedy, 5 logprobs": SamplingParams(temperature=0, logprobs=5),
    "top-p, 5 logprobs": SamplingParams(temperature=0.7, top_p=0.9, logprobs=5),
}


class Timed:
    """A plan whose calls are timed."""

    def __init__(self, plan: NativePlan) -> None:
        self.plan, self.seconds = plan, 0.0
        self.last = torch.empty(0)

    def logits(self, batch: ForwardBatch) -> torch.Tensor:
        begin = perf_counter()
        self.last = self.plan.logits(batch)
        self.seconds = perf_counter() - begin
        return self.last

    def largest(self, batch: ForwardBatch) -> torch.Tensor:
        begin = perf_counter()
        token_ids = self.plan.largest(batch)
        self.seconds = perf_counter() - begin
        return token_ids

    def hidden(self, batch: ForwardBatch) -> torch.Tensor:
        return self.plan.hidden(batch)


def make_step(
    num_rows: int, num_new: int, num_old: int, max_len: int, params: SamplingParams = GREEDY
) -> StepPlan:
    """All rows with `num_new` tokens behind `num_old`, each with blocks of its own."""
    blocks = -(-max_len // 16)
    rows = list(range(num_rows))
    length = num_new + num_old
    tokens = [[100 + (7 * i + 31 * row) % 5000 for i in range(length)] for row in rows]
    return StepPlan(
        step_id=0,
        new_rows=[RowInit(row, tokens[row], length, params, row, []) for row in rows],
        rows=rows,
        num_computed_tokens=[num_old] * num_rows,
        num_new_tokens=[num_new] * num_rows,
        samples=[True] * num_rows,
        new_block_ids=[list(range(row * blocks, row * blocks + blocks)) for row in rows],
    )


def measure(runner: ModelRunner, step: StepPlan, args: argparse.Namespace) -> dict[str, Any]:
    """One kind of step, over and over."""
    forward = runner._steps._forward  # type: ignore[union-attr]
    timed = forward if isinstance(forward, Timed) else Timed(forward)  # type: ignore[arg-type]
    runner._steps._forward = timed  # type: ignore[union-attr]
    whole, native = [], []
    times = torch.zeros(len(timed.plan.kinds), dtype=torch.int64)
    for turn in range(args.repeats + 2):
        timed.plan.times = times if args.profile and turn >= 2 else None
        begin = perf_counter()
        runner.execute(step)
        if turn >= 2:
            whole.append(perf_counter() - begin)
            native.append(timed.seconds)
    found: dict[str, Any] = {
        "step": round(median(whole) * 1e3, 2),
        "native": round(median(native) * 1e3, 2),
        "best": round(min(native) * 1e3, 2),
    }
    if args.profile:
        parts: Counter[str] = Counter()
        for kind, spent in zip(timed.plan.kinds, times.tolist(), strict=True):
            parts[kind.name.lower()] += spent
        found |= {name: round(ns / args.repeats / 1e6, 3) for name, ns in parts.most_common()}
        linear = [t for k, t in zip(timed.plan.kinds, times.tolist(), strict=True) if k in (3, 10)]
        found["logits"] = round(linear[-1] / args.repeats / 1e6, 3)
    return found


def measure_sampling(
    runner: ModelRunner, streams: int, params: SamplingParams, args: argparse.Namespace
) -> dict[str, Any]:
    """One kind of decode, and its sampling alone in both ways."""
    found = measure(runner, make_step(streams, 1, args.context, args.context + 16, params), args)
    forward = runner._steps._forward  # type: ignore[union-attr]
    state = runner._steps._sampler  # type: ignore[union-attr]
    rows = np.arange(streams)
    ways: dict[str, Callable[[], str | None]] = {
        "sampling": cpu.why_not,
        "by torch": lambda: "it is torch's turn",
    }
    if state.are_greedy(rows):
        return found | dict.fromkeys(ways, "in the model's call")
    usual = cpu.why_not
    for name, why_not in ways.items():
        cpu.why_not = why_not
        seconds = []
        for position in range(args.repeats):
            logits = forward.last.clone()
            begin = perf_counter()
            with torch.inference_mode():
                sample(logits, rows, np.full(streams, position), state).logprobs  # noqa: B018
            seconds.append(perf_counter() - begin)
        found[name] = round(median(seconds) * 1e3, 3)
    cpu.why_not = usual
    return found


def main() -> None:
    default_thread_waiting()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 16, 64])
    parser.add_argument("--context", type=int, default=200, help="tokens of each stream")
    parser.add_argument("--prefill", type=int, nargs="*", default=[512])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--kv-cache-dtype", default="auto")
    parser.add_argument("--profile", action="store_true", help="time each kind of operation")
    parser.add_argument("--sampling", action="store_true", help="several kinds of requests")
    args = parser.parse_args()
    path = resolve(args.model)
    config = EngineConfig(
        model=str(path), device="cpu", load_format="blocks", num_threads=args.threads,
        max_model_len=2048, max_num_seqs=64, kv_cache_memory=6 * 1024**3,
        kv_cache_dtype=args.kv_cache_dtype,
    )  # fmt: skip
    checkpoint = open_checkpoint(path)
    runner = ModelRunner(config, checkpoint)
    checkpoint.close()
    for streams in args.streams if args.sampling else ():
        for kind, params in KINDS.items():
            found = measure_sampling(runner, streams, params, args)
            print(json.dumps({"streams": streams, "kind": kind, **found}), flush=True)
    if args.sampling:
        return
    for streams in args.streams:
        step = make_step(streams, 1, args.context, args.context + 16)
        found = measure(runner, step, args)
        rate = round(streams / found["step"] * 1e3, 1)
        print(json.dumps({"streams": streams, "tokens/s": rate, **found}), flush=True)
    for length in args.prefill:
        found = measure(runner, make_step(1, length, 0, length), args)
        rate = round(length / found["step"] * 1e3, 1)
        print(json.dumps({"prefill": length, "tokens/s": rate, **found}), flush=True)


if __name__ == "__main__":
    main()
