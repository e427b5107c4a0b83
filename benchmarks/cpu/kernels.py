"""Products with quantized weights: native kernels against torch, and what a model gains by them.

    python benchmarks/cpu/kernels.py --threads 2
    python benchmarks/cpu/kernels.py --threads 2 --model smollm2

Without --model: for each block format and each layer shape of SmolLM2, GB/s of weights for one row
of activations and GOP/s (two per weight and row) for 16 and 256 rows, beside torch's product with
float32 and bfloat16 weights. Matrices are copied until they exceed `--cache`, so that weights come
from memory, as in a model. With --model: tokens per second of one stream, of 16, and of a prompt of
1024 tokens, with native kernels and with decoded weights, each in a process of its own, in turns.

Medians; `--best` prints the best instead, for a machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.config import default_thread_waiting
from octavo.kernels import cpu
from octavo.kernels.cpu import matmul
from octavo.weights.block_formats import FORMATS_BY_NAME

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {"qkv": (960, 576), "o": (576, 576), "gate_up": (3072, 576), "down": (576, 1536)}
"""SmolLM2's layers, (outputs, inputs)."""
WAYS = {"native": "blocks", "torch": "decoded"}


def times(run: Callable[[int], object], copies: int, repeats: int) -> list[float]:
    """Seconds per call, of `repeats` rounds over all copies."""
    run(0)
    found = []
    for _ in range(repeats):
        begin = perf_counter()
        for i in range(copies):
            run(i)
        found.append((perf_counter() - begin) / copies)
    return found


def packed_copies(name: str, shape: tuple[int, int], copies: int) -> list[torch.Tensor]:
    """Random codes with small scales."""
    fmt = FORMATS_BY_NAME[name]
    rng = np.random.default_rng(0)
    num_blocks = shape[0] * shape[1] // fmt.block_size
    blocks = rng.integers(0, 256, (num_blocks, fmt.block_bytes), dtype=np.uint8)
    half = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    at = fmt.block_bytes - 2 if name == "Q6_K" else 0
    blocks[:, at : at + 2] = half
    blocks = blocks.reshape(shape[0], -1)
    made = []
    memory = matmul.PackedMemory()
    for _ in range(copies):
        packed = memory.take(matmul.packed_bytes(name, *shape))
        matmul.pack(packed, blocks, name, shape, None, is_last=True)
        made.append(packed)
    return made


def native_call(
    x: torch.Tensor, copies: list[torch.Tensor], num_rows: int
) -> Callable[[int], torch.Tensor]:
    return lambda i: matmul.linear(x, copies[i], num_rows, None)


def torch_call(x: torch.Tensor, copies: list[torch.Tensor]) -> Callable[[int], torch.Tensor]:
    x = x.to(copies[0].dtype)
    return lambda i: torch.nn.functional.linear(x, copies[i])


