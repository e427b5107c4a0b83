"""Two looks at what requests cost: their own device time, and with their part of all the rest.

Pure functions on nanoseconds, exact in both views. For reports; no engine needs them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.engine.metering_split import split_exactly

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.types import DeviceTime

BUCKETS = (
    "startup_ns",
    "idle_ns",
    "scheduler_ns",
    "messages_ns",
    "launch_ns",
    "grammar_ns",
    "run_ahead_ns",
    "failed_ns",
    "in_flight_ns",
)
"""Where a device's time is when no request was charged with it."""


def buckets_of(time: DeviceTime) -> dict[str, int]:
    """The buckets by their names, without `requests_ns`."""
    return {name: getattr(time, name) for name in BUCKETS}


def unattributed_ns(time: DeviceTime) -> int:
    """Nanoseconds that no request was charged with: the sum of all buckets."""
    return sum(buckets_of(time).values())


def since(now: DeviceTime, before: DeviceTime) -> DeviceTime:
    """What came between two snapshots of one engine; in it too, the parts add up to the whole.

    `in_flight_ns` may be negative: what was in flight before has gone elsewhere meanwhile.
    """
    names = ("wall_ns", "requests_ns", *BUCKETS)
    gone = {name: getattr(now, name) - getattr(before, name) for name in names}
    return msgspec.structs.replace(now, **gone)


def usage_view(charges: Sequence[int]) -> list[int]:
    """Each request's own device time, in nanoseconds: what it was charged with."""
    return list(charges)


def loaded_view(charges: Sequence[int], rest_ns: int) -> list[int]:
    """Each request's device time with its part of what was not charged to any, pro rata.

    Args:
        charges: nanoseconds of each request, or of each group of requests.
        rest_ns: to be spread, such as `unattributed_ns`, or some buckets only.

    Returns:
        Nanoseconds that add up to those of `charges` and `rest_ns`, exactly. Without any charge,
        all have the same part.
    """
    parts = split_exactly(rest_ns, charges) if charges else []
    return [own + part for own, part in zip(charges, parts, strict=True)]
