"""What a request says of itself for its usage record: feature, tenant, session, further tags. Pure.

Sources, each giving way to those before it:

1. Headers: `X-Octavo-Feature`, `X-Octavo-Tenant`, `X-Octavo-Session`, `X-Octavo-Tag-<name>`.
2. The body's `metadata` (OpenAI's): `feature`, `tenant` and `session` or `session_id` are these
   fields, others are tags.
3. The body's `safety_identifier`, else its `user`; Anthropic's `metadata.user_id`: the tag `user`.
4. W3C `baggage`: as `metadata`, and `session.id` as OpenTelemetry spells it.

All of it is the caller's word. A header of ours that is not well formed is refused by name, as
whoever sets it wants it to be kept; anything else that is malformed, too long or too much is left
out and counted, for it was sent for other purposes and must not cost the caller an answer.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import InvalidRequestError
from octavo.observability.trace_context import baggage_of, trace_id_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

MAX_TAGS = 16
MAX_NAME_LEN = 64
MAX_VALUE_LEN = 512
"""Bounds of tags, in number and characters: those of OpenAI's `metadata`."""

MAX_FIELD_LEN = 128
"""Characters of a feature, tenant or session: reports group by them."""

MAX_FEATURES = 256
MAX_TENANTS = 4096
"""Different values within an hour that a server process keeps apart; later ones become `OTHER`."""

OTHER = "other"
"""Stands for what came after too many different values."""

INCLUDE_COST = "X-Octavo-Include-Cost"

_PREFIX = b"x-octavo-"
_TAG_PREFIX = b"x-octavo-tag-"
_HEADER_FIELDS = {
    b"x-octavo-feature": ("feature", "X-Octavo-Feature"),
    b"x-octavo-tenant": ("tenant", "X-Octavo-Tenant"),
    b"x-octavo-session": ("session_id", "X-Octavo-Session"),
    b"x-octavo-parent-request": ("parent_id", "X-Octavo-Parent-Request"),
}
_FIELDS = {
    "feature": "feature",
    "tenant": "tenant",
    "session": "session_id",
    "session_id": "session_id",
    "session.id": "session_id",
}
_HEADER_NAME = re.compile(rb"(?!octavo\.)[a-z0-9][a-z0-9_.\-]{0,63}")
_TRUTH = {b"1": True, b"true": True, b"0": False, b"false": False, b"": False}
_OWN = "octavo."
"""Tags whose names begin so are ours."""

_FOREIGN = ("sentry-",)
"""Members of baggage that a vendor's client adds to every request by itself."""


class RequestTags(msgspec.Struct, frozen=True):
    """What a request says of itself; empty strings where it says nothing.

    Attributes:
        feature, tenant, session_id: at most `MAX_FIELD_LEN` printable characters.
        parent_id: likewise, what a gateway's caller knows the request by, which may take several
            attempts; `X-Octavo-Parent-Request` alone says it.
        trace_id: 32 hexadecimal digits.
        tags: at most `MAX_TAGS`.
        includes_cost: the answer's usage shall have what it cost.
        num_dropped: of what the caller sent and is not in here.
    """

    feature: str = ""
    tenant: str = ""
    session_id: str = ""
    parent_id: str = ""
    trace_id: str = ""
    tags: dict[str, str] = {}
    includes_cost: bool = False
    num_dropped: int = 0


NO_TAGS = RequestTags()


def read_tags(
    headers: Sequence[tuple[bytes, bytes]],
    *,
    metadata: Mapping[str, Any] | None = None,
    user: str | None = None,
) -> RequestTags:
    """What a request says of itself, see the module.

    Args:
        headers: as ASGI has them, names in lower case.
        metadata: the body's.
        user: who asks, as the body says.

    Raises:
        InvalidRequestError: a header of ours is malformed, there twice, or one too many; `param`
            is its name.
    """
    has_baggage = has_trace = includes_cost = False
    seen: dict[str, str] = {}
    fields: dict[str, str] = {}
    tags: dict[str, str] = {}
    for name, value in headers:
        if name == b"baggage":
            has_baggage = True
        elif name == b"traceparent":
            has_trace = True
        elif name.startswith(_PREFIX):
            if name in _HEADER_FIELDS:
                field, shown = _HEADER_FIELDS[name]
                _put_header(fields, field, value, shown, MAX_FIELD_LEN, seen)
            elif name.startswith(_TAG_PREFIX):
                tag, shown = _tag_name(name)
                _put_header(tags, tag, value, shown, MAX_VALUE_LEN, seen)
                if len(tags) > MAX_TAGS:
                    raise InvalidRequestError(
                        f"{shown} is one too many: a request takes at most {MAX_TAGS} tags",
                        param=shown,
                    )
            elif name == b"x-octavo-include-cost":
                _check_once(INCLUDE_COST, value.decode("latin-1"), seen)
                includes_cost = _truth(value)
    if not (fields or tags or metadata or user or has_baggage):
        if not (has_trace or includes_cost):
            return NO_TAGS
        return RequestTags(trace_id=trace_id_of(headers), includes_cost=includes_cost)
    num_dropped = _add(fields, tags, (metadata or {}).items())
    if user:
        num_dropped += _add(fields, tags, [("user", user)])
    if has_baggage:
        members = baggage_of(headers).items()
        num_dropped += _add(fields, tags, (m for m in members if not m[0].startswith(_FOREIGN)))
    return RequestTags(
        **fields,
        trace_id=trace_id_of(headers) if has_trace else "",
        tags=tags,
        includes_cost=includes_cost,
        num_dropped=num_dropped,
    )


