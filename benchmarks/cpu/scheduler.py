"""What the scheduler costs the host: plan plus update, for a growing number of running requests.

    python benchmarks/cpu/scheduler.py

Each step is a decode of every running request, results made up on the spot and not timed. Also
times the block manager: per block, for pools of very different sizes, which must not matter.
"""

from __future__ import annotations

import argparse
import json
from random import Random
from statistics import median, quantiles
from time import perf_counter_ns

from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.request import Request
from octavo.engine.scheduler import Scheduler
from octavo.types import SamplingParams, StepResult

BLOCK_SIZE = 16
PROMPT_LEN = 512


def steps_us(num_running: int, num_steps: int, *, caching: bool) -> list[float]:
    """Microseconds of plan plus update, per decode step."""
    num_blocks = num_running * (PROMPT_LEN + num_steps + 64) // BLOCK_SIZE
    scheduler = Scheduler(
        KVCacheManager(num_blocks, BLOCK_SIZE, enable_prefix_caching=caching),
        max_num_seqs=num_running,
        max_num_batched_tokens=max(8192, num_running),
        max_model_len=8192,
    )
    random = Random(0)
    params = SamplingParams(max_tokens=None, ignore_eos=True)
    for i in range(num_running):
        # Lengths differ, so that block boundaries spread over the steps as they do in service.
        prompt = [random.randrange(50_000) for _ in range(PROMPT_LEN - random.randrange(64))]
        scheduler.add(Request(f"request-{i}", prompt, params, seed=i, eos_token_ids=[2]))
    times: list[float] = []
    while len(times) < num_steps:
        begin = perf_counter_ns()
        plan = scheduler.plan()
        planned = perf_counter_ns()
        token_ids = [random.randrange(3, 50_000) for _ in range(sum(plan.samples))]
        result = StepResult(plan.step_id, token_ids, [], 0)
        resume = perf_counter_ns()
        outputs = scheduler.update(plan, result)
        end = perf_counter_ns()
        if plan.num_tokens == num_running == len(outputs):
            times.append((planned - begin + end - resume) / 1000)
    return times


def blocks_ns(num_blocks: int) -> dict[str, float]:
    """Nanoseconds per block of each operation on a pool of this size, half of it in use."""
    manager = KVCacheManager(num_blocks, BLOCK_SIZE)
    params = SamplingParams()
    random = Random(0)
    count = 64

    def make(name: str, salt: str) -> Request:
        prompt = [random.randrange(50_000) for _ in range(count * BLOCK_SIZE)]
        return Request(name, prompt, params, seed=0, cache_salt=salt)

    holders = [make(f"h{i}", f"h{i}") for i in range(num_blocks // count // 2)]
    for holder in holders:
        manager.find_prefix(holder)
        assert manager.start(holder, [])
    times: dict[str, list[float]] = {"hash": [], "find": [], "take": [], "commit": [], "free": []}
    for i in range(200):
        request = make(f"r{i}", f"r{i}")
        marks = [perf_counter_ns()]
        manager.find_prefix(request)
        marks.append(perf_counter_ns())
        manager.find_prefix(request)
        marks.append(perf_counter_ns())
        assert manager.start(request, [])
        marks.append(perf_counter_ns())
        manager.commit(request, request.num_tokens)
        marks.append(perf_counter_ns())
        manager.free(request)
        marks.append(perf_counter_ns())
        for (name, values), begin, end in zip(times.items(), marks[:-1], marks[1:], strict=True):
            values.append((end - begin) / (1 if name == "find" else count))
    return {name: median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    args = parser.parse_args()
    rows = []
    for caching in (True, False):
        for num_running in (1, 16, 64, 256, 512, 1024, 2048):
            times = steps_us(num_running, args.steps, caching=caching)
            rows.append(
                {
                    "num_running": num_running,
                    "prefix_caching": caching,
                    "median_us": round(median(times), 1),
                    "p99_us": round(quantiles(times, n=100)[98], 1),
                    "median_us_per_request": round(median(times) / num_running, 2),
                }
            )
            if not args.json:
                print(*(f"{name} {value}" for name, value in rows[-1].items()), sep="   ")
    pools = {size: blocks_ns(size) for size in (1_000, 10_000, 100_000)}
    if args.json:
        print(json.dumps({"steps": rows, "block_ns": pools}))
    else:
        for size, values in pools.items():
            print(f"pool of {size} blocks, ns per block:", values)


if __name__ == "__main__":
    main()
