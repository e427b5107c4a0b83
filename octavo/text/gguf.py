"""A tokenizer from a GGUF file's metadata, with the ids that `transformers` (5.23) gives.

Where that differs from llama.cpp we follow transformers: a pre-tokenizer that transformers does not
list, such as `smollm`, splits as GPT-2's does (llama.cpp takes digits apart first, so that a run of
spaces before a digit gets other ids); SentencePiece vocabularies get a space before the text
whatever `add_space_prefix` says; no beginning-of-sequence token where `add_bos_token` is absent
from a byte-level file.
Two exceptions, where transformers' ids would leave the file's vocabulary: class defaults such as
`<|endoftext|>` that the file lacks are not added, and if the file's named special tokens are
spelled outside the byte alphabet (DeepSeek's, with full-width bars), its control tokens stay whole.

Knows nothing of how the metadata was read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.text.codec import byte_alphabet
from octavo.text.gguf_common import (
    CONTROL,
    USER_DEFINED,
    add_special_tokens,
    add_typed_tokens,
    file_merges,
    make_bpe,
    metadata_list,
    set_bos_and_eos,
)
from octavo.text.parts import TokenizerParts
from octavo.text.sentencepiece import GEMMA, build_sentencepiece
from octavo.text.splits import SPLIT_OF_PRE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.text.pieces import PieceTokenizer

_NAMED_IDS = {
    "bos_token": "tokenizer.ggml.bos_token_id",
    "eos_token": "tokenizer.ggml.eos_token_id",
    "unk_token": "tokenizer.ggml.unknown_token_id",
    "pad_token": "tokenizer.ggml.padding_token_id",
}
_END_IDS = (
    "tokenizer.ggml.eos_token_id",
    "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
)
_TURN_ENDS = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|eom_id|>", "<|return|>")
"""Control tokens that end a turn where a chat template writes them: older files have no eot id."""


def parts_from_gguf(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer that GGUF metadata describes (keys `tokenizer.*`, `general.architecture`).

    Raises:
        CheckpointError: a key is missing or makes no sense.
        UnsupportedModelError: a kind of vocabulary that Octavo cannot build.
    """
    tokens = metadata_list(metadata, "tokenizer.ggml.tokens")
    model = metadata.get("tokenizer.ggml.model")
    try:
        named = {name: tokens[index] for name, index in _named_ids(metadata, tokens).items()}
        if metadata.get("general.architecture") in GEMMA and "<mask>" in tokens:
            named["mask_token"] = "<mask>"
        backend: Tokenizer | PieceTokenizer
        if model == "gpt2":
            backend = _byte_level(metadata, tokens)
            add_special_tokens(backend, named.values())
            set_bos_and_eos(backend, metadata, named)
        elif model == "llama":
            backend = build_sentencepiece(metadata, tokens, named)
        else:
            raise UnsupportedModelError(
                f"tokenizer.ggml.model is {model!r}; Octavo builds 'gpt2' and 'llama' vocabularies"
            )
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the GGUF tokenizer metadata make no sense: {error}") from error
    template = _optional_str(metadata, "tokenizer.chat_template")
    return TokenizerParts(
        backend=backend,
        vocab_size=len(tokens),
        special_tokens=named,
        eos_token_ids=_end_ids(metadata, tokens, template or ""),
        chat_template=template,
        tool_template=_optional_str(metadata, "tokenizer.chat_template.tool_use"),
    )


def _optional_str(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise CheckpointError(f"{key} in the GGUF file is not a text")
    return value or None


def _named_ids(metadata: Mapping[str, Any], tokens: Sequence[str]) -> dict[str, int]:
    named = {name: metadata[key] for name, key in _NAMED_IDS.items() if key in metadata}
    for name, token_id in named.items():
        if not 0 <= token_id < len(tokens):
            raise ValueError(f"the id of {name}, {token_id}, is not one of {len(tokens)} tokens")
    return named


def _byte_level(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    alphabet = byte_alphabet()
    chars = set(alphabet.values())
    types = metadata.get("tokenizer.ggml.token_type", ())
    named_ids = set(_named_ids(metadata, tokens).values())
    keeps_plain = any(not chars.issuperset(tokens[token_id]) for token_id in named_ids)
    plain_ids = named_ids if keeps_plain else set()
    if keeps_plain:
        plain_ids |= {i for i, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)}
    vocab = {
        token
        if chars.issuperset(token) or index in plain_ids
        else "".join(map(alphabet.__getitem__, token.encode())): index
        for index, token in enumerate(tokens)
    }
    backend = Tokenizer(make_bpe(vocab=vocab, merges=file_merges(metadata), fuse_unk=False))
    split = SPLIT_OF_PRE.get(metadata.get("tokenizer.ggml.pre", ""))
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=False)
        if split is None
        else pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(split), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    )
    backend.decoder = decoders.ByteLevel()
    add_typed_tokens(backend, ["<|endoftext|>"], tokens, types, vocab)
    return backend


def _end_ids(metadata: Mapping[str, Any], tokens: Sequence[str], template: str) -> frozenset[int]:
    ends = {metadata[key] for key in _END_IDS if key in metadata}
    if any(token in template for token in _TURN_ENDS):
        types = metadata.get("tokenizer.ggml.token_type", ())
        control = {i: tokens[i] for i, kind in enumerate(types) if kind == CONTROL}
        ends |= {i for i, t in control.items() if t in _TURN_ENDS and t in template}
    return frozenset(ends)
