"""Calls written as JSON objects, `{"name": "f", "arguments": {...}}`: what several formats share.

Keys come in any order. Arguments that come behind the name are handed on while they come; in front
of it, they wait. Some models write the arguments' object as a string (`"{\\"a\\": 1}"`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.text.tools import json_text
from octavo.text.tools.parser import ScanningParser
from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_ARGUMENTS = ("arguments", "parameters")
_LABELS = ("id", "type")


class JSONCallParser(ScanningParser):
    """For subclasses: reads one call, or several."""

    def _read_json_calls(self) -> Steps[None]:
        """Read an object, several in a row, or a list of them."""
        reader = self._reader
        yield from reader.space()
        if (yield from reader.peek()) != "[":
            while True:
                yield from self._read_json_call()
                yield from reader.space()
                if (yield from reader.peek()) != "{":
                    return
        yield from reader.literal("[")
        while True:
            yield from reader.space()
            yield from self._read_json_call()
            yield from reader.space()
            if (yield from reader.one_of((",", "]"))) == "]":
                reader.commit()
                return
            reader.commit()

    def _read_json_call(self, *, is_bare: bool = False, is_open: bool = False) -> Steps[None]:
        """Read one object.

        Args:
            is_bare: nothing but the object says that it is a call: its name must be a tool's, and
                it must have arguments.
            is_open: its `{` was read.

        Raises:
            MalformedError: it is no call, or breaks off.
        """
        reader = self._reader
        name: str | None = None
        arguments: str | None = None
        if not is_open:
            yield from reader.literal("{")
        while True:
            yield from reader.space()
            key = yield from json_text.read_decoded_string(reader)
            yield from reader.space()
            yield from reader.literal(":")
            yield from reader.space()
            if key == "name" and name is None:
                name = yield from json_text.read_decoded_string(reader)
                if not name or (is_bare and self._tools and name not in self._tools):
                    raise MalformedError
                if arguments is not None:
                    self._begin(name)
                    self._give_arguments(arguments)
            elif key in _ARGUMENTS and arguments is None:
                arguments = yield from self._read_arguments(name)
            elif key in _LABELS:
                yield from json_text.read_decoded_string(reader)
            else:
                raise MalformedError
            yield from reader.space()
            if (yield from reader.one_of((",", "}"))) == "}":
                break
        if name is None or (is_bare and arguments is None):
            raise MalformedError
        if arguments is None:
            self._begin(name)
            self._give_arguments("{}")
        reader.commit()

    def _read_arguments(self, name: str | None) -> Steps[str]:
        """Read the value of the arguments' key; begins the call if its name is known."""
        reader = self._reader
        char = yield from reader.peek()
        if char == "{" and name is not None:
            self._begin(name)
            yield from json_text.read_value(reader, self._give_arguments)
            return ""
        if char == "{":
            pieces: list[str] = []
            yield from json_text.read_value(reader, pieces.append)
            arguments = "".join(pieces)
        elif char == '"':
            arguments = yield from json_text.read_decoded_string(reader)
            if not json_text.is_object(arguments):
                raise MalformedError
        else:
            yield from reader.literal("null")
            arguments = "{}"
        if name is not None:
            self._begin(name)
            self._give_arguments(arguments)
        return arguments
