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

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from octavo.errors import CheckpointError, UnsupportedModelError
from octavo.text.codec import byte_alphabet
from octavo.text.parts import TokenizerParts
from octavo.text.splits import SPLIT_OF_PRE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

_SPACE = "\u2581"  # how SentencePiece spells a space
_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type

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

_GEMMA = ("gemma", "gemma2", "gemma3")


def parts_from_gguf(metadata: Mapping[str, Any]) -> TokenizerParts:
    """The tokenizer that GGUF metadata describes (keys `tokenizer.*`, `general.architecture`).

    Raises:
        CheckpointError: a key is missing or makes no sense.
        UnsupportedModelError: a kind of vocabulary that Octavo cannot build.
    """
    tokens = _list(metadata, "tokenizer.ggml.tokens")
    model = metadata.get("tokenizer.ggml.model")
    try:
        if model == "gpt2":
            backend = _byte_level(metadata, tokens)
        elif model == "llama":
            backend = _sentencepiece(metadata, tokens)
        else:
            raise UnsupportedModelError(
                f"tokenizer.ggml.model is {model!r}; Octavo builds 'gpt2' and 'llama' vocabularies"
            )
        named = {name: tokens[index] for name, index in _named_ids(metadata, tokens).items()}
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"the GGUF tokenizer metadata make no sense: {error}") from error
    if metadata.get("general.architecture") in _GEMMA and "<mask>" in tokens:
        named["mask_token"] = "<mask>"
    _add_special_tokens(backend, named.values())
    _set_bos_and_eos(backend, metadata, named)
    template = _optional_str(metadata, "tokenizer.chat_template")
    return TokenizerParts(
        backend=backend,
        vocab_size=len(tokens),
        special_tokens=named,
        eos_token_ids=_end_ids(metadata, tokens, template or ""),
        chat_template=template,
        tool_template=_optional_str(metadata, "tokenizer.chat_template.tool_use"),
    )


def _list(metadata: Mapping[str, Any], key: str) -> list[Any]:
    if key not in metadata:
        raise CheckpointError(f"the GGUF file has no {key}")
    value = metadata[key]
    return value if isinstance(value, list) else list(value)


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
        plain_ids |= {i for i, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)}
    vocab = {
        token
        if chars.issuperset(token) or index in plain_ids
        else "".join(map(alphabet.__getitem__, token.encode())): index
        for index, token in enumerate(tokens)
    }
    backend = Tokenizer(_bpe(vocab=vocab, merges=_file_merges(metadata), fuse_unk=False))
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
    _add_typed_tokens(backend, ["<|endoftext|>"], tokens, types, vocab)
    return backend


