"""Octavo beside llama.cpp on the same GGUF files, in turns.

    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install --no-binary llama-cpp-python "llama-cpp-python==0.3.*"
    python benchmarks/cpu/against_llama_cpp.py --peer-python /tmp/peers/bin/python --json

The first line is for an environment of its own, whose Python `--peer-python` names. Each turn is a
fresh process of each: load, one token (the seconds from the process's start to it), then

  one stream     tokens per second behind a prompt of 16, without the prompt
  prompt         tokens per second of a prompt of `--prompt-len`
  N streams      output tokens per second of N sequences of 128 tokens in and `--output-len` out,
                 prompts included; llama.cpp by its batch interface, prompts in batches of 2048
  peak           MB of memory, of the whole process; for Octavo also what importing torch takes

Between them two threads read 256 MiB of memory, by the C library's memchr: GB/s, and the tokens per
second that it allows for one stream (file size / GB/s). Medians of the turns, and ratios turn by
turn, since a busy machine's speed changes meanwhile.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import resource
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

STREAM_PROMPT = 128
MODELS = ("smollm2", "gemma3-270m")


def peak_mb() -> float:
    """Of this process so far, and the largest of its children."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_maxrss for each in usage) / 1024


def read_gb_per_s(num_threads: int, num_bytes: int = 256 * 1024**2) -> float:
    """Best of three read-only scans of memory by so many threads."""
    memchr = ctypes.CDLL(None).memchr
    memchr.restype, memchr.argtypes = (
        ctypes.c_void_p,
        [
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_size_t,
        ],
    )
    share = num_bytes // num_threads
    areas = [ctypes.create_string_buffer(share) for _ in range(num_threads)]
    for area in areas:
        ctypes.memset(area, 1, share)
    best = 0.0
    for _ in range(3):
        threads = [
            threading.Thread(target=memchr, args=(ctypes.addressof(area), 0, share - 1))
            for area in areas
        ]
        begin = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        best = max(best, num_bytes / (time.perf_counter() - begin) / 1e9)
    return best


def prompt(length: int, index: int, vocab_size: int) -> list[int]:
    """Token ids that are alike for both, and different for each sequence."""
    return [(7 * i + 31 * index) % (vocab_size - 200) + 100 for i in range(length)]


