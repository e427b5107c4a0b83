# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""Every format: the families' examples, and what holds for any text in any pieces."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from octavo.text.answers import AnswerFormats
from octavo.text.tools.events import Answer
from octavo.text.tools.registry import TOOL_PARSERS
from tests.text.tools.examples import EXAMPLES, Example
from tests.text.tools.helper import TOOLS, WEATHER, calls_of, cut, cuts, read

NAMES = sorted(TOOL_PARSERS)


def tools_of(example: Example) -> list[dict[str, Any]]:
    """The tools that an example calls, and one that bare text in it does not name."""
    names = {name for name, _ in example.calls} | {"searchTool", "get_weather"}
    return [WEATHER if name == "get_weather" else {"name": name} for name in sorted(names)]


@pytest.mark.parametrize("example", EXAMPLES)
def test_reference_examples(example: Example) -> None:
    tools = tools_of(example)
    whole = read([example.text], example.format, tools=tools)
    assert calls_of(whole) == example.calls
    assert whole.content == example.content
    assert whole.reasoning == example.reasoning
    assert read(example.text, example.format, tools=tools) == whole
    for place in range(len(example.text)):
        pieces = [example.text[:place], example.text[place:]]
        assert read(pieces, example.format, tools=tools) == whole


def test_every_format_has_examples() -> None:
    assert {example.format for example in EXAMPLES} == set(TOOL_PARSERS)


