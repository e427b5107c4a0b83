"""JSON bodies into request structs, and every way that can fail into one typed error.

Knows no field's meaning: what the structs say about types is all that it checks.
"""

from __future__ import annotations

import difflib
import functools
import re
from typing import TYPE_CHECKING, Annotated, TypeVar

import msgspec
from msgspec import inspect

from octavo.errors import InvalidRequestError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Int32 = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
"""Counts and token ids on the wire: whatever passes fits every integer type further down."""

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]

_T = TypeVar("_T", bound=msgspec.Struct)
_AT_PATH = re.compile(r"(?P<reason>.*?)(?: - at `\$\.?(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.?(?P<name>\w+)|\[(?P<index>\d+|\.\.\.)\]")
_FIELD = re.compile(r"Object (?P<kind>contains unknown|missing required) field `(?P<name>.*)`")
_MAX_QUOTED = 200


@functools.cache
def _decoder(kind: type[_T]) -> msgspec.json.Decoder[_T]:
    return msgspec.json.Decoder(kind)


def decode(body: bytes, kind: type[_T]) -> _T:
    """The body as a `kind`.

    Raises:
        InvalidRequestError: malformed JSON (the message has the position), an unknown or missing
            field, a wrong type; `param` is the field as the caller spells it: `messages[0].role`.
    """
    try:
        value: _T = _decoder(kind).decode(body)
    except msgspec.ValidationError as exc:
        raise _explain(str(exc), kind) from None
    except msgspec.DecodeError as exc:
        reason = str(exc).removeprefix("JSON is malformed: ")
        if "(byte " not in reason:
            reason = f"it ends too early (byte {len(body)})"
    except UnicodeDecodeError as exc:
        reason = f"a string is not UTF-8 ({exc.reason})"
    except RecursionError:
        reason = "it is nested too deeply"
    else:
        return value
    raise InvalidRequestError(f"The request body is not valid JSON: {reason}")


def _explain(message: str, kind: type[msgspec.Struct]) -> InvalidRequestError:
    """What msgspec says of a value of the wrong shape, as an error that names the field."""
    match = _AT_PATH.fullmatch(message)
    assert match is not None  # both groups may be empty, so everything matches
    path = match["path"] or ""
    field = _FIELD.fullmatch(match["reason"])
    if field is not None:
        name = field["name"][:_MAX_QUOTED]
        param = f"{path}.{name}" if path else name
        if field["kind"] == "missing required":
            return InvalidRequestError(f"Missing required field: {param}", param=param)
        hint = _close_field(name, path, kind)
        return InvalidRequestError(f"Unknown field: {param}{hint}", param=param)
    reason = match["reason"].replace("`", "").replace(" | ", " or ")
    reason = reason.replace("Invalid enum value", "Invalid value")[:_MAX_QUOTED]
    allowed = _allowed_values(path, kind)
    if reason.startswith("Invalid value") and allowed:
        reason += ", it must be one of " + ", ".join(repr(value) for value in allowed)
    where = path or "The request body"
    return InvalidRequestError(f"{where}: {reason[0].lower()}{reason[1:]}", param=path or None)


def _members(types: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    """The types with their unions unpacked."""
    for kind in types:
        if isinstance(kind, inspect.UnionType):
            yield from _members(kind.types)
        else:
            yield kind


def _types_at(path: str, kind: type[msgspec.Struct]) -> list[inspect.Type]:
    """Every type that the struct allows at the path."""
    types: list[inspect.Type] = [inspect.type_info(kind)]
    for step in _STEP.finditer(path):
        below: list[inspect.Type] = []
        for member in _members(types):
            if isinstance(member, inspect.StructType) and step["name"]:
                below += [f.type for f in member.fields if f.encode_name == step["name"]]
                if member.tag_field == step["name"]:
                    below.append(inspect.LiteralType((str(member.tag),)))
            elif isinstance(member, inspect.ListType) and step["index"]:
                below.append(member.item_type)
        types = below
    return list(_members(types))


def _allowed_values(path: str, kind: type[msgspec.Struct]) -> list[object]:
    literals = (t for t in _types_at(path, kind) if isinstance(t, inspect.LiteralType))
    return list(dict.fromkeys(value for literal in literals for value in literal.values))


def _close_field(name: str, path: str, kind: type[msgspec.Struct]) -> str:
    structs = (t for t in _types_at(path, kind) if isinstance(t, inspect.StructType))
    known = [field.encode_name for struct in structs for field in struct.fields]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f" (did you mean {close[0]}?)" if close else ""
