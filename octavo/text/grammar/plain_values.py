"""Values without quotes by a parameter's schema, as `text.tools.qwen3_coder` reads them.

A string is its own text; a `format` is not enforced there. Everything else is JSON.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from octavo.text.grammar.lark import ANY_TEXT, literal, regex
from octavo.text.grammar.parameters import ANNOTATIONS
from octavo.text.grammar.python_values import INTEGER, NUMBER
from octavo.text.tools.json_text import dumps
from octavo.text.tools.schema import is_only_text, to_json, types_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.text.grammar.lark import LarkWriter
    from octavo.text.grammar.parameters import Parameters

END = "\n</parameter>\n"
_ENDS = ("</parameter>", "<parameter=", "</function>")
_NO_END = r"^([^<]|<+[^<\/p])*$"
"""What strings in JSON must match: nothing in them begins as one of `_ENDS` does."""

_SIMPLE = {"integer": INTEGER, "number": NUMBER, "boolean": "true|false", "null": "null"}
_TEXT_WORDS = frozenset(("type", "format", "minLength", "maxLength", "pattern"))


def plain_value(writer: LarkWriter, parameters: Parameters, name: str) -> str:
    """What stands for a parameter's value and its end.

    Raises:
        InvalidRequestError: the format cannot write what the schema asks for.
    """
    schema = parameters[name]
    types = types_of(parameters.tool, name)
    words = schema.keys() - ANNOTATIONS
    values = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if isinstance(values, list) and values and words <= {"type", "enum", "const"}:
        texts = [_written(parameters, value, types) for value in values]
        return writer.choice([literal(text + END) for text in texts])
    if "string" in types:
        return _text(writer, parameters, name)
    if words == {"type"} and types <= _SIMPLE.keys():
        kinds = "|".join(_SIMPLE[kind] for kind in sorted(types))
        return f"{writer.terminal(regex(kinds))} {literal(END)}"
    return f"{writer.json(parameters.json_schema(name, string_pattern=_NO_END))} {literal(END)}"


def _written(parameters: Parameters, value: Any, types: frozenset[str]) -> str:
    """One of the values that are allowed."""
    text = value if isinstance(value, str) else dumps(value)
    read = text if is_only_text(types) else json.loads(to_json(text, types))
    if read != value or type(read) is not type(value) or any(end in text for end in _ENDS):
        raise parameters.refused(f"this model's format cannot write {str(value)[:64]!r}")
    return text


def _text(writer: LarkWriter, parameters: Parameters, name: str) -> str:
    """A string, or something that is read as another type that is allowed without conditions."""
    schema = parameters[name]
    strings = [part for part in _branches(schema) if _has_string(part)]
    others = [part for part in _branches(schema) if not _has_string(part)]
    part = strings[0] if len(strings) == 1 else None
    if (
        part is None
        or not part.keys() - ANNOTATIONS <= _TEXT_WORDS
        or any(other.keys() - ANNOTATIONS != {"type"} for other in others)
    ):
        raise parameters.refused(
            f"this model's format cannot keep to the schema of the parameter {name!r}"
        )
    ends = "|".join(_ENDS)
    bodies = [regex(ANY_TEXT), f"~{regex(f'{ANY_TEXT}({ends}){ANY_TEXT}')}"]
    least, most = part.get("minLength", 0), part.get("maxLength", "")
    if least or most != "":
        bodies.append(regex(f"(?s:.){{{least},{most}}}"))
    if "pattern" in part:
        bodies.append(regex(_searched(parameters, str(part["pattern"]))))
    text = writer.terminal(" & ".join(bodies))
    return writer.terminal(f"{text} {literal(END)}")


def _branches(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    if schema.keys() - ANNOTATIONS == {"anyOf"} and isinstance(schema["anyOf"], list):
        return [part if isinstance(part, dict) else {"not": {}} for part in schema["anyOf"]]
    return [dict(schema)]


def _has_string(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type", "string")
    return kind == "string" or (isinstance(kind, list) and "string" in kind)


def _searched(parameters: Parameters, pattern: str) -> str:
    """The expression that texts match in which a pattern is found."""
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not pattern.endswith(r"\$")
    inner = pattern[begins : len(pattern) - ends]
    if (begins or ends) and "|" in inner:
        inner_is_safe = inner.startswith("(") and inner.endswith(")") and inner.count("(") == 1
    else:
        inner_is_safe = True
    if not inner_is_safe or any(sign in inner.replace("[^", "") for sign in ("^", "$", "\n")):
        raise parameters.refused(f"this model's format cannot keep to the pattern {pattern[:64]!r}")
    return f"{'' if begins else ANY_TEXT}({inner}){'' if ends else ANY_TEXT}"
