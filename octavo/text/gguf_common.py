"""What both kinds of GGUF vocabulary share: merges, whole tokens, what goes around a text.

Knows the metadata's keys; decides nothing that depends on a model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, models, processors

from octavo.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONTROL, USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


def metadata_list(metadata: Mapping[str, Any], key: str) -> list[Any]:
    """The list under a key.

    Raises:
        CheckpointError: there is none.
    """
    if key not in metadata:
        raise CheckpointError(f"the GGUF file has no {key}")
    value = metadata[key]
    return value if isinstance(value, list) else list(value)


def make_bpe(**settings: Any) -> models.BPE:
    """The library's table of merges.

    Raises:
        ValueError: it cannot use them.
    """
    try:
        return models.BPE(**settings)
    except Exception as error:  # the library raises bare Exception for merges it cannot use
        raise ValueError(error) from error


def file_merges(metadata: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pairs under `tokenizer.ggml.merges`, the first one first to be merged."""
    merges = []
    for merge in metadata_list(metadata, "tokenizer.ggml.merges"):
        left, right = merge.split(" ")
        merges.append((left, right))
    return merges


def add_typed_tokens(
    backend: Tokenizer,
    defaults: Iterable[str],
    tokens: Sequence[str],
    types: Sequence[int],
    vocab: Mapping[str, int],
) -> None:
    """Keep control tokens (special) and user-defined tokens (not special) whole in a text.

    Only tokens that the vocabulary holds under this spelling: the others would get ids beyond it.
    """
    add_special_tokens(backend, (token for token in defaults if token in vocab))
    whole = [index for index, kind in enumerate(types) if kind in (CONTROL, USER_DEFINED)]
    typed = [(tokens[index], types[index]) for index in whole if tokens[index] in vocab]
    add_special_tokens(backend, (token for token, kind in typed if kind == CONTROL))
    backend.add_tokens(
        [AddedToken(token, normalized=False) for token, kind in typed if kind == USER_DEFINED]
    )


def add_special_tokens(backend: Tokenizer, tokens: Iterable[str]) -> None:
    """Keep these whole in a text, as special tokens."""
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in tokens])


def bos_and_eos(
    metadata: Mapping[str, Any], named: Mapping[str, str]
) -> tuple[str | None, str | None]:
    """The tokens that the file wants before and behind each text."""
    is_sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", is_sentencepiece)
    adds_eos = metadata.get("tokenizer.ggml.add_eos_token", False)
    return (
        named.get("bos_token") if adds_bos else None,
        named.get("eos_token") if adds_eos else None,
    )


def set_bos_and_eos(
    backend: Tokenizer, metadata: Mapping[str, Any], named: Mapping[str, str]
) -> None:
    """Have `bos_and_eos` put around each text."""
    backend.post_processor = bos_eos_processor(backend, *bos_and_eos(metadata, named))


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
