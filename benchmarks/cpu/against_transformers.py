"""Throughput against `transformers` with static batching, in the same process, same weights.

    python benchmarks/cpu/against_transformers.py --model smollm2 --dtype bfloat16

Both get the same random prompts of equal length (which spares `transformers` its padding), greedy,
no early end. They take turns, `--repeats` times; the ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from octavo import LLM, SamplingParams, __version__
from octavo.config import default_thread_waiting
from octavo.weights.store import resolve


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if not info.exists():
        return "unknown"
    lines = info.read_text().splitlines()
    return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a GGUF file or its pulled name")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--skip-transformers", action="store_true")
    parser.add_argument("--json")
    args = parser.parse_args()
    default_thread_waiting()

    llm = LLM(args.model, dtype=args.dtype, kv_cache_memory=2 * 1024**3)
    import torch
    import transformers

    vocab = llm.info.vocab_size
    times: dict[str, list[float]] = {"octavo": [], "transformers": []}
    reference = None
    if not args.skip_transformers:
        path = resolve(args.model)
        reference = transformers.AutoModelForCausalLM.from_pretrained(
            path.parent,
            gguf_file=path.name,
            dtype=getattr(torch, args.dtype),
            quantization_config=transformers.GgufConfig(dequantize=True),
        ).eval()
        reference.generation_config.eos_token_id = None

    def ours(prompts: list[list[int]], length: int) -> None:
        params = SamplingParams(temperature=0, max_tokens=length, ignore_eos=True)
        outputs = llm.generate([{"prompt_token_ids": p} for p in prompts], params)
        assert all(len(o.outputs[0].token_ids) == length for o in outputs)

    @torch.inference_mode()
    def theirs(prompts: list[list[int]], length: int) -> None:
        assert reference is not None
        ids = torch.tensor(prompts)
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=length,
            min_new_tokens=length,
            do_sample=False,
            pad_token_id=0,
        )
        assert out.shape[1] == args.input_len + length

    contenders = {"octavo": ours} | ({"transformers": theirs} if reference is not None else {})
    for run in contenders.values():
        run([[1] * args.input_len] * args.batch, 2)
    for repeat in range(args.repeats):
        rng = random.Random(repeat)
        prompts = [
            [rng.randrange(1000, vocab) for _ in range(args.input_len)] for _ in range(args.batch)
        ]
        for name, run in contenders.items():
            begin = time.perf_counter()
            run(prompts, args.output_len)
            times[name].append(time.perf_counter() - begin)
            print(f"repeat {repeat + 1}: {name} {times[name][-1]:.2f} s", flush=True)
    tokens = args.batch * args.output_len
    rates = {n: tokens / statistics.median(t) for n, t in times.items() if t}
    report = {
        "machine": f"{cpu_name()}, {torch.backends.cpu.get_cpu_capability()}, "
        f"{torch.get_num_threads()} threads",
        "versions": {
            "octavo": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "setup": vars(args),
        "seconds": times,
        "output_tokens_per_s": rates,
    }
    if "transformers" in rates:
        report["ratio"] = rates["octavo"] / rates["transformers"]
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