def _sentencepiece(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Tokenizer:
    architecture = metadata.get("general.architecture")
    is_gemma = architecture in _GEMMA
    if is_gemma:  # runs of spaces are in the file as spaces, and in the merges as ▁
        tokens = [_SPACE * len(t) if " " in t and not t.strip() else t for t in tokens]
    vocab = {token: index for index, token in enumerate(tokens)}
    if "tokenizer.ggml.merges" in metadata:
        merges = _file_merges(metadata)
    elif is_gemma:  # its scores do not follow its merge order; the order of the file does
        merges = _derived_merges(vocab)
    else:
        scores = _list(metadata, "tokenizer.ggml.scores")
        merges = _derived_merges(vocab, dict(zip(tokens, scores, strict=True)))
    unknown = "<unk>" if is_gemma and "<unk>" in vocab else None
    backend = Tokenizer(
        _bpe(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    defaults = ["<unk>", "<s>", "</s>"]
    if is_gemma:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
        defaults = ["<unk>", "<bos>", "<eos>", "<pad>", "<mask>"]
    else:
        steps.append(decoders.Strip(" ", 1, 0))
        if architecture == "phi3":  # the space is put before each stretch of text
            backend.normalizer = normalizers.Sequence(
                [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
            )
        else:
            backend.pre_tokenizer = pre_tokenizers.Metaspace(
                replacement=_SPACE, prepend_scheme="first", split=False
            )
    backend.decoder = decoders.Sequence(steps)
    types = metadata.get("tokenizer.ggml.token_type", ())
    _add_typed_tokens(backend, defaults, _list(metadata, "tokenizer.ggml.tokens"), types, vocab)
    return backend


def _bpe(**settings: Any) -> models.BPE:
    try:
        return models.BPE(**settings)
    except Exception as error:  # the library raises bare Exception for merges it cannot use
        raise ValueError(error) from error


def _file_merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    merges = []
    for merge in _list(metadata, "tokenizer.ggml.merges"):
        left, right = merge.split(" ")
        merges.append((left, right))
    return merges


def _derived_merges(
    vocab: Mapping[str, int], scores: Mapping[str, float] | None = None
) -> list[tuple[str, str]]:
    """Every way to make a token of two others, the best token first, then the longest left part.

    A SentencePiece file ranks tokens, not pairs. The best token has the highest score, or, without
    scores, the lowest id. Python's sort is stable: equals stay in the order of the vocabulary.
    """
    if scores is None:
        ranked = sorted(vocab, key=vocab.__getitem__)
    else:
        ranked = sorted(scores, key=scores.__getitem__, reverse=True)
    ends = [range(length - 1, 0, -1) for length in range(max(map(len, ranked), default=0) + 1)]
    merges = [
        (left, right)
        for token in ranked
        for end in ends[len(token)]
        if (left := token[:end]) in vocab and (right := token[end:]) in vocab
    ]
    if scores is not None and len(set(scores.values())) < len(scores):
        # Tokens that share a score mix their merges.
        merges.sort(
            key=lambda pair: (scores[pair[0] + pair[1]], len(pair[0]), len(pair[1])), reverse=True
        )
    return merges


def _add_typed_tokens(
    backend: Tokenizer,
    defaults: Iterable[str],
    tokens: Sequence[str],
    types: Sequence[int],
    vocab: Mapping[str, int],
) -> None:
    """Keep control tokens (special) and user-defined tokens (not special) whole in a text.

    Only tokens that the vocabulary holds under this spelling: the others would get ids beyond it.
    """
    _add_special_tokens(backend, (token for token in defaults if token in vocab))
    whole = [index for index, kind in enumerate(types) if kind in (_CONTROL, _USER_DEFINED)]
    typed = [(tokens[index], types[index]) for index in whole if tokens[index] in vocab]
    _add_special_tokens(backend, (token for token, kind in typed if kind == _CONTROL))
    backend.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in typed if kind == _USER_DEFINED]
    )


def _add_special_tokens(backend: Tokenizer, tokens: Iterable[str]) -> None:
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tokens])


def _set_bos_and_eos(
    backend: Tokenizer, metadata: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    is_sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", is_sentencepiece)
    adds_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    bos = named.get("bos_token") if adds_bos else None
    eos = named.get("eos_token") if adds_eos else None
    backend.post_processor = bos_eos_processor(backend, bos, eos)


def bos_eos_processor(
    backend: Tokenizer, bos: str | None, eos: str | None
) -> processors.TemplateProcessing:
    """A post-processor that puts `bos` before and `eos` behind each text, where they are given."""
    single = [f"{bos}:0"] * (bos is not None) + ["$A:0"] + [f"{eos}:0"] * (eos is not None)
    pair = single + [piece.replace("$A", "$B")[:-1] + "1" for piece in single]
    return processors.TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[
            (token, backend.token_to_id(token)) for token in {bos, eos} if token is not None
        ],
    )


def _end_ids(metadata: Mapping[str, Any], tokens: Sequence[str], template: str) -> frozenset[int]:
    ends = {metadata[key] for key in _END_IDS if key in metadata}
    if any(token in template for token in _TURN_ENDS):
        types = metadata.get("tokenizer.ggml.token_type", ())
        control = {i: tokens[i] for i, kind in enumerate(types) if kind == _CONTROL}
        ends |= {i for i, t in control.items() if t in _TURN_ENDS and t in template}
    return frozenset(ends)
