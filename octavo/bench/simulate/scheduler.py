"""The engine's scheduler with a window for the simulator, and a way over steps that only decode.

Nothing here decides anything: a `DecodeRun` reaches the state that plans and updates would have
reached, and a test holds the two against each other. It lives here, and not in the engine, because
only virtual time can skip steps.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from octavo.engine.scheduler import Scheduler

if TYPE_CHECKING:
    from octavo.engine.kv_cache import KVCacheManager
    from octavo.engine.policy import Policy
    from octavo.engine.request import Request
    from octavo.types import StepPlan


class SimulatedScheduler(Scheduler):
    """`Scheduler`, unchanged, that tells who lost a row and can pass over decodes.

    Attributes:
        left: requests that ended or were preempted since the list was last emptied, with the row
            that they had, or -1.
    """

    def __init__(
        self,
        kv_cache: KVCacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        policy: Policy,
    ) -> None:
        super().__init__(
            kv_cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=max_model_len,
            policy=policy,
        )
        self.left: list[tuple[Request, int]] = []

    def scheduled(self, plan: StepPlan) -> list[Request]:
        """The requests of a plan that was not updated yet, in its order."""
        return self._in_flight[plan.step_id]

    @property
    def running(self) -> list[Request]:
        """Requests that hold a row, in the policy's order; not to be changed."""
        return self._running

    @property
    def num_waiting(self) -> int:
        """Requests without a row."""
        return len(self._requests) - len(self._running)

    def num_steps_alike(self) -> int:
        """How many steps from here do nothing but decode every running request.

        Holds if the last step did nothing else, ended and preempted nobody, and no request was
        added since: then a waiting one could not be admitted, nor can it be now, but for what is
        asked here.
        """
        # The candidate was refused for want of blocks, of which there will be only fewer. But
        # service may put another one first, and decoding may cache a block that it looks for.
        may_change = self.policy.counts_service or self.kv_cache.enable_prefix_caching
        if may_change and self.num_waiting and self._free_rows:
            return 0
        # Where all rows are taken, whoever comes to be first may be given one of them.
        if self.num_waiting and not self._free_rows:
            candidates = self.policy.candidates()
            if any(self.policy.victims(request, self._running) for request in candidates):
                return 0
        num_steps = min(r.max_num_tokens - r.num_tokens for r in self._running) - 1
        # Each request takes a block every `block_size` steps.
        num_rounds = self.kv_cache.num_free_blocks // len(self._running)
        return min(num_steps, num_rounds * self.kv_cache.block_size)

    def advance(self, in_flight: list[StepPlan], num_steps: int) -> None:
        """Count steps that a `DecodeRun` has passed over; the plans in flight become the last of
        them. New blocks of theirs were entered when they were planned.
        """
        self._num_steps += num_steps
        self._num_generation_tokens += num_steps * len(self._running)
        moved = [self._in_flight.pop(plan.step_id) for plan in in_flight]
        for plan, requests in zip(in_flight, moved, strict=True):
            plan.step_id += num_steps
            plan.num_computed_tokens = [count + num_steps for count in plan.num_computed_tokens]
            self._in_flight[plan.step_id] = requests

    def _preempt(self, request: Request) -> None:
        row = request.row
        super()._preempt(request)
        self.left.append((request, row))

    def _finish(self, request: Request) -> None:
        row = request.row
        super()._finish(request)
        self.left.append((request, row))


class DecodeRun:
    """A run of steps that only decode: only requests at the end of a block are touched in each.

    Args:
        scheduler: between an update and a plan; not to be used until `finish`.
        num_steps: most steps to come, at most `num_steps_alike`.
        output_tokens: by row, the token that a request samples in every step.
        num_in_flight: steps planned and not updated, of the same kind.
    """

    def __init__(
        self,
        scheduler: SimulatedScheduler,
        num_steps: int,
        output_tokens: list[int],
        *,
        num_in_flight: int = 0,
    ) -> None:
        self._scheduler, self._kv_cache = scheduler, scheduler.kv_cache
        self._output_tokens = output_tokens
        self._num_in_flight = num_in_flight
        self._size = size = self._kv_cache.block_size
        # In which of the next `size` steps each request takes a block, and fills one.
        self._grows: list[list[Request]] = [[] for _ in range(size)]
        self._commits: list[list[Request]] = [[] for _ in range(size)]
        for request in scheduler.running:
            computed = request.num_computed_tokens
            due = len(request.block_ids) * size - computed
            assert 0 <= due < size, "one block at most is under way"
            if due < num_steps:
                self._grows[due].append(request)
            if self._kv_cache.enable_prefix_caching:
                self._commits[(size - 1 - computed + num_in_flight) % size].append(request)
        self._num_steps = 0

    def plan(self) -> None:
        """What `Scheduler.plan` does to the blocks."""
        for request in self._grows[self._num_steps % self._size]:
            num_tokens = request.num_computed_tokens + self._num_steps + 1
            blocks = self._kv_cache.allocate(request, num_tokens)
            assert blocks, "there are blocks for all steps of a run"

    def update(self) -> None:
        """What `Scheduler.update` does to the blocks, for the oldest step in flight."""
        done = self._num_steps + 1 - self._num_in_flight
        for request in self._commits[self._num_steps % self._size]:
            num_tokens = request.num_computed_tokens + done
            self._extend(request, num_tokens)
            self._kv_cache.commit(request, num_tokens)
        self._num_steps += 1

    def finish(self, in_flight: list[StepPlan]) -> None:
        """Bring requests, counters and the plans in flight to where the steps have led."""
        scheduler, num_steps = self._scheduler, self._num_steps
        charge = scheduler.policy.charge if scheduler.policy.counts_service else None
        for request in scheduler.running:
            request.num_computed_tokens += num_steps
            request.num_tokens += num_steps
            self._extend(request, request.num_tokens - self._num_in_flight)
            if charge is not None:
                charge(request, 0, num_steps)
        scheduler.advance(in_flight, num_steps)

    def _extend(self, request: Request, num_tokens: int) -> None:
        token = self._output_tokens[request.row]
        request.token_ids.extend(array("i", (token,)) * (num_tokens - len(request.token_ids)))
