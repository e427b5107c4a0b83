"""Text that comes in pieces, for parsers written as if all of it were there.

A parser is a generator: it reads, and yields where it needs more. It never sees where the pieces
begin and end, so that its result cannot depend on them.

What is read while a call is not certain yet is held; when the text turns out to be none
(`MalformedError`), it is there to be given back as it came. Nothing is read twice: the time is
linear in the text, whatever a model writes. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

_T = TypeVar("_T")
Steps = Generator[None, None, _T]
"""A piece of a parser: yields where it needs more text, and returns a `_T`."""

_SPACE = re.compile(r"\s*")


class MalformedError(Exception):
    """The text is not what it looked like; what was held is ordinary text."""


class TextReader:
    """The unread text, and what was read since the last `commit`."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._is_closed = False
        self._held: list[str] = []

    def feed(self, text: str) -> None:
        """More text."""
        self._text = self._text[self._at :] + text
        self._at = 0

    def close(self) -> None:
        """No more text will come."""
        self._is_closed = True

    @property
    def is_at_end(self) -> bool:
        """Whether everything was read and no more will come."""
        return self._is_closed and self._at == len(self._text)

    def commit(self) -> str:
        """What was held; from now on it is the caller's."""
        held = "".join(self._held)
        self._held.clear()
        return held

    def peek(self) -> Steps[str]:
        """The next character, unread; nothing at the text's end."""
        while self._at == len(self._text):
            if self._is_closed:
                return ""
            yield
        return self._text[self._at]

    def take(self) -> Steps[str]:
        """The next character.

        Raises:
            MalformedError: the text has ended.
        """
        char = yield from self.peek()
        if not char:
            raise MalformedError
        self._skip(1)
        return char

    def _skip(self, num_chars: int) -> str:
        taken = self._text[self._at : self._at + num_chars]
        self._at += num_chars
        self._held.append(taken)
        return taken

    def run(self, pattern: re.Pattern[str], max_len: int | None = None) -> Steps[str]:
        """All that matches a pattern of the form `[...]*`, as far as it has come, up to `max_len`.

        The run is over when the next character does not match; a run may be given in pieces, so
        callers read on until it is empty.
        """
        if not (yield from self.peek()):
            return ""
        end = len(self._text) if max_len is None else self._at + max_len
        match = pattern.match(self._text, self._at, end)
        assert match is not None, "the pattern matches nothing at all"
        return self._skip(match.end() - self._at)

    def whole_run(self, pattern: re.Pattern[str], max_len: int | None = None) -> Steps[str]:
        """All that matches a pattern of the form `[...]*`.

        Raises:
            MalformedError: it is longer than `max_len`.
        """
        whole = ""
        room = None
        while True:
            if max_len is not None:
                room = max_len + 1 - len(whole)
            piece = yield from self.run(pattern, room)
            whole += piece
            if max_len is not None and len(whole) > max_len:
                raise MalformedError
            if not piece:
                return whole

    def space(self) -> Steps[None]:
        """Read whitespace."""
        yield from self.whole_run(_SPACE)

    def literal(self, text: str) -> Steps[None]:
        """Read exactly this text.

        Raises:
            MalformedError: another character comes; it is unread.
        """
        for char in text:
            if (yield from self.peek()) != char:
                raise MalformedError
            self._skip(1)

    def one_of(self, texts: Sequence[str]) -> Steps[str]:
        """Read exactly one of several texts, none of them another's beginning.

        Raises:
            MalformedError: a character that none of them has there; it is unread.
        """
        matched = ""
        while matched not in texts:
            char = yield from self.peek()
            if not char or not any(text.startswith(matched + char) for text in texts):
                raise MalformedError
            matched += self._skip(1)
        return matched
