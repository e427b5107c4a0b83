"""A backend's stream in whole events, and what accounting must know of them.

Bytes are cut at empty lines and searched for a few words; JSON is parsed only in the one or two
events that have the usage. That is sound because a quotation mark inside of a JSON string is always
written `\\"`: what a model says cannot contain `"usage":` as these bytes.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import UpstreamError
from octavo.gateway.usage_cost import tells_cost, with_cost
from octavo.gateway.usage_of import parse_usage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from octavo.gateway.model import Route, Tokens

MAX_EVENT_BYTES = 8 * 1024**2

_END = re.compile(rb"\r\n\r\n|\n\n|\r\r|\r\n\n|\n\r\n")
_FINISH = re.compile(rb'"(?:finish_reason|stop_reason)": ?"([^"\\]*)"')
_NULL_USAGE = (b', "usage": null', b'"usage":null,', b'"usage": null, ')
_DATA = re.compile(rb"^data: ?(.*?)\r?$", re.MULTILINE)
_ERRORS = (b'data: {"error"', b'data:{"error"', b"event: error", b"event:error")
_ENDS: dict[str, tuple[bytes, ...]] = {
    "messages": (b"event: message_stop", b"event:message_stop"),
    "responses": (b'"response.completed"', b'"response.incomplete"', b'"response.failed"'),
}
_DONE = (b"data: [DONE]", b"data:[DONE]")


class EventSplitter:
    """Makes whole events of pieces that are cut anywhere."""

    __slots__ = ("_num_rest", "_rest")

    def __init__(self) -> None:
        self._rest: list[bytes] = []
        self._num_rest = 0

    @property
    def has_rest(self) -> bool:
        """Whether an event has begun that is not whole."""
        return bool(self._rest)

    def feed(self, piece: bytes) -> list[bytes]:
        """The events that are whole now, each with its empty line.

        Raises:
            UpstreamError: an event is longer than `MAX_EVENT_BYTES`.
        """
        if self._rest:
            if self._may_end(piece):
                piece = b"".join((*self._rest, piece))
                self._rest.clear()
                self._num_rest = 0
            else:
                return self._keep(piece)
        if b"\r" in piece:
            return self._feed_lines(piece)
        if piece.find(b"\n\n") == len(piece) - 2 > 0:
            return [piece]  # one event that came alone, as most do
        events = piece.split(b"\n\n")
        rest = events.pop()
        if rest:
            self._keep(rest)
        return [event + b"\n\n" for event in events if event]

    def _may_end(self, piece: bytes) -> bool:
        """Whether the event that has begun may end here: an empty line may lie across pieces."""
        border = self._rest[-1][-3:] + piece[:3]
        if len(self._rest[-1]) < 3 or b"\r" in border or b"\n\n" in border:
            return True
        return b"\n\n" in piece or b"\r" in piece

    def _keep(self, piece: bytes) -> list[bytes]:
        self._rest.append(piece)
        self._num_rest += len(piece)
        if self._num_rest > MAX_EVENT_BYTES:
            raise UpstreamError("an event of the backend has no end", code="upstream_garbage")
        return []

    def _feed_lines(self, piece: bytes) -> list[bytes]:
        """Lines that end with CR LF, or CR: no JSON has a raw CR."""
        events = []
        start = 0
        for end in _END.finditer(piece):
            if end.start() > start:
                events.append(piece[start : end.end()])
            start = end.end()
        if start < len(piece):
            self._keep(piece[start:])
        return events


class StreamWatch:
    """Sees the events of one stream go by.

    Args:
        route: whose shape they have.
        drops_usage: the usage was asked for by us, not by the client: it is taken out again.
        drops_cost: likewise what usage tells of device time and money.

    Attributes:
        tokens: what the backend says it used; None: it did not say.
        finish_reason: of the last choice that told one, or empty.
        error: what the backend said went wrong, or empty.
        is_done: the stream's last event was seen.
        num_events: that were passed on, without comments.
    """

    __slots__ = (
        "_drops_cost",
        "_drops_usage",
        "_ends",
        "_is_responses",
        "_min_len",
        "_num_bytes",
        "_route",
        "error",
        "finish_reason",
        "is_done",
        "num_events",
        "tokens",
    )

    def __init__(
        self, route: Route, *, drops_usage: bool = False, drops_cost: bool = False
    ) -> None:
        self._route: Route = route
        self._is_responses = route == "responses"
        self._drops_usage = drops_usage
        self._drops_cost = drops_cost
        self._ends = _ENDS.get(route, _DONE)
        self._min_len = 0
        self._num_bytes = 0
        self.tokens: Tokens | None = None
        self.finish_reason = ""
        self.error = ""
        self.is_done = False
        self.num_events = 0

    def see(self, event: bytes) -> bytes:
        """What the client gets of an event: it, or empty."""
        if event[0] == 0x3A:  # a comment
            return event
        size = len(event)
        if b'"usage":' in event:
            if self._drops_usage and b',"usage":null' in event:  # as most servers write it
                event = event.replace(b',"usage":null', b"", 1)
            elif b'"usage":{' in event or b'"usage": {' in event:
                self._parse(event)
                if self._drops_usage and (b'"choices":[]' in event or b'"choices": []' in event):
                    return b""
                if self._drops_cost and tells_cost(event):
                    event = event_with_cost(self._route, event, {})
            elif self._drops_usage:
                for null in _NULL_USAGE:
                    event = event.replace(null, b"", 1)
        if self._is_responses:
            completed, incomplete, failed = self._ends
            if completed in event or incomplete in event or failed in event:
                self.is_done = True
        elif b'_reason":"' in event or b'_reason": "' in event:
            if found := _FINISH.search(event):
                self.finish_reason = found[1].decode("ascii", "replace")
        elif event.startswith(self._ends):
            self.is_done = True
            return event
        if event.startswith(_ERRORS):
            self.error = error_text(event)
        self.num_events += 1
        self._num_bytes += size
        if size < self._min_len or not self._min_len:
            self._min_len = size
        return event

    @property
    def has_finished(self) -> bool:
        """Whether the answer is whole."""
        return self.is_done or bool(self.finish_reason)

    @property
    def is_whole(self) -> bool:
        """Whether the stream may end here: not all servers send a last event."""
        return self.has_finished or bool(self.error)

    def estimate_output(self) -> int:
        """Tokens that were passed on, about, and rather too many: one for each event, and one for
        each 4 bytes that an event is longer than the shortest.
        """
        return self.num_events + (self._num_bytes - self._min_len * self.num_events) // 4

    def _parse(self, event: bytes) -> None:
        data = data_of(event)
        try:
            tokens, finish_reason = parse_usage(self._route, data, self.tokens)
        except msgspec.DecodeError:
            return  # its client will see what it is; the account has an estimate
        if tokens is not None:
            self.tokens = tokens
        if finish_reason:
            self.finish_reason = finish_reason


def data_of(event: bytes) -> bytes:
    """An event's data, its lines joined."""
    return b"\n".join(_DATA.findall(event))


