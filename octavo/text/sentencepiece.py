"""SentencePiece vocabularies of GGUF files (`tokenizer.ggml.model` is `llama`).

A file without merges gets a native table of its pieces, where there is one (`pieces.py`); else, and
with merges, the library `tokenizers` has it all. Both give the same ids.
"""

from __future__ import annotations

import re
from functools import partial
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers

from octavo.kernels.cpu.pieces import Prefix
from octavo.text.gguf_common import (
    CONTROL,
    USER_DEFINED,
    add_special_tokens,
    add_typed_tokens,
    bos_and_eos,
    file_merges,
    make_bpe,
    metadata_list,
    set_bos_and_eos,
)
from octavo.text.pieces import PieceSpec, PieceTokenizer, can_use_pieces

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

_SPACE = "\u2581"  # how SentencePiece spells a space

_KEPT_TYPES = re.compile(b"[%c%c]" % (CONTROL, USER_DEFINED))

GEMMA = ("gemma", "gemma2", "gemma3")
"""Architectures whose scores do not follow the order of their merges; that of the file does."""


def build_sentencepiece(
    metadata: Mapping[str, Any], tokens: Sequence[str], named: Mapping[str, str]
) -> Tokenizer | PieceTokenizer:
    """The tokenizer of a file.

    Args:
        metadata: the file's.
        tokens: by id.
        named: special tokens by name, as the file spells them.

    Raises:
        CheckpointError, IndexError, KeyError, TypeError, ValueError: the metadata make no sense.
    """
    if "tokenizer.ggml.merges" not in metadata and can_use_pieces():
        pieces = _pieces(metadata, tokens, named)
        if pieces is not None:
            return pieces
    return _with_library(metadata, tokens, named, _merges(metadata, tokens))


def _spelled(metadata: Mapping[str, Any], tokens: Sequence[str]) -> Sequence[str]:
    """Tokens as merges spell them: Gemma's runs of spaces are in the file as spaces."""
    if metadata.get("general.architecture") not in GEMMA:
        return tokens
    return [_SPACE * len(t) if " " in t and not t.strip() else t for t in tokens]


def _defaults(metadata: Mapping[str, Any]) -> list[str]:
    """Special tokens that a file of this kind has without saying so."""
    if metadata.get("general.architecture") in GEMMA:
        return ["<unk>", "<bos>", "<eos>", "<pad>", "<mask>"]
    return ["<unk>", "<s>", "</s>"]


def _decoder(metadata: Mapping[str, Any]) -> decoders.Decoder:
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if metadata.get("general.architecture") not in GEMMA:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)


def _pieces(
    metadata: Mapping[str, Any], tokens: Sequence[str], named: Mapping[str, str]
) -> PieceTokenizer | None:
    """Without the library's table of merges; None where it takes that."""
    spelled = _spelled(metadata, tokens)
    ranks: NDArray[np.int32] | None = None
    if metadata.get("general.architecture") not in GEMMA:
        ranks = _ranks(metadata_list(metadata, "tokenizer.ggml.scores"))
        if ranks is None or len(ranks) != len(tokens):
            return None
    try:
        types = bytes(metadata.get("tokenizer.ggml.token_type", ()))
    except (TypeError, ValueError):
        return None
    if len(types) > len(tokens):
        return None
    kept = [match.start() for match in _KEPT_TYPES.finditer(types)]
    typed = {i: types[i] for i in kept if spelled[i] == tokens[i]}
    names = {*_defaults(metadata), *named.values()}
    ids = {name: spelled.index(name) for name in names if name in spelled}
    if not ids.keys() >= set(named.values()):
        return None  # the library would give them ids beyond the vocabulary
    whole = typed.keys() | ids.values()
    named_ids = {ids[name] for name in named.values()}
    bos, eos = (None if token is None else ids[token] for token in bos_and_eos(metadata, named))
    spec = PieceSpec(
        pieces=spelled,
        ranks=ranks,
        whole_ids=whole,
        # Who makes a token whole last says whether it is special: defaults, types, names.
        special_ids={i for i in whole if typed.get(i) != USER_DEFINED or i in named_ids},
        prefix=_prefix(metadata),
        decoder=_decoder(metadata),
    )
    try:
        return PieceTokenizer(spec, bos, eos, partial(_with_library, metadata, tokens, named))
    except ValueError:
        return None


def _prefix(metadata: Mapping[str, Any]) -> Prefix:
    architecture = metadata.get("general.architecture")
    if architecture in GEMMA:
        return Prefix.NONE
    return Prefix.EACH if architecture == "phi3" else Prefix.FIRST


def _ranks(scores: Sequence[float]) -> NDArray[np.int32] | None:
    """Places of the scores, the highest first, equals alike; None where they have no order."""
    import numpy as np

    values = np.asarray(scores, np.float64)
    if np.isnan(values).any():
        return None
    return np.unique(-values, return_inverse=True)[1].astype(np.int32).reshape(-1)


def _merges(metadata: Mapping[str, Any], tokens: Sequence[str]) -> list[tuple[str, str]]:
    """The file's merges, or those that follow from its tokens."""
    if "tokenizer.ggml.merges" in metadata:
        return file_merges(metadata)
    spelled = _spelled(metadata, tokens)
    if metadata.get("general.architecture") in GEMMA:
        return _derived_merges({token: index for index, token in enumerate(spelled)})
    scores = metadata_list(metadata, "tokenizer.ggml.scores")
    scored = dict(zip(spelled, scores, strict=True))
    return _derived_merges(scored, scored)


def _with_library(
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    named: Mapping[str, str],
    merges: list[tuple[str, str]],
) -> Tokenizer:
    is_gemma = metadata.get("general.architecture") in GEMMA
    vocab = {token: index for index, token in enumerate(_spelled(metadata, tokens))}
    unknown = "<unk>" if is_gemma and "<unk>" in vocab else None
    backend = Tokenizer(
        make_bpe(vocab=vocab, merges=merges, fuse_unk=True, byte_fallback=True, unk_token=unknown)
    )
    prefix = _prefix(metadata)
    if prefix == Prefix.NONE:
        backend.normalizer = normalizers.Replace(" ", _SPACE)
        backend.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    elif prefix == Prefix.EACH:
        backend.normalizer = normalizers.Sequence(
            [normalizers.Prepend(_SPACE), normalizers.Replace(" ", _SPACE)]
        )
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(
            replacement=_SPACE, prepend_scheme="first", split=False
        )
    backend.decoder = _decoder(metadata)
    types = metadata.get("tokenizer.ggml.token_type", ())
    add_typed_tokens(backend, _defaults(metadata), tokens, types, vocab)
    add_special_tokens(backend, named.values())
    set_bos_and_eos(backend, metadata, named)
    return backend


def _derived_merges(
    vocab: Mapping[str, float], scores: Mapping[str, float] | None = None
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
