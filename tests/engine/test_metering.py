from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.engine.metering import Meter
from octavo.engine.metering_split import StepCost, share_out, split_exactly
from octavo.engine.metering_time import Activity, DeviceTimeline
from octavo.engine.request import Request
from octavo.types import AttentionWork, Charge, SamplingParams, StepPlan, WorkModel
from tests.engine.fake_core import FAKE_WORK
from tests.engine.shapley import distance

if TYPE_CHECKING:
    from octavo.types import DeviceTime


def total_of(time: DeviceTime) -> int:
    """All that is said of the time but how much there was."""
    return sum(msgspec.structs.astuple(time)[2:])


def request(name: str, num_prompt: int) -> Request:
    return Request(name, [1] * num_prompt, SamplingParams(max_tokens=64), seed=0)


def plan(step_id: int, *rows: tuple[int, int, bool]) -> StepPlan:
    """A step of rows: tokens computed before, computed now, and whether it samples."""
    computed, new, samples = [list(column) for column in zip(*rows, strict=True)]
    return StepPlan(step_id, [], list(range(len(rows))), computed, new, samples, [])  # type: ignore[arg-type]


class Bench:
    """A meter, requests in it, and a clock that goes on with every step."""

    def __init__(self, work: WorkModel = FAKE_WORK, num_devices: int = 1) -> None:
        self.meter = Meter(work, 0, num_devices=num_devices)
        self.now = 100
        self.ids = itertools.count()
        self.meter.ready(-50, self.now)

    def add(self, num_prompt: int) -> Request:
        new = request(f"r{next(self.ids)}", num_prompt)
        self.meter.open(new)
        return new

    def step(self, *rows: tuple[Request, int, int, bool], took: int = 1_000_003) -> None:
        step = plan(next(self.ids), *(row[1:] for row in rows))
        requests = [row[0] for row in rows]
        self.meter.launch(step, requests, self.now)
        self.now += took
        self.meter.end(step, requests, took, self.now)

    def charge(self, of: Request) -> Charge:
        self.meter.leave(of.request_id, None)
        [(name, charge)] = self.meter.take_charges()
        assert name == of.request_id
        return charge


def test_alone_a_request_pays_for_its_own_time() -> None:
    bench = Bench()
    one = bench.add(10)
    bench.step((one, 0, 10, True), took=5_000)
    bench.step((one, 10, 1, True), took=700)
    bench.step((one, 11, 1, True), took=701)
    assert bench.charge(one) == Charge(prefill_ns=5_000, decode_ns=1401)


def test_equal_requests_pay_equally_and_a_long_context_more() -> None:
    bench = Bench()
    equal = [bench.add(100) for _ in range(7)]
    far = bench.add(5_000)
    for round_ in range(20):
        rows = [(each, 100 + round_, 1, True) for each in equal]
        bench.step(*rows, (far, 5_000 + round_, 1, True), took=1_000_003 + round_)
    charges = [bench.charge(each).decode_ns for each in equal]
    assert max(charges) - min(charges) <= 20  # one nanosecond a step
    assert bench.charge(far).decode_ns > max(charges) * 1.02


def test_prompts_pay_for_their_tokens_and_cached_ones_cost_nothing() -> None:
    bench = Bench()
    whole, cached = bench.add(64), bench.add(64)
    bench.step((whole, 0, 64, True), (cached, 48, 16, True))
    first, second = bench.charge(whole), bench.charge(cached)
    assert first.decode_ns == second.decode_ns == 0
    assert 3 < first.prefill_ns / second.prefill_ns < 4.1
    assert first.total_ns + second.total_ns == 1_000_003


def test_what_is_computed_again_is_waste() -> None:
    bench = Bench()
    one, other = bench.add(8), bench.add(8)
    bench.step((one, 0, 8, True), (other, 0, 8, True))
    for computed in (8, 9, 10, 11):
        bench.step((one, computed, 1, True), (other, computed, 1, True))
    one.num_preemptions, one.num_lost_tokens = 1, 12
    before = (int(bench.meter._prefill[one.account]), int(bench.meter._decode[one.account]))
    again = plan(99, (4, 9, True), (12, 1, True))  # four cached, eight lost, and one new
    again.new_rows = [None]  # type: ignore[list-item]
    bench.meter.launch(again, [one, other], bench.now)
    one.num_lost_tokens = 13  # lost again before the step is done: the next one's concern
    bench.now += 900_000
    bench.meter.end(again, [one, other], 900_000, bench.now)
    charge = bench.charge(one)
    share = charge.total_ns - sum(before)
    assert share + bench.charge(other).total_ns - sum(before) == pytest.approx(900_000, abs=10)
    assert charge.prefill_ns - before[0] == share * 4 // 9
    assert charge.waste_ns == share * 8 // 9


