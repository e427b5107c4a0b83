from __future__ import annotations

from collections import defaultdict

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from octavo.ledger.device_time import DeviceTimeSplitter
from octavo.ledger.record import HOUR_NS
from octavo.types import DeviceTime
from tests.ledger.examples import SETTINGS

BUCKETS = [name for name in DeviceTime.__struct_fields__ if name not in ("num_devices", "wall_ns")]


@SETTINGS
@given(st.data())
def test_hours_add_up_to_the_last_reading_exactly(data: st.DataObject) -> None:
    num_devices = data.draw(st.integers(1, 8))
    now = data.draw(st.integers(HOUR_NS, 10 * HOUR_NS))
    begin = now
    splitter = DeviceTimeSplitter("s", 1)
    hours: dict[int, dict[str, int]] = defaultdict(dict)
    totals = dict.fromkeys(BUCKETS, 0)
    for _ in range(data.draw(st.integers(1, 5))):
        gap = data.draw(st.integers(1, 3 * HOUR_NS))
        now += gap
        left = gap * num_devices + totals["in_flight_ns"]
        totals["in_flight_ns"] = 0
        for name in BUCKETS[:-1]:
            part = data.draw(st.integers(0, left))
            totals[name] += part
            left -= part
        totals["in_flight_ns"] = left
        reading = DeviceTime(num_devices=num_devices, wall_ns=now - begin, **totals)
        assert sum(totals.values()) == num_devices * reading.wall_ns
        for entry in splitter.add(now, reading):
            assert entry.time_ns <= now
            hours[entry.hour] = entry.buckets
        for name, value in totals.items():
            short = name.removesuffix("_ns")
            assert sum(buckets[short] for buckets in hours.values()) == value
    assert set(hours) == set(range(begin // HOUR_NS, -(-now // HOUR_NS)))
    for hour, buckets in hours.items():
        length = min(now, (hour + 1) * HOUR_NS) - max(begin, hour * HOUR_NS)
        # Each bucket of each reading is cut to whole nanoseconds once per hour.
        assert abs(sum(buckets.values()) - num_devices * length) <= 5 * len(BUCKETS)


def test_nothing_is_said_of_an_engine_that_is_not_metered() -> None:
    assert DeviceTimeSplitter("s", 1).add(HOUR_NS, DeviceTime()) == []


def test_a_clock_that_is_set_back_does_no_harm() -> None:
    splitter = DeviceTimeSplitter("s", 1)
    first = DeviceTime(num_devices=1, wall_ns=10, idle_ns=10)
    splitter.add(5 * HOUR_NS + 10, first)
    (entry,) = splitter.add(
        4 * HOUR_NS, msgspec.structs.replace(first, wall_ns=30, idle_ns=20, requests_ns=10)
    )
    assert (entry.hour, entry.buckets["idle"], entry.buckets["requests"]) == (5, 20, 10)