class LlamaCpp:
    """llama.cpp through llama-cpp-python's plain functions."""

    def __init__(self, path: str, args: argparse.Namespace) -> None:
        import llama_cpp as api
        import numpy as np

        self._api, self._np = api, np
        quiet = api.llama_log_callback(lambda level, text, user: None)
        self._keep = quiet
        api.llama_log_set(quiet, ctypes.c_void_p(0))
        api.llama_backend_init()
        self._model = api.llama_model_load_from_file(
            path.encode(), api.llama_model_default_params()
        )
        params = api.llama_context_default_params()
        most = max(args.streams)
        params.n_ctx = max(args.prompt_len + 64, most * (STREAM_PROMPT + args.output_len)) + 512
        params.n_batch, params.n_ubatch, params.n_seq_max = 2048, 512, most
        params.n_threads = params.n_threads_batch = args.threads
        params.kv_unified = True
        self._context = api.llama_init_from_model(self._model, params)
        self._memory = api.llama_get_memory(self._context)
        self.vocab_size = int(api.llama_vocab_n_tokens(api.llama_model_get_vocab(self._model)))
        self._batch = api.llama_batch_init(2048, 0, 1)

    def generate(self, prompts: list[list[int]], num_outputs: int) -> None:
        """Greedy; every sequence to its full length."""
        self._api.llama_memory_clear(self._memory, True)
        rows = [
            (token, place, seq, place + 1 == len(ids))
            for seq, ids in enumerate(prompts)
            for place, token in enumerate(ids)
        ]
        latest: dict[int, int] = {}
        for begin in range(0, len(rows), 2048):
            latest |= self._decode(rows[begin : begin + 2048])
        for step in range(num_outputs - 1):
            latest = self._decode(
                [(token, len(prompts[seq]) + step, seq, True) for seq, token in latest.items()]
            )

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> dict[int, int]:
        """One call; the most likely next token of each sequence that asks for it."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, place, seq, has_logits) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, place, 1
            batch.seq_id[i][0], batch.logits[i] = seq, has_logits
        if self._api.llama_decode(self._context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        found = {}
        for i, (_, _, seq, has_logits) in enumerate(rows):
            if has_logits:
                row = self._api.llama_get_logits_ith(self._context, i)
                logits = self._np.ctypeslib.as_array(row, shape=(self.vocab_size,))
                found[seq] = int(logits.argmax())
        return found


class Octavo:
    """Octavo in the same process."""

    def __init__(self, path: str, args: argparse.Namespace) -> None:
        before, begin = peak_mb(), time.perf_counter()
        import torch  # noqa: F401

        self.parts = {
            "import torch, s": time.perf_counter() - begin,
            "import torch, MB": peak_mb() - before,
        }
        from octavo import LLM, SamplingParams

        begin = time.perf_counter()
        self._params = SamplingParams
        self._llm = LLM(
            path, load_format=args.load_format, num_threads=args.threads, device="cpu",
            max_model_len=2048, enable_prefix_caching=False, max_num_seqs=max(args.streams),
        )  # fmt: skip
        self.parts["load, s"] = time.perf_counter() - begin
        self.vocab_size = self._llm.info.vocab_size

    def generate(self, prompts: list[list[int]], num_outputs: int) -> None:
        """See `LlamaCpp.generate`."""
        params = self._params(temperature=0, max_tokens=num_outputs, ignore_eos=True)
        self._llm.generate([{"prompt_token_ids": ids} for ids in prompts], params)


def seconds_of(engine: Any, count: int, length: int, num_outputs: int) -> float:
    """What an engine takes for `count` prompts of `length` tokens and so many outputs of each."""
    prompts = [prompt(length, index, engine.vocab_size) for index in range(count)]
    begin = time.perf_counter()
    engine.generate(prompts, num_outputs)
    return time.perf_counter() - begin


def measure(args: argparse.Namespace) -> None:
    """In a process of its own; prints a line at the first token and one with the numbers."""
    engine = (LlamaCpp if args.child == "llama.cpp" else Octavo)(args.path, args)

    seconds = partial(seconds_of, engine)
    seconds(1, 16, 1)
    print("first token", flush=True)
    first_mb = peak_mb()
    long = args.decode_len
    found: dict[str, float] = {}
    found["one stream"] = long / (seconds(1, 16, long + 1) - seconds(1, 16, 1))
    found[f"prompt of {args.prompt_len}"] = args.prompt_len / seconds(1, args.prompt_len, 1)
    one_mb = peak_mb()
    for count in args.streams:
        total = seconds(count, STREAM_PROMPT, args.output_len)
        found[f"{count} streams"] = count * args.output_len / total
    found |= {"peak MB, first token": first_mb, "peak MB, one stream": one_mb, "peak MB": peak_mb()}
    print(json.dumps(found | getattr(engine, "parts", {})), flush=True)
    os._exit(0)  # llama.cpp's and torch's own end is not measured


def run_child(name: str, python: str, path: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [
        python, __file__, "--child", name, "--path", str(path), "--threads", str(args.threads),
        "--streams", *map(str, args.streams), "--output-len", str(args.output_len),
        "--prompt-len", str(args.prompt_len), "--decode-len", str(args.decode_len),
        "--load-format", args.load_format,
    ]  # fmt: skip
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout is not None
    first, found = 0.0, None
    for line in process.stdout:
        if line.startswith("first token"):
            first = time.perf_counter() - begin
        elif line.startswith("{"):
            found = json.loads(line)
    if process.wait() != 0 or found is None:
        raise SystemExit(f"{name} failed on {path}")
    return {"start to first token, s": first} | found


def compare(model: str, path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each number."""
    size = path.stat().st_size
    pythons = {"octavo": sys.executable}
    if args.peer_python:
        pythons["llama.cpp"] = args.peer_python
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in pythons}
    bandwidths = []
    for turn in range(args.turns):
        names = list(pythons)
        for name in names if turn % 2 == 0 else reversed(names):
            turns[name].append(run_child(name, pythons[name], path, args))
            bandwidths.append(read_gb_per_s(args.threads))
    floor = median(bandwidths)
    rows: list[dict[str, Any]] = [
        {"model": model, "what": "reading memory, GB/s", "value": round(floor, 1)},
        {"model": model, "what": "one stream at most", "value": round(floor * 1e9 / size, 1)},
    ]
    for what in turns["octavo"][0]:
        row: dict[str, Any] = {"model": model, "what": what}
        for name, found in turns.items():
            values = [turn[what] for turn in found if what in turn]
            if values:
                row[name] = round(median(values), 2)
        if "llama.cpp" in row:
            pairs = zip(turns["octavo"], turns["llama.cpp"], strict=True)
            row["ratio"] = round(median(ours[what] / other[what] for ours, other in pairs), 2)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--peer-python", help="of an environment with llama-cpp-python")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prompt-len", type=int, default=1024)
    parser.add_argument("--decode-len", type=int, default=64)
    parser.add_argument("--load-format", default="blocks", help="of Octavo")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=["octavo", "llama.cpp"], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args)
        return
    from octavo.weights.store import resolve

    rows: list[dict[str, Any]] = []
    for model in args.models:
        rows += compare(model, Path(resolve(model)), args)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    show: Callable[[Any], str] = lambda value: "" if value is None else f"{value:>10}"  # noqa: E731
    for row in rows:
        columns = [show(row.get(key)) for key in ("value", "octavo", "llama.cpp", "ratio")]
        print(f"{row['model']:12} {row['what']:26}", *columns)


if __name__ == "__main__":
    main()
