"""Random lives of requests through the whole core, on a clock of our own: where did the time go?

Devices whose clock is not the host's, steps that overlap with the host, requests that come, go, are
preempted, find their prefixes, fail: at every moment all time is somewhere, once.
"""

from __future__ import annotations

import logging
from random import Random
from typing import TYPE_CHECKING
from unittest import mock

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.engine.core import EngineCore
from octavo.engine.messages import AddRequest
from octavo.errors import InvalidRequestError
from octavo.types import Charge, SamplingParams
from tests.engine.fake_core import FAKE_WORK
from tests.engine.fake_executor import FakeExecutor
from tests.engine.stateful import SETTINGS
from tests.engine.test_metering import total_of

if TYPE_CHECKING:
    from concurrent.futures import Future

    from octavo.engine.messages import TokenOutput
    from octavo.types import StepMasks, StepPlan, StepResult

EOS = 3


class Clock:
    """Goes on by itself whenever it is read."""

    def __init__(self, seed: int) -> None:
        self.now, self.random = 10**9, Random(seed)

    def __call__(self) -> int:
        self.now += self.random.choice([0, 1, 7, 400])
        return self.now


class TimedExecutor(FakeExecutor):
    """Steps take time that the host's clock shows, and another one that the device tells of.

    Args:
        clock: the host's.
        ahead: steps go on while the host does other things.
    """

    def __init__(self, clock: Clock, *, ahead: bool, num_blocks: int, max_num_seqs: int) -> None:
        super().__init__(
            num_blocks=num_blocks,
            block_size=2,
            max_num_seqs=max_num_seqs,
            max_model_len=24,
            vocab_size=20,
        )
        self.clock, self.ahead = clock, ahead
        self.refuses = False

    def submit(self, plan: StepPlan, masks: Future[StepMasks] | None = None) -> Future[StepResult]:
        took = self.clock.random.choice([0, 3, 1_000, 1_003, 50_000])
        self.clock.now += took // 50 if self.ahead else took
        if self.refuses:
            self.refuses = False
            for init in plan.new_rows:
                self.rows.pop(init.row, None)
            for row in plan.rows:
                self.rows.pop(row, None)
            raise OSError("the planted device takes no step")
        future = super().submit(plan, masks)
        if future.exception() is None:
            result = future.result()
            drift = self.clock.random.choice([0, 0, 1, -1, took // 2, -took // 2])
            result.device_ns = max(took + drift, 0)
            result.waited_ns = self.clock.random.choice([0, 0, 0, took // 3])
        return future


class MeteringMachine(RuleBasedStateMachine):
    """See the module."""

    @initialize(
        num_blocks=st.integers(5, 14),
        max_num_seqs=st.sampled_from([6, 4, 2, 1]),
        budget=st.sampled_from([20, 9, 6]),
        ahead=st.booleans(),
        seed=st.integers(0, 2**32 - 1),
        num_devices=st.sampled_from([1, 1, 4]),
    )
    def set_up(
        self,
        num_blocks: int,
        max_num_seqs: int,
        budget: int,
        ahead: bool,
        seed: int,
        num_devices: int,
    ) -> None:
        logging.disable(logging.CRITICAL)
        self.clock = Clock(seed)
        self.patch = mock.patch("octavo.engine.core.perf_counter_ns", self.clock)
        self.patch.start()
        self.executor = TimedExecutor(
            self.clock, ahead=ahead, num_blocks=num_blocks, max_num_seqs=max_num_seqs
        )
        self.executor.info = msgspec.structs.replace(
            self.executor.info, work=FAKE_WORK, num_devices=num_devices
        )
        self.core = EngineCore(
            self.executor,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            num_steps_ahead=int(ahead),
            seed=seed,
        )
        self.core.ready(self.clock.now - 12_345)
        self.live: set[str] = set()
        self.leaving: set[str] = set()
        self.charged: dict[str, Charge] = {}
        self.count = 0

    @rule(
        shared=st.integers(0, 8),
        tail=st.lists(st.integers(0, 19), min_size=1, max_size=4),
        max_tokens=st.integers(1, 12),
        num=st.integers(1, 4),
        ends=st.booleans(),
    )
    def arrive(self, shared: int, tail: list[int], max_tokens: int, num: int, ends: bool) -> None:
        for _ in range(num):
            name = f"r{self.count}"
            self.count += 1
            params = SamplingParams(max_tokens=max_tokens, seed=self.count % 3, ignore_eos=not ends)
            try:
                self.core.add(AddRequest(name, [1] * shared + tail, params, [EOS, 5, 9]))
            except InvalidRequestError:
                continue  # it was never admitted, and is never charged
            self.live.add(name)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.live)))
        self.core.abort([name, "unknown"])
        self.live.discard(name)
        self.leaving.add(name)

    @rule(passes=st.integers(0, 100_000))
    def wait(self, passes: int) -> None:
        self.clock.now += passes

    @rule()
    def forget_prefixes(self) -> None:
        self.core.scheduler.kv_cache.reset_prefix_cache()

    @rule(after=st.integers(0, 3))
    def plant_failure(self, after: int) -> None:
        self.executor.fail_steps.add(self.core.scheduler.stats.num_steps + after)

    @rule()
    def plant_refusal(self) -> None:
        self.executor.refuses = True

    @rule(count=st.integers(1, 8))
    def run(self, count: int) -> None:
        for _ in range(count):
            if self.core.has_work:
                self.take(self.core.step())
                self.adds_up()

    def take(self, outputs: list[TokenOutput]) -> None:
        for output in outputs:
            if output.finish_reason is None:
                assert output.charge is None
                continue
            assert output.charge is not None
            self.live.remove(output.request_id)
            self.settle(output.request_id, output.charge)

    def settle(self, name: str, charge: Charge) -> None:
        assert name not in self.charged, "charged twice"
        assert 0 <= charge.waste_ns <= charge.total_ns
        assert min(charge.prefill_ns, charge.decode_ns) >= 0
        self.charged[name] = charge

    @invariant()
    def adds_up(self) -> None:
        for name, charge in self.core.take_charges():
            self.leaving.remove(name)
            self.settle(name, charge)
        meter = self.core._meter
        meter.check_integrity()
        time = self.core.stats.device_time
        assert total_of(time) - time.num_devices * time.wall_ns == 0
        assert time.in_flight_ns == 0 or meter.time.num_in_flight
        still_open = int(meter._prefill.sum() + meter._decode.sum())
        charged = sum(charge.total_ns for charge in self.charged.values())
        assert charged + still_open - time.requests_ns == 0

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        try:
            while self.core.has_work:
                self.take(self.core.step())
                self.adds_up()
            assert not self.live
            assert not self.leaving
            assert len(self.charged) <= self.count
            time = self.core.stats.device_time
            assert time.requests_ns == sum(c.total_ns for c in self.charged.values())
            assert time.in_flight_ns == 0
        finally:
            self.patch.stop()
            logging.disable(logging.NOTSET)


TestMeteringMachine = MeteringMachine.TestCase
TestMeteringMachine.settings = SETTINGS
