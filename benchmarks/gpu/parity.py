"""Whether the engine on a CUDA card says what `transformers` says on the same card.

    PYTHONPATH=. python benchmarks/gpu/parity.py --backends triton torch
    PYTHONPATH=. python benchmarks/gpu/parity.py --quick

Tiny random checkpoints are made with transformers and served by `octavo.LLM`; every greedy token is
compared by teacher forcing in float32 (TF32 off), for several ways of batching, with CUDA graphs
and without, and once more when the prefix cache knows the prompts. In bfloat16, log-probabilities
must be as near to those of float32 as transformers' own in bfloat16 are, about. One line for each
run; the exit code is 1 if any differs. --quick takes three models, one backend and the ways that
differ most, in less than three minutes.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from octavo import LLM, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterator

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
    "mistral, window": {"sliding_window": 20},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3, tied": {"tie_word_embeddings": True},
    "qwen3, heads of 128": {"head_dim": 128},
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
    "graphs off": {"enforce_eager": True},
    "chunks of 96": {"max_num_batched_tokens": 96},
    "four at a time": {"max_num_seqs": 4},
    "few blocks": {"num_blocks": 60},
    "blocks of 64": {"block_size": 64},
}
HITS = "prefix hits"
"""The prompts of the first way once more, on the same engine."""
QUICK_MODELS = ("llama, untied, llama3 rope", "qwen3, tied", "qwen3, heads of 128", "gemma3")
QUICK_WAYS = ("batch of 64", "graphs off", "chunks of 96")
FAMILIES: dict[str, str] = {
    "llama": "Llama",
    "gemma3": "Gemma3",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
}
NOISE_FACTOR = 1.5
"""How much farther from float32 than transformers' bfloat16 ours may be, in the mean."""


@dataclass
class Result:
    """Of one run; `wrong` are tokens that are not the reference's though it had no tie."""

    num_tokens: int = 0
    num_ties: int = 0
    num_wrong: int = 0
    max_error: float = 0.0
    mean_error: float = 0.0
    num_preemptions: int = 0


@dataclass(frozen=True)
class Setting:
    """What all runs have in common."""

    device: str = "cuda"
    num_prompts: int = 64
    output_len: int = OUTPUT_LEN


def make(name: str, options: dict[str, Any], folder: Path) -> Path:
    torch.manual_seed(1)
    family = FAMILIES[name.partition(",")[0]]
    text = "Text" if family == "Gemma3" else ""
    config = getattr(transformers, f"{family}{text}Config")(
        **(LLAMA | ({} if text else {"tie_word_embeddings": False}) | options)
    )
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith(("norm.weight", ".bias")):  # ones and zeros hide mistakes
                parameter += 0.2 * torch.randn_like(parameter)
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


@dataclass
class Run:
    """The outputs of each pass over the prompts, on one engine."""

    passes: list[list[Any]]
    num_preemptions: int
    block_size: int

    def has_hits(self, index: int) -> bool:
        """Whether every prompt of a pass had all from the cache that it could: its full blocks
        before the last token."""
        size = self.block_size
        return all(
            output.num_cached_tokens == (len(output.prompt_token_ids) - 1) // size * size
            for output in self.passes[index]
        )


def run(
    path: Path, backend: str, dtype: str, way: dict[str, Any], setting: Setting, *, passes: int = 1
) -> Run:
    options = {"block_size": 16} | way
    num_blocks = options.pop("num_blocks", None)
    memory = 256 * 1024**2
    if num_blocks is not None:
        config = transformers.AutoConfig.from_pretrained(path)
        per_token = 2 * config.num_key_value_heads * config.head_dim * config.num_hidden_layers
        memory = num_blocks * options["block_size"] * per_token * getattr(torch, dtype).itemsize
    llm = LLM(
        str(path), skip_tokenizer_init=True, device=setting.device, dtype=dtype,
        kv_cache_memory=memory, attention_backend=backend,
        max_model_len=MAX_LEN + setting.output_len, **options,
    )  # fmt: skip
    params = SamplingParams(
        temperature=0, max_tokens=setting.output_len, ignore_eos=True, logprobs=0
    )
    asked = prompts(llm.info.vocab_size, setting.num_prompts)
    try:
        outputs = [llm.generate(asked, params) for _ in range(passes)]
        return Run(outputs, llm.stats.num_preemptions, options["block_size"])
    finally:
        llm.close()


class Reference:
    """The model in transformers; most runs say the same, so its logits are kept."""

    def __init__(self, path: Path, device: str, dtype: torch.dtype = torch.float32) -> None:
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype, attn_implementation="eager"
        )
        self.model = model.eval().to(device)
        self.device = device
        self.known: dict[tuple[int, ...], torch.Tensor] = {}

    @torch.inference_mode()
    def logits(self, ids: list[int], first: int) -> torch.Tensor:
        """After each token from `first` on, [len(ids) - first, vocabulary], float32."""
        key = tuple(ids)
        if key not in self.known:
            whole = self.model(torch.tensor([ids], device=self.device)).logits
            self.known[key] = whole[0, first:].float()
        return self.known[key]

    def logprobs(self, output: Any) -> torch.Tensor:
        """Of an output's own tokens, [number of them], on the CPU."""
        prompt, generated = output.prompt_token_ids, output.outputs[0].token_ids
        logits = self.logits(prompt + generated[:-1], len(prompt) - 1)
        chosen = torch.tensor(generated, device=self.device)[:, None]
        return logits.log_softmax(-1).gather(1, chosen).flatten().cpu()


