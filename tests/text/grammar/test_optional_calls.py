"""Answers that may be calls: text stays free, calls fit, and the parser tells them apart."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from octavo.errors import InvalidRequestError
from octavo.text.grammar.optional_calls import optional_calls
from octavo.text.tools.registry import TOOL_PARSERS
from octavo.types import StructuredOutputs
from tests.text.grammar.test_tool_calls import (
    CLOSINGS,
    PERSON,
    check,
    forced_calls,
    grammars_for,
    tokens_of,
)
from tests.text.tools.helper import TIME, WEATHER, calls_of, read

FORMATS = sorted(TOOL_PARSERS.keys() - {"gpt_oss"})
STRICT: list[dict[str, Any]] = [{**PERSON, "strict": True}, TIME]
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}},
    "required": ["x"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("kind", ["special", "plain", "text"])
@pytest.mark.parametrize("tool_format", FORMATS)
def test_calls_fit_and_text_is_free(tool_format: str, kind: str) -> None:
    grammars = grammars_for(tool_format, kind)
    tokens = tokens_of(grammars, tool_format)
    spec = optional_calls(STRICT, tool_format, tokens)
    for text in ("Hello, world.", "", "a < b and [c] or {d}\n\n- naïve"):
        assert grammars.takes(spec, text)
    forced = forced_calls([STRICT[0]], tool_format, tokens)
    written = [grammars.walk(forced, seed, closings=CLOSINGS) for seed in range(6)]
    calls = [text for text in written if text is not None]
    assert calls
    for text in calls:
        check(text, tool_format, STRICT)
        assert grammars.takes(spec, text), text


@pytest.mark.parametrize("tool_format", FORMATS)
def test_what_does_not_fit_cannot_be_written(tool_format: str) -> None:
    """A call that lacks what its schema requires is neither a call of this grammar nor text."""
    grammars = grammars_for(tool_format, "special")
    tokens = tokens_of(grammars, tool_format)
    loose = {"name": WEATHER["name"], "parameters": {"type": "object", "properties": {}}}
    bad = grammars.walk(forced_calls([loose], tool_format, tokens), 0, closings=CLOSINGS)
    assert bad is not None
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    strict = {"name": WEATHER["name"], "strict": True, "parameters": schema}
    assert not grammars.takes(optional_calls([strict], tool_format, tokens), bad)


@pytest.mark.parametrize("kind", ["special", "text"])
@pytest.mark.parametrize("tool_format", FORMATS)
def test_content_by_a_schema_or_calls(tool_format: str, kind: str) -> None:
    grammars = grammars_for(tool_format, kind)
    tokens = tokens_of(grammars, tool_format)
    spec = optional_calls([TIME], tool_format, tokens, content=StructuredOutputs(json=POINT))
    assert grammars.takes(spec, '{"x": 12}')
    assert not grammars.takes(spec, "Hello.")
    num_calls = num_content = 0
    for seed in range(30):
        text = grammars.walk(spec, seed, closings=CLOSINGS)
        if text is None:
            continue
        answer = read([text], tool_format, tools=[TIME])
        if calls_of(answer):
            num_calls += 1
            assert not answer.content
        else:
            num_content += 1
            jsonschema.validate(json.loads(answer.content), POINT)
    assert num_content or num_calls


def test_other_contents() -> None:
    grammars = grammars_for("hermes", "special")
    tokens = tokens_of(grammars, "hermes")

    def spec(content: StructuredOutputs) -> StructuredOutputs:
        return optional_calls([TIME], "hermes", tokens, content=content)

    assert grammars.takes(spec(StructuredOutputs(choice=["yes", "no"])), "no")
    assert not grammars.takes(spec(StructuredOutputs(choice=["yes", "no"])), "maybe")
    assert grammars.takes(spec(StructuredOutputs(regex="[a-c]+/x")), "abc/x")
    assert grammars.takes(spec(StructuredOutputs(json_object=True)), '{"a": 1}')
    assert grammars.takes(spec(StructuredOutputs(json="true")), "[1]")
    for content in (StructuredOutputs(grammar="start: /a/"), StructuredOutputs(json="{")):
        with pytest.raises(InvalidRequestError) as caught:
            spec(content)
        assert caught.value.param == "tools"


def test_channels_promise_nothing_for_calls_that_are_free() -> None:
    grammars = grammars_for("gpt_oss", "special")
    with pytest.raises(InvalidRequestError, match="channels"):
        optional_calls(STRICT, "gpt_oss", tokens_of(grammars, "gpt_oss"))
