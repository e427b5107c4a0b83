"""Python's literals by a parameter's schema, as `text.tools.python_call` reads them.

Simple values are written as Python writes them. What is more than that is written as JSON, which is
Python too but for three names, and those are read all the same.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo.text.grammar.lark import literal, regex
from octavo.text.grammar.parameters import ANNOTATIONS
from octavo.text.tools.python_call import whole_literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.text.grammar.lark import LarkWriter
    from octavo.text.grammar.parameters import Parameters

INTEGER = r"-?(0|[1-9][0-9]{0,17})"
NUMBER = rf"{INTEGER}(\.[0-9]{{1,17}})?([eE][+-]?[0-9]{{1,2}})?"
"""Numbers that are finite, whoever reads them."""

_STRING = "|".join(
    rf"{quote}([^{quote}\\\x00-\x1f\x7f]|\\['\"\\nrt])*{quote}" for quote in ("'", '"')
)
_KINDS = {
    "string": _STRING,
    "integer": INTEGER,
    "number": NUMBER,
    "boolean": "True|False",
    "null": "None",
}


def python_value(writer: LarkWriter, parameters: Parameters, name: str) -> str:
    """What stands for a parameter's value.

    Raises:
        InvalidRequestError: the format cannot write what the schema asks for.
    """
    bodies = _bodies(writer, parameters, parameters[name])
    if bodies is None:
        return writer.json(parameters.json_schema(name))
    return writer.choice(bodies)


def _bodies(
    writer: LarkWriter, parameters: Parameters, schema: Mapping[str, Any]
) -> list[str] | None:
    """The simple values that a schema allows; None: it is not simple."""
    words = schema.keys() - ANNOTATIONS
    if words == {"anyOf"} and isinstance(schema["anyOf"], list):
        found = []
        for part in schema["anyOf"]:
            bodies = _bodies(writer, parameters, part) if isinstance(part, dict) else None
            if bodies is None:
                return None
            found += bodies
        return found or None
    kinds = schema.get("type", list(_KINDS))
    kinds = [kinds] if isinstance(kinds, str) else kinds
    if not isinstance(kinds, list) or not kinds or not set(map(str, kinds)) <= _KINDS.keys():
        return None
    if words == {"type"}:
        return [writer.terminal(regex(_KINDS[kind])) for kind in kinds]
    values = schema.get("enum", [schema.get("const")])
    if words - {"type"} not in ({"enum"}, {"const"}) or not isinstance(values, list) or not values:
        return None
    if "type" in words and not all(_kind(value) in kinds for value in values):
        return None
    if not all(_kind(value) for value in values):
        return None
    texts = [_written(value) for value in values]
    for text, value in zip(texts, values, strict=True):
        if not _is_read_as(text, value):
            raise parameters.refused(f"this model's format cannot write {str(value)[:64]!r}")
    return [literal(text) for text in texts]


def _kind(value: Any) -> str:
    """A simple value's type, or nothing."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
    return kinds.get(type(value), "")


def _written(value: Any) -> str:
    if not isinstance(value, str):
        return repr(value)
    is_plain = value.isprintable() and "'" not in value and "\\" not in value
    return f"'{value}'" if is_plain else json.dumps(value, ensure_ascii=False)


def _is_read_as(text: str, value: Any) -> bool:
    reading = whole_literal(text)
    return reading is not None and bool(json.loads(reading) == value)
