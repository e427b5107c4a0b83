"""Python's literals read while they come, and turned into JSON. Runs nothing.

Knows strings with their escapes (no prefixes), numbers, names of constants, lists, tuples and
dictionaries with keys that are strings, and JSON's `true`, `false` and `null`, which models mix in.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from octavo.text.tools.json_text import dumps
from octavo.text.tools.reader import MalformedError, TextReader

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_CONSTANTS = {
    "True": "true",
    "true": "true",
    "False": "false",
    "false": "false",
    "None": "null",
    "null": "null",
}
_SCALAR_CHARS = re.compile(r"[-+.0-9A-Za-z_]*")
_NUMBER = re.compile(r"[-+]?[0-9A-Fa-f_.oxXbBe+-]+")
_PLAIN = re.compile(r"[^'\"\\\n]*")
_ESCAPES = {
    "n": "\n",
    "t": "\t",
    "r": "\r",
    "\\": "\\",
    "'": "'",
    '"': '"',
    "\n": "",
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "v": "\v",
    "0": "\0",
}
_HEX = frozenset("0123456789abcdefABCDEF")
_HEX_LENS = {"x": 2, "u": 4, "U": 8}
_MAX_SCALAR_LEN = 512
_MAX_DEPTH = 64


def read_literal(reader: TextReader, depth: int = 0) -> Steps[str]:
    """Read one literal; the same as JSON.

    Raises:
        MalformedError: it is none of those above, is not finite, or is nested too deeply.
    """
    if depth > _MAX_DEPTH:
        raise MalformedError
    char = yield from reader.peek()
    if char and char in "'\"":
        return dumps((yield from read_string(reader)))
    if char == "{":
        return (yield from _read_dict(reader, depth))
    if char and char in "[(":
        items = yield from _read_items(reader, depth)
        return f"[{', '.join(items)}]"
    return _scalar((yield from reader.whole_run(_SCALAR_CHARS, _MAX_SCALAR_LEN)))


def whole_literal(text: str) -> str | None:
    """The literal that a whole text is, as JSON; None: it is none, or goes on after one."""
    reader = TextReader()
    reader.feed(text)
    reader.close()
    steps = read_literal(reader)
    try:
        next(steps)
    except StopIteration as end:
        reading: str = end.value
        return reading if reader.is_at_end else None
    except MalformedError:
        return None
    raise AssertionError("a closed reader never waits")


def _scalar(text: str) -> str:
    if text in _CONSTANTS:
        return _CONSTANTS[text]
    if not _NUMBER.fullmatch(text):
        raise MalformedError
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    try:
        number = float(text)
    except ValueError:
        raise MalformedError from None
    if not math.isfinite(number):
        raise MalformedError
    return repr(number)


def _read_items(reader: TextReader, depth: int) -> Steps[list[str]]:
    opening = yield from reader.take()
    closing = "]" if opening == "[" else ")"
    items: list[str] = []
    while True:
        yield from reader.space()
        if (yield from reader.peek()) == closing:
            yield from reader.take()
            return items
        if items:
            yield from reader.literal(",")
            yield from reader.space()
            if (yield from reader.peek()) == closing:
                continue
        items.append((yield from read_literal(reader, depth + 1)))


def _read_dict(reader: TextReader, depth: int) -> Steps[str]:
    yield from reader.literal("{")
    items: list[str] = []
    while True:
        yield from reader.space()
        if (yield from reader.peek()) == "}":
            yield from reader.take()
            return f"{{{', '.join(items)}}}"
        if items:
            yield from reader.literal(",")
            yield from reader.space()
            if (yield from reader.peek()) == "}":
                continue
        key = yield from read_string(reader)
        yield from reader.space()
        yield from reader.literal(":")
        yield from reader.space()
        items.append(f"{dumps(key)}: {(yield from read_literal(reader, depth + 1))}")


def read_string(reader: TextReader) -> Steps[str]:
    """Read one string; its value. Three quotes enclose one of several lines.

    Raises:
        MalformedError: no string, or the text or the line ends within it.
    """
    quote = yield from reader.one_of(("'", '"'))
    is_long = False
    if (yield from reader.peek()) == quote:
        yield from reader.take()
        if (yield from reader.peek()) != quote:
            return ""
        yield from reader.take()
        is_long = True
    pieces: list[str] = []
    num_quotes = 0
    while True:
        run = yield from reader.whole_run(_PLAIN)
        if run:
            pieces.append(run)
            num_quotes = 0
        char = yield from reader.take()
        num_quotes = num_quotes + 1 if char == quote else 0
        if char == quote and not is_long:
            return "".join(pieces)
        if num_quotes == 3:
            return "".join(pieces)[:-2]
        if char == "\\":
            pieces.append((yield from _read_escape(reader)))
        elif char == "\n" and not is_long:
            raise MalformedError
        else:
            pieces.append(char)


def _read_escape(reader: TextReader) -> Steps[str]:
    char = yield from reader.take()
    if char not in _HEX_LENS:
        return _ESCAPES.get(char, "\\" + char)
    digits = ""
    while len(digits) < _HEX_LENS[char] and (yield from reader.peek()) in _HEX:
        digits += yield from reader.take()
    if len(digits) < _HEX_LENS[char] or int(digits, 16) > 0x10FFFF:
        raise MalformedError
    return chr(int(digits, 16))
