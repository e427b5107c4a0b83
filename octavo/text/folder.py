"""A tokenizer from a Hugging Face folder: tokenizer.json as it is, and the settings beside it.

tokenizer_config.json may add what tokenizer.json lacks: named special tokens, added tokens with
their ids, chat templates. `add_bos_token` and `add_eos_token` count where tokenizer.json itself
puts no token around a text (transformers 4 does this for some classes, 5 for none); what
tokenizer.json does put there, they never take away. Never runs code that a folder brings.

Knows nothing of weights; of the model's configuration it reads the end-of-sequence ids only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer

from octavo.errors import CheckpointError
from octavo.text.gguf_common import bos_eos_processor
from octavo.text.parts import TokenizerParts

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


def parts_from_folder(path: Path) -> TokenizerParts:
    """The tokenizer of a Hugging Face folder.

    Raises:
        CheckpointError: tokenizer.json is missing, or one of the files makes no sense.
    """
    file = path / "tokenizer.json"
    if not file.is_file():
        hint = (
            ": it has a SentencePiece tokenizer.model only, which needs converting first"
            if (path / "tokenizer.model").is_file()
            else ""
        )
        raise CheckpointError(f"{path} has no tokenizer.json{hint}")
    try:
        backend = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for whatever it cannot read
        raise CheckpointError(f"{file} is not a tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()

    config = {**_read(path / "special_tokens_map.json"), **_read(path / "tokenizer_config.json")}
    _add_listed_tokens(backend, config.get("added_tokens_decoder"))
    named = {
        name: text
        for name in _NAMES
        if (text := _token_text(config.get(name))) is not None
        and backend.token_to_id(text) is not None
    }
    backend.add_special_tokens(
        [AddedToken(t, normalized=False, special=True) for t in named.values()]
    )
    if backend.num_special_tokens_to_add(False) == 0:
        bos = named.get("bos_token") if config.get("add_bos_token") else None
        eos = named.get("eos_token") if config.get("add_eos_token") else None
        if bos is not None or eos is not None:
            backend.post_processor = bos_eos_processor(backend, bos, eos)

    templates = _templates(path, config.get("chat_template"))
    return TokenizerParts(
        backend=backend,
        # Ids may have holes: the number of tokens is too small.
        vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
        special_tokens=named,
        eos_token_ids=_end_ids(path, backend, named.get("eos_token")),
        chat_template=templates.get("default"),
        tool_template=templates.get("tool_use"),
    )


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} does not hold a JSON object")
    return value


def _token_text(value: Any) -> str | None:
    """A token given as a string, or as an object with `content`."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _add_listed_tokens(backend: Tokenizer, listed: Any) -> None:
    """Add what `added_tokens_decoder` lists and tokenizer.json lacks, in the order of the ids.

    The backend numbers new tokens itself; one that would not get its listed id is left out.
    """
    if not isinstance(listed, Mapping):
        return
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    for token_id, entry in sorted((int(key), value) for key, value in listed.items()):
        text = _token_text(entry)
        if text is None or backend.token_to_id(text) is not None:
            continue
        if token_id == backend.get_vocab_size():
            settings = {flag: bool(entry[flag]) for flag in flags if flag in entry}
            backend.add_tokens([AddedToken(text, **settings)])


def _templates(path: Path, listed: Any) -> dict[str, str]:
    """Chat templates by name: chat_template.jinja, else tokenizer_config.json's string or list."""
    templates: dict[str, str] = {}
    if isinstance(listed, str):
        templates["default"] = listed
    elif isinstance(listed, Iterable):
        for entry in listed:
            if isinstance(entry, Mapping) and isinstance(entry.get("template"), str):
                templates[str(entry.get("name"))] = entry["template"]
    files = {"default": path / "chat_template.jinja"}
    files |= {file.stem: file for file in path.glob("additional_chat_templates/*.jinja")}
    for name, file in files.items():
        if file.is_file():
            templates[name] = file.read_text(encoding="utf-8")
    return templates


def _end_ids(path: Path, backend: Tokenizer, eos_token: str | None) -> frozenset[int]:
    """The tokenizer's end-of-sequence id, and generation_config.json's (or else config.json's)."""
    ends = {backend.token_to_id(eos_token)} if eos_token is not None else set()
    listed = _read(path / "generation_config.json").get("eos_token_id")
    if listed is None:
        listed = _read(path / "config.json").get("eos_token_id")
    for token_id in listed if isinstance(listed, list) else [listed]:
        if isinstance(token_id, int):
            ends.add(token_id)
    return frozenset(token_id for token_id in ends if token_id is not None)
