"""The bucket against its definition, replayed from what was taken and used."""

from __future__ import annotations

import os

from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.gateway.limits_bucket import MAX_PEAKS, TokenBucket

NUM_EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "60"))

pauses = st.one_of(st.just(0.0), st.floats(0, 3), st.floats(0, 100))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("take"), pauses, st.floats(0, 1)),
        st.tuples(st.just("end"), pauses, st.integers(0, 10), st.floats(0, 1.3)),
    ),
    max_size=60,
)


class Replay:
    """The bucket as its definition has it: what was used is taken when it was reserved."""

    def __init__(self, rate: float, capacity: float) -> None:
        self.rate, self.capacity = rate, capacity
        self.takings: list[list[float]] = []  # time, amount

    def level(self, now: float) -> float:
        level, time = self.capacity, 0.0
        for at, amount in sorted(self.takings, key=lambda taking: taking[0]):
            level = min(self.capacity, level + self.rate * (at - time)) - amount
            time = at
        return min(self.capacity, level + self.rate * (now - time))


@settings(max_examples=NUM_EXAMPLES, deadline=None)
@given(st.floats(0.1, 50), st.floats(1, 200), steps)
def test_levels_are_those_of_what_was_used(rate: float, capacity: float, steps: list) -> None:
    bucket, replay = TokenBucket(rate, capacity, 0.0), Replay(rate, capacity)
    now = 0.0
    held: list[tuple[int, list[float]]] = []
    done: list[list[float]] = []
    for kind, pause, *values in steps:
        now += pause
        if kind == "take":
            amount = values[0] * capacity
            if bucket.refill(now) < amount:
                continue
            taking = [now, amount]
            replay.takings.append(taking)
            held.append((bucket.take(amount, now), taking))
        elif held:
            mark, taking = held.pop(values[0] % len(held))
            used = values[1] * taking[1]
            bucket.give_back(mark, taking[1] - used, now)
            if used > taking[1]:  # more than was reserved is known of only now
                replay.takings.append([now, used - taking[1]])
            else:
                taking[1] = used
            done.append(taking)
        bucket.check_integrity()
        assert abs(bucket.refill(now) - replay.level(now)) < 1e-6 * capacity
    # The law: whatever the window, what was used of requests that began in it.
    for first in done:
        for last in done:
            used = sum(amount for at, amount in done if first[0] <= at <= last[0])
            assert used <= capacity + rate * max(0.0, last[0] - first[0]) + 1e-6 * capacity


def test_adding_the_unused_part_would_let_too_much_through() -> None:
    """Why there are peaks: with plain addition this lets 190 through at once."""
    bucket = TokenBucket(1.0, 100.0, 0.0)
    mark = bucket.take(100, 0.0)
    other = bucket.take(100, bucket_full := 100.0)
    bucket.give_back(mark, 90, bucket_full)
    assert bucket.refill(bucket_full) == 0.0
    bucket.give_back(other, 40, bucket_full)
    assert bucket.refill(bucket_full) == 40.0


def test_what_a_request_used_beyond_its_reserve_makes_no_room_for_another() -> None:
    bucket = TokenBucket(1.0, 8.0, 0.0)
    first, second = bucket.take(4, 0.0), bucket.take(4, 0.0)
    bucket.give_back(first, -1, 8.0)  # the bucket was full just before
    bucket.give_back(second, 4, 8.0)
    assert bucket.refill(8.0) == 7.0


def test_unused_tokens_come_back_whole_where_there_is_room() -> None:
    bucket = TokenBucket(1.0, 100.0, 0.0)
    bucket.take(50, 0.0)
    mark = bucket.take(50, 0.0)
    bucket.give_back(mark, 30, 10.0)
    assert bucket.refill(10.0) == 40.0


def test_many_peaks_are_joined_to_the_safe_side() -> None:
    bucket = TokenBucket(1.0, 1000.0, 0.0)
    marks = [bucket.take(5, 0.0) for _ in range(2 * MAX_PEAKS)]
    bucket.check_integrity()
    bucket.give_back(marks[0], 5, 0.0)
    assert 1000 - 5 * len(marks) <= bucket.refill(0.0) <= 1000 - 5 * (len(marks) - 1)
    for mark in marks[1:]:
        bucket.give_back(mark, 5, 0.0)
        bucket.check_integrity()
    assert bucket.is_idle(5.0 * len(marks))


def test_another_size_keeps_what_is_missing() -> None:
    bucket = TokenBucket(1.0, 100.0, 0.0)
    mark = bucket.take(60, 0.0)
    bucket.resize(2.0, 50.0, 0.0)
    assert bucket.level == -10.0
    bucket.give_back(mark, 60, 0.0)
    assert bucket.level == 50.0