def with_data(event: bytes, data: bytes) -> bytes:
    """An event with other data; its other lines stay."""
    lines = [line for line in event.splitlines() if line and not line.startswith(b"data:")]
    lines += [b"data: " + line for line in data.split(b"\n")]
    return b"%b\n\n" % b"\n".join(lines)


def event_with_cost(route: Route, event: bytes, cost: Mapping[str, Any]) -> bytes:
    """An event with this cost in its usage, if it has any; see `usage_cost.with_cost`. Where
    there is a cost, Anthropic's first event, which tells the usage of a beginning, has none.
    """
    if b'"usage":' not in event:
        return event
    if cost and route == "messages" and b'"message_delta"' not in event:
        return event
    data = data_of(event)
    changed = with_cost(route, data, cost)
    return event if changed is data else with_data(event, changed)


def is_comment(event: bytes) -> bool:
    """Whether an event says nothing but that the stream lives."""
    return event[:1] == b":" and not _DATA.search(event)


class _Failure(msgspec.Struct):
    message: str = ""


class _Failed(msgspec.Struct):
    error: _Failure | str | None = None
    message: str | None = None


def error_text(event: bytes) -> str:
    """What an event that tells of an error says, one line; empty: it tells of none."""
    if not event.startswith(_ERRORS):
        return ""
    return error_message(data_of(event)) or "an error that cannot be read"


def error_message(data: bytes) -> str:
    """The message in the JSON of an error, OpenAI's shape or Anthropic's, one line; empty: there is
    none.
    """
    try:
        failed = msgspec.json.decode(data, type=_Failed)
    except msgspec.DecodeError:
        return ""
    error = failed.error or failed.message
    text = error.message if isinstance(error, _Failure) else error
    return " ".join((text or "").split())[:500]
