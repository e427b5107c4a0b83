"""Incremental parser of server-sent events: bytes in, the `data` of each finished event out.

Follows the WHATWG HTML standard, section 9.2.6 "Interpreting an event stream", as far as `data`
goes; `event`, `id` and `retry` are skipped, since OpenAI's API uses none of them. Knows nothing of
HTTP, JSON or clocks.
"""

from __future__ import annotations

import re

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BOM = b"\xef\xbb\xbf"


class SSEParser:
    """Feed it the body as it comes, in whatever pieces.

    Invariant: `_tail` holds the bytes of at most one unfinished line; `_data` the `data` lines of
    the unfinished event.
    """

    def __init__(self) -> None:
        self._tail = b""
        self._data: list[bytes] = []
        self._at_start = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of every event that `chunk` finished, in order; an event without data is none.

        An event is finished by an empty line, so one that the end of the body cuts off is dropped,
        as the standard wants it.
        """
        if not chunk:
            return []
        if self._after_cr:
            # A carriage return ended the last line; a line feed now is the other half of it.
            chunk = chunk.removeprefix(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        buffer = self._tail + chunk
        if self._at_start:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._tail = buffer
                return []
            buffer = buffer.removeprefix(_BOM)
            self._at_start = False
        *lines, self._tail = _LINE_END.split(buffer)
        events: list[bytes] = []
        for line in lines:
            if line:
                self._field(line)
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        return events

    def _field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if name == b"data":
            self._data.append(value.removeprefix(b" "))
