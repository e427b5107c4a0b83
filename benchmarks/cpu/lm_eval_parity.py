"""lm-eval's `local-completions` against this server, and its `hf` backend, on the same weights.

    python benchmarks/cpu/lm_eval_parity.py --model smollm2 --lm-eval /path/to/bin/lm-eval

Writes the model to a Hugging Face folder in float32, serves that folder in float32, and runs the
tasks of `lm_eval_tasks.py` both ways. Nothing is downloaded. lm-eval may live in an environment of
its own (`pip install "lm-eval[api,hf]"`). Exits with 1 if a metric or an answer's being the most
probable one differs, or a sample's log-likelihood by more than --tolerance.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tasks import TASKS, write_tasks

from octavo.weights.store import resolve

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Row:
    """One metric of one task."""

    task: str
    metric: str
    hf: float
    octavo: float


@dataclass
class Samples:
    """How far apart the answers to one task are: counts, and nats."""

    task: str
    num: int = 0
    num_other_greedy: int = 0
    largest_difference: float = 0.0
    mean_difference: float = 0.0


def export(model: str, folder: Path) -> None:
    """The model in float32 with its tokenizer, as `transformers` writes them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    path = resolve(model)
    where: dict[str, Any] = {"pretrained_model_name_or_path": path}
    options: dict[str, Any] = {}
    if path.is_file():
        where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        options["quantization_config"] = GgufConfig(dequantize=True)
    weights = AutoModelForCausalLM.from_pretrained(**where, **options, dtype=torch.float32)
    weights.config.quantization_config = None
    weights.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


@contextmanager
def serving(folder: Path, log: Path) -> Iterator[str]:
    """A server of the folder in float32; its URL."""
    command = [sys.executable, "-m", "octavo.cli.main", "serve", str(folder)]
    command += ["--port", "0", "--dtype", "float32", "--served-model-name", "model"]
    with log.open("w") as file:
        server = subprocess.Popen(command, stderr=file, stdout=file)
    try:
        deadline = time.monotonic() + 120
        while "ready at " not in log.read_text():
            if server.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"the server does not start:\n{log.read_text()}")
            time.sleep(0.1)
        yield log.read_text().partition("ready at ")[2].split()[0]
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(30)


def evaluate(
    args: argparse.Namespace, tasks: Path, out: Path, model: str, model_args: dict[str, object]
) -> dict[str, Any]:
    """What lm-eval finds: `results`, `samples` by task, and `seconds`."""
    command = [args.lm_eval, "run", "--model", model, "--tasks", *TASKS]
    command += ["--model_args", ",".join(f"{name}={value}" for name, value in model_args.items())]
    command += ["--include_path", str(tasks), "--output_path", str(out), "--log_samples"]
    command += ["--device", "cpu", "--batch_size", str(args.batch_size)]
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"), "1")
    begin = time.perf_counter()
    done = subprocess.run(
        command,
        env={**os.environ, **offline, "HF_DATASETS_CACHE": str(tasks / "cache")},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"lm-eval with {model} failed:\n{done.stderr[-8000:]}")
    seconds = time.perf_counter() - begin
    (report,) = out.rglob("results_*.json")
    samples = {}
    for task in TASKS:
        (file,) = out.rglob(f"samples_{task}_*.jsonl")
        read = [json.loads(line) for line in file.read_text().splitlines()]
        samples[task] = sorted(read, key=lambda sample: sample["doc_id"])
    results = json.loads(report.read_text())["results"]
    return {"results": results, "samples": samples, "seconds": seconds}


def metrics(hf: dict[str, Any], octavo: dict[str, Any]) -> list[Row]:
    """All metrics side by side."""
    rows = []
    for task in TASKS:
        theirs, ours = hf["results"][task], octavo["results"][task]
        for name, value in theirs.items():
            if isinstance(value, float) and "stderr" not in name:
                rows.append(Row(task, name.partition(",")[0], value, ours[name]))
    return rows


def _answers(sample: dict[str, Any]) -> list[tuple[float, bool]]:
    """Log-likelihood, and whether each token was the most probable one, of each answer."""
    answers = []
    for (response,) in sample["resps"]:
        values = response if isinstance(response, list) else [response, False]
        loglikelihood, is_greedy = values
        answers.append((float(loglikelihood), str(is_greedy) == "True"))
    return answers


def compare(task: str, hf: dict[str, Any], octavo: dict[str, Any]) -> Samples:
    """The answers to a task, one by one."""
    found, total = Samples(task), 0.0
    for theirs, ours in zip(hf["samples"][task], octavo["samples"][task], strict=True):
        assert theirs["doc"] == ours["doc"]
        for (expected, is_greedy), (got, got_greedy) in zip(
            _answers(theirs), _answers(ours), strict=True
        ):
            assert math.isfinite(expected)
            found.num += 1
            found.num_other_greedy += is_greedy != got_greedy
            found.largest_difference = max(found.largest_difference, abs(expected - got))
            total += abs(expected - got)
    found.mean_difference = total / found.num
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="pulled name, GGUF file or folder")
    parser.add_argument("--lm-eval", default=shutil.which("lm-eval"), help="lm-eval's command")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="nats per answer")
    parser.add_argument(
        "--num-concurrent", type=int, default=4, help="requests to the server at once"
    )
    parser.add_argument("--batch-size", type=int, default=4, help="prompts at a time")
    parser.add_argument("--json")
    args = parser.parse_args()
    if not args.lm_eval:
        parser.error("lm-eval is not here: name its command with --lm-eval")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, tasks = folder / "model", folder / "tasks"
        tasks.mkdir()
        write_tasks(tasks)
        export(args.model, model)
        hf = evaluate(args, tasks, folder / "hf", "hf", {"pretrained": model, "dtype": "float32"})
        with serving(model, folder / "server.log") as url:
            octavo = evaluate(
                args,
                tasks,
                folder / "octavo",
                "local-completions",
                {
                    "model": "model",
                    "base_url": f"{url}/completions",
                    "tokenizer": model,
                    "num_concurrent": args.num_concurrent,
                },
            )
    rows = metrics(hf, octavo)
    samples = [compare(task, hf, octavo) for task in TASKS]
    print(f"{'task':16}{'metric':18}{'hf':>12}{'octavo':>12}")
    for row in rows:
        print(f"{row.task:16}{row.metric:18}{row.hf:12.6f}{row.octavo:12.6f}")
    print(f"\n{'task':16}{'answers':>8}{'other greedy':>14}{'largest':>12}{'mean':>12}  (nats)")
    for found in samples:
        print(
            f"{found.task:16}{found.num:8}{found.num_other_greedy:14}"
            f"{found.largest_difference:12.2e}{found.mean_difference:12.2e}"
        )
    print(f"\nhf {hf['seconds']:.1f} s, octavo {octavo['seconds']:.1f} s, with lm-eval's start")
    if args.json:
        report = {
            "setup": vars(args),
            "metrics": [asdict(row) for row in rows],
            "samples": [asdict(found) for found in samples],
            "seconds": {"hf": hf["seconds"], "octavo": octavo["seconds"]},
        }
        Path(args.json).write_text(json.dumps(report, indent=1) + "\n")
    is_equal = all(math.isclose(row.hf, row.octavo, rel_tol=args.tolerance) for row in rows)
    is_near = all(
        found.largest_difference <= args.tolerance and not found.num_other_greedy
        for found in samples
    )
    return 0 if is_equal and is_near else 1


if __name__ == "__main__":
    sys.exit(main())
