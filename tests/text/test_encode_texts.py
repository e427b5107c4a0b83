"""Texts and pairs as encoders read them: ids, types and cuts are those of `transformers`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizerFast

from octavo.errors import InvalidRequestError
from octavo.text.tokenizer import Tokenizer, cut_lengths, load_folder

if TYPE_CHECKING:
    from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "cat", "dog", "sat", "un", "##believ", "##able", "cafe", "!", "世", "界"]


def write_bert_tokenizer(path: Path) -> None:
    """A BERT tokenizer with a small vocabulary, saved by the library alone."""
    vocab = {token: index for index, token in enumerate(SPECIAL + WORDS)}
    backend = Backend(models.WordPiece(vocab, unk_token="[UNK]"))  # type: ignore[call-arg]
    backend.normalizer = normalizers.BertNormalizer()  # type: ignore[assignment]
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # type: ignore[assignment]
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))  # type: ignore[assignment]
    backend.enable_truncation(4)  # what sentence-transformers leaves in the file
    backend.save(str(path / "tokenizer.json"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bert-tokenizer")
    write_bert_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def ours(folder: Path) -> Tokenizer:
    return load_folder(folder)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))


TEXTS = st.lists(st.sampled_from(["The", "cat", "unbelievable", "CAFÉ", "世界", "!", "?"])).map(
    " ".join
)


@settings(max_examples=200, deadline=None)
@given(TEXTS, TEXTS.filter(bool), st.one_of(st.none(), st.integers(5, 24)))
def test_pairs_and_texts(
    ours: Tokenizer, theirs: Any, first: str, second: str, max_len: int | None
) -> None:
    cut: dict[str, Any] = {"truncation": False}
    if max_len is not None:
        cut = {"truncation": "longest_first", "max_length": max_len}
    expected = theirs(first, second, **cut)
    ids, second_start = ours.encode_texts(first, second, max_len=max_len)
    assert ids == expected["input_ids"]
    assert second_start is not None
    assert [int(i >= second_start) for i in range(len(ids))] == expected["token_type_ids"]
    assert max_len is None or len(ids) <= max_len
    expected = theirs(first, **cut)
    assert ours.encode_texts(first, max_len=max_len) == (expected["input_ids"], None)
    assert max_len is not None or ours.encode(first) == expected["input_ids"]


def test_without_special_tokens(ours: Tokenizer) -> None:
    ids = ours.encode_texts("the cat", "sat", add_special_tokens=False)[0]
    assert ids == ours.encode("the cat sat", add_special_tokens=False)
    assert ours.encode_texts("the cat sat", add_special_tokens=False, max_len=2)[0] == ids[:2]


def test_what_cannot_be_encoded(ours: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="no room") as caught:
        ours.encode_texts("the cat", max_len=2)
    assert caught.value.param == "truncate_prompt_tokens"
    with pytest.raises(InvalidRequestError, match="surrogate"):
        ours.encode_texts("a", "\ud800")
    with pytest.raises(InvalidRequestError, match="surrogate"):
        ours.encode_texts("\ud800", max_len=9)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=2), st.integers(2, 40))
def test_cuts_are_as_small_as_they_can_be(lengths: list[int], room: int) -> None:
    kept = cut_lengths(lengths, room)
    assert sum(kept) == min(sum(lengths), room)
    assert all(0 <= k <= length for k, length in zip(kept, lengths, strict=True))
