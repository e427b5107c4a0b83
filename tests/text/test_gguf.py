"""GGUF tokenizers against what transformers makes of the same file, and against SentencePiece."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.kernels import cpu
from octavo.text import sentencepiece as sentencepiece_files
from octavo.text.tokenizer import Tokenizer, from_gguf, load_tokenizer
from tests.gguf_reader import read_once

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import sentencepiece

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
THOROUGH = settings(QUICK, max_examples=2500)


def with_transformers(path: Path) -> Any:
    from transformers import AutoTokenizer

    with read_once():
        return AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


def check_equal(ours: Tokenizer, theirs: Any, texts: st.SearchStrategy[str], how: settings) -> None:
    """Ids with and without special tokens, and the way back."""

    @how
    @given(texts)
    @example("")
    @example(" ")
    @example("x = 1_000;  // ten\n\n\n\tif (a  <= 12) return  7;")
    def check(text: str) -> None:
        for add in (True, False):
            ids = theirs.encode(text, add_special_tokens=add)
            assert ours.encode(text, add_special_tokens=add) == ids
        for skip in (True, False):
            assert ours.decode(ids, skip_special_tokens=skip) == theirs.decode(
                ids, skip_special_tokens=skip
            )

    check()


def check_names(ours: Tokenizer, theirs: Any) -> None:
    assert ours.vocab_size == len(theirs)
    assert (ours.bos_token_id, ours.eos_token_id) == (theirs.bos_token_id, theirs.eos_token_id)
    assert ours.special_token_ids == set(theirs.all_special_ids) | {
        i for i, token in theirs.added_tokens_decoder.items() if token.special
    }


@pytest.fixture(params=["native", "library"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vocabularies without merges by the native table, and by the library alone."""
    if request.param == "library":
        monkeypatch.setattr(sentencepiece_files, "can_use_pieces", lambda: False)
    elif (why_not := cpu.why_not()) is not None:
        pytest.skip(why_not)


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe", "qwen2", "tekken", "gpt-4o", "qwen35", "?"])
def test_byte_level_equals_transformers(
    pre: str,
    byte_level_metadata: dict[str, Any],
    write_gguf: Callable[..., None],
    texts: st.SearchStrategy[str],
    tmp_path: Path,
) -> None:
    metadata = byte_level_metadata | {"tokenizer.ggml.pre": pre}
    write_gguf(tmp_path / "tiny.gguf", metadata)
    ours, theirs = from_gguf(metadata), with_transformers(tmp_path / "tiny.gguf")
    check_names(ours, theirs)
    check_equal(ours, theirs, texts, QUICK)


@pytest.mark.parametrize("flags", [{}, {"add_bos_token": True}, {"add_eos_token": True}])
def test_bos_and_eos_equal_transformers(
    flags: dict[str, bool],
    byte_level_metadata: dict[str, Any],
    write_gguf: Callable[..., None],
    tmp_path: Path,
) -> None:
    metadata = byte_level_metadata | {f"tokenizer.ggml.{key}": v for key, v in flags.items()}
    write_gguf(tmp_path / "tiny.gguf", metadata)
    ids = with_transformers(tmp_path / "tiny.gguf").encode("a b")
    assert from_gguf(metadata).encode("a b") == ids
    assert len(ids) == len(from_gguf(metadata).encode("a b", add_special_tokens=False)) + len(flags)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize("ties", [False, True])
