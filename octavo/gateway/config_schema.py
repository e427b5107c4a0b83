"""The configuration's fields for editors and readers: a JSON schema, and what the docstrings say of
each field. Of the structs themselves, so that neither can differ from what is read.
"""

from __future__ import annotations

import re
import textwrap
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.config import GatewayConfig
from octavo.gateway.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterator

TITLE = "Octavo's gateway"
_FIELD = re.compile(r"(?:\w+)(?:, \w+)*:")


def field_texts(kind: type[msgspec.Struct]) -> dict[str, str]:
    """What a struct's docstring says of each field, under `Attributes:`."""
    _, _, section = (kind.__doc__ or "").partition("Attributes:\n")
    texts: dict[str, str] = {}
    names: list[str] = []
    for line in textwrap.dedent(section).splitlines():
        if not line.startswith(" ") and _FIELD.match(line):
            head, _, text = line.partition(":")
            names = head.split(", ")
            texts.update(dict.fromkeys(names, text.strip()))
        elif line.startswith(" "):
            for name in names:
                texts[name] += " " + line.strip()
        elif line.strip():
            break
    return texts


def about(kind: type[msgspec.Struct]) -> str:
    """What a struct's docstring says of it as a whole, in one paragraph for each of its own."""
    text = (kind.__doc__ or "").partition("Attributes:\n")[0]
    paragraphs = re.split(r"\n\s*\n", textwrap.dedent("    " + text).strip())
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of the configuration, with a description of each field.

    It tells shapes, types and bounds; what goes together is told by `config.check_config` alone.
    """
    (schema,), parts = msgspec.json.schema_components(
        [GatewayConfig], schema_hook=_hook, ref_template="#/$defs/{name}"
    )
    for kind in _structs(GatewayConfig):
        part = parts.get(kind.__name__)
        if part is not None:
            part["description"] = about(kind)
            for name, text in field_texts(kind).items():
                field = part["properties"].get(name)
                if field is not None:
                    part["properties"][name] = {**field, "description": text}
    top = parts.pop("GatewayConfig")
    top["patternProperties"] = {"^x-": {}}
    assert schema == {"$ref": "#/$defs/GatewayConfig"}
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": TITLE,
        **top,
        "$defs": dict(sorted(parts.items())),
    }
    readable: dict[str, Any] = _readable(whole)
    return readable


def _hook(kind: type) -> dict[str, Any]:
    if kind is Secret:
        return {"type": "string", "description": "${NAME}, file:/path, or the secret itself"}
    raise NotImplementedError(kind)


def _readable(value: Any) -> Any:
    """A schema of what is written, where that differs from what is read: decimals are numbers,
    and defaults that are secrets or decimals are text.
    """
    if isinstance(value, list):
        return [_readable(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("format") == "decimal":
        value = {**value, "type": "number"}
        del value["format"]
        if isinstance(value.get("default"), str):
            value["default"] = float(value["default"])
    pattern = value.get("pattern")
    if isinstance(pattern, str):
        # Python's end of a text, as JSON Schema's dialect of patterns spells it.
        value = {**value, "pattern": pattern.replace(r"\Z", "$")}
    return {name: _readable(item) for name, item in value.items()}


def _structs(kind: Any, seen: set[Any] | None = None) -> Iterator[type[msgspec.Struct]]:
    """All structs that a type is made of, itself first, in the order of their fields."""
    seen = set() if seen is None else seen
    for part in _parts(msgspec.inspect.type_info(kind)):
        if part.cls not in seen:
            seen.add(part.cls)
            yield part.cls
            for field in part.fields:
                for below in _parts(field.type):
                    yield from _structs(below.cls, seen)


def _parts(info: msgspec.inspect.Type) -> Iterator[msgspec.inspect.StructType]:
    """The structs in a type, without those in their fields."""
    match info:
        case msgspec.inspect.StructType():
            yield info
        case msgspec.inspect.Metadata(type=inner):
            yield from _parts(inner)
        case msgspec.inspect.UnionType(types=types):
            for one in types:
                yield from _parts(one)
        case (
            msgspec.inspect.DictType(value_type=inner)
            | msgspec.inspect.VarTupleType(item_type=inner)
        ):
            yield from _parts(inner)


def structs() -> list[type[msgspec.Struct]]:
    """All structs of the configuration, each before those in its fields."""
    return list(_structs(GatewayConfig))
