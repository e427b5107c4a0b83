"""Sentences embedded per second, against `transformers` with padded batches, in the same process.

    python benchmarks/cpu/embeddings.py --model all-minilm

Both get the same sentences of different lengths, tokenize them themselves, and must give the same
vectors. Three ways take turns, `--repeats` times:

    octavo        the engine's core: ragged batches in order of length, within a budget of tokens
    transformers  batches of `--batch` in the order of arrival, padded to the longest
    transformers (sorted)  the same in order of length, as sentence-transformers does it

With `--url` the server there is asked as well, by `--clients` at once with one sentence a request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from octavo import __version__
from octavo.config import EngineConfig, default_thread_waiting
from octavo.engine.messages import AddPooling
from octavo.text.tokenizer import load_tokenizer
from octavo.types import PoolingParams
from octavo.weights.store import resolve

TEXT = """
the of and a to in is you that it he was for on are as with his they at be this from have or by one
had not but what all were when we there can an your which their said if do will each about how up
out them then she many some so these would other into has more her two like him engine scheduler
throughput latency embedding vector sentence library compiler garden weather
"""
WORDS = TEXT.split()


def sentences(number: int, shortest: int, longest: int, seed: int) -> list[str]:
    """Random sentences; lengths in words are drawn evenly on a scale of logarithms."""
    rng = random.Random(seed)

    def length() -> int:
        return round(shortest * (longest / shortest) ** rng.random())

    return [" ".join(rng.choices(WORDS, k=length())) for _ in range(number)]


class Octavo:
    """The engine's core without a process around it."""

    def __init__(self, path: Path, num_threads: int | None) -> None:
        from octavo.launch import build_engine

        self.built = build_engine(EngineConfig(model=str(path), num_threads=num_threads))
        self.tokenizer = load_tokenizer(path)

    def __call__(self, texts: list[str]) -> np.ndarray:
        core = self.built.core
        for index, text in enumerate(texts):
            ids = self.tokenizer.encode_texts(text, max_len=self.built.info.max_model_len)[0]
            core.add(AddPooling(str(index), ids, PoolingParams()))
        vectors: dict[int, bytes] = {}
        while core.has_work:
            vectors |= {int(output.request_id): output.vector for output in core.step()}
        return np.stack([np.frombuffer(vectors[i], "<f4") for i in range(len(texts))])


class Reference:
    """`transformers`, mean pooling, length 1."""

    def __init__(self, path: Path, batch: int, max_len: int) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        self.torch = torch
        self.model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.batch, self.max_len = batch, max_len

    def __call__(self, texts: list[str], *, is_sorted: bool) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]) if is_sorted else i)
        result: list[Any] = [None] * len(texts)
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            inputs = self.tokenizer(
                [texts[i] for i in chosen],
                padding=True,
                truncation=True,
                max_length=self.max_len,
                return_tensors="pt",
            )
            with self.torch.inference_mode():
                states = self.model(**inputs).last_hidden_state
                mask = inputs["attention_mask"][..., None].float()
                means = (states * mask).sum(1) / mask.sum(1)
                vectors = self.torch.nn.functional.normalize(means, dim=-1).numpy()
            for index, vector in zip(chosen, vectors, strict=True):
                result[index] = vector
        return np.stack(result)


async def ask(url: str, model: str, texts: list[str], num_clients: int) -> float:
    """Seconds until a server has answered every sentence, one a request."""
    queue = iter(texts)
    async with httpx.AsyncClient(timeout=600, trust_env=False) as client:

        async def work() -> None:
            for text in queue:
                body = {"model": model, "input": text, "encoding_format": "base64"}
                answer = await client.post(f"{url}/v1/embeddings", json=body)
                answer.raise_for_status()

        begin = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(num_clients)))
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm", help="a folder or its pulled name")
    parser.add_argument("--number", type=int, default=512)
    parser.add_argument("--shortest", type=int, default=5, help="words")
    parser.add_argument("--longest", type=int, default=100, help="words")
    parser.add_argument("--batch", type=int, default=32, help="of transformers")
    parser.add_argument("--num-threads", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--url", help="of a server with the same model")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--json")
    args = parser.parse_args()
    default_thread_waiting()

    path = resolve(args.model)
    octavo = Octavo(path, args.num_threads)
    reference = Reference(path, args.batch, octavo.built.info.max_model_len)
    ways: dict[str, Any] = {
        "octavo": octavo,
        "transformers": lambda texts: reference(texts, is_sorted=False),
        "transformers (sorted)": lambda texts: reference(texts, is_sorted=True),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    if args.url:
        times["octavo over HTTP"] = []
    error = 0.0
    for repeat in range(-1, args.repeats):  # the first round is not counted
        texts = sentences(args.number if repeat >= 0 else 64, args.shortest, args.longest, repeat)
        results = {}
        for name, run in ways.items():
            begin = time.perf_counter()
            results[name] = run(texts)
            times[name].append(time.perf_counter() - begin)
        if args.url:
            seconds = asyncio.run(ask(args.url, args.model, texts, args.clients))
            times["octavo over HTTP"].append(seconds)
        error = max(error, float(np.abs(results["octavo"] - results["transformers"]).max()))
    import torch
    import transformers

    rates = {name: args.number / statistics.median(found[1:]) for name, found in times.items()}
    report = {
        "machine": octavo.built.info.device,
        "versions": {
            "octavo": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "setup": vars(args),
        "seconds": {name: found[1:] for name, found in times.items()},
        "sentences_per_s": rates,
        "ratio": {name: rates["octavo"] / rate for name, rate in rates.items() if name != "octavo"},
        "largest_difference": error,
    }
    print(json.dumps(report, indent=1))
    if args.json:
        Path(args.json).write_text(json.dumps(report, indent=1))
    assert error < 1e-5, "the vectors are not the same"


if __name__ == "__main__":
    main()
