"""A call's arguments as an object, for protocols whose answers do not hold JSON text."""

from __future__ import annotations

from typing import Any

import msgspec

_CLOSING = {"{": "}", "[": "]"}


def arguments_object(text: str) -> dict[str, Any]:
    """The object that a call's arguments spell.

    Of a text that was cut off, it has what was whole: a string, number or word at the end that may
    go on is left out, and so is its key. Nothing readable is an empty object.
    """
    value = _decoded(text)
    if value is None:
        value = _decoded(_closed(text))
    return value or {}


def _decoded(text: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        return None
    return value


def _closed(text: str) -> str:
    """The longest beginning that ends with a whole value, with its brackets closed."""
    open_brackets: list[str] = []
    end, tail = 0, ""
    in_string = is_escaped = False
    for place, char in enumerate(text):
        if in_string:
            in_string = is_escaped or char != '"'
            is_escaped = char == "\\" and not is_escaped
        elif char == '"':
            in_string = True
        elif char == ",":
            end, tail = place, _ends(open_brackets)
        elif char in _CLOSING:
            open_brackets.append(_CLOSING[char])
            end, tail = place + 1, _ends(open_brackets)
        elif char in "]}" and open_brackets:
            open_brackets.pop()
            end, tail = place + 1, _ends(open_brackets)
    whole = text + _ends(open_brackets)
    if not in_string and text.endswith('"') and _decoded(whole) is not None:
        return whole
    return text[:end] + tail


def _ends(open_brackets: list[str]) -> str:
    return "".join(reversed(open_brackets))
