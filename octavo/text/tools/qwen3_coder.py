"""Qwen3-Coder's format: tags for the function and for each parameter, whose value is plain text.

    <tool_call>
    <function=f>
    <parameter=a>
    1
    </parameter>
    </function>
    </tool_call>

The tool's schema says what a text stands for. Source: the chat template of
https://huggingface.co/Qwen/Qwen3-Coder-30B-A3B-Instruct
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from octavo.text.tools import json_text
from octavo.text.tools.parser import ScanningParser
from octavo.text.tools.reader import MalformedError
from octavo.text.tools.schema import is_only_text, to_json, types_of

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_NAME = re.compile(r"[^<>\n]*")
_PLAIN = re.compile(r"[^<\n]*")
_MAX_NAME_LEN = 256
_VALUE_END = "</parameter>"
_ENDS = (_VALUE_END, "<parameter=", "</function>")
"""What ends a value. Models forget the first of them: the others are left unread."""


class Qwen3CoderParser(ScanningParser):
    """Calls in `<tool_call>`, which models forget at times. Strings are handed on as they come."""

    markers = ("<tool_call>", "</tool_call>")

    def _starts(self) -> tuple[str, ...]:
        return ("<tool_call>", "<function=")

    def _read_calls(self, start: str) -> Steps[None]:
        reader = self._reader
        if start == "<tool_call>":
            yield from reader.space()
            yield from reader.literal("<function=")
        yield from self._read_function()
        reader.commit()
        yield from self._ending("</tool_call>")

    def _read_function(self) -> Steps[None]:
        reader = self._reader
        name = (yield from reader.whole_run(_NAME, _MAX_NAME_LEN)).strip()
        yield from reader.literal(">")
        if not name:
            raise MalformedError
        self._begin(name)
        keys: set[str] = set()
        tag = ""
        while True:
            if not tag:
                yield from reader.space()
                tag = yield from reader.one_of(("<parameter=", "</function>"))
            if tag == "</function>":
                self._give_arguments("}" if keys else "{}")
                return
            key = (yield from reader.whole_run(_NAME, _MAX_NAME_LEN)).strip()
            yield from reader.literal(">")
            if not key or key in keys:
                raise MalformedError
            self._give_arguments(f"{', ' if keys else '{'}{json_text.dumps(key)}: ")
            keys.add(key)
            tag = yield from self._read_value(types_of(self._tools.get(name), key))

    def _read_value(self, types: frozenset[str]) -> Steps[str]:
        """Read a value; the tag read behind it if that was not its own end, else nothing."""
        if is_only_text(types):
            self._give_arguments('"')
            pieces: list[str] = []
            end = yield from self._read_text(pieces, is_streamed=True)
            self._give_arguments('"')
        else:
            pieces = []
            end = yield from self._read_text(pieces, is_streamed=False)
            self._give_arguments(to_json("".join(pieces), types))
        return "" if end == _VALUE_END else end

    def _read_text(self, pieces: list[str], *, is_streamed: bool) -> Steps[str]:
        """Read up to what ends a value, which is returned; one line break on each side is not of
        the value. A streamed value is a JSON string, of which the text ends never.
        """
        reader = self._reader
        if (yield from reader.peek()) == "\n":
            yield from reader.take()
        waiting = ""  # a line break that is the value's if more of it follows

        def give(text: str) -> None:
            if is_streamed:
                self._give_arguments(json_text.dumps(text)[1:-1])
            else:
                pieces.append(text)

        while True:
            char = yield from reader.peek()
            if not char:
                raise MalformedError
            if char == "\n":
                if waiting:
                    give(waiting)
                waiting = yield from reader.take()
            elif char == "<":
                seen = ""
                while char and any(end.startswith(seen + char) for end in _ENDS):
                    seen += yield from reader.take()
                    if seen in _ENDS:
                        return seen
                    char = yield from reader.peek()
                if not char:
                    raise MalformedError
                give(waiting + seen)
                waiting = ""
            else:
                run = yield from reader.run(_PLAIN)
                give(waiting + run)
                waiting = ""
