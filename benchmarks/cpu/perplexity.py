"""What rounding activations to 8 bits costs: perplexity, native kernels against decoded weights.

    python benchmarks/cpu/perplexity.py --model smollm2 --text README.md --tokens 4096

Both read the same GGUF file and differ in `--load-format` only. The text is cut into windows of 512
tokens; each window's tokens but the first are predicted from those before them in the window.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch

from octavo.attention.interface import BatchLayout
from octavo.config import EngineConfig
from octavo.layers.batch import ForwardBatch
from octavo.runner.runner import ModelRunner
from octavo.text.tokenizer import load_tokenizer
from octavo.weights.open import open_checkpoint
from octavo.weights.store import resolve

WINDOW = 512


def make_runner(path: Path, load_format: str, num_threads: int) -> ModelRunner:
    config = EngineConfig(
        model=str(path),
        device="cpu",
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
def window_logprobs(runner: ModelRunner, token_ids: list[int]) -> torch.Tensor:
    """Log-probability [t - 1] of each token behind the first, float64."""
    layout = BatchLayout(
        query_starts=np.array([0, len(token_ids)]),
        context_lens=np.zeros(1, np.int64),
        block_tables=np.arange(-(-len(token_ids) // runner.spec.block_size))[None],
    )
    ids = torch.tensor(token_ids)
    batch = ForwardBatch(
        token_ids=ids,
        positions=torch.from_numpy(layout.positions),
        logit_indices=None,
        backend=runner.backend,
        meta=runner.backend.plan(runner.spec, layout),
        kv_caches=runner.kv_caches,
    )
    logprobs = runner.model(batch)[:-1].double().log_softmax(dim=-1)
    return logprobs.gather(1, ids[1:, None])[:, 0]


def perplexity(runner: ModelRunner, token_ids: list[int]) -> float:
    windows = [token_ids[i : i + WINDOW] for i in range(0, len(token_ids), WINDOW)]
    parts = [window_logprobs(runner, window) for window in windows if len(window) > 1]
    return math.exp(-torch.cat(parts).mean().item())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    path = resolve(args.model)
    checkpoint = open_checkpoint(path)
    tokenizer = load_tokenizer(path, checkpoint.config)
    checkpoint.close()
    token_ids = list(tokenizer.encode(args.text.read_text()))[: args.tokens]
    found = {
        load_format: perplexity(make_runner(path, load_format, args.threads), token_ids)
        for load_format in ("auto", "blocks")
    }
    change = found["blocks"] / found["auto"] - 1
    print(json.dumps({"model": args.model, "tokens": len(token_ids), **found, "change": change}))


if __name__ == "__main__":
    main()
