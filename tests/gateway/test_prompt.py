"""Estimates of tokens, beside what real tokenizers make of the same texts."""

from __future__ import annotations

import base64
import inspect
import json
import random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import octavo.gateway.model
import octavo.gateway.prompt
from octavo.gateway.prompt import Prompt, estimate

if TYPE_CHECKING:
    from pathlib import Path

    from octavo.text.tokenizer import Tokenizer

# Letters of other scripts.
# ruff: noqa: RUF001
TEXTS = {
    "prose": (octavo.gateway.model.__doc__ or "") + (Prompt.__doc__ or "") + (json.__doc__ or ""),
    "code": inspect.getsource(octavo.gateway.prompt),
    "german": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. " * 3,
    "russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. " * 3,
    "chinese": "人人生而自由,在尊严和权利上一律平等。" * 3,
    "thai": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน" * 3,
    "emoji": "😀🎉🚀" * 20,
    "digits": "31415926535897932384626433832795" * 5,
    "table": json.dumps([{"id": index, "value": index / 7} for index in range(20)]),
    "base64": base64.b64encode(random.Random(0).randbytes(600)).decode(),
    "blank lines": "\n\n\t  \n" * 40,
}


@pytest.fixture(scope="module", params=["smollm2", "gemma3-270m"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Of a model with 49,152 tokens, and of one with 262,144."""
    from octavo.text.tokenizer import from_gguf
    from octavo.weights.open import open_checkpoint

    fixture = {"smollm2": "smollm2_path", "gemma3-270m": "gemma_path"}[request.param]
    path: Path = request.getfixturevalue(fixture)
    return from_gguf(open_checkpoint(path).config)


@pytest.mark.parametrize("name", TEXTS)
def test_estimates_are_on_the_high_side(tokenizer: Tokenizer, name: str) -> None:
    text = TEXTS[name]
    num_tokens = len(tokenizer.encode(text)) - 1  # some begin with a token of their own
    assert num_tokens <= estimate(text.encode()) <= len(text.encode())
    if name == "prose":
        assert estimate(text.encode()) < 3 * num_tokens


@settings(deadline=None)
@given(st.text())
def test_no_estimate_is_above_the_bytes(text: str) -> None:
    assert 0 <= estimate(text.encode()) <= len(text.encode())
    prompt = Prompt(100)
    prompt.read("completions", {"prompt": text})
    assert prompt.num_tokens(by_bytes=True) == 2 + len(text.encode())
    assert prompt.num_tokens(by_bytes=False) == 2 + estimate(text.encode())


def test_a_conversation_with_its_template(tokenizer: Tokenizer) -> None:
    """What a chat is as a whole, markers included, is below the estimate."""
    texts = [
        ("system", "Be brief."),
        ("user", "How are you?"),
        ("assistant", "Well."),
        ("user", "?"),
    ]
    whole = "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in texts)
    prompt = Prompt(100)
    prompt.read("chat", {"messages": [{"role": r, "content": t} for r, t in texts]})
    assert len(tokenizer.encode(whole + "<|im_start|>assistant\n")) < prompt.num_tokens(
        by_bytes=False
    )


def test_media_count_by_number_and_length() -> None:
    def counted(*parts: dict[str, object]) -> int:
        prompt = Prompt(1000)
        prompt.read("chat", {"messages": [{"role": "user", "content": list(parts)}]})
        return prompt.num_tokens(by_bytes=False) - base

    base = 0
    base = counted()
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 50_000}}
    audio = {"type": "input_audio", "input_audio": {"data": "A" * 50_000, "format": "wav"}}
    assert counted(image, image) == 2000
    assert 12_500 <= counted(audio) < 12_600
    assert counted({"type": "file", "file": {"file_id": "f"}}) == 1000
    assert counted({"type": "no_such_part", "words": "x" * 900}) > 500
