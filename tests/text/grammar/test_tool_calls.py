# ruff: noqa: RUF001 - DeepSeek's tokens are spelled with fullwidth bars
"""Forced calls, read by the formats' own parsers and judged by jsonschema."""

from __future__ import annotations

import contextlib
import functools
import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.text.grammar.lark import MarkerTokens
from octavo.text.grammar.tool_calls import forced_calls
from octavo.text.tools.registry import TOOL_PARSERS
from tests.text.grammar.helper import Grammars
from tests.text.tools.helper import TIME, TOOLS, calls_of, read

NAMES = sorted(TOOL_PARSERS)
CLOSINGS = ('"', "}", "]", "'", ")", "0", "\n</parameter>\n", "</function>\n", "true", "null", "{")

PERSON: dict[str, Any] = {
    "name": "save.person-1",
    "parameters": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 12},
            "kind": {"enum": ["it's", 'a "b"', "c\\d", "é\n", "plain"]},
            "code": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{1,3}$"},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "height": {"type": "number"},
            "married": {"type": "boolean"},
            "nick": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
            "level": {"enum": [1, 2.5, None, True]},
            "address": {"$ref": "#/$defs/Address"},
            "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 3},
            "more": {"type": "object"},
        },
        "required": ["name", "age", "address", "married"],
        "$defs": {
            "Address": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "zip": {"type": "number"}},
                "required": ["city"],
            }
        },
    },
}
ALL = [*TOOLS, PERSON]


@functools.cache
def grammars_for(tool_format: str, kind: str) -> Grammars:
    """With the format's markers as special tokens, as ordinary ones, or as mere text."""
    markers = TOOL_PARSERS[tool_format].markers
    if kind == "text":
        return Grammars()
    return Grammars(special=markers) if kind == "special" else Grammars(plain=markers)


def tokens_of(grammars: Grammars, tool_format: str) -> MarkerTokens:
    return MarkerTokens.of(grammars, TOOL_PARSERS[tool_format].markers)  # type: ignore[arg-type]


def check(text: str, tool_format: str, tools: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    """An output is calls and nothing else, with arguments by the schemas."""
    answer = read([text], tool_format, tools=tools)
    assert not answer.content.strip(), text
    calls = calls_of(answer)
    assert calls, text
    schemas = {tool["name"]: tool.get("parameters", {}) for tool in tools}
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])
    return calls


@pytest.mark.parametrize("kind", ["special", "plain", "text"])
@pytest.mark.parametrize("tool_format", NAMES)
def test_every_output_is_calls(tool_format: str, kind: str) -> None:
    grammars = grammars_for(tool_format, kind)
    tokens = tokens_of(grammars, tool_format)
    by_name = [[tool["name"]] for tool in ALL] if kind == "special" else []
    for names in (None, *by_name):
        spec = forced_calls(ALL, tool_format, tokens, names=names)
        texts = [grammars.walk(spec, seed, max_tokens=800, closings=CLOSINGS) for seed in range(4)]
        assert any(texts)
        for text in filter(None, texts):
            called = {name for name, _ in check(text, tool_format, ALL)}
            assert names is None or called == set(names)


CALLS = {
    "hermes": '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}\n'
    '</tool_call>\n<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>',
    "llama3_json": '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 2}}; '
    '{"name": "get_time", "parameters": {}}',
    "mistral": '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo", "days": 2}'
    "[TOOL_CALLS]get_time[ARGS]{}",
    "pythonic": "[get_weather(city='Oslo', days=2), get_time()]",
    "granite": '<|tool_call|>[{"name": "get_weather", "arguments": {"city": "Oslo", "days": 2}}, '
    '{"name": "get_time", "arguments": {}}]',
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n"
    '```json\n{"city": "Oslo", "days": 2}\n```<｜tool▁call▁end｜>\n'
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>"
    '{"city": "Oslo", "days": 2}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "qwen3_coder": "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n"
    "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n"
    "<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
    "gpt_oss": "<|channel|>analysis<|message|>They want the weather.<|end|><|start|>assistant"
    "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
    '{"city": "Oslo", "days": 2}',
}
"""As the models' chat templates write them."""