fragments = st.sampled_from(
    [
        *[piece for e in EXAMPLES for piece in (e.text, e.text[: len(e.text) // 2])],
        *[marker for parser in TOOL_PARSERS.values() for marker in parser.markers],
        *['{"name": ', '"get_weather"', ', "arguments": {', '"city": "Oslo"', "}", "}}", "[", "]"],
        *[
            "[get_weather(",
            "city='Oslo'",
            ")",
            "<function=get_weather>",
            "<parameter=city>",
            "(",
            "=",
        ],
        *[
            "</parameter>",
            "</function>",
            "get_weather",
            "to=functions.get_weather",
            "analysis",
            ",",
        ],
        *[
            '"',
            "'",
            "\\",
            "\n",
            " ",
            "<",
            "<|",
            "```json\n",
            "commentary",
            "assistant",
            "json",
            ";",
        ],
    ]
)
texts = st.lists(fragments | st.text(max_size=3), max_size=9).map("".join)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(text=texts, edges=cuts, has_tools=st.booleans(), max_calls=st.sampled_from([None, 1]))
def test_pieces_make_no_difference(
    name: str, text: str, edges: list[int], has_tools: bool, max_calls: int | None
) -> None:
    for reasoning in (None, "qwen3"):
        if not has_tools and reasoning is None and name != "gpt_oss":
            assert AnswerFormats(name).parser(()) is None
            continue
        tools = TOOLS if has_tools else ()
        whole = read([text], name, reasoning, tools=tools, max_calls=max_calls)
        for pieces in (cut(text, edges), list(text)):
            assert read(pieces, name, reasoning, tools=tools, max_calls=max_calls) == whole


@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpt_oss"])
@settings(max_examples=60, deadline=None)
@given(text=texts)
def test_text_without_calls_comes_out_as_it_came_in(name: str, text: str) -> None:
    answer = read([text], name)
    if not answer.calls:
        assert answer.content == text


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=60, deadline=None)
@given(pieces=st.lists(fragments, min_size=1, max_size=9))
def test_no_word_is_lost(name: str, pieces: list[str]) -> None:
    """Words put between the fragments are in the content, a name or arguments afterwards."""
    words = [f"W{index}W" for index in range(len(pieces))]
    text = "".join(piece + word for piece, word in zip(pieces, words, strict=True))
    answer = read([text], name)
    found = answer.content + answer.reasoning
    for call in answer.calls:
        found += f"{call.name} {call.arguments} "
    labels = re.findall(r'"(?:id|type)"\s*:\s*"[^"]*"', text)  # of no use to anybody
    kinds = re.findall(r"(?:<\|channel\|>|<\|constrain\|>)[^<]*", text)  # headers
    ids = re.findall(r"\[CALL_ID\][\w.-]*", text)
    for word in words:
        assert word in found or any(word in part for part in (*labels, *kinds, *ids))


@pytest.mark.parametrize("example", [e for e in EXAMPLES if e.calls])
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_a_cut_answer_has_the_beginning_of_its_calls(example: Example, data: st.DataObject) -> None:
    """As when `max_tokens` is reached: nothing of the whole answer is contradicted."""
    tools = tools_of(example)
    text = example.text[: data.draw(st.integers(0, len(example.text)))]
    if example.format == "gpt_oss":  # its markers are tokens, which no cut divides
        assume(not re.search(r"<(?:\|[a-z]*)?\|?$", text))
    whole = read([example.text], example.format, tools=tools)
    answer = read([text], example.format, tools=tools)
    assert len(answer.calls) <= len(whole.calls)
    for call, expected in zip(answer.calls, whole.calls, strict=False):
        assert call.name == expected.name
        assert expected.arguments.startswith(call.arguments)


def test_arguments_are_handed_on_while_they_come() -> None:
    """Not at the call's end: a client may show a file while it is written."""
    for name, start in [
        ("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "Os'),
        ("llama3_json", '{"name": "get_weather", "parameters": {"city": "Os'),
        ("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "Os'),
        ("granite", '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Os'),
        ("deepseek_v31", '<｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Os'),
        ("qwen3_coder", "<function=get_weather><parameter=city>\nOs"),
        ("gpt_oss", '<|channel|>commentary to=functions.get_weather<|message|>{"city": "Os'),
    ]:
        parser = AnswerFormats(name).parser(TOOLS)
        assert parser is not None
        answer = Answer()
        answer.add(parser.push(start))
        assert [call.name for call in answer.calls] == ["get_weather"]
        assert answer.calls[0].arguments == '{"city": "Os'


def test_text_is_held_back_no_longer_than_needed() -> None:
    for name in NAMES:
        parser = AnswerFormats(name).parser(TOOLS)
        assert parser is not None
        answer = Answer()
        for piece in ("<|channel|>final<|message|>" if name == "gpt_oss" else "", "Hello, wor"):
            answer.add(parser.push(piece))
        assert answer.content == "Hello, wor"


@pytest.mark.parametrize(
    ("name", "text", "content"),
    [
        ("hermes", '<tool_call>\n{"name": "get_weather", "args": {}}\n</tool_call>', None),
        ("hermes", '<tool_call>\n{"name": "get_weather", "arguments": [1]}\n</tool_call>', None),
        ("hermes", '<tool_call>{"name": "", "arguments": {}}</tool_call>', None),
        ("hermes", '<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', None),
        ("hermes", "Write <tool_call> to call.", None),
        ("granite", '<|tool_call|> [{"name": "func"', None),
        ("llama3_json", '{"name": "other", "parameters": {}}', None),
        ("llama3_json", '<|python_tag|>print("hi")', None),
        ("pythonic", "[1](2) [other(a=1)] [get_weather(1)] [get_weather(city=x)]", None),
        ("mistral", "[TOOL_CALLS]", None),
        (
            "deepseek_v3",
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{",
            None,
        ),
        ("qwen3_coder", "<tool_call>\n<function=>", None),
    ],
)
def test_what_is_no_call_is_content(name: str, text: str, content: str | None) -> None:
    answer = read([text], name)
    assert answer == Answer(text if content is None else content)


def test_a_call_that_breaks_off_leaves_the_rest_as_content() -> None:
    text = '<tool_call>{"name": "get_weather", "arguments": {"city": Oslo}}</tool_call> Sorry.'
    answer = read([text], "hermes")
    assert answer.calls[0].arguments == '{"city": '
    assert answer.content == "Oslo}}</tool_call> Sorry."


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("\n A \n{} \n\n{}\n", "\n A"),
        ("\n{} \n B ", "B"),
        (" A {} B {} C ", " A  B  C"),
        (" \n", " \n"),
        ("A\n", "A\n"),
    ],
)
def test_whitespace_around_calls(text: str, content: str) -> None:
    call = '<tool_call>{"name": "get_time"}</tool_call>'
    answer = read(text.replace("{}", call), "hermes")
    assert answer.content == content
    assert len(answer.calls) == text.count("{}")


def test_ids() -> None:
    for name, pattern in [("hermes", r"call_[0-9a-f]{24}"), ("mistral", r"[0-9A-Za-z]{9}")]:
        ids = {TOOL_PARSERS[name].new_id() for _ in range(100)}
        assert len(ids) == 100
        assert all(re.fullmatch(pattern, call_id) for call_id in ids)
    parser = TOOL_PARSERS["mistral"](TOOLS)
    answer = Answer()
    answer.add(parser.push("[TOOL_CALLS]get_time[CALL_ID]VvvODy9mT[ARGS]{}"))
    assert answer.calls[0].id == "VvvODy9mT"


SCHEMA = {
    "type": "object",
    "$defs": {"Unit": {"enum": ["c", "f"]}, "Point": {"type": "object"}},
    "properties": {
        "int": {"type": "integer"},
        "float": {"type": "number"},
        "bool": {"type": "boolean"},
        "str": {"type": "string"},
        "obj": {"type": "object"},
        "list": {"type": "array"},
        "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "maybe_str": {"type": ["string", "null"]},
        "unit": {"$ref": "#/$defs/Unit"},
        "point": {"$ref": "#/$defs/Point"},
        "lost": {"$ref": "#/$defs/Nothing"},
        "loop": {"$ref": "#/properties/loop"},
        "const": {"const": 3},
        "either": {"anyOf": [{"type": "string"}, {"type": "integer"}]},
    },
}


@pytest.mark.parametrize(
    ("parameter", "text", "value"),
    [
        ("int", "42", 42),
        ("int", "4.0", 4.0),
        ("int", "4.5", "4.5"),
        ("int", "many", "many"),
        ("float", "3.14", 3.14),
        ("float", "3", 3),
        ("float", "1e999", "1e999"),
        ("bool", "true", True),
        ("bool", "False", False),
        ("bool", "1", "1"),
        ("str", "42", "42"),
        ("str", "null", "null"),
        ("str", ' "quoted" \\n\tü', ' "quoted" \\n\tü'),
        ("obj", '{"a": [1]}', {"a": [1]}),
        ("obj", "{'a': None}", {"a": None}),
        ("obj", "{broken", "{broken"),
        ("obj", '{"a": "\\ud800"}', {"a": "\ud800"}),
        ("list", '["a",\n "b"]', ["a", "b"]),
        ("list", "(1, 2)", [1, 2]),
        ("maybe", "5", 5),
        ("maybe", "null", None),
        ("maybe", "None", None),
        ("maybe_str", "null", None),
        ("maybe_str", "x", "x"),
        ("unit", "c", "c"),
        ("point", '{"x": 1}', {"x": 1}),
        ("lost", "1", "1"),
        ("loop", "1", "1"),
        ("const", "3", 3),
        ("either", "5", 5),
        ("either", "five", "five"),
        ("unknown", "5", "5"),
    ],
)
def test_typed_parameters(parameter: str, text: str, value: Any) -> None:
    tools = [{"name": "f", "parameters": SCHEMA}]
    call = f"<function=f>\n<parameter={parameter}>\n{text}\n</parameter>\n</function>"
    for pieces in ([call], list(call)):
        answer = read(pieces, "qwen3_coder", tools=tools)
        assert json.loads(answer.calls[0].arguments) == {parameter: value}
        answer.calls[0].arguments.encode()


@pytest.mark.parametrize("name", NAMES)
def test_time_is_linear(name: str) -> None:
    """What looks like a call for long is read once (a test of seconds, were it read again)."""
    text = (
        '<tool_call>{"arguments": {"a": "<tool_call>[get_weather(city=\'' * 500
        + "<function=get_weather><parameter=days>[TOOL_CALLS]<|channel|>" * 500
    )
    read([text[i : i + 4] for i in range(0, len(text), 4)], name)
