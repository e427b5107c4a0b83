"""Scalars of a configuration as values of their fields' types, and the words for what is wrong with
them. Knows nothing of where they stand.
"""

from __future__ import annotations

import difflib
import re
import typing
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from octavo.gateway.secret import Secret

if TYPE_CHECKING:
    from collections.abc import Iterable

    from yaml.nodes import Node

_TRUTHS = {
    **dict.fromkeys(("true", "yes", "on"), True),
    **dict.fromkeys(("false", "no", "off"), False),
}
_NUMBER = re.compile(r"[-+]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?|[-+]?\.[0-9]+")
_VARIABLE = re.compile(r"\$\{[A-Za-z_][A-Za-z0-9_]*\}")
_REASONS = (
    (r"^Expected `datetime` with a timezone.*", "must have a zone, as 2027-01-31T00:00:00Z has"),
    (r"^Expected `\w+` matching regex", "must match"),
    (r"^Expected `array` of length >= (\d+)", r"must have \1 or more"),
    (r"^Expected `array` of length <= (\d+)", r"must have at most \1"),
    (r"^Expected `str` of length >= (\d+)", r"must have \1 or more characters"),
    (r"^Expected `str` of length <= (\d+)", r"must have at most \1 characters"),
    (r"^Expected `\w+` >= (\S+)", r"must be at least \1"),
    (r"^Expected `\w+` <= (\S+)", r"must be at most \1"),
    (r"^Expected `\w+` > (\S+)", r"must be above \1"),
    (r"^Expected `\w+` < (\S+)", r"must be below \1"),
)
_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def read_scalar(node: Node, kind: Any) -> Any:
    """A node as a value of a type that is no list, mapping or struct.

    Raises:
        ValueError: it is none; says what it must be.
    """
    if node.id != "scalar":
        what = "a word" if kind in (str, Secret) or _is_literal(kind) else _name(kind)
        raise ValueError(f"must be {what}, not a {node.id.replace('sequence', 'list')}")
    text: str = node.value
    if kind is Secret:
        return Secret.read(text)
    if _VARIABLE.fullmatch(text.strip()):
        raise ValueError("takes no variable of the environment: only secrets do")
    if _is_literal(kind):
        allowed = typing.get_args(kind)
        if text not in allowed:
            hint = did_you_mean(text, allowed)
            raise ValueError(f"must be one of {', '.join(allowed)}{hint}")
        return text
    try:
        return _parse(node, text, kind)
    except (ValueError, InvalidOperation):
        raise ValueError(f"must be {_name(kind)}, got {text[:50]!r}") from None


def check_limits(value: Any, kind: Any) -> None:
    """Return if a value is within its annotation's bounds, as msgspec has them.

    Raises:
        ValueError: it is not; says what it must be.
    """
    _, limits = without_limits(kind)
    if not isinstance(value, str | int | float | datetime):
        # Items are values already, and not looked at again.
        value = (None,) * len(value)
        kind = typing.Annotated[list[Any], *limits]
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(_reason(str(error))) from None


def without_limits(kind: Any) -> tuple[Any, tuple[msgspec.Meta, ...]]:
    """An annotation without `Annotated`, and what that says."""
    limits: tuple[msgspec.Meta, ...] = ()
    while typing.get_origin(kind) is typing.Annotated:
        limits += tuple(meta for meta in kind.__metadata__ if isinstance(meta, msgspec.Meta))
        kind = kind.__origin__
    return kind, limits


def is_null(node: Node) -> bool:
    """Whether a node is `~`, `null` or nothing at all."""
    return bool(node.id == "scalar" and node.tag == "tag:yaml.org,2002:null")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint at the name that was meant, in brackets, or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def _parse(node: Node, text: str, kind: Any) -> Any:
    """A scalar's text as a `kind`.

    Raises:
        ValueError, InvalidOperation: it is none.
    """
    if kind is str:
        if is_null(node):
            raise ValueError("nothing")
        return text
    is_plain = not node.style
    if kind is bool and is_plain and text.lower() in _TRUTHS:
        return _TRUTHS[text.lower()]
    if kind is int and is_plain and re.fullmatch(r"[-+]?[0-9](_?[0-9])*", text) and len(text) < 20:
        return int(text)
    if kind in (float, Decimal) and is_plain and _NUMBER.fullmatch(text):
        value = kind(text)
        if len(text) < 50 and abs(value) < 1e300:
            return value
    if kind is datetime:
        return msgspec.convert(text, datetime)
    raise ValueError(text)


def _is_literal(kind: Any) -> bool:
    return typing.get_origin(kind) is Literal


def _name(kind: Any) -> str:
    if kind is Decimal:
        return "a number"
    if kind is datetime:
        return "a time with its zone, as 2027-01-31T00:00:00Z"
    return _WORDS.get(getattr(kind, "__name__", ""), str(kind))


def _reason(message: str) -> str:
    """What msgspec says of a value out of bounds, in our words."""
    for pattern, ours in _REASONS:
        message = re.sub(pattern, ours, message)
    return message.replace("`", "")
