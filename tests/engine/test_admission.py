"""What is checked before the engine sees a request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.engine.admission import bad_words_token_ids, check_request
from octavo.errors import InvalidRequestError
from octavo.text.tokenizer import load_folder
from octavo.types import EngineInfo, KVCacheLayout, SamplingParams
from tests.engine.byte_tokenizer import VOCAB_SIZE, byte_tokenizer, ids_of

if TYPE_CHECKING:
    from pathlib import Path

INFO = EngineInfo(
    architecture="X",
    dtype="float32",
    device="cpu",
    vocab_size=VOCAB_SIZE,
    max_model_len=64,
    kv_cache=KVCacheLayout(num_blocks=1, block_size=1, bytes_per_block=1),
    startup_s={},
)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {5: 1.0, VOCAB_SIZE: 1.0}}, f"logit_bias.{VOCAB_SIZE}"),
        ({"allowed_token_ids": [5, VOCAB_SIZE]}, "allowed_token_ids"),
        ({"bad_words": ["a"]}, "bad_words"),
        ({"stop": "a"}, "stop"),
    ],
)
def test_ids_out_of_the_vocabulary_and_texts_without_a_tokenizer(
    fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        check_request([5], SamplingParams(**fields), INFO, has_tokenizer=False)
    assert caught.value.param == param


def test_the_vocabulary_s_last_token_is_in_it() -> None:
    last = VOCAB_SIZE - 1
    params = SamplingParams(logit_bias={last: 1.0}, allowed_token_ids=[last], bad_words=["a"])
    assert check_request([5], params, INFO, has_tokenizer=True) == params


def sequences(words: list[str]) -> list[list[int]]:
    return bad_words_token_ids(words, byte_tokenizer(), VOCAB_SIZE)


def test_bad_words() -> None:
    assert sequences([]) == []
    # With a space before it, a word of bytes ends with itself: that is forbidden already.
    assert sequences(["ab", "c", "ab"]) == [ids_of("ab"), ids_of("c")]
    assert sequences(["  ab"]) == [ids_of("ab")]


def test_both_forms_where_a_space_makes_other_tokens(tiny_tokenizer: Path) -> None:
    """The trained vocabulary has tokens that begin with a space."""
    tokenizer = load_folder(tiny_tokenizer)
    word = next(
        tokenizer.token_text(i).strip()
        for i in range(260, tokenizer.vocab_size)
        if tokenizer.token_text(i).startswith(" ") and len(tokenizer.token_text(i)) > 2
    )
    plain, spaced = bad_words_token_ids([word], tokenizer, tokenizer.vocab_size)
    assert tokenizer.decode(plain) == word
    assert tokenizer.decode(spaced) == f" {word}"
    with pytest.raises(InvalidRequestError) as caught:  # an output layer of fewer tokens
        bad_words_token_ids([word], tokenizer, max(spaced))
    assert caught.value.param == "bad_words[0]"


@pytest.mark.parametrize("word", [" ", "\n\t", ""])
def test_a_word_without_tokens(word: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        sequences(["a", word])
    assert caught.value.param == "bad_words[1]"


@given(words=st.lists(st.text(st.characters(codec="utf-8"), min_size=1), max_size=5))
def test_every_word_is_among_the_sequences(words: list[str]) -> None:
    tokenizer = byte_tokenizer()
    if not all(word.lstrip() for word in words):
        return
    found = bad_words_token_ids(words, tokenizer, VOCAB_SIZE)
    assert len({tuple(ids) for ids in found}) == len(found)
    for word in words:
        assert tokenizer.encode(word.lstrip(), add_special_tokens=False) in found
