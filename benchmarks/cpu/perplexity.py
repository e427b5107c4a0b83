"""What rounding activations costs: native kernels, or a way of rounding, against float32.

    python benchmarks/cpu/perplexity.py --model smollm2 --tokens 20480
    python benchmarks/cpu/perplexity.py --model gemma3-270m --tokens 4096 --way 8/32 8/16 out:16/32

The reference computes in float32 on decoded weights by torch. `--way native`, the usual one, reads
the same file with `--load-format blocks`. The others round in torch what each product is given, and
show a way before there is a kernel for it: `8/32` is 8 bits with one scale for 32 columns, `8a/32`
also with a minimum, `out:16/32` is 16 bits in the output layer and 8/32 elsewhere, `ends:` the same
in the output layer, the first and the last layer, `down:` in each layer's last product.

The text (data/alice.txt) is cut into windows of 512 tokens; each one's tokens but the first are
predicted from those before them. Printed: perplexities; the mean over positions of KL(reference,
way), in nats; how often both have the same most likely token; and among the others the reference's
largest lead, in nats, of its token over the way's.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from octavo.attention.interface import BatchLayout
from octavo.config import EngineConfig, default_thread_waiting
from octavo.layers.batch import ForwardBatch
from octavo.layers.embedding import Embedding
from octavo.layers.linear import Linear
from octavo.runner.runner import ModelRunner
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.open import open_checkpoint
from octavo.weights.store import resolve

if TYPE_CHECKING:
    from octavo.quant.method import LinearMethod

WINDOW = 512
TEXT = Path(__file__).parents[1] / "data" / "alice.txt"
NATIVE = "native"
USUAL = "8/32"


@dataclass(frozen=True, slots=True)
class Rounding:
    """Bits of an activation, columns of a scale, and whether there is a minimum too."""

    bits: int
    columns: int
    has_minimum: bool = False

    @classmethod
    def parse(cls, text: str) -> Rounding:
        bits, _, columns = text.partition("/")
        return cls(int(bits.rstrip("a")), int(columns), bits.endswith("a"))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        blocks = x.float().unflatten(-1, (-1, self.columns))
        if self.has_minimum:
            least, most = blocks.aminmax(dim=-1, keepdim=True)
            step = (most - least) / (2**self.bits - 1)
        else:
            least = torch.zeros(())
            step = blocks.abs().amax(dim=-1, keepdim=True) / (2 ** (self.bits - 1) - 1)
        step = step.clamp_min(1e-36)
        return (((blocks - least) / step).round() * step + least).flatten(-2).to(x.dtype)


class RoundedMethod:
    """Another method's product, of rounded activations."""

    def __init__(self, inner: LinearMethod, rounding: Rounding) -> None:
        self._inner, self._rounding = inner, rounding
        self.param_specs = inner.param_specs

    def apply(
        self, x: torch.Tensor, params: dict[str, torch.Tensor], bias: torch.Tensor | None
    ) -> torch.Tensor:
        return self._inner.apply(self._rounding(x), params, bias)


@dataclass
class Distance:
    """Of one way from the reference, summed over positions."""

    num_positions: int = 0
    divergence: float = 0
    num_same: int = 0
    largest_lead: float = 0
    logprobs: list[torch.Tensor] = field(default_factory=list)

    def add(self, ids: torch.Tensor, want: torch.Tensor, got: torch.Tensor) -> None:
        """Logits [t, vocabulary] of a window of tokens [t]."""
        for begin in range(0, len(ids), 64):
            p = want[begin : begin + 64].log_softmax(dim=-1)
            q = got[begin : begin + 64].log_softmax(dim=-1)
            self.divergence += float((p.exp() * (p - q)).sum(dim=-1).double().sum())
            first, other = p.argmax(dim=-1, keepdim=True), q.argmax(dim=-1, keepdim=True)
            leads = p.gather(1, first) - p.gather(1, other)
            self.num_same += int((first == other).sum())
            self.largest_lead = max(self.largest_lead, float(leads.max()))
            self.num_positions += len(p)
            targets = ids[begin + 1 : begin + 65, None]
            self.logprobs.append(q[: len(targets)].gather(1, targets)[:, 0].double())

    @property
    def perplexity(self) -> float:
        return math.exp(-torch.cat(self.logprobs).mean().item())


