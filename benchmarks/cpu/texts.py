"""Whether greedy texts are the same whatever computes them, and how far logits differ where not.

    python benchmarks/cpu/texts.py --model smollm2
    python benchmarks/cpu/texts.py --ways avx2 off off+float32 decoded decoded+bfloat16 --json

A way is the value of OCTAVO_CPU_ISA (`avx512vnni`, `avx2`, `portable`, `off`), or `decoded`, which
is `--load-format decoded`: float32 weights, activations that are not rounded. Behind it may stand
`+1-thread`, and `+bfloat16`, the KV cache's type (which it is anyway where activations are
rounded). `off+float32` sums as torch likes, `off+reverse` from the last column and key to the
first, and `off+float64` and `off+float64+reverse` in float64 (`texts_sums.py`).

Each way, in a process of its own, answers 16 chat prompts, and is then led along the first way's
answers; prompts run one at a time and token by token, as an engine runs them. Printed for each pair
of ways: how many texts are the same to their end; over all positions of the first way's texts, the
mean KL divergence from the pair's first, in nats, and the mean of the logits' difference (its norm
over that of the logits, both without their means). Then, for pairs with the first way, where texts
part: the lead in nats that each way gives its own token over the other's there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from texts_sums import sum_otherwise

from octavo.attention.interface import BatchLayout
from octavo.attention.native_cpu import NativeAttention
from octavo.attention.reference import ReferenceAttention
from octavo.config import EngineConfig, default_thread_waiting
from octavo.layers.batch import ForwardBatch
from octavo.runner.forward import LayerByLayer
from octavo.runner.native_plan import NativePlan
from octavo.runner.reference import ReferenceForward
from octavo.runner.runner import ModelRunner
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.open import open_checkpoint
from octavo.weights.store import resolve

if TYPE_CHECKING:
    from octavo.runner.forward import Forward
    from octavo.text.tokenizer import Tokenizer

PROMPTS = (
    "What is the capital of France?",
    "Why is the sky blue?",
    "Write a haiku about the sea.",
    "Name three primary colors.",
    "How many days are there in a leap year?",
    "Explain what a neural network is in one sentence.",
    "Translate 'good morning' into Spanish.",
    "What is 17 times 6?",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "List the planets of the solar system.",
    "Write a Python function that adds two numbers.",
    "What causes the tides?",
    "Suggest a name for a small bookshop.",
    "Tell me a short story about a fox.",
    "What should I pack for a trip to the mountains?",
)
MAX_LEN = 512
DECODED = "decoded"


@dataclass(frozen=True, slots=True)
class Parting:
    """Where one text of two ways parts.

    Attributes:
        prompt: which.
        position: tokens that are the same.
        first, other: the tokens' texts.
        first_lead, other_lead: in nats, of each way's own token over the other's.
    """

    prompt: int
    position: int
    first: str
    other: str
    first_lead: float
    other_lead: float


class Walk(NamedTuple):
    """Logits [tokens, vocabulary] behind a prompt, and the tokens."""

    logits: np.ndarray
    tokens: list[int]


class Walker:
    """A model that is led along texts; all use the same KV blocks, one after the other."""

    def __init__(self, path: Path, way: str) -> None:
        base, *options = way.split("+")
        is_otherwise = base == "off" and bool({"float32", "float64", "reverse"} & set(options))
        if is_otherwise:
            dtype = torch.float64 if "float64" in options else torch.float32
            sum_otherwise(dtype, in_reverse="reverse" in options)
        config = EngineConfig(
            model=str(path),
            device="cpu",
            load_format=DECODED if base == DECODED else "auto",
            dtype="float32" if base == DECODED else "auto",
            kv_cache_dtype="bfloat16" if "bfloat16" in options else "auto",
            attention_backend="torch" if is_otherwise else "auto",
            num_threads=1 if "1-thread" in options else 2,
            max_model_len=MAX_LEN,
            max_num_seqs=1,
            kv_cache_memory=256 * 1024**2,
        )
        checkpoint = open_checkpoint(path)
        self._runner = runner = ModelRunner(config, checkpoint)
        checkpoint.close()
        self._forward: Forward = LayerByLayer(runner.model)
        if isinstance(runner.backend, NativeAttention):
            self._forward = NativePlan(runner.model, runner.spec, runner.kv_caches)
        elif isinstance(runner.backend, ReferenceAttention):
            self._forward = ReferenceForward(runner.model, runner.spec)
        self._num_old = 0

    @torch.inference_mode()
    def logits(self, token_ids: list[int], *, is_first: bool) -> np.ndarray:
        """[vocabulary] behind these tokens, which follow those of the last call or begin a text."""
        num_old = 0 if is_first else self._num_old
        self._num_old = num_old + len(token_ids)
        runner = self._runner
        layout = BatchLayout(
            query_starts=np.array([0, len(token_ids)]),
            context_lens=np.array([num_old]),
            block_tables=np.arange(-(-self._num_old // runner.spec.block_size))[None],
        )
        batch = ForwardBatch(
            token_ids=torch.tensor(token_ids),
            positions=torch.from_numpy(layout.positions),
            logit_indices=torch.tensor([len(token_ids) - 1]),
            backend=runner.backend,
            meta=runner.backend.plan(runner.spec, layout),
            kv_caches=runner.kv_caches,
        )
        found: np.ndarray = self._forward.logits(batch)[0].float().numpy().copy()
        return found

    def walk(self, prompt: list[int], count: int, text: list[int] | None) -> Walk:
        """So many tokens behind a prompt: those of `text`, or each time the likeliest."""
        rows: list[np.ndarray] = []
        tokens: list[int] = []
        for place in range(count):
            rows.append(self.logits(tokens[-1:] or prompt, is_first=place == 0))
            tokens.append(int(rows[-1].argmax()) if text is None else text[place])
        return Walk(np.stack(rows), tokens)


def walk(args: argparse.Namespace) -> None:
    """In a process of its own: write the way's texts, and logits [2, prompts, tokens, vocabulary]
    of these and along the first way's.
    """
    folder = Path(args.folder)
    prompts = json.loads((folder / "prompts.json").read_text())
    first = folder / "texts.json"
    walker = Walker(resolve(args.model), args.walk)
    own = [walker.walk(prompt, args.tokens, None) for prompt in prompts]
    if not first.exists():
        first.write_text(json.dumps([each.tokens for each in own]))
    led = [
        walker.walk(prompt, args.tokens, text)
        for prompt, text in zip(prompts, json.loads(first.read_text()), strict=True)
    ]
    logits = [np.stack([each.logits for each in walks]) for walks in (own, led)]
    np.save(folder / f"{args.walk}.npy", np.stack(logits))
    (folder / f"{args.walk}.json").write_text(json.dumps([each.tokens for each in own]))


class Way:
    """What `walk` wrote.

    Attributes:
        own, led: logits [prompts, tokens, vocabulary] of its own texts and along the first way's.
        texts: its own, up to and with the token that ends them.
    """

    def __init__(self, name: str, folder: Path, end_ids: set[int]) -> None:
        self.name = name
        self.own, self.led = np.load(folder / f"{name}.npy", mmap_mode="r")
        self.texts: list[list[int]] = []
        for text in json.loads((folder / f"{name}.json").read_text()):
            end = next((i + 1 for i, token in enumerate(text) if token in end_ids), len(text))
            self.texts.append(text[:end])


def run_way(name: str, args: argparse.Namespace, folder: Path) -> None:
    """`walk` in a process of its own."""
    isa = name.split("+")[0]
    env = {key: value for key, value in os.environ.items() if key != "OCTAVO_CPU_ISA"}
    if isa != DECODED:
        env["OCTAVO_CPU_ISA"] = isa
    command = [sys.executable, __file__, "--model", args.model, "--tokens", str(args.tokens)]
    command += ["--walk", name, "--folder", str(folder)]
    subprocess.run(command, env=env, check=True)


def find_partings(first: Way, other: Way, tokenizer: Tokenizer) -> list[Parting]:
    """Where texts of two ways are not the same."""
    found = []
    for index, (text, others) in enumerate(zip(first.texts, other.texts, strict=True)):
        if text == others:
            continue
        place = next(i for i, (a, b) in enumerate(zip(text, others, strict=False)) if a != b)
        a, b = text[place], others[place]
        own, foreign = first.own[index, place], other.own[index, place]
        found.append(
            Parting(
                index, place, tokenizer.decode([a]), tokenizer.decode([b]),
                float(own[a] - own[b]), float(foreign[b] - foreign[a]),
            )
        )  # fmt: skip
    return found


def compare(first: Way, other: Way, tokenizer: Tokenizer) -> dict[str, Any]:
    """One pair's row."""
    divergences, differences = [], []
    for index in range(len(first.texts)):
        p, q = (torch.from_numpy(way.led[index].copy()) for way in (first, other))
        logs, others = p.log_softmax(dim=-1), q.log_softmax(dim=-1)
        divergences.append((logs.exp() * (logs - others)).sum(dim=-1))
        p, q = p - p.mean(dim=-1, keepdim=True), q - q.mean(dim=-1, keepdim=True)
        differences.append((p - q).norm(dim=-1) / p.norm(dim=-1))
    partings = find_partings(first, other, tokenizer)
    return {
        "first": first.name,
        "other": other.name,
        "texts": len(first.texts),
        "same": len(first.texts) - len(partings),
        "divergence": float(torch.cat(divergences).double().mean()),
        "difference": float(torch.cat(differences).double().mean()),
        "partings": [asdict(parting) for parting in partings],
    }


