"""Server-sent events as OpenAI streams them: one JSON value per event, then `[DONE]`.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

DONE = b"data: [DONE]\n\n"
"""The event that ends every stream."""

KEEP_ALIVE = b": keep-alive\n\n"
"""A comment: it shows that the stream lives, and readers skip it."""

_encoder = msgspec.json.Encoder()


def event(value: Any) -> bytes:
    """One event. JSON has no raw line breaks, so the value always fits on one `data` line."""
    return b"data: %b\n\n" % _encoder.encode(value)


def named_event(name: str, value: Any) -> bytes:
    """One event with a name, by which readers tell what its value is."""
    return b"event: %b\n%b" % (name.encode("ascii"), event(value))


class TextEvents:
    """Events that differ in one text alone: the rest of them is encoded once.

    A stream's tokens make such events, and their JSON is mostly the same names and nulls again.

    Args:
        make: the value of an event with this text somewhere in it, once.
    """

    __slots__ = ("_head", "_tail")

    def __init__(self, make: Callable[[str], Any]) -> None:
        mark = uuid4().hex  # nothing else in the event spells it
        self._head, found, self._tail = event(make(mark)).partition(b'"%b"' % mark.encode())
        assert found, "the text is not in the event"

    def event(self, text: str) -> bytes:
        """The same bytes as `event(make(text))`."""
        return b"%b%b%b" % (self._head, _encoder.encode(text), self._tail)
