"""JSON by schemas: whitespace, bounds, and outputs that jsonschema judges."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import InvalidRequestError
from octavo.text.grammar.source import MAX_DEPTH, grammar_text
from octavo.types import StructuredOutputs

if TYPE_CHECKING:
    from tests.text.grammar.helper import Grammars

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "array", "items": {"type": "integer"}}, "b": {"type": "string"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
VALUE = {"a": [1, 2], "b": "x y"}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"separators": (",", ":")},
        *({"indent": indent} for indent in (1, 2, 4, 8, "\t")),
        {"separators": (" , ", " : ")},
    ],
)
@pytest.mark.parametrize("line_break", ["\n", "\r\n"])
def test_the_ways_to_write_json_are_taken(
    grammars: Grammars, options: dict[str, Any], line_break: str
) -> None:
    text = json.dumps(VALUE, **options).replace("\n", line_break)
    for spec in (StructuredOutputs(json=SCHEMA), StructuredOutputs(json_object=True)):
        assert grammars.takes(spec, text)


@pytest.mark.parametrize("space", [" " * 9, "\n\n", "\t" * 3, "\n" + " " * 80, "\r", "\u00a0"])
def test_whitespace_is_bounded(grammars: Grammars, space: str) -> None:
    spec = StructuredOutputs(json=SCHEMA)
    text = json.dumps(VALUE)
    assert not grammars.takes(spec, text.replace(": ", ":" + space))
    assert not grammars.takes(spec, space + text), "before the value"
    assert not grammars.takes(spec, text + space), "behind it"


def test_an_object_is_an_object(grammars: Grammars) -> None:
    spec = StructuredOutputs(json_object=True)
    for text, is_object in (("{}", True), ('{"a": [{}, null]}', True), ("[]", False), ("1", False)):
        assert grammars.takes(spec, text) == is_object
    assert grammars.takes(StructuredOutputs(json=True), "[1]")
    assert grammars.takes(StructuredOutputs(json='{"type": "array"}'), "[1]")


def test_depth_is_bounded_where_it_says(grammars: Grammars) -> None:
    def nested(levels: int) -> dict[str, Any]:
        return {"type": "array", "items": nested(levels - 1)} if levels else {}

    grammars.compiler.matcher(StructuredOutputs(json=nested(MAX_DEPTH)))
    with pytest.raises(InvalidRequestError, match="deeper than"):
        grammar_text(StructuredOutputs(json=nested(MAX_DEPTH + 1)))


numbers = st.sampled_from([-7, -1, 0, 2.5, 3, 100])
simple = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}, True]),
    st.fixed_dictionaries(
        {"type": st.sampled_from(["integer", "number"])},
        optional={"minimum": numbers, "exclusiveMinimum": numbers},
    ),
    st.fixed_dictionaries(
        {"type": st.just("number")}, optional={"maximum": numbers, "exclusiveMaximum": numbers}
    ),
    st.sampled_from([{"type": "integer", "multipleOf": n, "minimum": -50} for n in (2, 7)]),
    st.fixed_dictionaries(
        {"type": st.just("string")},
        optional={"minLength": st.integers(0, 3), "maxLength": st.integers(3, 8)},
    ),
    st.sampled_from(
        [
            {"type": "string", "pattern": pattern}
            for pattern in ("^[a-c]{2,4}$", "x", r"^\d+(\.\d+)?$", "^(yes|no)$", "[^ ]end$")
        ]
    ),
    st.lists(
        st.one_of(st.text(max_size=4), st.integers(-9, 9), st.none(), st.booleans()),
        min_size=1,
        max_size=4,
    ).map(lambda values: {"enum": values}),
    st.recursive(
        st.one_of(st.integers(-9, 9), st.text(max_size=3)),
        lambda v: st.lists(v, max_size=2),
        max_leaves=3,
    ).map(lambda value: {"const": value}),
)


names = st.text('abç"\\ ', min_size=1, max_size=3)


def _objects(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {
            "type": st.just("object"),
            "properties": st.dictionaries(
                st.text('abç"\\ ', min_size=1, max_size=3), parts, max_size=3
            ),
        },
        optional={"additionalProperties": st.one_of(st.booleans(), parts)},
    ).flatmap(
        lambda schema: st.sets(st.sampled_from(sorted(schema["properties"]) or ["-"])).map(
            lambda chosen: {**schema, "required": sorted(chosen & schema["properties"].keys())}
        )
    )


def _arrays(parts: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.fixed_dictionaries(
        {"type": st.just("array")},
        optional={
            "items": parts,
            "prefixItems": st.lists(parts, min_size=1, max_size=2),
            "minItems": st.integers(0, 2),
            "maxItems": st.integers(2, 3),
        },
    )


schemas = st.recursive(
    simple,
    lambda parts: st.one_of(
        _objects(parts),
        _arrays(parts),
        st.lists(parts, min_size=1, max_size=3).map(lambda these: {"anyOf": these}),
        parts.map(lambda part: {"allOf": [part]}),
        parts.map(lambda part: {"$defs": {"X": part}, "$ref": "#/$defs/X"}),
    ),
    max_leaves=6,
)


@given(schemas, st.integers(0, 10**6))
@settings(max_examples=120, deadline=None)
def test_outputs_satisfy_their_schema(grammars: Grammars, schema: Any, seed: int) -> None:
    """References within references are left out: they would have to be written from the root."""
    if json.dumps(schema).count('"$ref"') > (isinstance(schema, dict) and "$ref" in schema):
        return
    spec = StructuredOutputs(json=schema)
    try:
        grammars.compiler.matcher(spec)
    except InvalidRequestError as error:
        told = error.message
        assert any(word in told for word in ("nsatisfiable", "no text", "minimum", "maximum")), told
        return
    for turn in range(3):
        text = grammars.walk(spec, seed + turn, max_tokens=150)
        if text is not None:
            jsonschema.validate(json.loads(text), {} if schema is True else schema)
