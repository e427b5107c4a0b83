"""From the start of a process to its first token, on a CPU with a warm disk, and where it goes.

    python benchmarks/cpu/startup.py --model smollm2 --model gemma3-270m --repeats 7 --json

Each start is a fresh process: through `octavo.llm.LLM`, and `octavo run --raw` up to the first byte
of its answer. Beside them, in processes of their own, what nothing can be below: an interpreter
that does nothing, and one that imports torch. Parts of a start through `LLM`:

  interpreter  until its first line, with what Python imports by itself
  imports      of `octavo.llm`
  engine       `LLM(...)`; of it, as the engine tells: model, weights, kv_cache, warm_up, ...;
               `before` is what comes before those: the file's opening and torch's import
  first token  of a short prompt

Seconds. `wall` and `cpu` (user and system, all threads) are medians, `best` are the least of all
repeats, for machines on which other programs run. Each repeat runs every kind of process once.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

PROMPT = "The capital of France is"
MODELS = ("smollm2", "gemma3-270m")

_LLM = """
import sys, time
entered = time.time()
import json
launched, model, prompt = json.loads(sys.argv[1])
parts = {"interpreter": entered - launched}
began = time.perf_counter()
from octavo.llm import LLM
from octavo.types import SamplingParams
parts["imports"] = time.perf_counter() - began
began = time.perf_counter()
llm = LLM(model)
parts["engine"] = time.perf_counter() - began
inside = llm.info.startup_s
parts["engine: before"] = parts["engine"] - sum(inside.values())
parts |= {f"engine: {name}": seconds for name, seconds in inside.items()}
began = time.perf_counter()
first = next(delta for delta in llm.stream(prompt, SamplingParams(max_tokens=4)) if delta.token_ids)
parts["first token"] = time.perf_counter() - began
print(json.dumps({"wall": time.time() - launched} | parts), flush=True)
"""


def run_llm(model: str) -> dict[str, float]:
    """A start through the Python interface."""
    with tempfile.TemporaryFile("w+") as output:
        given = json.dumps([time.time(), model, PROMPT])
        process = subprocess.Popen([sys.executable, "-c", _LLM, given], stdout=output)
        cpu = _wait(process)
        output.seek(0)
        found: dict[str, float] = json.loads(output.read().splitlines()[-1])
    return found | {"cpu": cpu}


def run_command(model: str) -> dict[str, float]:
    """A start of `octavo run`, up to the first byte of its answer."""
    words = ["run", model, PROMPT, "--raw", "--max-tokens", "4", "--temperature", "0"]
    began = time.perf_counter()
    process = subprocess.Popen(
        [Path(sys.executable).with_name("octavo"), *words], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    first = process.stdout.read(1)
    wall = time.perf_counter() - began
    process.stdout.read()
    cpu = _wait(process)
    if not first:
        raise RuntimeError("octavo run printed nothing")
    return {"wall": wall, "cpu": cpu}


def run_line(line: str) -> dict[str, float]:
    """An interpreter that runs one line of Python."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", line])
    cpu = _wait(process)
    return {"wall": time.perf_counter() - began, "cpu": cpu}


def _wait(process: subprocess.Popen[Any]) -> float:
    """Seconds of processor time that an ended process took."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def measure(models: list[str], repeats: int) -> dict[str, dict[str, dict[str, float]]]:
    """By kind of process and part: median and best."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def enter(kind: str, times: dict[str, float]) -> None:
        for part, seconds in times.items():
            found[kind][part].append(seconds)

    for turn in range(repeats + 1):  # the first warms the disk
        results = [
            ("an interpreter", run_line("pass")),
            ("import torch", run_line("import torch")),
        ]
        for model in models:
            results += [
                (f"LLM {model}", run_llm(model)),
                (f"octavo run {model}", run_command(model)),
            ]
        if turn:
            for kind, times in results:
                enter(kind, times)
    return {
        kind: {
            part: {"median": median(values), "best": min(values)} for part, values in parts.items()
        }
        for kind, parts in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", action="append", help="may be given more than once")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    args = parser.parse_args()
    result = measure(args.model or list(MODELS), args.repeats)
    if args.json:
        print(json.dumps({"repeats": args.repeats, "seconds": result}, indent=1))
        return
    print(f"{'seconds':34} median   best")
    for kind, parts in result.items():
        print(kind)
        for part, times in parts.items():
            print(f"  {part:32} {times['median']:6.3f} {times['best']:6.3f}")


if __name__ == "__main__":
    main()
