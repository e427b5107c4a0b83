"""What prefix caching saves: requests that share a long prefix, with caching on and off.

    python benchmarks/cpu/prefix_cache.py --model smollm2

32 requests of a shared prefix and a part of their own, sent all at once and one after another. Each
repeat draws a new prefix, so nothing is cached before it begins. On and off take turns.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time

from octavo import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--requests", type=int, default=32)
    parser.add_argument("--prefix-len", type=int, default=1024)
    parser.add_argument("--own-len", type=int, default=32)
    parser.add_argument("--output-len", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ways", default="at once,in turn")
    args = parser.parse_args()

    engines = {
        way: LLM(
            args.model,
            dtype=args.dtype,
            kv_cache_memory=3 * 1024**3,
            enable_prefix_caching=way == "on",
        )
        for way in ("on", "off")
    }
    vocab = engines["on"].info.vocab_size
    params = SamplingParams(temperature=0, max_tokens=args.output_len, ignore_eos=True)
    rng = random.Random(args.prefix_len)

    def ids(count: int) -> list[int]:
        return [rng.randrange(1000, vocab) for _ in range(count)]

    def run(llm: LLM, prompts: list[list[int]], way: str) -> tuple[float, list[list[int]]]:
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        begin = time.perf_counter()
        batches = [inputs] if way == "at once" else [[one] for one in inputs]
        outputs = [output for batch in batches for output in llm.generate(batch, params)]
        return time.perf_counter() - begin, [o.outputs[0].token_ids for o in outputs]

    for llm in engines.values():
        run(llm, [ids(64) for _ in range(4)], "at once")
    report = {"setup": vars(args), "device": engines["on"].info.device}
    report["dtype"] = engines["on"].info.dtype
    for way in args.ways.split(","):
        seconds: dict[str, list[float]] = {"on": [], "off": []}
        for _ in range(args.repeats):
            prefix = ids(args.prefix_len)
            prompts = [prefix + ids(args.own_len) for _ in range(args.requests)]
            tokens = {}
            for name, llm in engines.items():
                took, tokens[name] = run(llm, prompts, way)
                seconds[name].append(took)
            same = sum(a == b for a, b in zip(tokens["on"], tokens["off"], strict=True))
            print(
                f"{way}: on {seconds['on'][-1]:.2f} s, off {seconds['off'][-1]:.2f} s, "
                f"{same} of {len(prompts)} outputs equal",
                flush=True,
            )
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        report[way] = seconds | {"ratio": medians["on"] / medians["off"]}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
