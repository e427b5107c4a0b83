from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from tokenizers import pre_tokenizers

from octavo.errors import InvalidRequestError
from octavo.text.tokenizer import from_gguf


def test_byte_level_tokens_are_their_exact_bytes(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    singles = [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
    assert {data for data in singles if len(data) == 1} == {bytes([byte]) for byte in range(256)}
    # the library's own alphabet has the same characters as ours
    assert {tokenizer._backend.id_to_token(singles.index(bytes([b]))) for b in range(256)} == set(
        pre_tokenizers.ByteLevel.alphabet()
    )
    smile = tokenizer.encode("\u20ac\U0001f9ff", add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, smile)) == "\u20ac\U0001f9ff".encode()
    assert tokenizer.token_text(singles.index(b"\xf0")) == "\ufffd"
    assert tokenizer.token_text(tokenizer.encode(" of")[0]).startswith(" ")
    assert tokenizer.token_text(1) == "<|im_start|>"


def test_sentencepiece_tokens_are_their_exact_bytes(sentencepiece_metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(sentencepiece_metadata)
    tokens = sentencepiece_metadata["tokenizer.ggml.tokens"]
    assert tokenizer.token_bytes(tokens.index("<0x0A>")) == b"\n"
    assert tokenizer.token_bytes(tokens.index("<0xE2>")) == b"\xe2"
    assert tokenizer.token_text(tokens.index("\u2581of")) == " of"
    text = "new\nlines, \U0001f9ff and \u20ac"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert b"".join(map(tokenizer.token_bytes, ids)) == b" " + text.encode()


@pytest.mark.parametrize("token_id", [-1, 10**6, 2**40])
def test_ids_beyond_the_vocabulary_have_no_text(
    token_id: int, byte_level_metadata: dict[str, Any]
) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    assert tokenizer.token_bytes(token_id) == b""
    assert tokenizer.token_text(token_id) == ""
    assert tokenizer.decode([token_id]) == ""


def test_a_lone_surrogate_is_the_requests_fault(byte_level_metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="surrogate"):
        from_gguf(byte_level_metadata).encode("a\ud800")


def test_a_model_without_a_template_says_where_to_go(byte_level_metadata: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="/v1/completions") as caught:
        from_gguf(byte_level_metadata).require_chat_template()
    assert caught.value.param == "messages"


def test_a_broken_template_does_not_stop_the_model(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(byte_level_metadata | {"tokenizer.chat_template": "{% if %}"})
    template = tokenizer.require_chat_template()
    assert template.error is not None
    with pytest.raises(InvalidRequestError, match="/v1/completions"):
        template.render([{"role": "user", "content": "hi"}])


def test_threads_share_one_tokenizer(byte_level_metadata: dict[str, Any]) -> None:
    tokenizer = from_gguf(byte_level_metadata)
    texts = [f"The sheet {n} of {n * n} leaves \U0001f600 \u4f60{n}" for n in range(50)]
    expected = [from_gguf(byte_level_metadata).encode(text) for text in texts]

    def work(text: str) -> list[int]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        return ids

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            assert list(pool.map(work, texts)) == expected


def test_neither_torch_nor_transformers_is_imported() -> None:
    code = (
        "import sys, octavo.text.tokenizer, octavo.text.detokenizer, octavo.text.stop;"
        "print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
