"""The common part of all parsers of tool calls: ordinary text around calls, and what begins them.

A parser is fed one answer's text in pieces and gives events; the pieces' borders make no
difference. Text that only looks like a call comes out as it came in. Once a call's name is out it
stays a call: if its arguments break off, they stay as they are, and the rest is ordinary text.

Whitespace at the outer edges of the text is dropped when there are calls: templates write their own
around them. Knows no format: each is a subclass in a file of its own.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import string
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from octavo.text.tools.events import CallArguments, CallBegin, Content, Event, merged
from octavo.text.tools.reader import MalformedError, Steps, TextReader

_ALPHANUMERIC = string.ascii_letters + string.digits

Tool = Mapping[str, Any]
"""A function that is offered: `name`, and perhaps `description` and `parameters`, a schema."""


class AnswerPart(ABC):
    """An incremental parser: `push` text as it comes, then `finish` once."""

    def __init__(self) -> None:
        self._reader = TextReader()
        self._events: list[Event] = []
        self._run = self._parse()

    @abstractmethod
    def _parse(self) -> Steps[None]:
        """Read everything; ends when the reader is closed and empty."""

    def push(self, text: str) -> list[Event]:
        """What this text adds."""
        self._reader.feed(text)
        return self._advance()

    def finish(self) -> list[Event]:
        """What is left when the text has ended."""
        self._reader.close()
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._run, None)
        events, self._events = self._events, []
        return merged(events)


class ToolParser(AnswerPart):
    """A parser that gives calls.

    Attributes:
        markers: texts that begin or part calls, which the tokenizer may have as special tokens.

    Args:
        tools: what the request offers.
    """

    markers: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__()
        self._tools = {str(tool["name"]): tool for tool in tools}
        self._num_calls = 0

    @staticmethod
    def new_id() -> str:
        """An id for a call."""
        return f"call_{secrets.token_hex(12)}"

    def _begin(self, name: str, call_id: str | None = None) -> None:
        """A call is certain: what was held was its beginning."""
        self._reader.commit()
        self._events.append(CallBegin(self._num_calls, call_id or self.new_id(), name))
        self._num_calls += 1

    def _give_arguments(self, text: str) -> None:
        """A piece of the arguments of the call begun last; what was held made it."""
        self._reader.commit()
        if text:
            self._events.append(CallArguments(self._num_calls - 1, text))


class ScanningParser(ToolParser):
    """Ordinary text in which certain texts may begin calls."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        super().__init__(tools)
        self._has_content = False
        self._space = ""  # whitespace that is content only if more content follows

    def _parse(self) -> Steps[None]:
        starts = self._starts()
        first_chars = {start[0] for start in starts}
        plain = re.compile(f"[^{re.escape(''.join(sorted(first_chars)))}]*")
        assert all(start[0] not in start[1:] for start in starts), "no text is scanned twice"
        reader = self._reader
        while True:
            while (yield from reader.run(plain)):
                self._give_text(reader.commit())
            if not (yield from reader.peek()):
                break
            with contextlib.suppress(MalformedError):
                start = yield from reader.one_of(starts)
                yield from self._read_calls(start)
            self._give_text(reader.commit())
        if self._space and not self._num_calls:
            self._events.append(Content(self._space))

    @abstractmethod
    def _starts(self) -> tuple[str, ...]:
        """Texts at which calls may begin; none has its first character in it again."""

    @abstractmethod
    def _read_calls(self, start: str) -> Steps[None]:
        """Read what follows a start.

        What is still held at its end, or when it raises, is ordinary text.

        Raises:
            MalformedError: it is no call, or what follows a call is none.
        """

    def _give_text(self, text: str) -> None:
        core = text.rstrip()
        if not core:
            self._space += text
            return
        space = text[len(core) :]
        is_inside = self._has_content or not self._num_calls
        core = self._space + core if is_inside else core.lstrip()
        self._space, self._has_content = space, True
        self._events.append(Content(core))

    def _ending(self, text: str) -> Steps[None]:
        """Read whitespace and the text that ends calls.

        Raises:
            MalformedError: it is not there, which is forgiven.
        """
        yield from self._reader.space()
        yield from self._reader.literal(text)
        self._reader.commit()


def short_id() -> str:
    """An id of nine letters and digits, which Mistral's templates insist on."""
    return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
