"""Random lives of requests through the scheduler, on a fake device whose tokens tell all."""

from __future__ import annotations

from collections import deque
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.policy import FairPolicy, FCFSPolicy, PriorityPolicy
from octavo.engine.request import Request
from octavo.engine.scheduler import Scheduler
from octavo.errors import InvalidRequestError
from octavo.types import SamplingParams
from tests.engine.fake_executor import FakeExecutor, expected_tokens
from tests.engine.stateful import SETTINGS

if TYPE_CHECKING:
    from concurrent.futures import Future

    from octavo.types import StepPlan, StepResult

MAX_MODEL_LEN = 40
VOCAB_SIZE = 20
EOS = 3
STOP = 5

POLICIES = {"fcfs": FCFSPolicy, "priority": PriorityPolicy, "fair": FairPolicy}


@lru_cache(10_000)
def tokens_of(prompt: tuple[int, ...], seed: int) -> list[int]:
    return expected_tokens(list(prompt), seed, MAX_MODEL_LEN + 1 - len(prompt), VOCAB_SIZE)


PROMPTS = st.builds(
    lambda family, shared, tail: [family] * shared + tail,
    st.integers(0, 1),
    st.integers(0, 12),
    st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=4),
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "max_tokens": st.integers(1, 20) | st.none(),
    "seed": st.integers(0, 2),
    "ends": st.sampled_from([False, False, True]),
    "salt": st.sampled_from(["", "", "s"]),
    "priority": st.integers(0, 2),
}


class SchedulerMachine(RuleBasedStateMachine):
    """Pools smaller than what is asked of them, a few prefixes, up to two steps in flight."""

    @initialize(
        num_blocks=st.integers(6, 16) | st.integers(2, 6),
        block_size=st.sampled_from([2, 1, 3, 4]),
        max_num_seqs=st.sampled_from([6, 4, 2, 1]),
        budget=st.sampled_from([24, 9, 5, 2, 1]),
        caching=st.sampled_from([True, True, False]),
        max_in_flight=st.sampled_from([3, 2, 1]),
        policy=st.sampled_from(sorted(POLICIES)),
    )
    def set_up(
        self,
        num_blocks: int,
        block_size: int,
        max_num_seqs: int,
        budget: int,
        caching: bool,
        max_in_flight: int,
        policy: str,
    ) -> None:
        self.executor = FakeExecutor(
            num_blocks=num_blocks,
            block_size=block_size,
            max_num_seqs=max_num_seqs,
            max_model_len=MAX_MODEL_LEN,
            vocab_size=VOCAB_SIZE,
        )
        self.scheduler = Scheduler(
            KVCacheManager(num_blocks, block_size, enable_prefix_caching=caching),
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=budget,
            max_model_len=MAX_MODEL_LEN,
            policy=POLICIES[policy](),
        )
        self.num_slots = num_blocks * block_size
        self.budget = budget
        self.max_in_flight = max_in_flight
        self.in_flight: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        self.live: dict[str, Request] = {}
        self.got: dict[str, list[int]] = {}
        self.count = 0

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=4), **FIELDS)
    def arrive(self, prompts: list[list[int]], **fields: Any) -> None:
        for prompt in prompts:
            self.add(prompt, **fields)

    def add(
        self,
        prompt: list[int],
        max_tokens: int | None,
        seed: int,
        ends: bool,
        salt: str,
        priority: int,
    ) -> None:
        params = SamplingParams(
            max_tokens=max_tokens, stop_token_ids=[STOP] if ends else [], ignore_eos=not ends
        )
        request = Request(
            f"r{self.count}",
            prompt,
            params,
            seed=seed,
            eos_token_ids=[EOS],
            cache_salt=salt,
            priority=priority,
            tenant=f"t{priority}",
        )
        self.count += 1
        try:
            self.scheduler.add(request)
        except InvalidRequestError:
            assert not prompt or len(prompt) >= min(MAX_MODEL_LEN, self.num_slots)
            return
        assert 0 < len(prompt) < min(MAX_MODEL_LEN, self.num_slots)
        self.live[request.request_id] = request
        self.got[request.request_id] = []

    @precondition(lambda self: len(self.in_flight) < self.max_in_flight)
    @rule(fails=st.sampled_from([False] * 9 + [True]))
    def plan(self, fails: bool) -> None:
        plan = self.scheduler.plan()
        assert plan.num_tokens <= self.budget
        assert plan.is_empty == (not plan.new_rows and not plan.rows)
        if plan.is_empty:
            assert self.in_flight or not self.live, "work and nothing planned: stuck"
            return
        if fails:
            self.executor.fail_steps.add(plan.step_id)
        self.in_flight.append((plan, self.executor.submit(plan)))

    @precondition(lambda self: self.in_flight)
    @rule()
    def update(self) -> None:
        plan, future = self.in_flight.popleft()
        if future.exception() is None:
            outputs = self.scheduler.update(plan, future.result())
        else:
            outputs = self.scheduler.fail(plan, "failed")
        assert len({output.request_id for output in outputs}) == len(outputs)
        for output in outputs:
            request = self.live[output.request_id]  # KeyError: an output after the last one
            got = self.got[output.request_id]
            got += output.token_ids
            prompt = tuple(request.token_ids[: request.num_prompt_tokens])
            expected = tokens_of(prompt, request.seed)
            assert got == expected[: len(got)]
            if output.finish_reason == "error":
                assert output.error == "failed"
                assert future.exception() is not None
            else:
                end = self.end_of(request, len(prompt), got)
                assert (output.finish_reason, output.stop_reason) == end
            if output.finish_reason is not None:
                del self.live[output.request_id]

    def end_of(
        self, request: Request, num_prompt: int, got: list[int]
    ) -> tuple[str | None, int | None]:
        if not request.params.ignore_eos and got[-1] == EOS:
            return "stop", None
        if not request.params.ignore_eos and got[-1] == STOP:
            return "stop", STOP
        limit = min(MAX_MODEL_LEN, self.num_slots + 1) - num_prompt
        if request.params.max_tokens is not None:
            limit = min(limit, request.params.max_tokens)
        return ("length" if len(got) == limit else None), None

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        assert self.scheduler.abort(request_id)
        assert not self.scheduler.abort(request_id)
        del self.live[request_id]

    @rule()
    def reset(self) -> None:
        self.scheduler.kv_cache.reset_prefix_cache()

    @rule(count=st.integers(1, 10))
    def run(self, count: int) -> None:
        for _ in range(count):
            for _ in range(self.max_in_flight - len(self.in_flight)):
                self.plan(False)
                self.is_sound()
            if self.in_flight:
                self.update()
                self.is_sound()

    @invariant()
    def is_sound(self) -> None:
        self.scheduler.check_integrity()
        assert set(self.live) == {request.request_id for request in self.scheduler.requests}
        stats = self.scheduler.stats
        assert stats.num_running + stats.num_waiting == len(self.live)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        # Every step advances the first in order by a token at least.
        bound = (len(self.live) + 1) * 3 * MAX_MODEL_LEN
        while self.live or self.in_flight:
            self.run(1)
            bound -= 1
            assert bound, "no end"
        assert not self.scheduler.has_work
        kv_cache = self.scheduler.kv_cache
        assert kv_cache.num_free_blocks == kv_cache.num_blocks
        assert not kv_cache.woken or all(r.request_id not in self.live for r in kv_cache.woken)


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = SETTINGS
