"""Mistral's formats: a JSON list behind one token, and since tokenizer 11 a token for each call.

    [TOOL_CALLS][{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}]
    [TOOL_CALLS]f[CALL_ID]abcdefghi[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}

Source: https://github.com/mistralai/mistral-common
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from octavo.text.tools import json_text
from octavo.text.tools.json_call import JSONCallParser
from octavo.text.tools.parser import short_id
from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_MAX_NAME_LEN = 256


class MistralParser(JSONCallParser):
    """Both formats, told apart by what follows `[TOOL_CALLS]`."""

    markers = ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")

    @staticmethod
    def new_id() -> str:
        """Nine letters and digits, which the templates insist on."""
        return short_id()

    def _starts(self) -> tuple[str, ...]:
        return ("[TOOL_CALLS]",)

    def _read_calls(self, start: str) -> Steps[None]:
        reader = self._reader
        yield from reader.space()
        if (yield from reader.peek()) in ("[", "{"):
            yield from self._read_json_calls()
            return
        name = yield from reader.whole_run(_NAME, _MAX_NAME_LEN)
        if not name:
            raise MalformedError
        call_id: str | None = None
        while (yield from reader.peek()) != "{":
            yield from reader.space()
            if (yield from reader.peek()) == "{":
                break
            if (yield from reader.one_of(("[CALL_ID]", "[ARGS]"))) == "[CALL_ID]":
                call_id = yield from reader.whole_run(_NAME, _MAX_NAME_LEN)
        self._begin(name, call_id)
        yield from json_text.read_value(reader, self._give_arguments)