@pytest.mark.parametrize("tool_format", NAMES)
def test_the_templates_own_form_is_taken(tool_format: str) -> None:
    special = tuple(m for m in TOOL_PARSERS[tool_format].markers if m != "</tool_call>")
    if tool_format != "granite":
        special = TOOL_PARSERS[tool_format].markers
    grammars = Grammars(special=special)
    tokens = tokens_of(grammars, tool_format)
    text = CALLS[tool_format]
    assert grammars.takes(forced_calls(TOOLS, tool_format, tokens), text)
    wanted = [("get_weather", {"city": "Oslo", "days": 2}), ("get_time", {})]
    num_calls = 1 if tool_format == "gpt_oss" else 2
    assert check(text, tool_format, list(TOOLS)) == wanted[:num_calls]
    assert not grammars.takes(forced_calls(TOOLS, tool_format, tokens, names=["get_time"]), text), (
        "another tool"
    )
    one = forced_calls(TOOLS, tool_format, tokens, several=False)
    assert grammars.takes(one, text) == (num_calls == 1)


def test_the_tokenizer_tells_mistrals_and_granites_older_forms() -> None:
    old = Grammars(special=("[TOOL_CALLS]",))
    spec = forced_calls(TOOLS, "mistral", tokens_of(old, "mistral"))
    for space in ("", " "):
        text = f'[TOOL_CALLS]{space}[{{"name": "get_time", "arguments": {{}}}}]'
        assert old.takes(spec, text)
    assert not old.takes(spec, "[TOOL_CALLS]get_time[ARGS]{}")
    new = Grammars(special=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"))
    spec = forced_calls(TOOLS, "mistral", tokens_of(new, "mistral"))
    assert new.takes(spec, "[TOOL_CALLS]get_time[CALL_ID]abc123DEF[ARGS]{}")
    granite = Grammars(special=("<tool_call>", "</tool_call>"))
    spec = forced_calls(TOOLS, "granite", tokens_of(granite, "granite"))
    assert granite.takes(spec, CALLS["hermes"])


@pytest.mark.parametrize("tool_format", NAMES)
def test_no_parameters_means_none(tool_format: str) -> None:
    grammars = grammars_for(tool_format, "special")
    tools = [{"name": "now"}, {"name": "later", "parameters": {"type": "object"}}]
    spec = forced_calls(tools, tool_format, tokens_of(grammars, tool_format), names=["now"])
    for seed in range(3):
        text = grammars.walk(spec, seed, closings=CLOSINGS)
        if text is not None:
            assert {call for call, _ in check(text, tool_format, tools)} == {"now"}
            assert all(arguments == {} for _, arguments in check(text, tool_format, tools))


def test_errors_name_the_field() -> None:
    tokens = MarkerTokens()
    deep: dict[str, Any] = {}
    for _ in range(500):
        deep = {"type": "object", "properties": {"a": deep}}
    bad: list[tuple[list[dict[str, Any]], str, dict[str, Any], str]] = [
        ([TIME], "hermes", {"names": ["other"]}, "no tool named"),
        ([], "hermes", {}, "needs a tool"),
        ([{"name": 'a"b'}], "hermes", {}, "letters"),
        ([{"name": "f", "parameters": {"type": "string"}}], "hermes", {}, "object"),
        ([{"name": "f", "parameters": [1]}], "hermes", {}, "object"),
        ([{"name": "f", "parameters": deep}], "hermes", {}, "deeply"),
        ([{"name": f"f{i}"} for i in range(600)], "hermes", {}, "at most"),
        ([{"name": "f", "parameters": {"title": "x" * 200_000}}], "hermes", {}, "long"),
    ]
    for tool_format in ("pythonic", "qwen3_coder"):
        for schema, reason in (
            ({"anyOf": [{"required": ["a"]}]}, "anyOf"),
            ({"properties": {"a": {"$ref": "#"}}}, "references"),
            ({"properties": {"a": False}, "required": ["a"]}, "no value"),
            ({"properties": {"a\nb": {}}}, "cannot write the parameter"),
            ({"required": ["a"], "additionalProperties": False}, "no value"),
        ):
            bad.append(([{"name": "f", "parameters": schema}], tool_format, {}, reason))
    for part, reason in (
        ({"enum": ["a</parameter>b"]}, "cannot write"),
        ({"enum": ["5", 6]}, "cannot write"),
        ({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 5}]}, "cannot keep"),
        ({"type": "string", "pattern": "^a|b$"}, "pattern"),
    ):
        tool = {"name": "f", "parameters": {"properties": {"a": part}}}
        bad.append(([tool], "qwen3_coder", {}, reason))
    for tools, tool_format, options, reason in bad:
        with pytest.raises(InvalidRequestError, match=reason) as caught:
            forced_calls(tools, tool_format, tokens, **options)
        assert caught.value.param == "tool_choice"


