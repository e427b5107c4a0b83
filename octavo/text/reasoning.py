"""Tells a model's reasoning from its answer, while the text comes.

Reasoning stands at the beginning of an answer, between two markers, of which the first may be the
prompt's end. Whitespace at the edges of both texts is dropped: templates write their own. Text
without the first marker is the answer as it is. Knows no tool calls.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from octavo.text.tools.events import Content, Reasoning
from octavo.text.tools.parser import AnswerPart
from octavo.text.tools.reader import MalformedError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.text.tools.reader import Steps

_ANY = re.compile(r"[\s\S]*")
_UP_TO_TAG = re.compile(r"[^<]*")


class ReasoningParser(AnswerPart):
    """`<think>...</think>`, as DeepSeek-R1, Qwen3 and most others write it.

    Attributes:
        starts, ends: the markers; the nth end belongs to the nth start.
        markers: texts that the tokenizer may have as special tokens.

    Args:
        prompt_tail: the end of the prompt: with a start there, the answer begins as reasoning.
        continued: the part of the answer that the prompt has: so it does, if it is open there.
    """

    starts: ClassVar[tuple[str, ...]] = ("<think>",)
    ends: ClassVar[tuple[tuple[str, ...], ...]] = (("</think>",),)
    markers: ClassVar[tuple[str, ...]] = ("<think>", "</think>")

    def __init__(self, prompt_tail: str = "", continued: str = "") -> None:
        super().__init__()
        tail = prompt_tail.rstrip()
        self._start = None
        for start, ends in zip(self.starts, self.ends, strict=True):
            is_open = continued.rfind(start) > max(continued.rfind(end) for end in ends)
            if is_open or tail.endswith(start):
                self._start = start

    @property
    def is_open(self) -> bool:
        """Whether the answer begins as reasoning."""
        return self._start is not None

    def _parse(self) -> Steps[None]:
        reader = self._reader
        start = self._start
        try:
            if start is None:
                yield from reader.space()
                start = yield from reader.one_of(self.starts)
            reader.commit()
            yield from reader.space()
            reader.commit()
            ends = self.ends[self.starts.index(start)]
            yield from self._read_reasoning(ends)
            yield from self._read_content(start)
        except MalformedError:
            self._give_content(reader.commit())
        while (yield from reader.run(_ANY)):
            self._give_content(reader.commit())

    def _read_reasoning(self, ends: tuple[str, ...]) -> Steps[None]:
        """Read reasoning and its end; whitespace in front of the end is not of it."""
        reader = self._reader
        first = re.escape("".join({end[0] for end in ends}))
        plain = re.compile(rf"[^\s{first}]*")
        while (yield from reader.peek()):
            while (yield from reader.run(plain)):
                self._give_reasoning(reader.commit())
            yield from reader.space()
            try:
                yield from reader.one_of(ends)
            except MalformedError:
                if not reader.is_at_end:
                    self._give_reasoning(reader.commit())
            else:
                reader.commit()
                break
        self._give_reasoning(reader.commit().rstrip())

    def _read_content(self, start: str) -> Steps[None]:
        """Read what follows reasoning; what is left is content as it is."""
        yield from self._reader.space()
        self._reader.commit()

    def _give_reasoning(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text))

    def _give_content(self, text: str) -> None:
        if text:
            self._events.append(Content(text))


class MistralReasoningParser(ReasoningParser):
    """Magistral's `[THINK]...[/THINK]`."""

    starts = ("[THINK]",)
    ends = (("[/THINK]",),)
    markers = ("[THINK]", "[/THINK]")


class GraniteReasoningParser(ReasoningParser):
    """Granite's two forms: sentences (3.2), or tags around the thoughts and the response (3.3)."""

    starts = ("<think>", "Here is my thought process:", "Here's my thought process:")
    ends = (("</think>",), *[("Here is my response:", "Here's my response:")] * 2)
    markers = ("<think>", "</think>", "<response>", "</response>")

    def _read_content(self, start: str) -> Steps[None]:
        yield from super()._read_content(start)
        reader = self._reader
        if start != "<think>":
            return
        yield from reader.literal("<response>")
        reader.commit()
        while not reader.is_at_end:
            while (yield from reader.run(_UP_TO_TAG)):
                self._give_content(reader.commit())
            try:
                yield from reader.literal("</response>")
            except MalformedError:
                self._give_content(reader.commit())
            else:
                reader.commit()
                return


REASONING_PARSERS: Mapping[str, type[ReasoningParser]] = {
    "deepseek_r1": ReasoningParser,
    "granite": GraniteReasoningParser,
    "mistral": MistralReasoningParser,
    "qwen3": ReasoningParser,
}
"""By the names of `--reasoning-parser`; `gpt_oss` is there too, see `answers.py`."""
