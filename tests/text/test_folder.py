"""Hugging Face folders against transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import processors

from octavo.errors import CheckpointError
from octavo.text.tokenizer import Tokenizer, from_gguf, load_folder, load_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = [
    "",
    "a b",
    " The  sheet\n\n of 1987 is 12,345",
    "<|im_start|>user<think> \U0001f600<|new|>",
]


@pytest.fixture
def folder(byte_level_metadata: dict[str, Any], tmp_path: Path) -> Path:
    """A folder with tokenizer.json and a config.json, and nothing else."""
    backend = from_gguf(byte_level_metadata)._backend
    backend.save(str(tmp_path / "tokenizer.json"))
    write(tmp_path, "config.json", {"model_type": "llama", "eos_token_id": 2})
    return tmp_path


def write(folder: Path, name: str, value: Any) -> None:
    (folder / name).write_text(json.dumps(value), encoding="utf-8")


def add_processor(folder: Path) -> None:
    """Have tokenizer.json itself put <|endoftext|> before each text."""
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", pair="$A $B:1", special_tokens=[("<|endoftext|>", 0)]
    )
    backend.save(str(folder / "tokenizer.json"))


def with_transformers(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


BASE = {"tokenizer_class": "PreTrainedTokenizerFast"}


@pytest.mark.parametrize(
    "config",
    [
        {"eos_token": "<|im_end|>", "bos_token": "<|im_start|>"},
        {"eos_token": {"content": "<|im_end|>", "__type": "AddedToken"}, "bos_token": None},
        {"bos_token": "<|im_start|>", "add_bos_token": False},
        {"add_bos_token": True, "bos_token": None},
        {"added_tokens_decoder": {"640": {"content": "<|new|>", "special": True}}},
        {"added_tokens_decoder": {"640": {"content": "<|new|>", "special": False, "lstrip": True}}},
    ],
)
@pytest.mark.parametrize("has_processor", [False, True])
def test_equals_transformers(config: dict[str, Any], has_processor: bool, folder: Path) -> None:
    write(folder, "tokenizer_config.json", BASE | config)
    if has_processor:
        add_processor(folder)
    ours, theirs = load_folder(folder), with_transformers(folder)
    assert (ours.bos_token_id, ours.vocab_size) == (theirs.bos_token_id, len(theirs))
    if config.get("eos_token"):
        assert ours.eos_token_id == theirs.eos_token_id == 2
    for text in TEXTS:
        for add in (True, False):
            ids = theirs.encode(text, add_special_tokens=add)
            assert ours.encode(text, add_special_tokens=add) == ids
            for skip in (True, False):
                decoded = theirs.decode(ids, skip_special_tokens=skip)
                assert ours.decode(ids, skip_special_tokens=skip) == decoded


@pytest.mark.parametrize(
    ("flags", "before", "after"),
    [
        ({"add_bos_token": True}, [1], []),
        ({"add_eos_token": True}, [], [2]),
        ({"add_bos_token": True, "add_eos_token": True}, [1], [2]),
    ],
)
def test_flags_count_where_the_file_adds_nothing(
    flags: dict[str, bool], before: list[int], after: list[int], folder: Path
) -> None:
    names = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    write(folder, "tokenizer_config.json", BASE | names | flags)
    ours = load_folder(folder)
    plain = ours.encode("a b", add_special_tokens=False)
    assert ours.encode("a b") == before + plain + after
    add_processor(folder)
    assert load_folder(folder).encode("a b") == [0, *plain]


def test_truncation_and_padding_of_the_file_are_off(folder: Path) -> None:
    backend = load_folder(folder)._backend
    text = TEXTS[2]
    ids = backend.encode(text).ids
    backend.enable_truncation(3)
    backend.enable_padding(length=500)
    backend.save(str(folder / "tokenizer.json"))
    assert load_folder(folder).encode(text) == ids


def test_special_tokens_map_stands_in(folder: Path) -> None:
    write(folder, "special_tokens_map.json", {"eos_token": {"content": "<|im_end|>"}})
    assert load_folder(folder).eos_token_id == 2
    write(folder, "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    assert load_folder(folder).eos_token_id == 0


@pytest.mark.parametrize(
    ("generation", "ends"),
    [
        ({"eos_token_id": [1, 7]}, {0, 1, 7}),
        ({"eos_token_id": 5}, {0, 5}),
        ({}, {0, 2}),
        (None, {0, 2}),
    ],
)
def test_ends_of_generation(generation: Any, ends: set[int], folder: Path) -> None:
    write(folder, "tokenizer_config.json", {"eos_token": "<|endoftext|>"})
    if generation is not None:
        write(folder, "generation_config.json", generation)
    assert load_folder(folder).eos_token_ids == ends


def rendered(tokenizer: Tokenizer, **settings: Any) -> str:
    messages = [{"role": "user", "content": "hi"}]
    return tokenizer.require_chat_template().render(messages, **settings)


def test_chat_templates_by_place(folder: Path) -> None:
    assert load_folder(folder).chat_template is None
    named = [
        {"name": "default", "template": "list {{ bos_token }}"},
        {"name": "tool_use", "template": "tools"},
    ]
    write(folder, "tokenizer_config.json", {"bos_token": "<|im_start|>", "chat_template": named})
    assert rendered(load_folder(folder)) == "list <|im_start|>"
    assert rendered(load_folder(folder), tools=[{}]) == "tools"
    write(folder, "tokenizer_config.json", {"chat_template": "string"})
    assert rendered(load_folder(folder)) == "string"
    (folder / "chat_template.jinja").write_text("file")
    assert rendered(load_folder(folder)) == "file"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("more")
    assert rendered(load_folder(folder), tools=[{}]) == "more"
    theirs = with_transformers(folder)
    chat = [{"role": "user", "content": "hi"}]
    assert theirs.apply_chat_template(chat, tokenize=False) == "file"
    assert theirs.apply_chat_template(chat, tokenize=False, tools=[{}]) == "more"


def test_missing_and_broken_files_are_one_clear_error(folder: Path) -> None:
    write(folder, "tokenizer_config.json", [])
    with pytest.raises(CheckpointError, match="tokenizer_config"):
        load_folder(folder)
    (folder / "tokenizer_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="not JSON"):
        load_folder(folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(CheckpointError, match="is not a tokenizer"):
        load_folder(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json$"):
        load_folder(folder)
    (folder / "tokenizer.model").write_bytes(b"")
    with pytest.raises(CheckpointError, match="converting"):
        load_folder(folder)


def test_load_tokenizer_picks(folder: Path, byte_level_metadata: dict[str, Any]) -> None:
    ids = load_folder(folder).encode("a b")
    assert load_tokenizer(folder).encode("a b") == ids
    file = folder / "tiny.gguf"
    assert load_tokenizer(file, byte_level_metadata).encode("a b") == ids
    with pytest.raises(CheckpointError, match="metadata"):
        load_tokenizer(file)
