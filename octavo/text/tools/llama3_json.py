"""Llama 3's JSON format: an object with `name` and `parameters`, alone or behind a token.

    <|python_tag|>{"type": "function", "name": "f", "parameters": {"a": 1}}; {"name": "g", ...}

Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_3/prompt_format.md
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.text.tools.json_call import JSONCallParser

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_TAG = "<|python_tag|>"


class Llama3JSONParser(JSONCallParser):
    """Objects anywhere in the text; without the token, only those that name an offered tool."""

    markers = (_TAG,)

    def _starts(self) -> tuple[str, ...]:
        return (_TAG, "{")

    def _read_calls(self, start: str) -> Steps[None]:
        reader = self._reader
        is_bare = start != _TAG
        if is_bare:
            yield from self._read_json_call(is_bare=True, is_open=True)
        else:
            yield from reader.space()
            yield from self._read_json_call()
        while True:
            yield from reader.space()
            if (yield from reader.peek()) == ";":
                yield from reader.take()
                yield from reader.space()
            if (yield from reader.peek()) != "{":
                return
            yield from self._read_json_call(is_bare=is_bare)