scalars = st.sampled_from(
    [
        *({"type": kind} for kind in ("string", "integer", "number", "boolean", "null")),
        {"type": ["integer", "null"]},
        {"type": "integer", "minimum": 3},
        {"type": "number", "exclusiveMaximum": -2.5},
        {"type": "string", "maxLength": 4},
        {"type": "string", "format": "date"},
        {"enum": ["a", "b c"]},
        {"const": 7},
        {},
        True,
    ]
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        inner.map(lambda part: {"type": "array", "items": part, "maxItems": 2}),
        st.dictionaries(st.sampled_from("xyz"), inner, min_size=1, max_size=2).map(
            lambda parts: {"type": "object", "properties": parts, "required": list(parts)}
        ),
    ),
    max_leaves=3,
)


@pytest.mark.parametrize("tool_format", ["hermes", "pythonic", "qwen3_coder"])
@given(
    properties=st.dictionaries(st.sampled_from(["a", "b", "name", "x_1"]), values, max_size=3),
    data=st.data(),
)
@settings(max_examples=25, deadline=None)
def test_any_parameters(tool_format: str, properties: dict[str, Any], data: st.DataObject) -> None:
    required = [name for name in properties if data.draw(st.booleans())]
    schema = {"type": "object", "properties": properties, "required": required}
    tools = [{"name": "f", "parameters": schema}]
    grammars = grammars_for(tool_format, "special")
    spec = forced_calls(tools, tool_format, tokens_of(grammars, tool_format))
    for seed in range(3):
        text = grammars.walk(spec, data.draw(st.integers(0, 999)) + seed, closings=CLOSINGS)
        if text is not None:
            for _, arguments in check(text, tool_format, tools):
                assert arguments.keys() <= properties.keys()
                if tool_format != "hermes":  # which hands JSON on as it is
                    json.dumps(arguments, allow_nan=False)


KEYWORDS = (
    *("type", "properties", "required", "additionalProperties", "enum", "const", "anyOf", "allOf"),
    *("items", "prefixItems", "minimum", "maximum", "minLength", "maxLength", "pattern", "format"),
    *("$ref", "$defs", "definitions", "patternProperties", "minItems", "default", "x-guidance"),
)
junk = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 10**20),
        st.floats(),
        st.text(max_size=4),
        st.sampled_from(["string", "object", "array", "number", "integer", "#/$defs/a", "^a|b$"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.sampled_from(KEYWORDS), st.text(max_size=3)), inner, max_size=4
        ),
    ),
    max_leaves=10,
)


@pytest.mark.parametrize("tool_format", ["hermes", "pythonic", "qwen3_coder"])
@given(parameters=junk, properties=st.dictionaries(st.sampled_from("abc"), junk, max_size=3))
@settings(max_examples=150, deadline=None)
def test_junk_is_refused_or_works(tool_format: str, parameters: Any, properties: Any) -> None:
    grammars = grammars_for(tool_format, "special")
    tokens = tokens_of(grammars, tool_format)
    for schema in (parameters, {"type": "object", "properties": properties}):
        # Anything but a refusal fails the test.
        with contextlib.suppress(InvalidRequestError):
            spec = forced_calls([{"name": "f", "parameters": schema}], tool_format, tokens)
            grammars.compiler.matcher(spec)