def make_runner(path: Path, load_format: str, num_threads: int) -> ModelRunner:
    config = EngineConfig(
        model=str(path),
        device="cpu",
        dtype="float32",
        load_format=load_format,
        num_threads=num_threads,
        max_model_len=WINDOW,
        max_num_seqs=1,
        kv_cache_memory=256 * 1024**2,
    )
    checkpoint = open_checkpoint(path)
    runner = ModelRunner(config, checkpoint)
    checkpoint.close()
    return runner


@torch.inference_mode()
def window_logits(runner: ModelRunner, token_ids: list[int]) -> torch.Tensor:
    """[t, vocabulary] of a window."""
    layout = BatchLayout(
        query_starts=np.array([0, len(token_ids)]),
        context_lens=np.zeros(1, np.int64),
        block_tables=np.arange(-(-len(token_ids) // runner.spec.block_size))[None],
    )
    batch = ForwardBatch(
        token_ids=torch.tensor(token_ids),
        positions=torch.from_numpy(layout.positions),
        logit_indices=None,
        backend=runner.backend,
        meta=runner.backend.plan(runner.spec, layout),
        kv_caches=runner.kv_caches,
    )
    logits: torch.Tensor = runner.model(batch)
    return logits


class Way:
    """What `--way` names: gives a window's logits."""

    def __init__(self, name: str, decoded: ModelRunner, path: Path, num_threads: int) -> None:
        self._runner = decoded
        self._roundings: list[tuple[Linear | Embedding, Rounding]] = []
        if name == NATIVE:
            self._runner = make_runner(path, "blocks", num_threads)
            return
        where, _, wide = name.rpartition(":")
        layers = [
            (path, module)
            for path, module in decoded.model.named_modules()
            if isinstance(module, Linear | Embedding)
        ]
        numbers = [
            int(path.split(".")[2]) for path, _ in layers if path.startswith("model.layers.")
        ]
        ends = ("model.layers.0.", f"model.layers.{max(numbers)}.")
        for path, module in layers:
            is_output = not path.startswith("model.layers.")
            is_wide = (
                not where
                or (where in ("out", "ends") and is_output)
                or (where == "ends" and path.startswith(ends))
                or (where == "down" and path.endswith("down_proj"))
                or (where == "hidden" and not is_output)
            )
            self._roundings.append((module, Rounding.parse(wide if is_wide else USUAL)))

    def logits(self, token_ids: list[int]) -> torch.Tensor:
        own = self._runner.model
        kept = [module.method for module, _ in self._roundings]
        output = own.compute_logits
        for module, rounding in self._roundings:
            if isinstance(module, Linear):
                module.method = RoundedMethod(module.method, rounding)
            elif own.lm_head is None:
                own.compute_logits = lambda x, rounding=rounding: output(rounding(x))
        try:
            return window_logits(self._runner, token_ids)
        finally:
            for (module, _), method in zip(self._roundings, kept, strict=True):
                module.method = method
            own.compute_logits = output


def main() -> None:
    default_thread_waiting()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, default=TEXT)
    parser.add_argument("--tokens", type=int, default=20480)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", nargs="+", default=[NATIVE])
    args = parser.parse_args()
    path = resolve(args.model)
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config)
    checkpoint.close()
    beginning = list(tokenizer.encode(""))  # Gemma wants its first token at each window's begin
    token_ids = list(tokenizer.encode(args.text.read_text()))[len(beginning) :][: args.tokens]
    decoded = make_runner(path, "decoded", args.threads)
    ways = {name: Way(name, decoded, path, args.threads) for name in args.way}
    found = {name: Distance() for name in args.way}
    reference = Distance()
    size = WINDOW - len(beginning)
    for begin in range(0, len(token_ids), size):
        window = beginning + token_ids[begin : begin + size]
        ids = torch.tensor(window)
        want = window_logits(decoded, window)
        reference.add(ids, want, want)
        for name, way in ways.items():
            found[name].add(ids, want, way.logits(window))
    for name, distance in found.items():
        row = {
            "model": args.model,
            "tokens": len(token_ids),
            "way": name,
            "perplexity": round(distance.perplexity, 4),
            "float32": round(reference.perplexity, 4),
            "change": round(distance.perplexity / reference.perplexity - 1, 6),
            "divergence": round(distance.divergence / distance.num_positions, 6),
            "same_first": round(distance.num_same / distance.num_positions, 5),
            "largest_lead": round(distance.largest_lead, 3),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
