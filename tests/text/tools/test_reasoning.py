"""Reasoning apart from content, alone and in front of tool calls."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.text.answers import AnswerFormats
from octavo.text.tools.events import Answer, Content, Reasoning
from tests.text.tools.helper import calls_of, cut, cuts, read

THINK = ("deepseek_r1", "qwen3")
CALL = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'


@pytest.mark.parametrize("name", THINK)
@pytest.mark.parametrize(
    ("prompt_tail", "text", "reasoning", "content"),
    [
        # Qwen3 and DeepSeek-R1, by their model cards: the answer opens the tag itself, or the
        # prompt does; Qwen3 without thinking has an empty pair of tags in the prompt.
        ("assistant\n", "<think>\nHm.\n\nSo.\n</think>\n\nYes.\n", "Hm.\n\nSo.", "Yes.\n"),
        ("<｜Assistant｜><think>\n", "Hm.\n</think>\n\nYes.", "Hm.", "Yes."),  # noqa: RUF001
        ("<｜Assistant｜><think>", "Hm.</think>Yes.", "Hm.", "Yes."),  # noqa: RUF001
        ("<think>\n\n</think>\n\n", "Yes.", "", "Yes."),
        ("<think>\n\n</think>\n\n", "\n\nYes.", "", "\n\nYes."),
        ("", "<think>\n\n</think>\n\nYes.", "", "Yes."),
        ("", "<think>Hm. </thin", "Hm. </thin", ""),
        ("", "<think>Hm. \n", "Hm.", ""),
        ("", "No </think> here <think>", "", "No </think> here <think>"),
        ("", "\n<thin", "", "\n<thin"),
        (
            "",
            "<think>a < b </ c <think></think>x<think>y</think>",
            "a < b </ c <think>",
            "x<think>y</think>",
        ),
        ("<think>", "", "", ""),
    ],
)
def test_think(name: str, prompt_tail: str, text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        answer = read(pieces, None, name, prompt_tail=prompt_tail)
        assert answer == Answer(content, reasoning)


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        # IBM: Granite 3.2's answers with `thinking`, and 3.3's by its chat template's instruction.
        (
            "Here is my thought process: First this.\n\nHere is my response:\n\nThat.",
            "First this.",
            "That.",
        ),
        (
            "Here's my thought process:\nHere Here is\nHere's my response: That.",
            "Here Here is",
            "That.",
        ),
        ("<think>First this.</think>\n<response>That <b>.</response>", "First this.", "That <b>."),
        ("<think>First.</think>That.", "First.", "That."),
        ("Here is my answer.", "", "Here is my answer."),
        ("Here is my thought process: open", "open", ""),
    ],
)
def test_granite(text: str, reasoning: str, content: str) -> None:
    for pieces in ([text], list(text)):
        assert read(pieces, None, "granite") == Answer(content, reasoning)


def test_mistral() -> None:
    text = "[THINK]Hm [so].[/THINK]Yes."
    assert read(text, None, "mistral") == Answer("Yes.", "Hm [so].")


def test_reasoning_then_tools() -> None:
    text = f"<think>\nI could {CALL}.\n</think>\n\nOne moment.\n{CALL}"
    answer = read(text, "hermes", "qwen3")
    assert answer.reasoning == f"I could {CALL}."
    assert answer.content == "One moment."
    assert calls_of(answer) == [("get_time", {})]


def test_reasoning_is_handed_on_while_it_comes() -> None:
    parser = AnswerFormats("hermes", "qwen3").parser([{"name": "f"}])
    assert parser is not None
    assert parser.push("<think>\nFirst") == [Reasoning("First")]
    assert parser.push(" then\n") == [Reasoning(" then")]
    assert parser.push("</think>\n\nYes") == [Content("Yes")]
    assert parser.push(" and") == [Content(" and")]
    assert parser.finish() == []


@pytest.mark.parametrize(
    ("tail", "text", "answer"),
    [
        ("<|start|>assistant", "<|channel|>final<|message|>Yes.", Answer("Yes.")),
        ("<|start|>assistant<|channel|>final<|message|>", "Yes.", Answer("Yes.")),
        ("<|start|>assistant<|channel|>analysis<|message|>Hm", " so.<|end|>", Answer("", " so.")),
        (
            "<|start|>assistant<|channel|>analysis<|message|>Hm",
            "<|end|><|start|>assistant<|channel|>analysis<|message|>so.",
            Answer("", "so."),
        ),
        ("<|start|>user<|message|>Hi<|end|><|start|>assistant", "Yes.", Answer("Yes.")),
    ],
)
def test_harmony_goes_on_where_the_prompt_ends(tail: str, text: str, answer: Answer) -> None:
    assert read([text], None, "gpt_oss", prompt_tail=tail) == answer
    assert read(text, "gpt_oss", None, prompt_tail=tail) == answer


def test_harmony_without_tools_has_no_calls() -> None:
    text = "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    assert read([text], "gpt_oss", tools=()) == Answer("{}")


words = st.sampled_from(
    [
        *["<think>", "</think>", "<", "</", "[THINK]", "[/THINK]", "<response>", "</response>"],
        *["Here is my response:", "Here is my thought process:", "Here's", "word", "Hm", " ", "\n"],
    ]
)


@pytest.mark.parametrize("name", ["deepseek_r1", "granite", "mistral"])
@settings(max_examples=100, deadline=None)
@given(text=st.lists(words, max_size=10).map("".join), edges=cuts, is_open=st.booleans())
def test_pieces_make_no_difference(name: str, text: str, edges: list[int], is_open: bool) -> None:
    tail = "<think>\n" if is_open else ""
    whole = read([text], None, name, prompt_tail=tail)
    assert read(cut(text, edges), None, name, prompt_tail=tail) == whole
    assert read(text, None, name, prompt_tail=tail) == whole
    if not whole.reasoning and not is_open and not text.lstrip().startswith(("<", "[", "Here")):
        assert whole.content == text
    assert (whole.reasoning + whole.content).count("word") == text.count("word")