def test_sentencepiece_equals_transformers(
    architecture: str,
    ties: bool,
    sentencepiece_metadata: dict[str, Any],
    write_gguf: Callable[..., None],
    texts: st.SearchStrategy[str],
    tmp_path: Path,
) -> None:
    metadata = sentencepiece_metadata | {"general.architecture": architecture}
    if ties:  # tokens that share a score
        scores = metadata["tokenizer.ggml.scores"]
        metadata["tokenizer.ggml.scores"] = [float(score // 7) for score in scores]
    write_gguf(tmp_path / "tiny.gguf", metadata)
    ours, theirs = from_gguf(metadata), with_transformers(tmp_path / "tiny.gguf")
    check_names(ours, theirs)
    check_equal(ours, theirs, texts, QUICK)


@pytest.mark.usefixtures("way")
def test_gemma_equals_transformers(
    gemma_metadata: dict[str, Any],
    write_gguf: Callable[..., None],
    texts: st.SearchStrategy[str],
    tmp_path: Path,
) -> None:
    write_gguf(tmp_path / "tiny.gguf", gemma_metadata)
    ours, theirs = from_gguf(gemma_metadata), with_transformers(tmp_path / "tiny.gguf")
    check_names(ours, theirs)
    check_equal(ours, theirs, texts, QUICK)


@pytest.mark.usefixtures("way")
def test_derived_merges_give_what_sentencepiece_gives(
    sentencepiece_metadata: dict[str, Any],
    sentencepiece_model: sentencepiece.SentencePieceProcessor,
) -> None:
    ours = from_gguf(sentencepiece_metadata)
    bos = sentencepiece_model.bos_id()

    @QUICK
    @given(st.text(alphabet="abcdefgheé 12.,你😀\t", min_size=1, max_size=40))
    def check(text: str) -> None:
        assume(not text.startswith(" "))  # sentencepiece puts its space even before a space
        assert ours.encode(text) == [bos, *sentencepiece_model.encode(text)]

    check()


@pytest.mark.parametrize("name", ["smollm2", "gemma3-270m"])
@pytest.mark.model
def test_real_files_equal_transformers(name: str, texts: st.SearchStrategy[str]) -> None:
    from octavo.weights.open import open_checkpoint
    from octavo.weights.store import resolve

    path = resolve(name)
    checkpoint = open_checkpoint(path)
    metadata = dict(checkpoint.config)
    checkpoint.close()
    start = time.process_time()
    ours = load_tokenizer(path, metadata)
    assert time.process_time() - start < 2
    theirs = with_transformers(path)
    check_names(ours, theirs)
    assert ours.encode("Hello  world 12345 \U0001f600") == theirs.encode(
        "Hello  world 12345 \U0001f600"
    )
    check_equal(ours, theirs, texts, THOROUGH)
    ids = range(0, ours.vocab_size, 97)
    assert [ours.decode([i]) for i in ids] == [
        theirs.decode([i], skip_special_tokens=True) for i in ids
    ]


def test_control_tokens_outside_the_alphabet_keep_their_ids(
    byte_level_metadata: dict[str, Any],
) -> None:
    bos, user = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cUser\uff5c>"
    tokens = list(byte_level_metadata["tokenizer.ggml.tokens"])
    tokens[1], tokens[3] = bos, user
    ours = from_gguf(byte_level_metadata | {"tokenizer.ggml.tokens": tokens})
    assert ours.encode(f"{bos}{user}") == [1, 3]
    assert (ours.bos_token_id, ours.token_text(3)) == (1, user)


def test_no_id_leaves_the_vocabulary(byte_level_metadata: dict[str, Any]) -> None:
    tokens = list(byte_level_metadata["tokenizer.ggml.tokens"])
    tokens[0] = "<|begin_of_text|>"  # no <|endoftext|> any more
    ours = from_gguf(byte_level_metadata | {"tokenizer.ggml.tokens": tokens})
    assert max(ours.encode("<|endoftext|><|begin_of_text|>")) < ours.vocab_size == len(tokens)


def test_ends_of_generation(byte_level_metadata: dict[str, Any]) -> None:
    metadata = byte_level_metadata | {"tokenizer.ggml.eos_token_id": 0}
    assert from_gguf(metadata).eos_token_ids == {0}
    assert from_gguf(metadata | {"tokenizer.ggml.eot_token_id": 2}).eos_token_ids == {0, 2}
    template = {"tokenizer.chat_template": "{{ messages[0].content }}<|im_end|>"}
    assert from_gguf(metadata | template).eos_token_ids == {0, 2}


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"tokenizer.ggml.tokens": None}, CheckpointError, "tokenizer.ggml.tokens"),
        ({"tokenizer.ggml.merges": None}, CheckpointError, "tokenizer.ggml.merges"),
        ({"tokenizer.ggml.merges": ["a b c"]}, CheckpointError, "make no sense"),
        ({"tokenizer.ggml.merges": ["zz yy"]}, CheckpointError, "make no sense"),
        ({"tokenizer.ggml.bos_token_id": 10**6}, CheckpointError, "make no sense"),
        ({"tokenizer.ggml.bos_token_id": -1}, CheckpointError, "make no sense"),
        ({"tokenizer.ggml.tokens": [1, 2, 3]}, CheckpointError, "make no sense"),
        ({"tokenizer.chat_template": 7}, CheckpointError, "chat_template"),
        ({"tokenizer.ggml.model": "rwkv"}, UnsupportedModelError, "'rwkv'"),
    ],
)
def test_bad_metadata_is_one_clear_error(
    change: dict[str, Any],
    error: type[Exception],
    words: str,
    byte_level_metadata: dict[str, Any],
) -> None:
    merged = byte_level_metadata | change
    with pytest.raises(error, match=words):
        from_gguf({key: value for key, value in merged.items() if value is not None})
