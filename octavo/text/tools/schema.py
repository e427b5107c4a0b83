"""What a parameter's text stands for, by its JSON schema.

For formats that write values without quotes. A value that is not what its schema asks for is given
as a string: the caller's own validation then says what is wrong with it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

from octavo.text.tools.json_text import dumps, is_unicode
from octavo.text.tools.python_call import whole_literal

if TYPE_CHECKING:
    from octavo.text.tools.parser import Tool

_MAX_DEPTH = 8
_TYPE_OF: dict[type, str] = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_STRINGS = frozenset({"string"})


def types_of(tool: Tool | None, parameter: str) -> frozenset[str]:
    """The JSON types that a tool's parameter may have; a string where nothing is said."""
    parameters = (tool or {}).get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    schema = properties.get(parameter) if isinstance(properties, Mapping) else None
    return frozenset(_types(schema, parameters, 0)) or _STRINGS


def _types(schema: Any, root: Any, depth: int) -> set[str]:
    if not isinstance(schema, Mapping) or depth > _MAX_DEPTH:
        return set()
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {name for name in kind if isinstance(name, str)}
    if "const" in schema:
        return {_TYPE_OF.get(type(schema["const"]), "string")}
    if isinstance(schema.get("enum"), list):
        return {_TYPE_OF.get(type(value), "string") for value in schema["enum"]}
    if isinstance(schema.get("$ref"), str):
        return _types(_resolve(schema["$ref"], root), root, depth + 1)
    found: set[str] = set()
    for word in ("anyOf", "oneOf", "allOf"):
        if isinstance(schema.get(word), list):
            for branch in schema[word]:
                found |= _types(branch, root, depth + 1)
    return found


def _resolve(reference: str, root: Any) -> Any:
    """The part of the schema that `#/$defs/Name` points at, or None."""
    start, *steps = reference.split("/")
    target = root if start == "#" else None
    for step in steps:
        target = target.get(step) if isinstance(target, Mapping) else None
    return target


def is_only_text(types: frozenset[str]) -> bool:
    """Whether a value can only be a string, so that every character of it is known to stay."""
    return types == _STRINGS


def to_json(text: str, types: frozenset[str]) -> str:
    """A value's text as JSON: the first reading that is of one of the types, else a string."""
    stripped = text.strip()
    lowered = stripped.lower()
    if lowered in ("null", "none") and "null" in types:
        return "null"
    if lowered in ("true", "false") and types & {"boolean", "bool"}:
        return lowered
    for reading in (_as_json(stripped), whole_literal(stripped)):
        if reading is not None and _is_of(json.loads(reading), types):
            return reading
    return dumps(text)


def _is_of(value: Any, types: frozenset[str]) -> bool:
    kind = _TYPE_OF[type(value)]
    if kind == "integer" or (kind == "number" and value.is_integer()):
        return bool(types & {"integer", "int", "number", "float"})
    aliases = {"number": {"number", "float"}, "object": {"object", "dict"}}
    aliases["array"] = {"array", "list"}
    return bool(types & aliases.get(kind, {kind})) and kind != "string"


def _as_json(text: str) -> str | None:
    try:
        json.loads(text, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return None
    return text if is_unicode(text) else None


def _refuse(name: str) -> NoReturn:
    raise ValueError(name)


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)
