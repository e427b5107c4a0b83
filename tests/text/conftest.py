"""Tiny vocabularies, trained here, in the shape of GGUF metadata."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import gguf
import pytest
import sentencepiece
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
PROSE = [
    "The printer folds one sheet three times and gets eight leaves of a small book.",
    "It's late; we'll see whether they'd rather wait, or I'm mistaken and you've gone.",
    "In 1987 there were 12,345 of them; by 2024 about 3.14159 remained, i.e. 100%.",
    "Ce café à l'été coûte 4 €, où naïve façade déjà vu. Größe, Übermut, süß.",
    "Быстрая лиса прыгает. Αλφα βήτα γάμμα. こんにちは世界。你好，世界！ 안녕하세요",  # noqa: RUF001
    "Emoji 😀 👩‍👩‍👧 🇩🇪 ✈️ and arrows → ← ⇒ stand between   runs  of    spaces.",
    "\tindented\n\n  lines\r\n\tof code: for (int i = 0; i < n; ++i) { sum += a[i]; }",
]


def corpus() -> list[str]:
    source = list(io.StringIO(json.__doc__ + json.dumps.__doc__))
    return PROSE * 4 + source


@pytest.fixture(scope="session")
def byte_level_metadata() -> dict[str, Any]:
    """Byte-level BPE with control tokens, one user-defined token, and merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=[*SPECIAL, "<think>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3, 3, 3, 4] + [1] * (len(tokens) - 4),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in model["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.fixture(scope="session")
def sentencepiece_model() -> sentencepiece.SentencePieceProcessor:
    """A SentencePiece BPE model with byte fallback, in Llama 2's manner."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()),
        model_writer=model,
        model_type="bpe",
        vocab_size=640,
        byte_fallback=True,
        character_coverage=0.98,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="session")
def sentencepiece_metadata(
    sentencepiece_model: sentencepiece.SentencePieceProcessor,
) -> dict[str, Any]:
    """The same model as GGUF metadata: tokens and scores, no merges."""
    model = sentencepiece_model
    ids = range(model.vocab_size())

    def kind(token_id: int) -> int:
        if model.is_unknown(token_id):
            return 2
        return 3 if model.is_control(token_id) else 6 if model.is_byte(token_id) else 1

    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in ids],
        "tokenizer.ggml.scores": [model.get_score(i) for i in ids],
        "tokenizer.ggml.token_type": [kind(i) for i in ids],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


@pytest.fixture(scope="session")
def gemma_metadata(sentencepiece_metadata: dict[str, Any]) -> dict[str, Any]:
    """The same pieces as a Gemma file has them: its names, spaces as spaces, order for rank."""
    names = {"<unk>": "<unk>", "<s>": "<bos>", "</s>": "<eos>"}
    tokens = [names.get(t, t) for t in sentencepiece_metadata["tokenizer.ggml.tokens"]]
    types = list(sentencepiece_metadata["tokenizer.ggml.token_type"])
    for extra, kind in (("<pad>", 3), ("<mask>", 4), ("<start_of_turn>", 3), ("\n\n\n", 4)):
        tokens.append(extra)
        types.append(kind)
    tokens = [
        t.replace("\u2581", " ") if set(t) == {"\u2581"} and len(t) > 1 else t for t in tokens
    ]
    return {
        **sentencepiece_metadata,
        "general.architecture": "gemma3",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [-1000.0] * len(tokens),
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.padding_token_id": tokens.index("<pad>"),
    }


@pytest.fixture(scope="session")
def write_gguf() -> Callable[[Path, dict[str, Any]], None]:
    """Write metadata, and the few settings of a model that transformers asks for, to a file."""

    def write(path: Path, metadata: dict[str, Any]) -> None:
        architecture = metadata["general.architecture"]
        writer = gguf.GGUFWriter(path, architecture)
        for name, value in (
            ("block_count", 1),
            ("context_length", 64),
            ("embedding_length", 16),
            ("feed_forward_length", 16),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("attention.key_length", 8),
            ("attention.sliding_window", 16),
        ):
            writer.add_uint32(f"{architecture}.{name}", value)
        writer.add_float32(f"{architecture}.attention.layer_norm_rms_epsilon", 1e-6)
        writer.add_float32(f"{architecture}.rope.freq_base", 10000.0)
        for key, value in metadata.items():
            if key == "general.architecture":
                continue
            if isinstance(value, bool):
                writer.add_bool(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            elif isinstance(value, str):
                writer.add_string(key, value)
            else:
                writer.add_array(key, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    return write


@pytest.fixture(scope="session")
def texts() -> st.SearchStrategy[str]:
    """Texts that tokenizers disagree on: spaces, digits, scripts, emoji, code, special tokens."""
    pieces = st.one_of(
        st.text(max_size=12),
        st.sampled_from(PROSE),
        st.text(alphabet=" \t\n\r\u00a0\u3000", max_size=8),
        st.integers(-(10**12), 10**12).map(str),
        st.floats(allow_nan=False).map(str),
        st.text(alphabet="😀👩\u200d👧🇩🇪é\u0301你好안", max_size=6),
        st.sampled_from(
            [
                *SPECIAL,
                "<think>",
                "<s>",
                "</s>",
                "<bos>",
                "<start_of_turn>",
                "<0x0A>",
                "\u2581",
                "'s",
            ]
        ),
    )
    return st.lists(pieces, max_size=8).map("".join)