def bench_kernels(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    cpu.set_num_threads(args.threads)
    pick = min if args.best else median
    print(f"{cpu.isa()}, {args.threads} threads, torch {torch.backends.cpu.get_cpu_capability()}")
    for layer, (num_rows, num_cols) in SHAPES.items():
        weights: dict[str, list[torch.Tensor]] = {}
        for name in args.formats:
            cols = columns(name, num_cols)
            size = matmul.packed_bytes(name, num_rows, cols)
            weights[name] = packed_copies(name, (num_rows, cols), args.cache // size + 1)
        for dtype in (torch.float32, torch.bfloat16):
            size = num_rows * num_cols * dtype.itemsize
            count = args.cache // size + 1
            weights[str(dtype)] = [torch.randn(num_rows, num_cols).to(dtype) for _ in range(count)]
        for name, copies in weights.items():
            is_native = name in args.formats
            cols = columns(name, num_cols) if is_native else num_cols
            row: dict[str, object] = {"layer": layer, "shape": [num_rows, cols], "weights": name}
            for tokens in (1, 16, 256):
                x = torch.randn(tokens, cols)
                run = native_call(x, copies, num_rows) if is_native else torch_call(x, copies)
                used = len(copies) if tokens < 256 else max(1, len(copies) // 8)
                seconds = pick(times(run, used, args.repeats))
                if tokens == 1:
                    row["us_1"] = round(seconds * 1e6, 1)
                    row["GB/s_1"] = round(copies[0].nbytes / seconds / 1e9, 2)
                else:
                    gops = 2 * tokens * num_rows * cols / seconds / 1e9
                    row[f"GOP/s_{tokens}"] = round(gops, 1)
            print(json.dumps(row), flush=True)


def columns(name: str, num_cols: int) -> int:
    """Inputs of a layer, filled up to whole blocks of a format."""
    size = FORMATS_BY_NAME[name].block_size
    return -(-num_cols // size) * size


def model_rates(model: str, load_format: str, threads: int, repeats: int) -> dict[str, list[float]]:
    """Tokens per second: of one stream, of 16 together, and of a prompt."""
    from octavo import LLM, SamplingParams

    llm = LLM(
        model, load_format=load_format, num_threads=threads, max_model_len=2048, device="cpu",
        enable_prefix_caching=False, skip_tokenizer_init=True,
    )  # fmt: skip
    limit = llm.info.vocab_size - 200

    def seconds(num_prompts: int, prompt_len: int, output_len: int) -> float:
        prompts = [
            {"prompt_token_ids": [(7 * i + 31 * k) % limit + 100 for i in range(prompt_len)]}
            for k in range(num_prompts)
        ]
        params = SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        begin = perf_counter()
        llm.generate(prompts, params)
        return perf_counter() - begin

    seconds(2, 64, 4)
    rates: dict[str, list[float]] = {"one stream": [], "16 streams": [], "prompt of 1024": []}
    for _ in range(repeats):
        rates["one stream"].append(64 / (seconds(1, 16, 65) - seconds(1, 16, 1)))
        rates["16 streams"].append(16 * 32 / (seconds(16, 128, 33) - seconds(16, 128, 1)))
        rates["prompt of 1024"].append(1024 / seconds(1, 1024, 1))
    llm.close()
    return rates


def bench_model(args: argparse.Namespace) -> None:
    """Turns of fresh processes, so that both ways see the same neighbours."""
    found: dict[str, dict[str, list[float]]] = {way: {} for way in WAYS}
    for _ in range(args.turns):
        for way, load_format in WAYS.items():
            command = [
                sys.executable, __file__, "--model", args.model, "--one", load_format,
                "--threads", str(args.threads), "--repeats", str(args.repeats),
            ]  # fmt: skip
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ)
            for what, rates in json.loads(done.stdout.splitlines()[-1]).items():
                found[way].setdefault(what, []).extend(rates)
    pick = max if args.best else median
    for what in found["native"]:
        row = {way: round(pick(found[way][what]), 1) for way in WAYS}
        print(
            json.dumps({"tokens/s": what, **row, "ratio": round(row["native"] / row["torch"], 2)})
        )


def main() -> None:
    default_thread_waiting()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--formats", nargs="+", default=list(matmul.TYPES), choices=matmul.TYPES)
    parser.add_argument("--cache", type=int, default=48 * 1024**2, help="bytes to exceed")
    parser.add_argument("--best", action="store_true", help="print the best, not the median")
    parser.add_argument("--model", help="measure a model instead of kernels")
    parser.add_argument("--turns", type=int, default=2, help="processes for each way")
    parser.add_argument("--one", choices=WAYS.values(), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        from octavo.weights.store import resolve

        path = str(resolve(args.model))
        print(json.dumps(model_rates(path, args.one, args.threads, args.repeats)))
    elif args.model:
        bench_model(args)
    else:
        bench_kernels(args)


if __name__ == "__main__":
    main()
