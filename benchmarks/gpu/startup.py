"""How long it takes from the start of a process to the first token, and where the time goes.

    PYTHONPATH=. python benchmarks/gpu/startup.py --out startup.jsonl

Four starts: `octavo.LLM` in a fresh process, and `octavo serve` with one request over HTTP, each
with nothing cached (what Triton, the driver and torch compile goes into an empty folder) and then
again with what the first start left there. Files that are read may be in memory; Python's own
compiled modules stay where they are. --compile-processes compares ways of compiling, such as
`auto,0`: by other processes and by threads. With --imports, also which modules the import of torch
spends its time in. Exits with 1 if a start failed or --limit-s was exceeded.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx

from benchmarks.gpu.common import (
    ROOT,
    Baselines,
    Measure,
    Records,
    engine_options,
    environment,
    flags_of,
    make_console,
    make_parser,
    print_table,
)
from benchmarks.gpu.server_process import Server
from benchmarks.gpu.shapes import model_folder
from octavo.config import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

_CHILD = """
import json, sys, time
launched, model, options = json.loads(sys.argv[1])
parts = {"interpreter": time.time() - launched}
begin = time.perf_counter()
from octavo.llm import LLM
from octavo.types import SamplingParams
parts["import octavo"] = time.perf_counter() - begin
begin = time.perf_counter()
llm = LLM(model, skip_tokenizer_init=True, **options)
parts["LLM()"] = time.perf_counter() - begin
ready_s = time.time() - launched
begin = time.perf_counter()
answer = llm.generate([{"prompt_token_ids": [5] * 16}], SamplingParams(max_tokens=1))
parts["first token"] = time.perf_counter() - begin
first_token_s = time.time() - launched
assert len(answer[0].outputs[0].token_ids) == 1
done = {"ready_s": ready_s, "first_token_s": first_token_s, "parts": parts,
        "inside LLM()": llm.info.startup_s, "device": llm.info.device,
        "compilation": llm.info.compilation, "memory": llm.info.memory}
