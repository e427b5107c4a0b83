"""A tool's parameters one by one, for formats that write each as text of its own.

Values that are JSON within such text are narrowed to what the formats' parsers are sure to read:
numbers stay below 10^15, and strings do not hold what ends a value. Knows no format.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.text.grammar.shape import SCHEMA_LISTS, SCHEMAS, SCHEMAS_BY_NAME, misshapen

if TYPE_CHECKING:
    import re
    from collections.abc import Callable

    from octavo.text.grammar.lark import LarkWriter

COMPOSING = frozenset(
    ("$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "not", "if", "then", "else", "enum", "const")
) | {
    *("dependentRequired", "dependentSchemas", "dependencies", "propertyNames"),
    *("minProperties", "maxProperties", "patternProperties", "unevaluatedProperties"),
}
"""Words that say more of an object than a list of its properties does."""

ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "example", "deprecated", "$comment")
) | {"readOnly", "writeOnly"}
"""Words that allow and forbid nothing."""

_DEFINITIONS = ("$defs", "definitions")
_LARGEST = 10**15
_ANY_NAME = "octavo-any"
_ANY = {"$ref": f"#/$defs/{_ANY_NAME}"}


class Parameters:
    """The parameters of one tool.

    Args:
        tool: its name.
        schema: of an object.
        key: what a parameter's name must be for the format to write it.

    Raises:
        InvalidRequestError: the schema is more than a list of parameters.
    """

    def __init__(self, tool: str, schema: Mapping[str, Any], key: re.Pattern[str]) -> None:
        self.tool: Mapping[str, Any] = {"name": tool, "parameters": schema}
        self._name, self._schema = tool, schema
        composing = sorted(COMPOSING & schema.keys())
        if composing:
            raise self.refused(
                f"this model's format has each parameter on its own, which {composing[0]} in the "
                "schema does not allow"
            )
        fault = misshapen(schema)
        if fault is not None:
            raise self.refused(fault)
        properties, required = schema.get("properties", {}), schema.get("required", [])
        self._properties: dict[str, dict[str, Any]] = {}
        rest = schema.get("additionalProperties", True)
        for name in dict.fromkeys((*properties, *required)):
            part = properties.get(name, rest)
            is_required = name in required
            if part is False and not is_required:
                continue
            if part is not True and not isinstance(part, Mapping):
                raise self.refused(f"the parameter {name!r} can have no value")
            if not isinstance(name, str) or not key.fullmatch(name) or name != name.strip():
                raise self.refused(f"this model's format cannot write the parameter {name!r}")
            self._properties[name] = {} if part is True else dict(part)
        self._required = frozenset(required)

    def __getitem__(self, name: str) -> dict[str, Any]:
        """A parameter's schema."""
        return self._properties[name]

    def refused(self, message: str) -> InvalidRequestError:
        """An error that names the tool."""
        return InvalidRequestError(f"{self._name}: {message}")

    def in_order(
        self, writer: LarkWriter, write: Callable[[str], str], *, separator: str = ""
    ) -> str:
        """A new rule: all parameters in the schema's order; those that may be missing may.

        Args:
            writer: of the grammar.
            write: what stands for the parameter of this name.
            separator: what stands between two of them.
        """
        first = more = '""'
        for name in reversed(self._properties):
            body = writer.rule(write(name))
            is_required = name in self._required
            if separator:
                first_bodies = [f"{body} {more}", *([] if is_required else [first])]
                more_bodies = [f"{separator} {body} {more}", *([] if is_required else [more])]
                first, more = writer.choice(first_bodies), writer.choice(more_bodies)
            else:
                first = more = writer.rule(f"{body if is_required else f'({body})?'} {more}")
        return first

    def json_schema(self, name: str, *, string_pattern: str | None = None) -> dict[str, Any]:
        """A parameter's schema, narrowed, with the definitions that it may refer to.

        Args:
            name: the parameter's.
            string_pattern: what strings within must match, too.

        Raises:
            InvalidRequestError: it refers to something else.
        """
        narrow = _Narrower(self, string_pattern)
        schema: dict[str, Any] = narrow(self._properties[name])
        for word in _DEFINITIONS:
            parts = self._schema.get(word)
            if isinstance(parts, Mapping):
                schema[word] = {**narrow.each(parts), **schema.get(word, {})}
        schema["$defs"] = {**schema.get("$defs", {}), _ANY_NAME: narrow.any_value()}
        return schema


