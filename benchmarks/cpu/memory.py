"""What serving takes of memory, and for what: the interpreter with its libraries, the weights, the
KV cache, and the rest.

    python benchmarks/cpu/memory.py --model smollm2 --streams 16 --prompt 128 --tokens 128

In one process: after the imports (torch's own shown), after the model is loaded, and the most while
so many streams ran, whose cache is sized for just them. `ratio` is what the process took beyond its
libraries over the file and the cache together. Pages of a mapped file count, as they are resident.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

MIB = 1024**2


def resident() -> int:
    """Bytes of this process that are in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def measure(args: argparse.Namespace) -> dict[str, object]:
    """In a process of its own."""
    begin = resident()
    import torch

    from octavo import LLM
    from octavo.types import SamplingParams
    from octavo.weights.store import resolve

    for module in ("executor", "runner", "native_plan"):  # what an engine loads of ours
        importlib.import_module(f"octavo.runner.{module}")
    torch.set_num_threads(args.threads)
    torch.ones(64, 64) @ torch.ones(64, 64)  # the libraries behind it
    libraries = resident()
    length = args.prompt + args.tokens + 16
    size = resolve(args.model).stat().st_size
    cache = ask_bytes_per_token(args.model) * args.streams * length
    llm = LLM(
        args.model,
        num_threads=args.threads,
        max_model_len=length,
        max_num_seqs=args.streams,
        kv_cache_memory=cache,
    )
    loaded = resident()
    vocab_size = llm.info.vocab_size
    prompts = [
        {"prompt_token_ids": [(7 + 31 * s + 17 * i) % vocab_size for i in range(args.prompt)]}
        for s in range(args.streams)
    ]
    params = SamplingParams(max_tokens=args.tokens, temperature=0.0, ignore_eos=True)
    begin_s = time.perf_counter()
    llm.generate(prompts, params)
    took = time.perf_counter() - begin_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    llm.close()
    return {
        "model": args.model,
        "streams": args.streams,
        "file": size / MIB,
        "kv_cache": cache / MIB,
        "interpreter": begin / MIB,
        "interpreter_and_libraries": libraries / MIB,
        "loaded": loaded / MIB,
        "peak": peak / MIB,
        "beyond_libraries": (peak - libraries) / MIB,
        "ratio": (peak - libraries) / (size + cache),
        "tokens_per_s": args.streams * args.tokens / took,
    }


def ask_bytes_per_token(model: str) -> int:
    """The same, by a process of its own, which leaves nothing in this one."""
    command = [sys.executable, __file__, "--bytes-per-token", model]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def bytes_per_token(model: str) -> int:
    """Of the KV cache, over all layers."""
    from octavo import LLM

    llm = LLM(model, max_model_len=64, max_num_seqs=1)
    layout = llm.info.kv_cache
    llm.close()
    return layout.bytes_per_block // layout.block_size


def main() -> None:
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bytes-per-token", metavar="MODEL", help="print those, and end")
    args = parser.parse_args()
    if args.bytes_per_token:
        print(bytes_per_token(args.bytes_per_token))
        return
    found = measure(args)
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in found.items()}))


if __name__ == "__main__":
    main()
