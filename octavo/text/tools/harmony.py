"""Harmony, the format of gpt-oss: messages with headers, in channels.

    <|channel|>analysis<|message|>...<|end|>
    <|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>
    <|start|>assistant<|channel|>final<|message|>...<|return|>

`analysis` is reasoning, `final` is content, `commentary` is content too (a preamble), and a message
to a function is a call, in whatever channel. The one parser does the work of both kinds. Messages
of one kind are parted by a line break. Source: https://github.com/openai/harmony/blob/main/docs
"""

from __future__ import annotations

import contextlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from octavo.text.tools.events import Content, Reasoning
from octavo.text.tools.parser import ToolParser
from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.text.tools.parser import Tool
    from octavo.text.tools.reader import Steps

_START, _CHANNEL, _MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
_CONSTRAIN = "<|constrain|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
_STOPS = (*_ENDS, _START, _CHANNEL)
"""What ends a body; the last two only where the model forgets to end a message."""

_WORD = re.compile(r"[^\s<]*")
_PLAIN = re.compile(r"[^<]*")
_MAX_WORD_LEN = 256
_FUNCTIONS = "functions."


@dataclass
class _Header:
    channel: str = ""
    recipient: str = ""
    content_type: str = ""


class HarmonyParser(ToolParser):
    """Reads the messages behind the prompt's `<|start|>assistant`.

    Args:
        tools: what the request offers; without any there are no calls.
        prompt_tail: the end of the prompt, which may hold the beginning of a message.
    """

    markers = (*_STOPS, _CONSTRAIN, _MESSAGE)

    def __init__(self, tools: Sequence[Tool], prompt_tail: str = "") -> None:
        super().__init__(tools)
        self._given: set[str] = set()  # kinds of text that the answer has so far
        self._is_new = False  # the next text is the first of its message
        begun = prompt_tail.rpartition(f"{_START}assistant")[2]
        if begun and begun != prompt_tail and "to=" not in begun:
            self.push(begun)  # what the prompt says is no event of the answer
            self._given.clear()

    def _parse(self) -> Steps[None]:
        reader = self._reader
        stop = ""
        while (yield from reader.peek()):
            header = _Header()
            self._is_new = True
            try:
                yield from self._read_header(header, stop)
            except MalformedError:
                held, header = reader.commit(), _Header()
                if held.strip() or not (self._given or self._num_calls):
                    self._give("content", held)
            reader.commit()
            stop = yield from self._read_body(header)

    def _read_header(self, header: _Header, marker: str) -> Steps[None]:
        """Read all that comes before a body, behind the marker read last.

        Raises:
            MalformedError: it is no header; what was held is ordinary text.
        """
        reader = self._reader
        while marker != _MESSAGE:
            yield from reader.space()
            if (yield from reader.peek()) == "<":
                marker = yield from reader.one_of((_START, _CHANNEL, _CONSTRAIN, _MESSAGE))
                continue
            yield from self._read_word(header, marker)
            if marker == _START:
                marker = ""

    def _read_word(self, header: _Header, marker: str) -> Steps[None]:
        word = yield from self._reader.whole_run(_WORD, _MAX_WORD_LEN)
        if not word:
            raise MalformedError
        if word.startswith("to=") and not header.recipient:
            header.recipient = word.removeprefix("to=")
        elif marker == _START and word == "assistant":
            pass
        elif marker == _CHANNEL and not header.channel:
            header.channel = word
        elif marker in (_CHANNEL, _CONSTRAIN) and not header.content_type:
            header.content_type = word
        else:
            raise MalformedError

    def _read_body(self, header: _Header) -> Steps[str]:
        """Read a message's text; the marker that ended it, or nothing at the text's end."""
        reader = self._reader
        kind = self._kind(header)
        if kind == "call":
            self._begin(header.recipient.removeprefix(_FUNCTIONS))
        has_text = False
        stop = ""
        while not stop and (yield from reader.peek()):
            while (yield from reader.run(_PLAIN)):
                has_text = True
                self._give(kind, reader.commit())
            if (yield from reader.peek()):
                with contextlib.suppress(MalformedError):
                    stop = yield from reader.one_of(_STOPS)
                held = reader.commit()
                if not stop:
                    has_text = True
                    self._give(kind, held)
        if kind == "call" and stop and not has_text:
            self._give_arguments("{}")
        return stop

    def _kind(self, header: _Header) -> str:
        name = header.recipient.removeprefix(_FUNCTIONS)
        if self._tools and (name in self._tools or header.recipient.startswith(_FUNCTIONS)):
            return "call"
        return "reasoning" if header.channel == "analysis" else "content"

    def _give(self, kind: str, text: str) -> None:
        if kind == "call":
            self._give_arguments(text)
            return
        if self._is_new and kind in self._given:
            text = "\n" + text
        self._is_new = False
        self._given.add(kind)
        self._events.append(Reasoning(text) if kind == "reasoning" else Content(text))
