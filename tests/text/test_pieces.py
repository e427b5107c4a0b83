"""The native table of a SentencePiece vocabulary against the library `tokenizers`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError, InvalidRequestError
from octavo.kernels import cpu
from octavo.text import sentencepiece
from octavo.text.pieces import PieceTokenizer
from octavo.text.tokenizer import Tokenizer, from_gguf

if TYPE_CHECKING:
    from collections.abc import Mapping

QUICK = settings(max_examples=200, deadline=None)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPACE = "\u2581"
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4

# Few letters, so that pieces overlap in many ways and merges go stale.
pieces = st.text(alphabet=f"ab{SPACE}é<\n😀", min_size=1, max_size=6)
texts = st.text(alphabet=f"ab {SPACE}é<\n\t😀\0你", max_size=30)

pytestmark = pytest.mark.skipif(cpu.why_not() is not None, reason="no native library")


def is_native(tokenizer: Tokenizer) -> bool:
    return isinstance(tokenizer._backend, PieceTokenizer)


def by_library(metadata: Mapping[str, Any]) -> Tokenizer:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece, "can_use_pieces", lambda: False)
        tokenizer = from_gguf(metadata)
    assert not is_native(tokenizer)
    return tokenizer


@st.composite
def vocabularies(draw: st.DrawFn) -> dict[str, Any]:
    """Metadata of a file without merges."""
    words = draw(st.lists(pieces, unique=True, max_size=40))
    names = ["<unk>", "<s>", "</s>", "<bos>", "<eos>", "<mask>"]
    tokens = [*names, SPACE, *(w for w in words if w != SPACE), *BYTES]
    own = st.sampled_from([NORMAL, NORMAL, NORMAL, CONTROL, USER_DEFINED])
    types = [draw(own) for _ in range(len(tokens) - 256)] + [6] * 256
    score = st.integers(-5, 5).map(float)
    metadata = {
        "general.architecture": draw(st.sampled_from(["llama", "phi3", "gemma3"])),
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": draw(st.integers(0, len(tokens) - 1)),
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_eos_token": draw(st.booleans()),
        "tokenizer.ggml.scores": [draw(score) for _ in tokens]
        if draw(st.booleans())
        else [float(-i) for i in range(len(tokens))],
    }
    if draw(st.booleans()):
        metadata["tokenizer.ggml.padding_token_id"] = draw(st.integers(0, len(tokens) - 257))
    return metadata


@QUICK
@given(vocabularies(), st.lists(texts, min_size=1, max_size=5))
def test_any_vocabulary_gives_the_library_s_ids(metadata: dict[str, Any], some: list[str]) -> None:
    ours, theirs = from_gguf(metadata), by_library(metadata)
    assert is_native(ours)
    for text in some:
        for add in (True, False):
            ids = theirs.encode(text, add_special_tokens=add)
            assert ours.encode(text, add_special_tokens=add) == ids
            assert ours.decode(ids) == theirs.decode(ids)
    assert ours.to_json() == theirs.to_json()
    assert ours.special_token_ids == theirs.special_token_ids
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    for token_id in range(-1, ours.vocab_size + 1):
        assert ours.token_bytes(token_id) == theirs.token_bytes(token_id)


def test_runs_of_spaces_that_gemma_s_files_spell_as_spaces(gemma_metadata: dict[str, Any]) -> None:
    assert "  " in gemma_metadata["tokenizer.ggml.tokens"]
    ours, theirs = from_gguf(gemma_metadata), by_library(gemma_metadata)
    assert is_native(ours)
    for text in ("a  b   c    d", f"  {SPACE}  ", "   \n\n\n   "):
        assert ours.encode(text) == theirs.encode(text)


def test_what_the_table_cannot_do_is_left_to_the_library(
    sentencepiece_metadata: dict[str, Any],
) -> None:
    def changed(index: int, token: str) -> dict[str, Any]:
        tokens = list(sentencepiece_metadata["tokenizer.ggml.tokens"])
        tokens[index] = token
        return sentencepiece_metadata | {"tokenizer.ggml.tokens": tokens}

    tokens = sentencepiece_metadata["tokenizer.ggml.tokens"]
    assert is_native(from_gguf(sentencepiece_metadata))
    for metadata in (
        changed(300, tokens[301]),  # two alike
        changed(300, "a\0b"),
        changed(tokens.index("<0x41>"), "no byte"),
        changed(tokens.index(SPACE), "no space"),
    ):
        tokenizer = from_gguf(metadata)
        assert not is_native(tokenizer)
        assert tokenizer.encode("a b") == by_library(metadata).encode("a b")


@pytest.mark.parametrize(
    "change",
    [
        {"tokenizer.ggml.scores": [1.0]},
        {"tokenizer.ggml.scores": None},
        {"tokenizer.ggml.token_type": [1] * 700 + [CONTROL]},
        {"tokenizer.ggml.bos_token_id": 10**6},
        {"tokenizer.ggml.tokens": [1, 2, 3]},
    ],
)
def test_bad_metadata_is_one_clear_error(
    change: dict[str, Any], sentencepiece_metadata: dict[str, Any]
) -> None:
    merged = sentencepiece_metadata | change
    with pytest.raises(CheckpointError, match=r"make no sense|has no tokenizer\.ggml\.scores"):
        from_gguf({key: value for key, value in merged.items() if value is not None})


def test_the_rest_of_the_library_is_there_when_it_is_asked_for(
    sentencepiece_metadata: dict[str, Any],
) -> None:
    ours, theirs = from_gguf(sentencepiece_metadata), by_library(sentencepiece_metadata)
    assert ours.encode_texts("a b", "c d") == theirs.encode_texts("a b", "c d")
    assert ours.encode_texts("a b") == theirs.encode_texts("a b")
    assert ours.encode_texts("a b c d e", max_len=3) == theirs.encode_texts("a b c d e", max_len=3)
    assert ours.to_json() == theirs.to_json()


def test_more_merges_than_there_is_room_for_at_first(
    sentencepiece_metadata: dict[str, Any],
) -> None:
    tokens = ["<unk>", "<s>", "</s>", SPACE, *BYTES, *("a" * n for n in range(1, 60))]
    metadata = sentencepiece_metadata | {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [float(-i) for i in range(len(tokens))],
        "tokenizer.ggml.token_type": [NORMAL] * len(tokens),
    }
    ours = from_gguf(metadata)
    assert is_native(ours)
    assert len(json.loads(ours.to_json())["model"]["merges"]) == 59 * 58 // 2 > 4 * len(tokens)
    assert ours.to_json() == by_library(metadata).to_json()


def test_half_a_surrogate_pair_is_refused(sentencepiece_metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate"):
        from_gguf(sentencepiece_metadata).encode("a\ud800")


def test_a_long_text_takes_no_quadratic_time(sentencepiece_metadata: dict[str, Any]) -> None:
    ours, theirs = from_gguf(sentencepiece_metadata), by_library(sentencepiece_metadata)
    text = "the sheets of a small book " * 20_000
    assert ours.encode(text) == theirs.encode(text)
