"""JSON read while it comes, character by character, and handed on as it was written.

Strict, with two kindnesses to models: a raw control character in a string is handed on escaped, and
a backslash that escapes nothing (`\\d` in a regular expression) is doubled; both are certain to be
meant so, and what is handed on is valid. Source: RFC 8259.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.text.tools.reader import Steps, TextReader

_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_SCALAR_CHARS = re.compile(r"[-+.0-9a-zA-Z]*")
_SCALAR = re.compile(r"true|false|null|-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_HEX = frozenset("0123456789abcdefABCDEF")
_SPACE = frozenset(" \t\n\r")
_MAX_SCALAR_LEN = 1024


def read_string(reader: TextReader, sink: Callable[[str], None]) -> Steps[None]:
    """Read one string, its quotes included.

    Raises:
        MalformedError: no string, or the text ends within it.
    """
    yield from reader.literal('"')
    sink('"')
    while True:
        while run := (yield from reader.run(_PLAIN)):
            sink(run)
        char = yield from reader.take()
        if char == '"':
            sink(char)
            return
        if char == "\\":
            yield from _read_escape(reader, sink)
        else:
            sink(json.dumps(char)[1:-1])


def _read_escape(reader: TextReader, sink: Callable[[str], None]) -> Steps[None]:
    """Read what follows a backslash. It is handed on only when it is known what it is."""
    char = yield from reader.peek()
    if not char:
        raise MalformedError
    if char == "u":
        text = yield from reader.take()
        while len(text) < 5 and (yield from reader.peek()) in _HEX:
            text += yield from reader.take()
        if not (yield from reader.peek()) and len(text) < 5:
            raise MalformedError
        sink(("\\" if len(text) == 5 else "\\\\") + text)
    elif char in '"\\/bfnrt':
        sink("\\" + (yield from reader.take()))
    else:
        sink("\\\\")


def read_value(reader: TextReader, sink: Callable[[str], None]) -> Steps[None]:
    """Read one value, to its last character: of a number, that is known at the next one only.

    Raises:
        MalformedError: it breaks JSON's grammar, or the text ends within it. What was handed to
            `sink` until then is the beginning of a value.
    """
    closers: list[str] = []
    state = "value"
    while True:
        char = yield from reader.peek()
        if char in _SPACE and closers:
            sink((yield from reader.take()))
        elif state in ("key", "first key") and char == '"':
            yield from read_string(reader, sink)
            state = "colon"
        elif state == "colon" and char == ":":
            sink((yield from reader.take()))
            state = "value"
        elif state in ("comma", "first key", "first value") and char and char == closers[-1]:
            sink((yield from reader.take()))
            closers.pop()
            state = "comma"
        elif state == "comma" and char == ",":
            sink((yield from reader.take()))
            state = "key" if closers[-1] == "}" else "value"
        elif state in ("value", "first value") and char:
            state = yield from _read_simple_or_open(reader, sink, char, closers)
        else:
            raise MalformedError
        if state == "comma" and not closers:
            return


def _read_simple_or_open(
    reader: TextReader, sink: Callable[[str], None], char: str, closers: list[str]
) -> Steps[str]:
    """Read a value without parts, or the opening of one with parts; the state behind it."""
    if char == '"':
        yield from read_string(reader, sink)
    elif char in "{[":
        sink((yield from reader.take()))
        closers.append("}" if char == "{" else "]")
        return "first key" if char == "{" else "first value"
    else:
        scalar = yield from reader.whole_run(_SCALAR_CHARS, _MAX_SCALAR_LEN)
        if not _SCALAR.fullmatch(scalar):
            raise MalformedError
        sink(scalar)
    return "comma"


def read_decoded_string(reader: TextReader) -> Steps[str]:
    """Read one string and return its value.

    Raises:
        MalformedError: no string, one with half of a surrogate pair, or the text ends within it.
    """
    pieces: list[str] = []
    yield from read_string(reader, pieces.append)
    value: str = json.loads("".join(pieces))
    if not is_unicode(value):
        raise MalformedError
    return value


def is_unicode(text: str) -> bool:
    """Whether a text has no half of a surrogate pair, which no encoding can write."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_object(text: str) -> bool:
    """Whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def dumps(value: Any) -> str:
    """JSON in the form that chat templates write, characters as they are where they can be."""
    text = json.dumps(value, ensure_ascii=False)
    return text if is_unicode(text) else json.dumps(value)