def test_work_for_who_has_ended_is_for_nobody_but_the_aborted_pay() -> None:
    bench = Bench()
    ended, gone, stays = (bench.add(4) for _ in range(3))
    rows = [(4, 1, True)] * 3
    requests = [ended, gone, stays]
    first, second = plan(0, *rows), plan(1, *rows)
    bench.meter.launch(first, requests, 100)
    bench.meter.launch(second, requests, 200)
    bench.meter.leave(gone.request_id, 1)
    bench.meter.end(first, requests, 3_000, 4_000)
    assert bench.meter.take_charges() == []
    bench.meter._take(ended)
    bench.meter._open.pop(ended.request_id)
    bench.meter.end(second, requests, 3_000, 8_000)
    [(name, charge)] = bench.meter.take_charges()
    assert (name, charge) == (gone.request_id, Charge(0, 2_000))
    time = bench.meter.device_time(9_000)
    assert time.run_ahead_ns == 1_000
    assert time.requests_ns == 5_000
    assert total_of(time) == time.wall_ns
    bench.meter.check_integrity()


def test_time_before_ready_is_startup_and_then_idle() -> None:
    bench = Bench(num_devices=3)
    time = bench.meter.device_time(1_100)
    assert (time.num_devices, time.wall_ns) == (3, 1_150)
    assert (time.startup_ns, time.idle_ns) == (3 * 150, 3 * 1_000)
    bench.now = 1_100
    one = bench.add(3)
    bench.step((one, 0, 3, True), took=500)
    assert bench.charge(one).total_ns == 3 * 500
    assert total_of(bench.meter.device_time(2_000)) == 3 * 2_050


def test_each_moment_goes_to_what_the_host_was_at() -> None:
    line = DeviceTimeline(0)
    line.turn_to(Activity.MESSAGES, 10)
    line.turn_to(Activity.SCHEDULER, 15)
    line.turn_to(Activity.LAUNCH, 35)
    line.launch(35)
    line.turn_to(Activity.SCHEDULER, 40)  # planned while the step ran
    line.turn_to(Activity.LAUNCH, 90)
    line.launch(90)
    line.turn_to(Activity.LAUNCH, 95)
    assert line.end(30, 0, 100) == 30  # from 35 to 65: the host still planned
    assert line.settled_ns == 90
    assert line.buckets_ns == [10, 0, 20 + 25, 5, 0, 0, 0]
    assert line.end(1_000, 100, 150) == 60 - 60  # the device's clock is fast: no more than there is
    assert line.buckets_ns[Activity.GRAMMAR] == 60
    assert sum(line.buckets_ns) + 30 == 150


