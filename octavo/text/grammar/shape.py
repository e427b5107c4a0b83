"""Whether a JSON schema's keywords have values of the kinds that they must have.

For code here that reads schemas itself; llguidance checks what it is given on its own.
Source: https://json-schema.org/draft/2020-12/json-schema-validation
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

SCHEMAS_BY_NAME = frozenset(
    ("properties", "patternProperties", "dependentSchemas", "$defs", "definitions")
)
SCHEMA_LISTS = frozenset(("prefixItems", "anyOf", "oneOf", "allOf"))
SCHEMAS = frozenset(("items", "additionalProperties", "contains", "not", "if", "then", "else"))
"""Words whose values hold schemas: by name, in a list, one."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "type": (lambda value: _is_text(value) or (_is_texts(value) and bool(value)), "a type's name"),
    "required": (_is_texts, "a list of names"),
    "enum": (lambda value: isinstance(value, list) and bool(value), "a list of values"),
    **dict.fromkeys(("pattern", "format", "$ref"), (_is_text, "a string")),
    **dict.fromkeys(
        ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
        (_is_number, "a number"),
    ),
    **dict.fromkeys(
        ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"),
        (_is_count, "a whole number"),
    ),
    **dict.fromkeys(
        SCHEMAS_BY_NAME, (lambda value: isinstance(value, Mapping), "an object of schemas")
    ),
    **dict.fromkeys(SCHEMA_LISTS, (lambda value: isinstance(value, list), "a list of schemas")),
}


def misshapen(schema: Any) -> str | None:
    """What is wrong with the first keyword that is wrong; None: nothing."""
    if isinstance(schema, bool):
        return None
    if not isinstance(schema, Mapping):
        return "a schema must be an object, true or false"
    for word, value in schema.items():
        is_good, kind = _KINDS.get(word, (None, ""))
        if is_good is not None and not is_good(value):
            return f"{word} must be {kind}"
        parts: list[Any] = []
        if word in SCHEMAS_BY_NAME:
            parts = list(value.values())
        elif word in SCHEMA_LISTS:
            parts = value
        elif word in SCHEMAS:
            parts = [value]
        for part in parts:
            found = misshapen(part)
            if found is not None:
                return found
    return None
