from __future__ import annotations

import itertools
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models

from octavo.errors import UnsupportedModelError
from octavo.text.detokenizer import IncrementalDetokenizer
from octavo.text.parts import TokenizerParts
from octavo.text.tokenizer import Tokenizer, from_gguf

FAST = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
KINDS = ["byte_level_metadata", "sentencepiece_metadata", "gemma_metadata"]


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return from_gguf(request.getfixturevalue(request.param))


def split(ids: list[int], cuts: list[int]) -> list[list[int]]:
    edges = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    return [ids[a:b] for a, b in itertools.pairwise(edges)]


def stream(detokenizer: IncrementalDetokenizer, chunks: list[list[int]]) -> tuple[list[str], str]:
    return [detokenizer.push(chunk) for chunk in chunks], detokenizer.flush()


def any_ids(tokenizer: Tokenizer) -> st.SearchStrategy[list[int]]:
    """Any ids, of the model's padding rows too, with bytes and special tokens often."""
    short = [i for i in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(i)) == 1]
    odd = st.sampled_from([*short, *tokenizer.special_token_ids])
    return st.lists(st.one_of(odd, st.integers(0, tokenizer.vocab_size + 8)), max_size=40)


def library_decode(tokenizer: Tokenizer, ids: list[int], skip: bool) -> str | None:
    """What the library decodes; None where we part from it: a run of byte tokens that is broken in
    one place and sound in another."""
    backend: Backend = tokenizer._full()
    assert tokenizer.codec is not None
    if tokenizer.codec.has_byte_pieces:
        kept = [i for i in ids if not (skip and i in tokenizer.special_token_ids)]
        names = [backend.id_to_token(i) or "" for i in kept if i < tokenizer.vocab_size]
        marks = "".join("b" if re.fullmatch(r"<0x[0-9A-F]{2}>", name) else "." for name in names)
        for run in re.finditer("b+", marks):
            data = bytes(int(name[3:5], 16) for name in names[run.start() : run.end()])
            text = data.decode("utf-8", "replace")
            if "\ufffd" in text and text.strip("\ufffd"):
                return None
    return backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("skip", [True, False])
def test_pieces_make_the_decoded_text(tokenizer: Tokenizer, skip: bool) -> None:
    @FAST
    @given(any_ids(tokenizer), st.lists(st.integers(0, 40), max_size=40))
    def check(ids: list[int], cuts: list[int]) -> None:
        detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
        pieces, rest = stream(detokenizer, split(ids, cuts))
        whole = tokenizer.decode(ids, skip_special_tokens=skip)
        assert "".join(pieces) + rest == whole
        expected = library_decode(tokenizer, ids, skip)
        if expected is not None:
            assert whole == expected

    check()


@pytest.mark.parametrize("skip", [True, False])
def test_continuation_is_what_decoding_adds_to_the_prompt(tokenizer: Tokenizer, skip: bool) -> None:
    @FAST
    @given(any_ids(tokenizer), any_ids(tokenizer))
    def check(prompt: list[int], ids: list[int]) -> None:
        detokenizer = IncrementalDetokenizer(
            tokenizer, skip_special_tokens=skip, prompt_token_ids=prompt
        )
        pieces, rest = stream(detokenizer, [[i] for i in ids])
        whole = tokenizer.decode(prompt + ids, skip_special_tokens=skip)
        # A character that the prompt left unfinished belongs to the continuation.
        before = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip).push(prompt)
        assert before + "".join(pieces) + rest == whole

    check()


def test_text_comes_whole_and_early(tokenizer: Tokenizer, texts: st.SearchStrategy[str]) -> None:
    """No U+FFFD for a character under way, and nothing held back behind a finished one."""

    @FAST
    @given(texts.filter(lambda text: "\ufffd" not in text))
    def check(text: str) -> None:
        ids = tokenizer.encode(text, add_special_tokens=False)
        detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)
        shown = ""
        for count, token_id in enumerate(ids, 1):
            shown += detokenizer.push([token_id])
            data = b"".join(tokenizer.token_bytes(i) for i in ids[:count])
            complete = data.decode("utf-8", "ignore")
            assert tokenizer.codec is not None
            assert shown == tokenizer.codec.strip_start(complete)
        assert detokenizer.flush() == ""

    check()


@pytest.mark.parametrize("kind", KINDS[1:])
def test_the_first_word_keeps_its_space_behind_a_prompt(
    kind: str, request: pytest.FixtureRequest
) -> None:
    tokenizer = from_gguf(request.getfixturevalue(kind))
    prompt = tokenizer.encode("The sheet")
    ids = [tokenizer._backend.token_to_id("\u2581of")]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt)
    assert detokenizer.push(ids) + detokenizer.flush() == " of"


def test_special_tokens_alone_are_no_prompt(sentencepiece_metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(sentencepiece_metadata)
    ids = [tokenizer._backend.token_to_id("\u2581of")]
    assert tokenizer.bos_token_id is not None
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=[tokenizer.bos_token_id])
    assert detokenizer.push(ids) == tokenizer.decode([tokenizer.bos_token_id, *ids]) == "of"


def test_a_prompt_may_end_within_a_character(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    of_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    ids = [of_byte[bytes([byte])] for byte in "\U0001f600!".encode()]
    for cut in range(1, 4):
        detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=ids[:cut])
        assert [detokenizer.push([i]) for i in ids[cut:]][-2:] == ["\U0001f600", "!"]


def test_an_unfinished_character_comes_as_replacement_at_the_end(
    byte_level_metadata: dict[str, Any],
) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    of_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push([of_byte[b"\xf0"], of_byte[b"\x9f"]]) == ""
    assert detokenizer.flush() == "\ufffd"


def test_invalid_bytes_never_hold_the_text_up(tokenizer: Tokenizer) -> None:
    of_byte = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
    detokenizer = IncrementalDetokenizer(tokenizer)
    for _ in range(100):
        assert len(detokenizer.push([of_byte[b"\x80"]])) == 1
    assert detokenizer.push([of_byte[b"\xe2"], of_byte[b"."]]) == "\ufffd."


def test_state_is_three_bytes(tokenizer: Tokenizer) -> None:
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=range(tokenizer.vocab_size))
    for token_id in range(tokenizer.vocab_size):
        detokenizer.push([token_id])
        assert len(detokenizer._decoder.getstate()[0]) <= 3


def test_a_decoder_without_bytes_is_refused() -> None:
    backend = Backend(models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    tokenizer = Tokenizer(TokenizerParts(backend=backend, vocab_size=2))
    assert tokenizer.decode([0, 1]) == "ab"
    with pytest.raises(UnsupportedModelError, match="stream"):
        IncrementalDetokenizer(tokenizer)
