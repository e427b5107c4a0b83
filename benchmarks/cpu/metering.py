"""What metering costs, and what it shows: throughput with it and without, and the price of tokens.

    python benchmarks/cpu/metering.py --model smollm2 throughput   # paired runs, on against off
    python benchmarks/cpu/metering.py --model smollm2 concurrency  # device time and cost per token
    python benchmarks/cpu/metering.py attribution                  # microseconds of a step's split

Pairs run one after the other, in turns who goes first, on two engines in this process.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from statistics import median
from typing import Any

from octavo import LLM
from octavo.engine.metering import Meter
from octavo.engine.metering_views import loaded_view, since, unattributed_ns
from octavo.engine.request import Request
from octavo.types import AttentionWork, SamplingParams, StepPlan, WorkModel

SMOLLM2 = WorkModel(
    flops_per_token=2.12e8,
    flops_per_sample=5.66e7,
    bytes_per_token=1.01e6,
    weight_bytes=4.25e8,
    head_weight_bytes=1.13e8,
    attention=(AttentionWork(69120.0, 46080.0),),
    flops_per_s=1e11,
    bytes_per_s=2e10,
)


def prompts_of(num: int, length: int, vocab_size: int, seed: int) -> list[Any]:
    """Prompts of random ids, none of which begin alike."""
    draw = random.Random(seed)
    return [
        {"prompt_token_ids": [draw.randrange(vocab_size) for _ in range(length)]}
        for _ in range(num)
    ]


def throughput(args: argparse.Namespace) -> dict[str, Any]:
    """Output tokens per second with metering over those without, pair by pair."""
    engines = {
        metering: LLM(args.model, metering=metering, num_threads=args.threads, max_model_len=1024)
        for metering in (True, False)
    }
    params = SamplingParams(max_tokens=args.tokens, temperature=0.0, ignore_eos=True)
    ratios: list[float] = []
    speeds: dict[bool, list[float]] = {True: [], False: []}
    for pair in range(-1, args.pairs):  # the first is not counted
        prompts = prompts_of(args.streams, args.prompt, engines[True].info.vocab_size, pair)
        for metering in (True, False) if pair % 2 else (False, True):
            begin = time.perf_counter()
            engines[metering].generate(prompts, params)
            took = time.perf_counter() - begin
            speeds[metering].append(args.streams * args.tokens / took)
        if pair >= 0:
            ratios.append(speeds[True][-1] / speeds[False][-1])
    for engine in engines.values():
        engine.close()
    return {
        "ratio_median": round(median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "tokens_per_s_on": round(median(speeds[True][1:]), 1),
        "tokens_per_s_off": round(median(speeds[False][1:]), 1),
    }


def concurrency(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The same requests, more and more of them at a time."""
    llm = LLM(args.model, num_threads=args.threads, max_model_len=1024, max_num_seqs=64)
    params = SamplingParams(max_tokens=args.tokens, temperature=0.0, ignore_eos=True)
    llm.generate(prompts_of(1, 8, llm.info.vocab_size, 1), params)
    rows: list[dict[str, Any]] = []
    for at_a_time in (1, 4, 16, 64):
        num = max(at_a_time, args.requests)
        prompts = prompts_of(num, args.prompt, llm.info.vocab_size, at_a_time)
        llm.reset_prefix_cache()
        before = llm.stats.device_time
        outputs = []
        for start in range(0, num, at_a_time):
            outputs += llm.generate(prompts[start : start + at_a_time], params)
        spent = since(llm.stats.device_time, before)
        charges = [output.charge for output in outputs if output.charge is not None]
        assert sum(charge.total_ns for charge in charges) == spent.requests_ns
        own = [charge.total_ns for charge in charges]
        loaded = loaded_view(own, unattributed_ns(spent))
        assert sum(loaded) == spent.num_devices * spent.wall_ns
        num_tokens = num * args.tokens
        per_million = args.price / 3600e9 * 1e6 / num_tokens
        rows.append(
            {
                "concurrency": at_a_time,
                "requests": num,
                "prefill_ms_per_request": round(sum(c.prefill_ns for c in charges) / num / 1e6, 2),
                "decode_ms_per_token": round(
                    sum(c.decode_ns for c in charges) / num_tokens / 1e6, 3
                ),
                "device_ms_per_request": round(sum(own) / num / 1e6, 1),
                "usd_per_1m_output_tokens": round(sum(own) * per_million, 4),
                "usd_fully_loaded": round(sum(loaded) * per_million, 4),
                "least_and_most_ms": [round(f(own) / 1e6, 1) for f in (min, max)],
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    llm.close()
    return rows


def attribution(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The fastest of many short series: the machine has other things to do."""
    rows = []
    for num in (1, 4, 16, 64, 256):
        for has_prompt in (False, True):
            for joins in (False, True):
                took = _step_us(num, has_prompt=has_prompt, joins=joins)
                step = {"rows": num, "with_prompt": has_prompt, "rows_change": joins}
                rows.append({**step, "us": round(took, 1)})
                print(json.dumps(rows[-1]), flush=True)
    return rows


def _step_us(num: int, *, has_prompt: bool, joins: bool) -> float:
    """Microseconds for a step of `num` rows.

    Args:
        num: rows.
        has_prompt: the last of them computes 200 tokens of a prompt.
        joins: other rows than in the step before.
    """
    meter = Meter(SMOLLM2, 0)
    meter.ready(0, 10)
    params = SamplingParams(max_tokens=None)
    requests = [Request(f"r{index}", [1] * 50, params, seed=0) for index in range(num)]
    for request in requests:
        meter.open(request)
    computed = [100 + 3 * index for index in range(num)]
    plan = StepPlan(0, [], list(range(num)), computed, [1] * num, [True] * num, [])
    if has_prompt:
        computed[-1], plan.num_new_tokens[-1] = 0, 200
    orders = [requests, [*requests[1:-1], requests[0], requests[-1]]] if num > 2 else [requests]
    best, now, series = float("inf"), 100, 6
    for _ in range(500):
        begin = time.perf_counter()
        for index in range(series):
            meter.launch(plan, requests, now)
            now += 1_000_003
            meter.end(plan, orders[index % len(orders) if joins else 0], 1_000_003, now)
        best = min(best, time.perf_counter() - begin)
    return best / series * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["throughput", "concurrency", "attribution"])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="tokens of an output")
    parser.add_argument("--requests", type=int, default=16, help="at each concurrency, at least")
    parser.add_argument("--price", type=float, default=1.0, help="USD of a device hour")
    args = parser.parse_args()
    result = {"throughput": throughput, "concurrency": concurrency, "attribution": attribution}[
        args.what
    ](args)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
