"""Trace context and baggage as HTTP headers carry them: read, checked and written. Pure.

Knows nothing of spans, and needs no package: a server without tracing reads trace ids with it.
Headers are pairs of bytes, as ASGI has them; names in any case. What a caller sends is never an
error here: what the specifications call invalid counts as not sent.

Sources: Trace Context (https://www.w3.org/TR/trace-context/), the flag `random` and the header
`traceresponse` of its level 2, and Baggage (https://www.w3.org/TR/baggage/).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias
from urllib.parse import unquote

import msgspec

Headers: TypeAlias = Iterable[tuple[bytes, bytes]]
State: TypeAlias = tuple[tuple[str, str], ...]

SAMPLED = 0x01
RANDOM = 0x02
_KNOWN_FLAGS = SAMPLED | RANDOM

MAX_STATE_MEMBERS = 32
MAX_STATE_LEN = 512
"""Characters of `tracestate` that are handed on; the specification asks for at least so many."""

LONG_STATE_MEMBER_LEN = 128
"""Members longer than this go first where something has to go."""

MAX_BAGGAGE_MEMBERS = 64
MAX_BAGGAGE_BYTES = 8192
"""What everybody must hand on of baggage; more of it is not read."""

_OWS = " \t"
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.DOTALL)
_STATE_MEMBER = re.compile(
    r"([a-z][a-z0-9_\-*/]{0,255}|[a-z0-9][a-z0-9_\-*/]{0,240}@[a-z][a-z0-9_\-*/]{0,13})"
    r"=([\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e])"
)
_BAGGAGE_MEMBER = re.compile(
    r"([A-Za-z0-9!#$%&'*+\-.^_`|~]+)[ \t]*=[ \t]*([\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]*)"
)


class TraceParent(msgspec.Struct, frozen=True):
    """A place in a trace: that of a caller, or ours as we tell it.

    Attributes:
        trace_id: 32 lowercase hexadecimal digits, not all zero.
        parent_id: 16 of them, the caller's span, not all zero.
        flags: `SAMPLED` and `RANDOM`; others are unknown, and dropped.
    """

    trace_id: str
    parent_id: str
    flags: int = 0

    @property
    def is_sampled(self) -> bool:
        """Whether the caller may have recorded its part."""
        return bool(self.flags & SAMPLED)

    def __str__(self) -> str:
        return f"00-{self.trace_id}-{self.parent_id}-{self.flags & _KNOWN_FLAGS:02x}"


class TraceContext(msgspec.Struct, frozen=True):
    """What a request says of the trace that it belongs to.

    Attributes:
        parent: the caller's place.
        state: vendors' own words, key and value, in order.
    """

    parent: TraceParent
    state: State = ()

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The headers that say so, for a request of ours."""
        headers = [(b"traceparent", str(self.parent).encode("ascii"))]
        if self.state and (state := format_tracestate(self.state)):
            headers.append((b"tracestate", state.encode("ascii")))
        return headers


def trace_context_of(headers: Headers) -> TraceContext | None:
    """What a request's headers say; None: it has no valid `traceparent`, or several."""
    parents: list[bytes] = []
    states: list[bytes] = []
    for name, value in headers:
        if len(name) == 11 and name.lower() == b"traceparent":
            parents.append(value)
        elif len(name) == 10 and name.lower() == b"tracestate":
            states.append(value)
    if len(parents) != 1:
        return None
    parent = parse_traceparent(parents[0].decode("latin-1"))
    if parent is None:
        return None
    return TraceContext(parent, parse_tracestate(value.decode("latin-1") for value in states))


def trace_id_of(headers: Headers) -> str:
    """The trace id of a request's headers; empty: they tell none."""
    context = trace_context_of(headers)
    return "" if context is None else context.parent.trace_id


def parse_traceparent(value: str) -> TraceParent | None:
    """A value of `traceparent`; None: it is not valid.

    Of a version above ours the beginning is read, which must look as in ours.
    """
    match = _PARENT.fullmatch(value.strip(_OWS))
    if match is None:
        return None
    version, trace_id, parent_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return None
    if not (trace_id.strip("0") and parent_id.strip("0")):
        return None
    return TraceParent(trace_id, parent_id, int(flags, 16) & _KNOWN_FLAGS)


def parse_tracestate(values: Iterable[str]) -> State:
    """The members in all the values of `tracestate`, in order; none where anything is invalid."""
    state: dict[str, str] = {}
    for part in ",".join(values).split(","):
        # Spaces before a value belong to it, and those after it do not; before a key there are none
        member = part.strip(_OWS)
        if not member:
            continue
        match = _STATE_MEMBER.fullmatch(member)
        if match is None or match[1] in state or len(state) == MAX_STATE_MEMBERS:
            return ()
        state[match[1]] = match[2]
    return tuple(state.items())


def format_tracestate(state: State, max_len: int = MAX_STATE_LEN) -> str:
    """The members as one value of `tracestate`.

    Where they are longer than `max_len` characters, whole members are left out: the last long ones
    first, then the last.
    """
    members = [f"{key}={value}" for key, value in state]
    excess = sum(map(len, members)) + len(members) - 1 - max_len
    for least in (LONG_STATE_MEMBER_LEN + 1, 0):
        for index in range(len(members) - 1, -1, -1):
            if excess > 0 and len(members[index]) >= least:
                excess -= len(members.pop(index)) + 1
    return ",".join(members)


def baggage_of(headers: Headers) -> dict[str, str]:
    """The baggage of a request's headers, by key. See `parse_baggage`."""
    values = [
        value.decode("latin-1")
        for name, value in headers
        if len(name) == 7 and name.lower() == b"baggage"
    ]
    return parse_baggage(values) if values else {}


def parse_baggage(values: Iterable[str]) -> dict[str, str]:
    """The members in all the values of `baggage`, values decoded, properties dropped.

    Members that are not valid are left out, and so is what comes after `MAX_BAGGAGE_MEMBERS` or
    does not fit into `MAX_BAGGAGE_BYTES`. Of several with one key the last one counts. Bytes that
    are no UTF-8 become U+FFFD, as the specification has it.
    """
    found: dict[str, str] = {}
    num_bytes = 0
    for index, part in enumerate(",".join(values).split(",", MAX_BAGGAGE_MEMBERS)):
        num_bytes += len(part) + (index > 0)
        if index == MAX_BAGGAGE_MEMBERS or num_bytes > MAX_BAGGAGE_BYTES:
            break
        match = _BAGGAGE_MEMBER.fullmatch(part.partition(";")[0].strip(_OWS))
        if match is not None:
            found[match[1]] = unquote(match[2], errors="replace")
    return found
