"""The patterns that byte-level vocabularies split a text with, by GGUF's `tokenizer.ggml.pre`.

They must be, to the character, those that the vocabularies were trained with (OpenAI's cl100k and
o200k and their kin, as published in each model's tokenizer.json); parts they share are named here.
"""

from __future__ import annotations

_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_LEAD = r"[^\r\n\p{L}\p{N}]?"


def _cl100k(digits: str) -> str:
    word = rf"{_LEAD}\p{{L}}+"
    return rf"{_CONTRACTION}|{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"


def _cased(ending: str, digits: str) -> str:
    words = rf"{_LEAD}{_UPPER}*{_LOWER}+{ending}|{_LEAD}{_UPPER}+{_LOWER}*{ending}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"


_LLAMA3 = _cl100k(r"\p{N}{1,3}")
_QWEN2 = _cl100k(r"\p{N}")
_TEKKEN = _cased("", r"\p{N}")
_GPT4O = _cased(rf"{_CONTRACTION}?", r"\p{N}{1,3}")
_QWEN35 = (
    rf"{_CONTRACTION}|{_LEAD}[\p{{L}}\p{{M}}]+|\p{{N}}"
    rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_TAIL}"
)
_SPLITS: dict[str, tuple[str, ...]] = {
    _LLAMA3: (
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"),
        *("lfm2", "jina-v5-nano", "dbrx", "smaug-bpe"),
    ),
    _QWEN2: ("qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"),
    _QWEN35: ("qwen35",),
    _TEKKEN: ("tekken",),
    _GPT4O: ("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
}
SPLIT_OF_PRE = {pre: split for split, names in _SPLITS.items() for pre in names}
"""The pattern by GGUF's name; the list of names is transformers'. Others split as GPT-2 does."""
