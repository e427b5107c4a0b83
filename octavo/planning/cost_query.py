"""What a cost report is asked for: the time, what stands in a row, what is left out. Pure.

Times are UTC; days begin at midnight UTC.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal

import msgspec

from octavo.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

View = Literal["usage", "loaded"]

TAG = "tag:"

FIELDS = (
    "feature",
    "tenant",
    "key",
    "model",
    "backend",
    "route",
    "finish_reason",
    "currency",
    "session",
    "trace",
)
"""What a report can be by, and filtered by, beside times and tags."""

TIMES = ("hour", "day", "month")

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class CostQuery(msgspec.Struct, frozen=True, kw_only=True):
    """What to report.

    Attributes:
        since_ns, until_ns: requests that ended in `[since_ns, until_ns)`, nanoseconds since 1970
            UTC; without an end: until now.
        by: what stands in a row, in order: names of `FIELDS` or `TIMES`, or `tag:NAME`.
        filters: by name of a field or tag, the values that are let in; all of them must fit.
        outcomes: names of outcomes to report.
        view: whether costs are those of the requests alone, or with the device's other time spread
            over them.
    """

    since_ns: int
    until_ns: int | None = None
    by: tuple[str, ...] = ("feature",)
    filters: tuple[tuple[str, tuple[str, ...]], ...] = ()
    outcomes: tuple[str, ...] = ()
    view: View = "usage"


def parse_by(text: str) -> tuple[str, ...]:
    """Names apart by commas: `feature,day,tag:team`.

    Raises:
        ConfigError: one is unknown or there twice.
    """
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        check_field(name, times=True)
        if names.count(name) > 1:
            raise ConfigError(f"--by names {name} twice")
    if sum(name in TIMES for name in names) > 1:
        raise ConfigError(f"--by takes one of {', '.join(TIMES)}, not several")
    return names


def check_field(name: str, *, times: bool) -> None:
    """Refuse what records do not have.

    Raises:
        ConfigError: names what they have.
    """
    known = FIELDS + (TIMES if times else ())
    if name in known or (name.startswith(TAG) and len(name) > len(TAG)):
        return
    raise ConfigError(f"there is no {name!r}: use {', '.join(known)} or tag:NAME")


def parse_filters(texts: Sequence[str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """Filters from `feature=chat`, `tag:team=search`; several of one name let in any of them.

    Raises:
        ConfigError: malformed, or an unknown name.
    """
    found = split_filters(texts)
    for name in found:
        check_field(name, times=False)
    return tuple(found.items())


def split_filters(texts: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Values by name, in the order in which they came; whether there is such a name is not asked.

    Raises:
        ConfigError: one has no value.
    """
    found: dict[str, dict[str, None]] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigError(f"--filter {text!r} has no value: write feature=chat")
        found.setdefault(name.strip(), {})[value] = None
    return {name: tuple(values) for name, values in found.items()}


def parse_time(text: str, now: datetime) -> int:
    """A point in time, nanoseconds since 1970: `7d` before now, `2026-11-01`, `2026-11-01T09:00Z`.

    Times without a zone are UTC. A span (`90m`, `24h`, `7d`, `2w`) is counted back from the
    beginning of this hour (for `d` and `w`: of this day), so that rows are of whole ones.

    Raises:
        ConfigError: it is none of these.
    """
    span = re.fullmatch(r"([0-9]{1,6})([mhdw])", text)
    if span is not None:
        begin = now.astimezone(UTC).replace(second=0, microsecond=0)
        if span[2] != "m":
            begin = begin.replace(minute=0)
        if span[2] in "dw":
            begin = begin.replace(hour=0)
        try:
            return to_ns(begin - timedelta(seconds=int(span[1]) * _UNITS[span[2]]))
        except OverflowError:
            raise ConfigError(f"{text} ago is before all calendars") from None
    if text == "all":
        return 0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{text!r} is no time: write 24h, 7d, all, 2026-11-01 or 2026-11-01T09:00Z"
        ) from None
    return to_ns(moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC))


def to_ns(moment: datetime) -> int:
    """Nanoseconds since 1970, of a time with a zone."""
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1000


def from_ns(time_ns: int) -> datetime:
    """The time in UTC, cut to microseconds."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def describe(query: CostQuery) -> str:
    """The query in one line, for a reader."""
    since = from_ns(query.since_ns).isoformat(timespec="minutes")[:16] if query.since_ns else "ever"
    until = "now"
    if query.until_ns is not None:
        until = f"{from_ns(query.until_ns).isoformat(timespec='minutes')[:16]} UTC"
    parts = [f"requests that ended from {since} to {until}"]
    parts += [f"{name} {' or '.join(map(repr, values))}" for name, values in query.filters]
    return ", ".join(parts)