def show(rows: list[dict[str, Any]], first: str) -> None:
    """As tables."""
    console = Console()
    table = Table("ways", "same texts", "KL divergence", "logits' difference", title="Greedy texts")
    for row in rows:
        table.add_row(
            f"{row['first']}, {row['other']}",
            f"{row['same']} of {row['texts']}",
            f"{row['divergence']:.2g}",
            f"{row['difference']:.2%}",
        )
    console.print(table)
    table = Table("way", "prompt", "token", first, "lead", "the way's", "lead", title="Partings")
    for row in rows:
        for parting in row["partings"] if row["first"] == first else ():
            table.add_row(
                row["other"],
                PROMPTS[parting["prompt"]],
                str(parting["position"]),
                repr(parting["first"]),
                f"{parting['first_lead']:.4f}",
                repr(parting["other"]),
                f"{parting['other_lead']:.4f}",
            )
    console.print(table)


def main() -> None:
    default_thread_waiting()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS), help="the first ones")
    parser.add_argument("--ways", nargs="+", default=["avx2", "off", "avx512vnni", DECODED])
    parser.add_argument("--json", action="store_true", help="one line for each pair instead")
    parser.add_argument("--walk", help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.walk:
        walk(args)
        return
    path = resolve(args.model)
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config)
    checkpoint.close()
    template = tokenizer.require_chat_template()
    end_ids = set(tokenizer.eos_token_ids)
    prompts = []
    for prompt in PROMPTS[: args.prompts]:
        text = template.render([{"role": "user", "content": prompt}])
        prompts.append(list(tokenizer.encode(text, add_special_tokens=False)))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "prompts.json").write_text(json.dumps(prompts))
        for way in args.ways:
            run_way(way, args, folder)
        ways = [Way(way, folder, end_ids) for way in args.ways]
        rows = [compare(a, b, tokenizer) for a, b in itertools.combinations(ways, 2)]
    if args.json:
        for row in rows:
            print(json.dumps(row), flush=True)
    else:
        show(rows, args.ways[0])


if __name__ == "__main__":
    main()
