from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.metering_views import (
    BUCKETS,
    buckets_of,
    loaded_view,
    since,
    unattributed_ns,
    usage_view,
)
from octavo.types import DeviceTime
from tests.engine.test_metering import total_of


def test_every_bucket_is_among_them() -> None:
    fields = {field.name for field in msgspec.structs.fields(DeviceTime)}
    assert fields - set(BUCKETS) == {"num_devices", "wall_ns", "requests_ns"}


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**18), min_size=1, max_size=50), st.integers(0, 10**20))
def test_all_time_is_spread_in_proportion(charges: list[int], rest: int) -> None:
    loaded = loaded_view(charges, rest)
    assert sum(loaded) == sum(charges) + rest
    assert usage_view(charges) == charges
    whole = sum(charges)
    for own, more in zip(charges, loaded, strict=True):
        if whole:
            assert abs((more - own) * whole - rest * own) < whole


def test_without_requests_there_is_nobody_to_pay() -> None:
    assert loaded_view([], 5) == []
    assert loaded_view([0, 0], 5) == [3, 2]


def test_between_two_snapshots_the_parts_add_up_too() -> None:
    before = DeviceTime(num_devices=2, wall_ns=50, requests_ns=60, idle_ns=30, in_flight_ns=10)
    now = DeviceTime(num_devices=2, wall_ns=80, requests_ns=90, idle_ns=68, in_flight_ns=2)
    assert [total_of(t) - 2 * t.wall_ns for t in (before, now)] == [0, 0]
    between = since(now, before)
    assert total_of(between) == 2 * between.wall_ns == 60
    assert buckets_of(between)["in_flight_ns"] == -8
    assert unattributed_ns(between) == 30