def compare(reference: Reference, outputs: list[Any]) -> Result:
    result = Result()
    errors = []
    for output in outputs:
        completion = output.outputs[0]
        prompt, generated = output.prompt_token_ids, completion.token_ids
        logits = reference.logits(prompt + generated[:-1], len(prompt) - 1)
        chosen = torch.tensor(generated, device=reference.device)[:, None]
        gap = (logits.amax(-1, keepdim=True) - logits.gather(1, chosen)).flatten()
        result.num_tokens += len(generated)
        result.num_ties += int(((gap > 0) & (gap < TIE)).sum())
        result.num_wrong += int((~(gap < TIE)).sum())
        got = torch.tensor([entry.sampled.logprob for entry in completion.logprobs])
        errors.append((reference.logprobs(output) - got).abs())
    every = torch.cat(errors)
    result.max_error, result.mean_error = every.max().item(), every.mean().item()
    return result


def noise_of(exact: Reference, coarse: Reference, outputs: list[Any]) -> float:
    """Mean distance of two references over the same tokens."""
    errors = [(exact.logprobs(output) - coarse.logprobs(output)).abs() for output in outputs]
    return torch.cat(errors).mean().item()


def check_float32(
    path: Path, backend: str, reference: Reference, ways: list[str], setting: Setting
) -> Iterator[tuple[bool, str, str]]:
    """Whether it passed, the way, and what to say of it; the first way also with prefix hits."""
    for index, way in enumerate(ways):
        done = run(path, backend, "float32", WAYS[way], setting, passes=1 if index else 2)
        for number, outputs in enumerate(done.passes):
            result = compare(reference, outputs)
            ok = result.num_wrong == 0 and result.max_error < 1e-3
            ok &= way != "few blocks" or done.num_preemptions > 0
            text = (
                f"{result.num_tokens} tokens, {result.num_ties} ties, {result.num_wrong} wrong, "
                f"logprob error {result.max_error:.1e}, {done.num_preemptions} preemptions"
            )
            if number:
                ok &= done.has_hits(number)
                cached = sum(output.num_cached_tokens for output in outputs)
                text += f", {cached} prompt tokens from the cache"
            yield ok, HITS if number else way, text


def check_bfloat16(
    path: Path, backend: str, reference: Reference, setting: Setting
) -> tuple[bool, str]:
    """As `check_float32`, of one run."""
    (outputs,) = run(path, backend, "bfloat16", {}, setting).passes
    result = compare(reference, outputs)
    noise = noise_of(reference, Reference(path, setting.device, torch.bfloat16), outputs)
    return result.mean_error <= NOISE_FACTOR * noise, (
        f"logprob error mean {result.mean_error:.4f} (transformers' {noise:.4f}), max "
        f"{result.max_error:.2f}, {result.num_wrong} of {result.num_tokens} tokens differ"
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backends", nargs="+", help="default: triton and torch; quick: triton")
    parser.add_argument("--models", default="", help="only those whose name begins so")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--num-prompts", type=int, default=64)
    parser.add_argument("--output-len", type=int, default=OUTPUT_LEN)
    args = parser.parse_args(argv)
    setting = Setting(args.device, args.num_prompts, args.output_len)
    ways = list(QUICK_WAYS if args.quick else WAYS)
    backends = args.backends or (["triton"] if args.quick else ["triton", "torch"])
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    logging: Any = transformers.logging
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    card = torch.cuda.get_device_name() if args.device.startswith("cuda") else args.device
    print(f"{card}, torch {torch.__version__}, {transformers.__version__=}")
    failed, num_runs, begin = 0, 0, time.perf_counter()

    def tell(ok: bool, backend: str, dtype: str, name: str, way: str, text: str) -> None:
        nonlocal failed, num_runs
        failed += not ok
        num_runs += 1
        print(
            f"{'ok  ' if ok else 'FAIL'} {backend:8} {dtype:8} {name:34} {way:14} {text}",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as folder:
        for name, options in MODELS.items():
            if not name.startswith(args.models) or (args.quick and name not in QUICK_MODELS):
                continue
            path = make(name, options, Path(folder))
            reference = Reference(path, args.device)
            for backend in backends:
                for ok, way, text in check_float32(path, backend, reference, ways, setting):
                    tell(ok, backend, "float32", name, way, text)
                ok, text = check_bfloat16(path, backend, reference, setting)
                tell(ok, backend, "bfloat16", name, ways[0], text)
    seconds = time.perf_counter() - begin
    if not num_runs:
        print(f"no model's name begins with {args.models!r}")
        return 1
    verdict = f"{failed} of {num_runs} runs failed" if failed else f"all {num_runs} runs equal"
    print(f"{verdict}, {seconds:.0f} s")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
