"""Whether the engine on a CUDA card says what `transformers` says on the same card.

    PYTHONPATH=. python benchmarks/gpu/parity.py --backends triton torch

Tiny random checkpoints are made with transformers and served by `octavo.LLM`; every greedy token is
compared by teacher forcing in float32 (TF32 off), for several ways of batching; in bfloat16,
log-probabilities. One line for each run; the exit code is 1 if any differs.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from octavo import LLM, SamplingParams

TIE = 1e-4
OUTPUT_LEN = 32
MAX_LEN = 400
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama, tied": {"tie_word_embeddings": True},
    "llama, untied, llama3 rope": {"rope_parameters": ROPE},
    "llama, heads of 128": {"head_dim": 128},
    "llama, heads of 80, all share one": {"head_dim": 80, "num_key_value_heads": 1},
    "gemma3": {
        "num_hidden_layers": 7,
        "query_pre_attn_scalar": 24,
        "sliding_window": 20,
        "head_dim": 32,
    },
    "gemma3, heads of 256": {
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "query_pre_attn_scalar": 256,
        "sliding_window": 64,
        "head_dim": 256,
    },
}
WAYS: dict[str, dict[str, Any]] = {
    "batch of 64": {},
    "chunks of 96": {"max_num_batched_tokens": 96},
    "four at a time": {"max_num_seqs": 4},
    "few blocks": {"num_blocks": 60},
    "blocks of 64": {"block_size": 64},
}


@dataclass
class Result:
    """Of one run; `wrong` are tokens that are not the reference's though it had no tie."""

    num_tokens: int = 0
    num_ties: int = 0
    num_wrong: int = 0
    max_error: float = 0.0
    mean_error: float = 0.0
    num_preemptions: int = 0


def make(name: str, options: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(1)
    if name.startswith("gemma3"):
        config = transformers.Gemma3TextConfig(**(LLAMA | options))
        model = transformers.Gemma3ForCausalLM(config)
    else:
        config = transformers.LlamaConfig(**(LLAMA | {"tie_word_embeddings": False} | options))
        model = transformers.LlamaForCausalLM(config)
    path = folder / name.replace(" ", "-").replace(",", "")
    model.save_pretrained(path)
    return path


def prompts(vocab_size: int, count: int) -> list[Any]:
    """A third begins alike, so that prefix caching has something to find."""
    rng = random.Random(5)
    shared = [rng.randrange(vocab_size) for _ in range(70)]
    lengths = [1, 2, 15, 16, 17, 32, 33, 300] + [rng.randint(3, 200) for _ in range(count - 8)]
    ids = [[rng.randrange(vocab_size) for _ in range(n)] for n in lengths]
    return [{"prompt_token_ids": (shared if i % 3 == 0 else []) + x} for i, x in enumerate(ids)]


def run(path: Path, backend: str, dtype: str, way: dict[str, Any]) -> tuple[list[Any], int]:
    options = {"block_size": 16} | way
    num_blocks = options.pop("num_blocks", None)
    memory = 256 * 1024**2
    if num_blocks is not None:
        config = transformers.AutoConfig.from_pretrained(path)
        per_token = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
        memory = num_blocks * options["block_size"] * per_token * getattr(torch, dtype).itemsize
    llm = LLM(
        str(path), skip_tokenizer_init=True, device="cuda", dtype=dtype, kv_cache_memory=memory,
        attention_backend=backend, max_model_len=MAX_LEN + OUTPUT_LEN, **options,
    )  # fmt: skip
    params = SamplingParams(temperature=0, max_tokens=OUTPUT_LEN, ignore_eos=True, logprobs=0)
    try:
        outputs = llm.generate(prompts(llm.info.vocab_size, 64), params)
        return outputs, llm.stats.num_preemptions
    finally:
        llm.close()


class Reference:
    """The model in transformers; most runs say the same, so its logits are kept."""

    def __init__(self, path: Path) -> None:
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=torch.float32, attn_implementation="eager"
        )
        self.model = model.eval().cuda()
        self.known: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def logits(self, ids: list[int], first: int) -> torch.Tensor:
        """After each token from `first` on, [len(ids) - first, vocabulary]."""
        key = tuple(ids)
        if key not in self.known:
            self.known[key] = self.model(torch.tensor([ids], device="cuda")).logits[0, first:]
        return self.known[key]


def compare(reference: Reference, outputs: list[Any]) -> Result:
    result = Result()
    errors = []
    for output in outputs:
        completion = output.outputs[0]
        prompt, generated = output.prompt_token_ids, completion.token_ids
        logits = reference.logits(prompt + generated[:-1], len(prompt) - 1)
        chosen = torch.tensor(generated, device="cuda")[:, None]
        gap = (logits.amax(-1, keepdim=True) - logits.gather(1, chosen)).flatten()
        result.num_tokens += len(generated)
        result.num_ties += int(((gap > 0) & (gap < TIE)).sum())
        result.num_wrong += int((~(gap < TIE)).sum())
        expected = logits.log_softmax(-1).gather(1, chosen).flatten().cpu()
        got = torch.tensor([entry.sampled.logprob for entry in completion.logprobs])
        errors.append((expected - got).abs())
    every = torch.cat(errors)
    result.max_error, result.mean_error = every.max().item(), every.mean().item()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["triton", "torch"])
    parser.add_argument("--models", default="", help="only those whose name begins so")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {transformers.__version__=}")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, options in MODELS.items():
            if not name.startswith(args.models):
                continue
            path = make(name, options, Path(folder))
            reference = Reference(path)
            for backend in args.backends:
                for way, settings in WAYS.items():
                    outputs, num_preemptions = run(path, backend, "float32", settings)
                    result = compare(reference, outputs)
                    ok = result.num_wrong == 0 and result.max_error < 1e-3
                    ok &= way != "few blocks" or num_preemptions > 0
                    failed += not ok
                    print(
                        f"{'ok  ' if ok else 'FAIL'} {backend:8} float32  {name:34} {way:14} "
                        f"{result.num_tokens} tokens, {result.num_ties} ties, "
                        f"{result.num_wrong} wrong, logprob error {result.max_error:.1e}, "
                        f"{num_preemptions} preemptions",
                        flush=True,
                    )
                outputs, _ = run(path, backend, "bfloat16", {})
                result = compare(reference, outputs)
                ok = result.mean_error < 0.1
                failed += not ok
                print(
                    f"{'ok  ' if ok else 'FAIL'} {backend:8} bfloat16 {name:34} {'batch of 64':14} "
                    f"logprob error mean {result.mean_error:.3f}, max {result.max_error:.2f}, "
                    f"{result.num_wrong} of {result.num_tokens} tokens differ",
                    flush=True,
                )
    print(f"{failed} runs failed" if failed else "all equal")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