def test_a_step_that_was_seen_late_gives_its_time_to_the_next() -> None:
    line = DeviceTimeline(0)
    line.turn_to(Activity.LAUNCH, 0)
    line.launch(0)
    line.launch(5)
    assert line.end(40, 0, 70) == 40
    assert line.settled_ns == 40  # the second has begun by then
    assert line.end(60, 0, 101) == 60
    line.settle(120)
    assert line.buckets_ns[Activity.LAUNCH] == 20
    line.launch(130)
    line.fail(180)
    assert line.buckets_ns[Activity.FAILED] == 50
    assert sum(line.buckets_ns) + 100 == 180


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 50), st.integers(0, 80)), max_size=60),
    st.integers(1, 3),
)
def test_no_moment_is_lost_or_counted_twice(
    moves: list[tuple[int, int, int]], most_in_flight: int
) -> None:
    line = DeviceTimeline(7)
    now, worked = 7, 0
    for what, passes, device_ns in moves:
        now += passes
        if what == 0 and line.num_in_flight < most_in_flight:
            line.launch(now)
        elif what in (1, 2) and line.num_in_flight:
            took = line.end(device_ns, device_ns // 3 if what == 2 else 0, now)
            assert 0 <= took <= device_ns
            worked += took
        elif what == 3 and line.num_in_flight:
            line.fail(now)
        else:
            line.turn_to(Activity(passes % len(Activity)), now)
        line.settle(now)
        assert min(line.buckets_ns) >= 0
        assert line.settled_ns <= now
        assert line.num_in_flight or line.settled_ns == now
        assert sum(line.buckets_ns) + worked + now - line.settled_ns == now - 7


WEIGHTS = st.lists(st.floats(0, 1e9) | st.just(1.0), min_size=1, max_size=300)


@settings(deadline=None)
@given(st.integers(0, 10**15), WEIGHTS)
def test_shares_add_up_and_follow_the_weights(total: int, weights: list[float]) -> None:
    shares = share_out(total, np.array(weights))
    assert int(shares.sum()) == total
    assert shares.min() >= 0
    whole = math.fsum(weights)
    if whole > 0 and total < 10**9:
        for share, weight in zip(shares.tolist(), weights, strict=True):
            assert abs(share - total * weight / whole) <= 1 + 1e-6


@settings(deadline=None)
@given(st.integers(0, 10**24), st.lists(st.integers(0, 10**20), min_size=1, max_size=40))
def test_exact_shares_add_up_at_any_size(total: int, weights: list[int]) -> None:
    shares = split_exactly(total, weights)
    assert sum(shares) == total
    whole = sum(weights)
    for share, weight in zip(shares, weights, strict=True):
        if whole:
            assert abs(share * whole - total * weight) < whole


WINDOWED = msgspec.structs.replace(
    FAKE_WORK, attention=(AttentionWork(1e3, 1e2), AttentionWork(3e3, 4e2, window=5))
)


@pytest.mark.parametrize("work", [FAKE_WORK, WINDOWED])
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 30)), min_size=1, max_size=6))
@settings(deadline=None)
def test_pairs_and_bytes_are_those_of_the_tokens_one_by_one(
    work: WorkModel, rows: list[tuple[int, int]]
) -> None:
    """Against a count of every pair of tokens and of every key that is read."""
    computed, new = (np.array(column, np.float64) for column in zip(*rows, strict=True))
    num_tokens = new.sum()
    expected: list[float] = []
    for begin, count in rows:
        flops, moved = count * work.flops_per_token, count * work.bytes_per_token
        for kind in work.attention:
            reach = kind.window or 10**9
            seen = [range(max(0, p - reach + 1), p + 1) for p in range(begin, begin + count)]
            flops += kind.flops_per_pair * sum(map(len, seen))
            moved += kind.bytes_per_token * (len(set().union(*seen)) + count)
        own = max(flops / work.flops_per_s, moved / work.bytes_per_s)
        expected.append(own + work.weight_bytes / work.bytes_per_s * count / num_tokens)
    found = StepCost(work).rows(computed, new, 0 * new, num_tokens, 0)
    assert found == pytest.approx(np.array(expected) * 1e9)
    one_by_one = [StepCost(work).row(begin, count, 0, num_tokens, 0) for begin, count in rows]
    assert found == pytest.approx(np.array(one_by_one))


@pytest.mark.parametrize("work", [FAKE_WORK, WINDOWED])
def test_decodes_cost_the_same_by_the_short_way(work: WorkModel) -> None:
    cost, computed = StepCost(work), np.array([3.0, 100.0, 7.0])
    ones = np.ones(3)
    assert cost.decodes(computed + 1, 9, 4) == pytest.approx(cost.rows(computed, ones, ones, 9, 4))


@pytest.mark.parametrize(
    ("batch", "large", "small"),
    [
        ("equal decodes", 1e-9, 1e-9),
        ("contexts from 100 to 30000", 0.02, 0.28),
        ("a prompt among decodes", 0.36, 0.40),
        ("prompts of many lengths", 0.03, 0.21),
        ("a chunk deep in a prompt", 0.07, 0.24),
    ],
)
def test_shares_lie_as_near_the_shapley_value_as_the_docs_say(
    batch: str, large: float, small: float
) -> None:
    assert distance(batch, "h100", "llama-3.1-8b") <= large
    assert distance(batch, "h100", "smollm2-135m") <= small