print("\\n" + json.dumps(done), flush=True)
llm.close()
"""


def caches_in(folder: Path) -> dict[str, str]:
    """Variables that send everything that is compiled at run time into `folder`."""
    names = ("TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
    return {name: str(folder / name.lower()) for name in names}


def start_offline(
    folder: Path, options: dict[str, Any], environ: Mapping[str, str], timeout_s: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Metrics, and what explains them."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    whole = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))} | dict(environ)
    given = json.dumps([time.time(), str(folder), options])
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, given],
        stdout=subprocess.PIPE, text=True, env=whole, timeout=timeout_s, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout.strip().splitlines()[-1])
    metrics = {name: said.pop(name) for name in ("ready_s", "first_token_s")}
    return metrics, said


def start_server(
    folder: Path, options: dict[str, Any], environ: Mapping[str, str], timeout_s: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """As `start_offline`."""
    with Server(folder, flags_of(options), environ, timeout_s) as server:
        body = {"model": "bench", "prompt": [5] * 16, "max_tokens": 1, "stream": True}
        first_token_s = None
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, timeout=timeout_s
        ) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    first_token_s = time.time() - server.launched
                    break
        if first_token_s is None:
            raise RuntimeError("the server's answer had no token")
        log = [line for line in server.log if _PARTS.search(line)]
        stopped = server.stop()
    if stopped.exit_code:
        raise RuntimeError(f"the server ended with exit code {stopped.exit_code}")
    metrics = {"ready_s": server.ready_s, "first_token_s": first_token_s}
    return metrics, {"log": [server.parts, *log], "stop_s": stopped.seconds}


_IMPORT_TORCH = """
import os, sys, torch
kept = [getattr(module, "__cached__", None) for module in list(sys.modules.values())]
print(sum(isinstance(path, str) and not os.path.exists(path) for path in kept))
"""
_PARTS = re.compile(r"\b(memory|kernels): ")
_IMPORT = re.compile(r"import time: +(\d+) \| +\d+ \| +(\S+)")

STARTS = {"offline": start_offline, "server": start_server}


def notes_of(details: dict[str, Any]) -> list[str]:
    """The parts as text."""
    if "log" in details:
        return list(details["log"])

    def text(parts: dict[str, float]) -> str:
        return ", ".join(f"{name} {seconds:.2f}" for name, seconds in parts.items())

    inside: dict[str, float] = details["inside LLM()"]
    rest = details["parts"]["LLM()"] - sum(inside.values())
    notes = [text(details["parts"]), f"inside LLM(): imports and others {rest:.2f}, {text(inside)}"]
    if compilation := details["compilation"]:
        notes.append(f"kernels: {text(compilation)}")
    if memory := details["memory"]:
        parts = (f"{name} {format_bytes(size)}" for name, size in memory.items())
        notes.append(f"memory: {', '.join(parts)}")
    return notes


def heaviest_imports(table: str, most: int) -> list[tuple[float, str]]:
    """Seconds and names of the modules with the most time of their own, and of all together.

    Args:
        table: what `python -X importtime` writes.
        most: modules listed.
    """
    found = [_IMPORT.fullmatch(line) for line in table.splitlines()]
    rows = sorted(((int(row[1]) / 1e6, row[2]) for row in found if row), reverse=True)
    return [(sum(seconds for seconds, _ in rows), f"{len(rows)} modules"), *rows[:most]]


def profile_imports(timeout_s: float) -> list[tuple[float, str]]:
    """Of torch, in a process of its own; measuring takes some time too.

    The first row tells how many modules are compiled in each start because nobody can keep them.
    """
    command = [sys.executable, "-X", "importtime", "-c", _IMPORT_TORCH]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=True)
    (seconds, modules), *rows = heaviest_imports(done.stderr, 15)
    return [(seconds, f"{modules}, {int(done.stdout)} of them without compiled files"), *rows]


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--starts", default="offline,server", help="default: %(default)s")
    parser.add_argument(
        "--compile-processes",
        default="auto",
        help="numbers of processes that compile, apart by commas; 0: threads (default: auto)",
    )
    parser.add_argument("--timeout-s", type=float, default=240.0, help="of one start")
    parser.add_argument("--limit-s", type=float, default=None, help="to ready, for every start")
    parser.add_argument("--imports", action="store_true", help="where torch's import spends it")
    args = parser.parse_args(argv)
    console = make_console()
    records = Records(args.out, script="startup", model=args.model)
    options = engine_options(args)
    problems: list[str] = []
    setup = environment()
    records.write("setup", **setup, options=options)
    if args.imports:
        heaviest = profile_imports(args.timeout_s)
        records.write("imports", heaviest=heaviest)
        for seconds, name in heaviest:
            console.print(f"import {seconds:7.3f} s {name}", highlight=False, markup=False)
    with model_folder(args.model) as folder:
        cases = itertools.product(args.starts.split(","), args.compile_processes.split(","))
        for kind, processes in cases:
            given = {} if processes == "auto" else {"OCTAVO_COMPILE_PROCESSES": processes}
            suffix = "" if processes == "auto" else f"/{processes} processes"
            with tempfile.TemporaryDirectory(prefix="octavo-caches-") as caches:
                environ = caches_in(Path(caches)) | given
                for state in ("cold", "warm"):
                    name = f"startup/{kind}/{state}{suffix}"
                    try:
                        metrics, details = STARTS[kind](folder, options, environ, args.timeout_s)
                    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
                        problems.append(f"{name}: {error}")
                        continue
                    records.add(Measure(name, metrics, details, notes_of(details)))
                    if args.limit_s is not None and metrics["ready_s"] > args.limit_s:
                        problems.append(f"{name}: ready after {metrics['ready_s']:.2f} s")
    title = f"{args.model} on {setup['card']}, octavo {setup['octavo']} ({setup['commit']})"
    print_table(console, records.measures, Baselines(setup["card"], args.model), title)
    for problem in problems:
        console.print(f"PROBLEM: {problem}", highlight=False, markup=False)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
