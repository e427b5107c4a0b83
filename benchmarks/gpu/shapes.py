"""Model folders without weights: configuration and tokenizer of well-known shapes.

    PYTHONPATH=. python benchmarks/gpu/shapes.py llama-3.1-8b --out models/llama

The configurations are the published ones, and what depends on weights (which tokens come) does not
matter to time: serve such a folder with dummy weights. Its tokenizer has the right number of
tokens, of about the right length, and special tokens at the same ids, but words of random letters.
The tiny shapes are for dry runs on a CPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMMON: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "torch_dtype": "bfloat16",
    "use_cache": True,
}
_LLAMA: dict[str, Any] = _COMMON | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "mlp_bias": False,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-5,
}
_QWEN3: dict[str, Any] = _COMMON | {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
}
_TINY: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 8192,
    "vocab_size": 1024,
    "bos_token_id": 1016,
    "eos_token_id": 1017,
}
SHAPES: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": _LLAMA
    | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": False,
        "vocab_size": 128256,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "qwen3-0.6b": _QWEN3
    | {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "max_window_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "vocab_size": 151936,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
    },
    "tiny-llama": _LLAMA | {"rope_theta": 10000.0, "tie_word_embeddings": False} | _TINY,
    "tiny-qwen3": _QWEN3 | {"max_window_layers": 2} | _TINY,
}
LETTERS = "etaoinshrdlucmfwypvbgkjqxz"
WORD_LENS = (2, 3, 3, 4, 4, 5, 5, 6, 7, 8, 9)


def make_shape(name: str, folder: Path) -> Path:
    """Write the files of a shape into `folder`, which is made; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[name]
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id")}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    (folder / "generation_config.json").write_text(json.dumps(ids))
    _write_tokenizer(folder, config)
    return folder


@contextlib.contextmanager
def model_folder(model: str) -> Iterator[Path]:
    """The folder of a shape, gone at the end, or whatever path `model` is."""
    if model not in SHAPES:
        yield Path(model)
        return
    with tempfile.TemporaryDirectory(prefix="octavo-shape-") as folder:
        yield make_shape(model, Path(folder) / model)


def _write_tokenizer(folder: Path, config: dict[str, Any]) -> None:
    """Byte-level BPE whose tokens are found whole, so that no merges are needed."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    first_special = config["bos_token_id"]
    vocab: dict[str, int] = {}
    for character in sorted(pre_tokenizers.ByteLevel.alphabet()):
        vocab[character] = len(vocab)
    rng = random.Random(0)
    while len(vocab) < first_special:
        word = "".join(rng.choices(LETTERS, k=rng.choice(WORD_LENS)))
        # In a byte-level vocabulary this character stands for the space before a word.
        vocab.setdefault(f"\u0120{word}" if rng.random() < 0.6 else word, len(vocab))
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    names = {i: f"<|special_{i}|>" for i in range(first_special, config["vocab_size"])}
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, normalized=False) for text in names.values()]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[config["bos_token_id"]],
        "eos_token": names[config["eos_token_id"]],
        "clean_up_tokenization_spaces": False,
        "model_max_length": config["max_position_embeddings"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    args = parser.parse_args(argv)
    print(make_shape(args.shape, args.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
