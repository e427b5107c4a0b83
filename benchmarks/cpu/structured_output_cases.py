"""Schemas by keyword, in the manner of JSONSchemaBench, with texts that they allow and forbid.

Each case holds one keyword, or a few that meet. Allowed values have their properties in the
schema's order, which is the only one that the libraries write. Source of the idea:
https://github.com/guidance-ai/jsonschemabench
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

INT, STR, NUM = {"type": "integer"}, {"type": "string"}, {"type": "number"}
BOOL, NULL = {"type": "boolean"}, {"type": "null"}


@dataclass(frozen=True)
class Case:
    """A schema, and values of both kinds."""

    name: str
    schema: Any
    valid: list[Any]
    invalid: list[Any]


def _obj(properties: dict[str, Any], *required: str, **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), **more}


def _types() -> list[tuple[Any, list[Any], list[Any]]]:
    samples: dict[str, list[Any]] = {
        "string": ["", "a b"],
        "integer": [0, -12],
        "number": [1.5, -2],
        "boolean": [True, False],
        "null": [None],
        "array": [[], [1, "a"]],
        "object": [{}, {"k": 1}],
    }
    cases: list[tuple[Any, list[Any], list[Any]]] = []
    for kind, values in samples.items():
        others = [
            v[0] for k, v in samples.items() if k != kind and {k, kind} != {"integer", "number"}
        ]
        cases.append(({"type": kind}, values, others))
    for first, second in itertools.combinations(
        ("string", "integer", "boolean", "null", "array"), 2
    ):
        others = [v[0] for k, v in samples.items() if k not in (first, second, "number")]
        cases.append(({"type": [first, second]}, samples[first] + samples[second], others))
    return cases


def _numbers() -> list[tuple[Any, list[Any], list[Any]]]:
    return [
        ({**INT, "minimum": 0}, [0, 7, 1000], [-1]),
        ({**INT, "maximum": 9}, [9, -5], [10, 99]),
        ({**INT, "minimum": 18, "maximum": 120}, [18, 99, 120], [17, 121, 1000]),
        ({**INT, "exclusiveMinimum": 5}, [6, 50], [5, 4]),
        ({**INT, "exclusiveMaximum": -3}, [-4, -30], [-3, 0]),
        ({**INT, "minimum": -100, "maximum": -7}, [-7, -55], [-6, -101, 5]),
        ({**INT, "multipleOf": 5}, [0, 15, 100], [3, 101]),
        ({**INT, "multipleOf": 7, "minimum": 10, "maximum": 60}, [14, 56], [7, 15, 63]),
        ({**NUM, "minimum": 0}, [0, 0.5, 12.25], [-0.5, -3]),
        ({**NUM, "maximum": 1}, [1, 0.25, -4], [1.01, 2]),
        ({**NUM, "minimum": 0, "maximum": 1}, [0, 0.333, 1], [1.5, -0.1]),
        ({**NUM, "exclusiveMinimum": 0}, [0.1, 3], [0, -1]),
        ({**NUM, "exclusiveMaximum": 100, "minimum": 50}, [50, 99.9], [100, 49]),
        ({**NUM, "minimum": -1.5, "maximum": 2.75}, [-1.5, 0, 2.75], [-1.6, 2.8]),
        ({**NUM, "multipleOf": 0.5}, [0.5, 2, 3.5], [0.3, 1.2]),
        ({"minimum": 3}, [3, "a", None], [2]),
        ({"type": ["integer", "null"], "minimum": 1}, [1, None], [0, "a"]),
        ({"type": ["number", "string"], "maximum": 2}, [2, "abc"], [3, None]),
        (_obj({"n": {**INT, "minimum": 1, "maximum": 5}}, "n"), [{"n": 3}], [{"n": 6}, {"n": 0}]),
        ({"type": "array", "items": {**NUM, "minimum": 0}}, [[0, 1.5]], [[-1]]),
    ]


def _strings() -> list[tuple[Any, list[Any], list[Any]]]:
    patterns: list[tuple[str, list[Any], list[Any]]] = [
        ("^[a-z]+$", ["abc"], ["Abc", "", "a1"]),
        (r"^\d{4}-\d{2}$", ["2024-06"], ["24-6", "2024-066"]),
        ("^(red|green|blue)$", ["red", "blue"], ["reds", "yellow"]),
        ("foo", ["foo", "a foo b"], ["fo", "bar"]),
        ("^x", ["x", "xyz"], ["ax", ""]),
        ("x$", ["x", "aax"], ["xa", ""]),
        (r"^\+?[0-9 ()-]{6,}$", ["+47 22 33 44"], ["12", "abc"]),
        (r"^[^\s@]+@[^\s@]+\.[a-z]{2,}$", ["a@b.no"], ["a@b", "a b@c.no"]),
        ("^(?:[01]\\d|2[0-3]):[0-5]\\d$", ["09:30", "23:59"], ["24:00", "9:30"]),
        (r"^[A-F0-9]{8}(-[A-F0-9]{4}){2}$", ["0123ABCD-00FF-1234"], ["0123abcd-00FF-1234"]),
        (r"^\p{Lu}\p{Ll}+$", ["Oslo", "Ås"], ["oslo", "O1"]),
        (r"^(?!bad)[a-z]+$", ["good"], ["bad"]),
        (r"^(a|b)\1$", ["aa"], ["ab"]),
        (r"^\w+\.(png|jpe?g)$", ["a_1.png", "b.jpg"], ["a.gif", ".png"]),
        (r"^.{3}$", ["abc", "åäö"], ["ab", "abcd"]),
    ]
    cases: list[tuple[Any, list[Any], list[Any]]] = [
        ({**STR, "pattern": pattern}, valid, invalid) for pattern, valid, invalid in patterns
    ]
    cases += [
        ({**STR, "minLength": 2}, ["ab", "åä"], ["", "a"]),
        ({**STR, "maxLength": 3}, ["", "abc", "å😀b"], ["abcd"]),
        ({**STR, "minLength": 2, "maxLength": 4}, ["ab", "abcd"], ["a", "abcde"]),
        ({**STR, "minLength": 5, "maxLength": 5}, ["abcde"], ["abcd", "abcdef"]),
        ({**STR, "pattern": "^[a-z]*$", "maxLength": 3}, ["", "abc"], ["abcd", "aB"]),
        ({**STR, "pattern": "^[a-z]+$", "minLength": 3}, ["abc"], ["ab", "ABC"]),
        ({"maxLength": 2}, ["ab", 12345], ["abc"]),
        ({**STR, "minLength": 200, "maxLength": 300}, ["a" * 250], ["a" * 199, "a" * 301]),
    ]
    return cases


def _formats() -> list[tuple[Any, list[Any], list[Any]]]:
    formats: list[tuple[str, list[Any], list[Any]]] = [
        ("date", ["2024-06-01"], ["2024-13-01", "yesterday"]),
        ("time", ["12:30:00Z", "12:30:00.5+02:00"], ["25:00:00Z", "noon"]),
        ("date-time", ["2024-06-01T12:30:00Z"], ["2024-06-01", "now"]),
        ("duration", ["P3DT4H", "PT30S"], ["3 days"]),
        ("email", ["ola@example.no"], ["ola", "a b@c.no"]),
        ("hostname", ["www.example.no"], ["-bad-", "a b"]),
        ("ipv4", ["192.168.0.1"], ["999.1.1.1", "1.2.3"]),
        ("ipv6", ["2001:db8::1"], ["12345::", "xyz"]),
        ("uuid", ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
        ("uri", ["https://example.no/a?b=c#d"], ["not a uri"]),
        ("uri-reference", ["/a/b"], ["a b\\"]),
        ("json-pointer", ["/a/0"], ["a/0"]),
        ("regex", ["a+"], []),
        ("password", ["secret"], []),
    ]
    return [({**STR, "format": name}, valid, [*invalid, 5]) for name, valid, invalid in formats]


def _values() -> list[tuple[Any, list[Any], list[Any]]]:
    return [
        ({"const": "a"}, ["a"], ["b", 1]),
        ({"const": 5}, [5], [6, "5"]),
        ({"const": None}, [None], [0, "null"]),
        ({"const": {"a": [1, True]}}, [{"a": [1, True]}], [{"a": [1]}, {}]),
        ({"const": [1, "x"]}, [[1, "x"]], [[1]]),
        ({"enum": ["a", "b"]}, ["a", "b"], ["c", "ab"]),
        ({"enum": [1, "a", None, True]}, [1, "a", None, True], [2, False]),
        ({"enum": ['q"uote', "back\\slash", "new\nline"]}, ['q"uote', "new\nline"], ["quote"]),
        ({**STR, "enum": ["a", 1]}, ["a"], [1, "b"]),
        ({**INT, "enum": [1, 2, 3], "minimum": 2}, [2, 3], [1, 4]),
        ({"enum": [f"value{i}" for i in range(500)]}, ["value7", "value499"], ["value500"]),
        ({"enum": [{"a": 1}, [2]]}, [{"a": 1}, [2]], [{"a": 2}, [1]]),
        (True, [1, "a", {"b": []}], []),
        ({}, [None, [1]], []),
        ({"title": "t", "description": "d", "default": 3, **INT}, [1], ["a"]),
    ]


def _arrays() -> list[tuple[Any, list[Any], list[Any]]]:
    arr = {"type": "array"}
    return [
        ({**arr, "items": INT}, [[], [1, 2]], [["a"], [1, None]]),
        ({**arr, "minItems": 1}, [[1], ["a", 2]], [[]]),
        ({**arr, "maxItems": 2}, [[], [1, 2]], [[1, 2, 3]]),
        ({**arr, "items": STR, "minItems": 2, "maxItems": 3}, [["a", "b"]], [["a"], ["a"] * 4]),
        ({**arr, "minItems": 3, "maxItems": 3, "items": NUM}, [[1, 2, 3]], [[1, 2], [1] * 4]),
        ({**arr, "prefixItems": [INT, STR]}, [[1, "a"], [1, "a", None], [1]], [["a"], [1, 2]]),
        ({**arr, "prefixItems": [INT, STR], "items": False}, [[1, "a"], [1]], [[1, "a", 2]]),
        ({**arr, "prefixItems": [INT], "items": STR}, [[1, "a", "b"]], [[1, 2]]),
        ({**arr, "items": {**arr, "items": INT}}, [[[1], []]], [[1], [["a"]]]),
        ({**arr, "items": {"anyOf": [INT, STR]}}, [[1, "a"]], [[None]]),
        ({**arr, "uniqueItems": True, "items": INT}, [[1, 2]], [[1, 1]]),
        ({**arr, "contains": {"const": 3}}, [[1, 3]], [[1, 2]]),
        ({**arr, "contains": INT, "minContains": 2}, [[1, 2]], [[1, "a"]]),
        ({**arr, "items": INT, "maxItems": 0}, [[]], [[1]]),
        ({"minItems": 2}, [[1, 2], "a"], [[1]]),
        ({**arr, "items": _obj({"a": INT}, "a")}, [[{"a": 1}]], [[{}], [{"a": "x"}]]),
        ({**arr, "minItems": 40, "items": BOOL}, [[True] * 40], [[True] * 39]),
    ]


def _objects() -> list[tuple[Any, list[Any], list[Any]]]:
    ab = {"a": INT, "b": STR}
    return [
        (_obj(ab), [{}, {"a": 1}, {"b": "x"}, {"a": 1, "b": "x"}], [{"a": "x"}, {"b": 1}]),
        (_obj(ab, "a"), [{"a": 1}, {"a": 1, "b": "x"}], [{}, {"b": "x"}]),
        (_obj(ab, "a", "b"), [{"a": 1, "b": "x"}], [{"a": 1}, {"b": "x"}]),
        (_obj(ab, "b"), [{"b": "x"}, {"a": 1, "b": "x"}], [{"a": 1}]),
        (_obj(ab, additionalProperties=False), [{}, {"a": 1}], [{"c": 1}]),
        (_obj(ab, additionalProperties=True), [{"c": None}, {"a": 1, "c": 2}], [{"a": "x"}]),
        (_obj(ab, additionalProperties=BOOL), [{"a": 1, "c": True}], [{"c": 1}]),
        ({"type": "object", "additionalProperties": INT}, [{}, {"x": 1}], [{"x": "a"}]),
        (_obj({}, "z"), [{"z": 1}], [{}, {"y": 1}]),
        (_obj({"a": INT}, "a", "z"), [{"a": 1, "z": 2}], [{"a": 1}]),
        ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
        ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
        (
            {"type": "object", "minProperties": 2, "maxProperties": 3, "additionalProperties": INT},
            [{"a": 1, "b": 2}],
            [{"a": 1}, {"a": 1, "b": 2, "c": 3, "d": 4}],
        ),
        (_obj(ab, minProperties=1, additionalProperties=False), [{"a": 1}], [{}]),
        ({"type": "object", "patternProperties": {"^x_": INT}}, [{"x_a": 1}], [{"x_a": "s"}]),
        (
            {"type": "object", "patternProperties": {"^x": INT}, "additionalProperties": False},
            [{}, {"x1": 1}],
            [{"y": 1}, {"x1": "a"}],
        ),
        (
            {
                "type": "object",
                "patternProperties": {"^s_": STR, "^i_": INT},
                "additionalProperties": False,
            },
            [{"s_a": "x", "i_a": 1}],
            [{"s_a": 1}, {"z": 1}],
        ),
        ({"type": "object", "propertyNames": {"pattern": "^[a-z]+$"}}, [{"abc": 1}], [{"A1": 1}]),
        ({"type": "object", "propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
        (_obj(ab, dependentRequired={"a": ["b"]}), [{"b": "x"}, {"a": 1, "b": "x"}], [{"a": 1}]),
        (
            _obj(ab, dependentSchemas={"a": {"required": ["b"]}}),
            [{"b": "x"}, {"a": 1, "b": "x"}],
            [{"a": 1}],
        ),
        (_obj({'q"x': INT, "é": STR, "": NULL}), [{'q"x': 1, "é": "a", "": None}], [{"é": 1}]),
        (_obj({"o": _obj({"p": _obj({"q": INT}, "q")}, "p")}, "o"), [{"o": {"p": {"q": 1}}}], [{}]),
        (_obj({"a": False}), [{}], [{"a": 1}]),
        (_obj({"a": True}, "a"), [{"a": [1]}], [{}]),
        (_obj({f"p{i}": INT for i in range(20)}), [{"p3": 1, "p19": 2}], [{"p3": "a"}]),
        (
            _obj({f"p{i}": INT for i in range(60)}, *[f"p{i}" for i in range(60)]),
            [{f"p{i}": i for i in range(60)}],
            [{f"p{i}": i for i in range(59)}],
        ),
        ({"properties": {"a": INT}}, [{"a": 1}, 5], [{"a": "x"}]),
        ({"required": ["a"]}, [{"a": 1}, 5], [{}]),
        (
            {"type": "object", "unevaluatedProperties": False, "properties": ab},
            [{"a": 1}],
            [{"c": 1}],
        ),
    ]


def _combined() -> list[tuple[Any, list[Any], list[Any]]]:
    cat = _obj(
        {"kind": {"const": "cat"}, "lives": INT}, "kind", "lives", additionalProperties=False
    )
    dog = _obj({"kind": {"const": "dog"}, "name": STR}, "kind", "name", additionalProperties=False)
    pets = [{"kind": "cat", "lives": 9}, {"kind": "dog", "name": "Rex"}]
    return [
        ({"anyOf": [INT, STR]}, [1, "a"], [None, []]),
        ({"anyOf": [cat, dog]}, pets, [{"kind": "cat", "name": "x"}, {}]),
        ({"anyOf": [INT, NULL], "default": None}, [1, None], ["a"]),
        ({"anyOf": [{**INT, "minimum": 10}, {**INT, "maximum": 0}]}, [10, -5], [5]),
        (
            {"anyOf": [{"required": ["a"]}, {"required": ["b"]}], **_obj({"a": INT, "b": INT})},
            [{"a": 1}, {"b": 1}],
            [{}],
        ),
        ({**STR, "anyOf": [{"pattern": "^a"}, {"maxLength": 1}]}, ["abc", "x"], ["xyz", 1]),
        ({"oneOf": [INT, STR]}, [1, "a"], [None]),
        ({"oneOf": [cat, dog]}, pets, [{"kind": "dog"}, {}]),
        ({"oneOf": [{**INT, "maximum": 3}, {**INT, "minimum": 8}]}, [1, 9], [5]),
        ({"oneOf": [{**INT, "multipleOf": 2}, {**INT, "multipleOf": 3}]}, [2, 3], [6, 5]),
        ({"oneOf": [NUM, {**NUM, "minimum": 5}]}, [1], [7]),
        ({"oneOf": [{"const": 1}, {"const": 2}]}, [1, 2], [3]),
        ({"allOf": [{**INT, "minimum": 3}, {"maximum": 8}]}, [3, 8], [2, 9]),
        (
            {"allOf": [_obj({"a": INT}, "a"), _obj({"b": STR}, "b")]},
            [{"a": 1, "b": "x"}],
            [{"a": 1}, {"b": "x"}],
        ),
        (
            {"allOf": [{**STR, "pattern": "^a"}, {**STR, "pattern": "z$"}]},
            ["az", "abz"],
            ["a", "z"],
        ),
        ({"allOf": [{"anyOf": [INT, STR]}, {"anyOf": [STR, NULL]}]}, ["a"], [1, None]),
        ({"allOf": [{"enum": [1, 2, 3]}, {"enum": [2, 3, 4]}]}, [2, 3], [1, 4]),
        (
            {"allOf": [_obj({"a": INT}, "a")], "properties": {"b": STR}, "required": ["b"]},
            [{"a": 1, "b": "x"}],
            [{"a": 1}],
        ),
        ({"not": STR}, [1, None], ["a"]),
        ({**INT, "not": {"const": 5}}, [4, 6], [5]),
        ({**STR, "not": {"enum": ["a", "b"]}}, ["c"], ["a", "b"]),
        ({"not": {"required": ["x"]}, "type": "object"}, [{}, {"y": 1}], [{"x": 1}]),
        (
            {
                "if": {"properties": {"a": {"const": 1}}, "required": ["a"]},
                "then": {"required": ["b"]},
                **_obj({"a": INT, "b": STR}),
            },
            [{"a": 2}, {"a": 1, "b": "x"}],
            [{"a": 1}],
        ),
        ({"if": INT, "then": {"minimum": 0}, "else": STR}, [1, "a"], [-1, None]),
    ]


def _references() -> list[tuple[Any, list[Any], list[Any]]]:
    tree = {
        "type": "object",
        "properties": {"v": INT, "kids": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["v"],
        "additionalProperties": False,
    }
    return [
        ({"$ref": "#/$defs/x", "$defs": {"x": INT}}, [1], ["a"]),
        (
            _obj({"a": {"$ref": "#/definitions/x"}}, "a", definitions={"x": STR}),
            [{"a": "s"}],
            [{"a": 1}],
        ),
        (tree, [{"v": 1}, {"v": 1, "kids": [{"v": 2, "kids": []}]}], [{"v": 1, "kids": [1]}, {}]),
        (
            {
                "$defs": {"l": {"anyOf": [NULL, _obj({"next": {"$ref": "#/$defs/l"}}, "next")]}},
                "$ref": "#/$defs/l",
            },
            [None, {"next": {"next": None}}],
            [{"next": 1}, {}],
        ),
        ({"$ref": "#/$defs/x", "minimum": 3, "$defs": {"x": INT}}, [3], [2, "a"]),
        (_obj({"a": INT, "b": {"$ref": "#/properties/a"}}, "b"), [{"b": 1}], [{"b": "x"}]),
        ({"$defs": {"a/b": INT}, "$ref": "#/$defs/a~1b"}, [1], ["x"]),
        ({"$defs": {"x": {"$anchor": "here", **INT}}, "$ref": "#here"}, [1], ["x"]),
        (
            {"$id": "https://e.no/s", "$defs": {"x": INT}, "$ref": "https://e.no/s#/$defs/x"},
            [1],
            ["a"],
        ),
        ({"$defs": {"x": {"$id": "x.json", **INT}}, "$ref": "x.json"}, [1], ["a"]),
        ({"$dynamicRef": "#n", "$defs": {"n": {"$dynamicAnchor": "n", **INT}}}, [1], ["a"]),
        (
            {
                "$defs": {
                    "e": {"anyOf": [INT, {"$ref": "#/$defs/s"}]},
                    "s": {"type": "array", "items": {"$ref": "#/$defs/e"}},
                },
                "$ref": "#/$defs/s",
            },
            [[], [1, [2, []]]],
            [["a"], 1],
        ),
        (
            _obj(
                {"a": {"allOf": [{"$ref": "#/$defs/x"}], "title": "t"}},
                "a",
                **{"$defs": {"x": STR}},
            ),
            [{"a": "s"}],
            [{"a": 1}],
        ),
    ]


def _whole() -> list[tuple[Any, list[Any], list[Any]]]:
    """As applications write them."""
    address = _obj({"street": STR, "zip": {**STR, "pattern": "^[0-9]{4}$"}}, "street", "zip")
    person = {"name": "Kari", "age": 30, "address": {"street": "Gata 1", "zip": "0150"}}
    order = {
        "id": "123e4567-e89b-12d3-a456-426614174000",
        "items": [{"sku": "AB-12", "count": 2, "price": 9.5}],
        "status": "paid",
        "note": None,
    }
    return [
        (
            _obj(
                {"name": STR, "age": {**INT, "minimum": 0}, "address": {"$ref": "#/$defs/A"}},
                "name",
                "age",
                "address",
                **{"$defs": {"A": address}},
            ),
            [person],
            [{**person, "age": -1}, {**person, "address": {}}],
        ),
        (
            _obj(
                {
                    "id": {**STR, "format": "uuid"},
                    "items": {
                        "type": "array",
                        "minItems": 1,
                        "items": _obj(
                            {
                                "sku": {**STR, "pattern": "^[A-Z]{2}-[0-9]+$"},
                                "count": {**INT, "minimum": 1},
                                "price": {**NUM, "exclusiveMinimum": 0},
                            },
                            "sku",
                            "count",
                            "price",
                            additionalProperties=False,
                        ),
                    },
                    "status": {"enum": ["open", "paid", "sent"]},
                    "note": {"anyOf": [{**STR, "maxLength": 50}, NULL]},
                },
                "id",
                "items",
                "status",
                "note",
                additionalProperties=False,
            ),
            [order],
            [{**order, "items": []}, {**order, "status": "lost"}, {**order, "x": 1}],
        ),
        (
            _obj(
                {"name": {"const": "f"}, "arguments": _obj({"city": STR, "days": INT}, "city")},
                "name",
                "arguments",
            ),
            [{"name": "f", "arguments": {"city": "Oslo", "days": 2}}],
            [{"name": "g", "arguments": {"city": "Oslo"}}, {"name": "f", "arguments": {}}],
        ),
        (
            {
                "type": "array",
                "items": _obj(
                    {
                        "label": {"enum": ["PER", "LOC"]},
                        "text": STR,
                        "score": {**NUM, "minimum": 0, "maximum": 1},
                    },
                    "label",
                    "text",
                ),
            },
            [[{"label": "PER", "text": "Kari", "score": 0.5}]],
            [[{"label": "X", "text": "Kari"}]],
        ),
        (
            _obj(
                {
                    "steps": {
                        "type": "array",
                        "items": _obj(
                            {"explanation": STR, "output": STR},
                            "explanation",
                            "output",
                            additionalProperties=False,
                        ),
                    },
                    "final_answer": STR,
                },
                "steps",
                "final_answer",
                additionalProperties=False,
            ),
            [{"steps": [{"explanation": "e", "output": "o"}], "final_answer": "x"}],
            [{"steps": [{"explanation": "e"}], "final_answer": "x"}],
        ),
        (
            _obj(
                {
                    "type": {"const": "FeatureCollection"},
                    "features": {
                        "type": "array",
                        "items": _obj(
                            {
                                "geometry": _obj(
                                    {
                                        "coordinates": {
                                            "type": "array",
                                            "items": NUM,
                                            "minItems": 2,
                                            "maxItems": 3,
                                        }
                                    },
                                    "coordinates",
                                ),
                                "properties": {"type": "object"},
                            },
                            "geometry",
                        ),
                    },
                },
                "type",
                "features",
            ),
            [
                {
                    "type": "FeatureCollection",
                    "features": [{"geometry": {"coordinates": [1, 2.5]}, "properties": {"a": 1}}],
                }
            ],
            [{"type": "FeatureCollection", "features": [{"geometry": {"coordinates": [1]}}]}],
        ),
    ]


_FAMILIES = {
    "types": _types,
    "numbers": _numbers,
    "strings": _strings,
    "formats": _formats,
    "const and enum": _values,
    "arrays": _arrays,
    "objects": _objects,
    "combined": _combined,
    "references": _references,
    "whole": _whole,
}


def cases() -> list[tuple[str, Case]]:
    """All of them with the family of each; those of most families also within an object."""
    found = [
        (family, Case(f"{family} {number}", schema, valid, invalid))
        for family, make in _FAMILIES.items()
        for number, (schema, valid, invalid) in enumerate(make())
    ]
    for family, case in list(found):
        if family in ("numbers", "strings"):
            schema = _obj({"k": case.schema}, "k", additionalProperties=False)
            inside = [[{"k": value} for value in values] for values in (case.valid, case.invalid)]
            found.append((family, Case(f"{case.name} inside", schema, *inside)))
    return found
