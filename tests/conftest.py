"""What tests of several folders share: the real small models, and tiny ones made here."""

from __future__ import annotations

import json
import logging
import os
import signal
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.ledger.postgres import PostgresServer

from octavo.config import default_thread_waiting
from octavo.observability.logs import CONFIGURED_LOGGERS

default_thread_waiting()  # before any test imports torch
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells start what runs in the background so, and the commands under test would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def _pulled(name: str) -> Path:
    """The model's path; without it the test is skipped, and in CI it fails."""
    from octavo.errors import ModelNotFoundError
    from octavo.weights.store import resolve

    try:
        return resolve(name)
    except ModelNotFoundError:
        message = f"{name} is not here: run `make models`"
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)


LONGEST = ("models/test_parity_real", "server/test_openapi", "clients/", "test_prefix_caching")
"""Files that take a minute or more: they begin first, so that no core waits for one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """See `LONGEST`."""

    def rank(item: pytest.Item) -> int:
        path = item.path.as_posix()
        return next((i for i, part in enumerate(LONGEST) if f"tests/{part}" in path), len(LONGEST))

    items.sort(key=rank)


@pytest.fixture(autouse=True)
def logs_restored() -> Iterator[None]:
    """Takes back what a command called in this process made of the logs.

    `configure_logs` puts one handler over the standard error of that moment, which pytest closes
    after the test: what a later test's server logged there would print a traceback instead.
    """
    before = [
        (logger, logger.handlers[:], logger.level, logger.propagate)
        for logger in map(logging.getLogger, CONFIGURED_LOGGERS)
    ]
    yield
    for logger, handlers, level, propagate in before:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server, where its programs are installed."""
    from tests.ledger.postgres import PostgresServer, find_binaries

    binaries = find_binaries()
    if binaries is None:
        pytest.skip("PostgreSQL is not installed")
    server = PostgresServer(binaries)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def empty_ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger without anything in it, to be copied: making one takes longer than using it."""
    from octavo.ledger.store import open_ledger

    path = tmp_path_factory.mktemp("ledger") / "empty.db"
    open_ledger(str(path)).close()
    return path


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2 135M Instruct as a GGUF file."""
    return _pulled("smollm2")


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """Gemma 3 270M as a GGUF file."""
    return _pulled("gemma3-270m")


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """all-MiniLM-L6-v2, a model for embeddings, as a Hugging Face folder."""
    return _pulled("all-minilm")


class TinyLlama(Protocol):
    """Makes a folder with a random Llama, as transformers writes it; the same call, the same one.

    Args:
        tied: whether the output layer is the embedding.
        rope: `rope_parameters` beside `rope_theta`, such as LLAMA3_ROPE; None is plain RoPE.
        seed: of the weights.
        config: further fields of `LlamaConfig`, over the defaults of two layers, four heads of
            eight, two KV heads, and 256 positions.
    """

    def __call__(
        self, *, tied: bool = True, rope: dict[str, Any] | None = None, seed: int = 0, **config: Any
    ) -> Path: ...


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.fixture(scope="session")
def llama3_rope() -> dict[str, Any]:
    """Llama 3.1's frequency scaling, for a context that was 64 tokens in training."""
    return dict(LLAMA3_ROPE)


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with tokenizer.json and tokenizer_config.json: byte-level BPE of 384 tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=384,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([json.__doc__ or "", json.dumps.__doc__ or ""] * 4, trainer)
    folder = tmp_path_factory.mktemp("tiny-tokenizer")
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "chat_template": CHAT_TEMPLATE,
        "model_max_length": 256,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Path) -> TinyLlama:
    """See `TinyLlama`. The checkpoints are float32 and a few hundred kilobytes."""
    made: dict[str, Path] = {}

    def make(
        *, tied: bool = True, rope: dict[str, Any] | None = None, seed: int = 0, **config: Any
    ) -> Path:
        key = json.dumps([tied, rope, seed, config], sort_keys=True)
        if key not in made:
            made[key] = tmp_path_factory.mktemp("tiny-llama")
            _write_llama(made[key], tiny_tokenizer, tied, rope, seed, config)
        return made[key]

    return make


def _write_llama(
    folder: Path,
    tokenizer: Path,
    tied: bool,
    rope: dict[str, Any] | None,
    seed: int,
    config: dict[str, Any],
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    values: dict[str, Any] = {
        "vocab_size": 384,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        # Large enough that the best token stands out: random logits near zero would all but tie.
        "initializer_range": 0.3,
        "tie_word_embeddings": tied,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, **(rope or {})},
    } | config
    with torch.random.fork_rng(devices=[]):  # other tests draw what they drew before
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**values)).float()
    model.save_pretrained(folder)
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
