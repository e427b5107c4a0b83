"""Calls written as a Python list: Llama 3.2 and 4 and others.

    [get_weather(city='Oslo', days=2), get_time()]

Source: https://github.com/meta-llama/llama-models/blob/main/models/llama3_2/text_prompt_format.md
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from octavo.text.tools.json_text import dumps
from octavo.text.tools.parser import ScanningParser
from octavo.text.tools.python_call import read_literal
from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from octavo.text.tools.reader import Steps

_NAME = re.compile(r"[A-Za-z0-9_.\-]*")
_KEY = re.compile(r"[A-Za-z0-9_]*")
_MAX_NAME_LEN = 256
_START, _END = "<|python_start|>", "<|python_end|>"
_TAG = "<|python_tag|>"


class PythonicParser(ScanningParser):
    """A list of calls of offered tools, anywhere in the text, with or without the tokens around it.

    A call is given when it is complete: its arguments may turn out to be no literals.
    """

    markers = (_START, _END, _TAG)

    def _starts(self) -> tuple[str, ...]:
        return (_START, _TAG, "[")

    def _read_calls(self, start: str) -> Steps[None]:
        reader = self._reader
        if start != "[":
            yield from reader.space()
            yield from reader.literal("[")
        while True:
            yield from reader.space()
            yield from self._read_call()
            yield from reader.space()
            if (yield from reader.one_of((",", "]"))) == "]":
                break
            reader.commit()
        reader.commit()
        if start == _START:
            yield from self._ending(_END)

    def _read_call(self) -> Steps[None]:
        reader = self._reader
        name = yield from reader.whole_run(_NAME, _MAX_NAME_LEN)
        if not name or (self._tools and name not in self._tools):
            raise MalformedError
        yield from reader.space()
        yield from reader.literal("(")
        arguments: dict[str, str] = {}
        while True:
            yield from reader.space()
            if (yield from reader.peek()) == ")":
                yield from reader.take()
                break
            if arguments:
                yield from reader.literal(",")
                yield from reader.space()
                if (yield from reader.peek()) == ")":
                    continue
            key = yield from reader.whole_run(_KEY, _MAX_NAME_LEN)
            if not key or key in arguments:
                raise MalformedError
            yield from reader.space()
            yield from reader.literal("=")
            yield from reader.space()
            arguments[key] = yield from read_literal(reader)
        self._begin(name)
        members = [f"{dumps(key)}: {value}" for key, value in arguments.items()]
        self._give_arguments(f"{{{', '.join(members)}}}")