def _tag_name(header: bytes) -> tuple[str, str]:
    """The tag's name, and the header's as it is shown.

    Raises:
        InvalidRequestError: it is no name.
    """
    name = header[len(_TAG_PREFIX) :]
    shown = f"X-Octavo-Tag-{name[: MAX_NAME_LEN + 1].decode('latin-1')}"
    if not _HEADER_NAME.fullmatch(name):
        raise InvalidRequestError(
            f"{shown}: a tag's name has 1 to {MAX_NAME_LEN} letters, digits, '-', '_' and '.', "
            "and does not begin with 'octavo.'",
            param=shown,
        )
    return name.decode("ascii"), shown


def _put_header(
    into: dict[str, str],
    name: str,
    raw: bytes,
    shown: str,
    max_len: int,
    seen: dict[str, str],
) -> None:
    """Enter a header's value; an empty one says nothing.

    Raises:
        InvalidRequestError: it cannot be kept.
    """
    try:
        value = raw.decode("utf-8").strip()
    except UnicodeDecodeError:
        raise InvalidRequestError(f"{shown} must be UTF-8", param=shown) from None
    if not value:
        return
    _check_once(shown, value, seen)
    if not _is_good(value, max_len):
        raise InvalidRequestError(
            f"{shown} must have 1 to {max_len} printable characters", param=shown
        )
    into[name] = value


def _check_once(shown: str, value: str, seen: dict[str, str]) -> None:
    """Refuse a header that says two things."""
    if seen.setdefault(shown, value) != value:
        raise InvalidRequestError(f"{shown} is there twice, with different values", param=shown)


def _truth(raw: bytes) -> bool:
    truth = _TRUTH.get(raw.strip().lower())
    if truth is None:
        raise InvalidRequestError(f"{INCLUDE_COST} must be 1, true, 0 or false", param=INCLUDE_COST)
    return truth


def _is_good(value: str, max_len: int) -> bool:
    return 0 < len(value) <= max_len and value.isprintable() and "\ufffd" not in value


def _add(fields: dict[str, str], tags: dict[str, str], pairs: Iterable[tuple[str, Any]]) -> int:
    """Enter what is not there yet and can be kept; how many could not."""
    num_dropped = 0
    for name, value in pairs:
        field = _FIELDS.get(name)
        into, key, max_len = (
            (tags, name, MAX_VALUE_LEN) if field is None else (fields, field, MAX_FIELD_LEN)
        )
        if key in into:
            continue
        text = value.strip() if isinstance(value, str) else None
        if text == "":
            continue
        if (
            text is None
            or not _is_good(text, max_len)
            or not _is_good(name, MAX_NAME_LEN)
            or name.startswith(_OWN)
            or (into is tags and len(tags) >= MAX_TAGS)
        ):
            num_dropped += 1
        else:
            into[key] = text
    return num_dropped


class DistinctCap:
    """Lets the first so many different values of an hour through; later ones become `OTHER`.

    Whoever may send requests may invent values; each would be a line in reports and a time series
    in metrics for good.

    Args:
        limit: different values per hour, empty ones aside.
        clock: seconds since the epoch.

    Attributes:
        num_capped: how many became `OTHER`.
    """

    def __init__(self, limit: int, clock: Callable[[], float] = time.time) -> None:
        self.num_capped = 0
        self._limit = limit
        self._clock = clock
        self._hour = -1
        self._known: set[str] = set()

    def admit(self, value: str) -> str:
        """The value, or `OTHER`."""
        if not value:
            return value
        hour = int(self._clock() // 3600)
        if hour != self._hour:
            self._hour = hour
            self._known.clear()
        if value in self._known:
            return value
        if len(self._known) < self._limit:
            self._known.add(value)
            return value
        self.num_capped += 1
        return OTHER