class _Narrower:
    """Rewrites schemas so that the values they allow are read back as they are."""

    def __init__(self, parameters: Parameters, pattern: str | None) -> None:
        self._parameters = parameters
        self._pattern = pattern

    def each(self, parts: Mapping[str, Any]) -> dict[str, Any]:
        """Several schemas by name."""
        return {name: self(part) for name, part in parts.items()}

    def any_value(self) -> dict[str, Any]:
        """Any JSON value."""
        parts = (
            {"type": ["string", "boolean", "null"]},
            *({"type": kind} for kind in ("number", "array", "object")),
        )
        return {"anyOf": [self(part) for part in parts]}

    def __call__(self, schema: Any) -> Any:
        if schema is True or schema == {}:
            return dict(_ANY)
        if schema is False:
            return False
        reference = schema.get("$ref", "#/$defs/")
        if not reference.startswith(tuple(f"#/{word}/" for word in _DEFINITIONS)):
            raise self._parameters.refused(
                f"this model's format needs references into $defs, not {reference[:64]!r}"
            )
        narrow = {word: self._part(word, part) for word, part in schema.items()}
        if not narrow.keys() & {"$ref", "enum", "const", "anyOf", "oneOf", "allOf"}:
            narrow = self._bound(narrow)
        return narrow

    def _part(self, word: str, part: Any) -> Any:
        if word in SCHEMAS_BY_NAME:
            return self.each(part)
        if word == "allOf" and self._pattern is not None and part[1:]:
            raise self._parameters.refused("this model's format cannot keep to several in allOf")
        if word in SCHEMA_LISTS:
            return [self(one) for one in part]
        return self(part) if word in SCHEMAS else part

    def _bound(self, schema: dict[str, Any]) -> dict[str, Any]:
        kinds = schema.get("type", ["string", "number", "array", "object"])
        kinds = {kinds} if isinstance(kinds, str) else set(kinds)
        bound = dict(schema)
        if kinds & {"number", "integer"}:
            low, high = _numbers(schema)
            if not schema.keys() & {"minimum", "exclusiveMinimum"}:
                bound["minimum"] = min(-_LARGEST, 2 * high)
            if not schema.keys() & {"maximum", "exclusiveMaximum"}:
                bound["maximum"] = max(_LARGEST, 2 * low)
        if "array" in kinds:
            bound.setdefault("items", dict(_ANY))
        if "object" in kinds and "patternProperties" not in schema:
            rest = bound.pop("additionalProperties", dict(_ANY))
            if rest is not False and self._pattern is not None:
                if "properties" not in schema:  # they would have to match it, too
                    bound["patternProperties"] = {self._pattern: rest}
                rest = False
            bound["additionalProperties"] = rest
        if "string" in kinds and self._pattern is not None:
            if "pattern" not in schema:
                bound["pattern"] = self._pattern
            else:
                return {"allOf": [bound, {"pattern": self._pattern}]}
        return bound


def _numbers(schema: Mapping[str, Any]) -> tuple[float, float]:
    """The least and the greatest bound that a schema has, zero where there is none."""

    def of(*words: str) -> float:
        values = [schema[word] for word in words if isinstance(schema.get(word), int | float)]
        return values[0] if values else 0

    return of("minimum", "exclusiveMinimum"), of("maximum", "exclusiveMaximum")
