# ruff: noqa: RUF001, RUF002 - the tokens are spelled with fullwidth bars
"""DeepSeek's formats, of R1 and V3, and of V3.1, whose tokens are the same.

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f
    ```json
    {"a": 1}
    ```<｜tool▁call▁end｜><｜tool▁calls▁end｜>

    <｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>...

Source: the chat templates of https://huggingface.co/deepseek-ai/DeepSeek-V3 and DeepSeek-V3.1
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from octavo.text.tools import json_text
from octavo.text.tools.parser import ScanningParser
from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"
_SEP = "<｜tool▁sep｜>"
_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_MAX_NAME_LEN = 256


class DeepSeekParser(ScanningParser):
    """Both formats, told apart by what follows the separator: a name, or the arguments."""

    markers = (_CALLS_BEGIN, _CALL_BEGIN, _SEP, _CALL_END, _CALLS_END)

    def _starts(self) -> tuple[str, ...]:
        return (_CALLS_BEGIN, _CALL_BEGIN)

    def _read_calls(self, start: str) -> Steps[None]:
        reader = self._reader
        if start == _CALLS_BEGIN:
            yield from reader.space()
            yield from reader.literal(_CALL_BEGIN)
        while True:
            yield from self._read_call()
            yield from reader.space()
            yield from reader.literal(_CALL_END)
            reader.commit()
            yield from reader.space()
            if (yield from reader.one_of((_CALL_BEGIN, _CALLS_END))) == _CALLS_END:
                reader.commit()
                return

    def _read_call(self) -> Steps[None]:
        reader = self._reader
        yield from reader.space()
        name = yield from reader.whole_run(_NAME, _MAX_NAME_LEN)
        yield from reader.literal(_SEP)
        yield from reader.space()
        is_fenced = (yield from reader.peek()) != "{"
        if is_fenced:  # what came first was the kind of the call, always `function`
            name = yield from reader.whole_run(_NAME, _MAX_NAME_LEN)
            yield from reader.space()
            yield from reader.literal("```json")
            yield from reader.space()
        if not name or (yield from reader.peek()) != "{":
            raise MalformedError
        self._begin(name)
        yield from json_text.read_value(reader, self._give_arguments)
        if is_fenced:
            yield from reader.space()
            yield from reader.literal("```")
