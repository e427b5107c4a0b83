"""Gaps between tokens of running streams while a long prompt enters, for several token budgets.

    python benchmarks/cpu/itl_under_prefill.py --model smollm2 --budgets 128,512,2048

Drives the engine core directly, so a gap is the time between two steps that gave a stream a token.
"""

from __future__ import annotations

import argparse
import json
import random
import time

import numpy as np

from octavo import LLM, SamplingParams
from octavo.engine.messages import AddRequest


def gaps(llm: LLM, num_streams: int, prompt_len: int, rng: random.Random) -> dict[str, float]:
    """Milliseconds at p50, p99 and most, alone and while the prompt is computed."""
    core, vocab = llm._core, llm.info.vocab_size
    forever = SamplingParams(temperature=0, max_tokens=1000, ignore_eos=True)
    names = [f"stream-{i}" for i in range(num_streams)]

    def ids(count: int) -> list[int]:
        return [rng.randrange(1000, vocab) for _ in range(count)]

    for name in names:
        core.add(AddRequest(name, ids(64), forever, []))
    seen: dict[str, float] = {}
    alone: list[float] = []
    during: list[float] = []
    for step in range(10_000):
        if step == 60:
            entered = time.perf_counter()
            core.add(AddRequest("long", ids(prompt_len), SamplingParams(max_tokens=1), []))
        outputs = core.step()
        now = time.perf_counter()
        for output in outputs:
            if output.request_id in seen:
                (alone if step < 60 else during).append(1e3 * (now - seen[output.request_id]))
            seen[output.request_id] = now
        if any(output.request_id == "long" for output in outputs):
            break
    core.abort(names)
    result = {"ttft_s": now - entered}
    for label, values in (("alone", alone[num_streams * 5 :]), ("during", during)):
        for percent in (50, 99, 100):
            result[f"{label}_p{percent}_ms"] = float(np.percentile(values, percent))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--prompt-len", type=int, default=2048)
    parser.add_argument("--budgets", default="128,512,2048")
    args = parser.parse_args()
    report = {}
    for budget in map(int, args.budgets.split(",")):
        llm = LLM(args.model, max_num_batched_tokens=budget, kv_cache_memory=2 * 1024**3)
        report[budget] = gaps(llm, args.streams, args.prompt_len, random.Random(7))
        llm.close()
        print(budget, json.dumps(report[budget]), flush=True)


if __name__ == "__main__":
    main()
