from __future__ import annotations

from typing import Any

import pytest
from openai.types import Completion as OpenAICompletion

from octavo.errors import InvalidRequestError
from octavo.protocol import sse
from octavo.protocol.completions import Completion, CompletionChoice, CompletionRequest
from octavo.protocol.usage import Usage


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("a", ["a"]),
        (["a", "b"], ["a", "b"]),
        ([0, 1], [[0, 1]]),
        ([[0], [1, 2]], [[0], [1, 2]]),
    ],
)
def test_prompts(prompt: Any, prompts: Any) -> None:
    assert CompletionRequest(model="m", prompt=prompt).prompts() == prompts


@pytest.mark.parametrize(
    ("prompt", "param"),
    [
        ("", "prompt"),
        ([], "prompt"),
        (["a", ""], "prompt[1]"),
        ([[]], "prompt[0]"),
        (["a", 0], "prompt"),
        ([[0], 0], "prompt"),
        (["a", [0]], "prompt"),
    ],
)
def test_unusable_prompts(prompt: Any, param: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        CompletionRequest(model="m", prompt=prompt).prompts()
    assert caught.value.param == param


def test_max_tokens() -> None:
    assert CompletionRequest(model="m", prompt="a").sampling_params({}).max_tokens == 16
    unbounded = CompletionRequest(model="m", prompt="a", max_tokens=None)
    assert unbounded.sampling_params({}).max_tokens is None


def test_event_is_what_the_official_client_reads() -> None:
    choice = CompletionChoice(index=3, text="line\nbreak \u2028 “”", finish_reason="stop")
    usage = Usage.of(prompt=5, completion=2, cached=4)
    answer = Completion(id="cmpl-1", created=7, model="m", choices=[choice], usage=usage)
    event = sse.event(answer)
    assert event.startswith(b"data: {")
    assert event.endswith(b"}\n\n")
    assert event.count(b"\n") == 2
    read = OpenAICompletion.model_validate_json(event.removeprefix(b"data: "), strict=True)
    assert read.choices[0].text == choice.text
    assert read.choices[0].index == 3
    assert read.usage is not None
    assert read.usage.total_tokens == 7
