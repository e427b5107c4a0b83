"""Readings of an engine's device time, cut into hours for the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from octavo.ledger.record import HOUR_NS, EngineTime

if TYPE_CHECKING:
    from octavo.types import DeviceTime

_NOT_BUCKETS = ("num_devices", "wall_ns")


class DeviceTimeSplitter:
    """Takes readings of one engine, one after the other, and says what each hour has so far.

    What lies between two readings belongs to the hours between them by their lengths, in whole
    nanoseconds, the rest to the last hour: so hours add up to the last reading exactly, bucket by
    bucket. Readings every few seconds leave little to share out.

    Args:
        server: names this run of the engine, as no other.
        hourly_rate_nano: price of one device hour.
        currency: of the price.
    """

    def __init__(self, server: str, hourly_rate_nano: int, currency: str = "USD") -> None:
        self._server = server
        self._hourly_rate_nano = hourly_rate_nano
        self._currency = currency
        self._last: dict[str, int] = {}
        self._last_ns: int | None = None
        self._hour = -1
        self._in_hour: dict[str, int] = {}

    def add(self, time_ns: int, reading: DeviceTime) -> list[EngineTime]:
        """The hours that a reading changes, for `LedgerWriter.put`; none where nothing is metered.

        Args:
            time_ns: when it was taken, nanoseconds since 1970 UTC. One before the last one's, after
                the clock was set back, counts as taken at the same moment.
            reading: of the engine's whole life so far.
        """
        if not reading.num_devices:
            return []
        now = {
            name.removesuffix("_ns"): value
            for name, value in msgspec.structs.asdict(reading).items()
            if name not in _NOT_BUCKETS
        }
        begin = time_ns - reading.wall_ns if self._last_ns is None else self._last_ns
        time_ns = max(time_ns, begin)
        left = {name: value - self._last.get(name, 0) for name, value in now.items()}
        self._last, self._last_ns = now, time_ns
        entries: list[EngineTime] = []
        while True:
            hour = begin // HOUR_NS
            end = min((hour + 1) * HOUR_NS, time_ns)
            if hour != self._hour:
                self._hour, self._in_hour = hour, dict.fromkeys(now, 0)
            is_last = end == time_ns
            for name, value in left.items():
                # Truncated towards zero: the one bucket that may fall shares out like the others.
                share = value if is_last else int_share(value, end - begin, time_ns - begin)
                left[name] -= share
                self._in_hour[name] = self._in_hour.get(name, 0) + share
            entries.append(
                EngineTime(
                    server=self._server,
                    hour=hour,
                    time_ns=end,
                    num_devices=reading.num_devices,
                    buckets=dict(self._in_hour),
                    hourly_rate_nano=self._hourly_rate_nano,
                    currency=self._currency,
                )
            )
            if is_last:
                return entries
            begin = end


def int_share(value: int, part: int, whole: int) -> int:
    """`value * part / whole`, cut towards zero."""
    share = abs(value) * part // whole
    return share if value >= 0 else -share
