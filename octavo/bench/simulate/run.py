"""The loop: arrivals, plan, cost, update, in virtual time.

Knows the real scheduler and the cost model; `clients` sends the requests, `record` keeps what came.
"""

from __future__ import annotations

import gc
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from octavo.bench.simulate.clients import Clients, FrontEnd
from octavo.bench.simulate.record import Record
from octavo.bench.simulate.scheduler import DecodeRun, SimulatedScheduler
from octavo.bench.simulate.settings import POLICIES
from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.request import Request, RequestStatus
from octavo.errors import EngineError, InvalidRequestError
from octavo.types import SamplingParams, StepResult

if TYPE_CHECKING:
    from collections.abc import Callable

    from octavo.bench.simulate.cost import CostModel
    from octavo.bench.simulate.settings import EngineSettings
    from octavo.bench.simulate.trace import Trace
    from octavo.types import EngineStats, StepPlan

_FINISHED = RequestStatus.FINISHED
_CALL_EVERY = 256
_LEAST_RUN = 2
_NO_PREFILLS: list[tuple[int, int]] = []


@dataclass(slots=True)
class _Step:
    """A step on the device.

    Attributes:
        plan, requests: what it computes, and for whom.
        rows: those that sample.
        end_s: when it is done.
        is_alike: whether it does nothing but decode every running request.
    """

    plan: StepPlan
    requests: list[Request]
    rows: list[int]
    end_s: float
    is_alike: bool


class Simulation:
    """One trace through one engine.

    Args:
        trace: what arrives; not changed.
        cost: what a step takes.
        settings: the engine's flags.
        policy: `fcfs`, `priority` or `fair`.
        skip: pass over runs of steps that only decode, without planning each. The result is the
            same; a test says so.
        observer: called now and then with requests ended so far.
    """

    def __init__(
        self,
        trace: Trace,
        cost: CostModel,
        settings: EngineSettings,
        *,
        policy: str = "fcfs",
        skip: bool = True,
        observer: Callable[[int], None] | None = None,
    ) -> None:
        self.trace, self.cost = trace, cost
        num_blocks = settings.num_kv_blocks or cost.num_blocks(
            settings.block_size, settings.gpu_memory_utilization, settings.max_num_batched_tokens
        )
        # Where no two prompts begin alike nothing can be found, and hashing would only take time.
        self._has_prefixes = settings.enable_prefix_caching and trace.prefixes is not None
        self.kv_cache = KVCacheManager(
            num_blocks, settings.block_size, enable_prefix_caching=self._has_prefixes
        )
        self.scheduler = SimulatedScheduler(
            self.kv_cache,
            max_num_seqs=settings.max_num_seqs,
            max_num_batched_tokens=settings.max_num_batched_tokens,
            max_model_len=settings.max_model_len or cost.model.max_model_len,
            policy=POLICIES[policy](),
        )
        num_rows = min(settings.max_num_seqs, settings.max_num_batched_tokens)
        self.record = Record(len(trace))
        self._skip, self._observer = skip, observer
        self._now = 0.0
        self._device_free = 0.0
        self._num_steps_ahead = int(settings.async_scheduling)
        self._in_flight: deque[_Step] = deque()
        self._num_ended = 0
        self._is_alike = False
        # By row: the request's token, when its last one came, tokens that it shares with others.
        self._tokens = [0] * num_rows
        self._last_s = np.full(num_rows, np.nan)
        self._shared = [0] * num_rows
        self._num_shared = 0
        self._left_s: dict[int, float] = {}  # of preempted requests, by index
        self._params: dict[int, SamplingParams] = {}
        self._front_end = FrontEnd(cost.host)
        self._clients = Clients(trace, self._front_end, self.record)

    @property
    def stats(self) -> EngineStats:
        """The scheduler's counters."""
        return self.scheduler.stats

    def run(self) -> Record:
        """Until the last request has ended.

        Raises:
            EngineError: the scheduler has work and plans none.
        """
        was_enabled = gc.isenabled()
        gc.disable()  # nothing here is cyclic, and there are millions of objects to walk
        try:
            self._loop()
        finally:
            if was_enabled:
                gc.enable()
        self.record.end_s = max(self._now, self._front_end.free_s)
        return self.record

    def _loop(self) -> None:
        scheduler, in_flight = self.scheduler, self._in_flight
        num_rounds = 0
        while True:
            self._take_arrivals()
            if not scheduler.has_work:
                next_s = self._clients.next_s()
                if next_s is None:
                    return
                self._now = max(self._now, next_s)
                continue
            if not (self._is_alike and self._skip and self._advance()):
                plan = scheduler.plan()
                num_ahead = self._num_steps_ahead
                if plan.is_empty:
                    if not in_flight:
                        raise EngineError("the scheduler has work and plans no step")
                    num_ahead = 0
                else:
                    in_flight.append(self._begin(plan))
                if len(in_flight) > num_ahead:
                    self._complete(in_flight.popleft())
            num_rounds += 1
            if self._observer is not None and num_rounds % _CALL_EVERY == 0:
                self._observer(self._num_ended)

    def _begin(self, plan: StepPlan) -> _Step:
        """Put a planned step on the device, behind those that are there."""
        scheduler = self.scheduler
        requests = scheduler.scheduled(plan)
        num_preempted = self._take_left(self._now)
        if plan.new_rows:
            self._enter(requests[-len(plan.new_rows) :])
        num_tokens, num_sequences = plan.num_tokens, len(plan.rows)
        # Decodes come first in a plan: what is left is theirs when each has one token.
        num_decodes, num_left, prefills = num_sequences, num_tokens, _NO_PREFILLS
        if num_left != num_decodes:
            prefills = []
            while num_left != num_decodes:
                num_decodes -= 1
                num_new = plan.num_new_tokens[num_decodes]
                num_left -= num_new
                prefills.append((plan.num_computed_tokens[num_decodes], num_new))
        rows = plan.rows
        if not all(plan.samples):
            rows = [row for row, samples in zip(rows, plan.samples, strict=True) if samples]
        context = sum(plan.num_computed_tokens[:num_decodes]) + num_decodes
        self._run_device(num_tokens, len(rows), num_sequences, context, prefills)
        is_alike = not (plan.new_rows or prefills or num_preempted)
        is_alike = is_alike and len(rows) == len(scheduler.running)
        return _Step(plan, requests, rows, self._device_free, is_alike)

    def _complete(self, step: _Step) -> None:
        """Let time pass until a step has ended, and take in what came of it."""
        scheduler, rows = self.scheduler, step.rows
        tokens = (
            list(map(self._tokens.__getitem__, rows)) if self._has_prefixes else [0] * len(rows)
        )
        scheduler.update(step.plan, StepResult(step.plan.step_id, tokens, [], 0))
        self._now = step.end_s
        seen = self._front_end.carry_out(step.end_s, len(rows))
        if self._left_s:  # one that was preempted since keeps its token, but not its row
            for request, samples in zip(step.requests, step.plan.samples, strict=True):
                if samples and int(request.request_id) in self._left_s:
                    self._left_s[int(request.request_id)] = seen
        num_firsts = self._record_gaps(rows, seen)
        if num_firsts:
            self._record_firsts(step.requests, num_firsts, seen)
        num_ended = self._take_left(seen)
        self._is_alike = (
            step.is_alike
            and not num_firsts
            and not num_ended
            and all(later.is_alike for later in self._in_flight)
        )

    def _advance(self) -> bool:
        """Pass over as many steps as are alike and see no arrival; False: none."""
        scheduler, record = self.scheduler, self.record
        limit = scheduler.num_steps_alike()
        if limit < _LEAST_RUN:
            return False
        rows = [request.row for request in scheduler.running]
        num_sequences = len(rows)
        context = sum(request.num_computed_tokens for request in scheduler.running) + num_sequences
        previous = float(self._last_s[rows[0]])  # that of all: each got a token in the last step
        ends = deque(step.end_s for step in self._in_flight)
        run = DecodeRun(scheduler, limit, self._tokens, num_in_flight=len(ends))
        for _ in range(limit):
            run.plan()
            self._run_device(num_sequences, num_sequences, num_sequences, context, _NO_PREFILLS)
            ends.append(self._device_free)
            run.update()
            self._now = ends.popleft()
            seen = self._front_end.carry_out(self._now, num_sequences)
            record.gaps.add(seen - previous, num_sequences)
            previous = seen
            context += num_sequences
            if self._clients.is_due(self._now):
                break
        run.finish([step.plan for step in self._in_flight])
        for step, end in zip(self._in_flight, ends, strict=True):
            step.end_s = end
        self._last_s[rows] = previous
        return True

    def _run_device(
        self,
        num_tokens: int,
        num_samples: int,
        num_sequences: int,
        context: int,
        prefills: list[tuple[int, int]],
    ) -> None:
        """Run a step that is planned now, after those before it."""
        shared = min(self._num_shared, context)
        device_s = self.cost.device_s(
            num_tokens, num_samples, num_sequences, context, shared, prefills
        )
        begin = max(self._now, self._device_free)
        duration = self.cost.step_s(
            device_s, num_tokens, num_sequences, overlaps=self._num_steps_ahead > 0
        )
        self._device_free = begin + duration
        self.record.device_s += device_s
        scheduler = self.scheduler
        num_running, num_waiting = len(scheduler.running), scheduler.num_waiting
        self.record.add_step(begin, duration, num_running, num_waiting, self.kv_cache.usage)

    def _take_arrivals(self) -> None:
        for index in self._clients.take(self._now):
            self._add(index)
            self._is_alike = False

    def _add(self, index: int) -> None:
        trace = self.trace
        num_output = int(trace.output_len[index])
        params = self._params.get(num_output)
        if params is None:
            params = SamplingParams(max_tokens=num_output, ignore_eos=True)
            self._params[num_output] = params
        request = Request(
            str(index),
            trace.prompt(index),
            params,
            seed=0,
            priority=int(trace.priority[index]),
            tenant=trace.tenants[trace.tenant[index]],
        )
        try:
            self.scheduler.add(request)
        except InvalidRequestError as error:
            self.record.num_refused += 1
            self.record.first_refusal = self.record.first_refusal or str(error)
            self._num_ended += 1
            self._clients.ended(index, self._now)

    def _enter(self, requests: list[Request]) -> None:
        """Requests that got a row in this step."""
        for request in requests:
            index, row = int(request.request_id), request.row
            self._last_s[row] = self._left_s.pop(index, np.nan)
            if self._has_prefixes:
                self._tokens[row] = self.trace.own_token(index)
                if request.num_computed_tokens:
                    self._shared[row] = self._count_shared(request)
                    self._num_shared += self._shared[row]

    def _take_left(self, seen: float) -> int:
        """Requests that ended, at `seen`, or were preempted: how many."""
        left = self.scheduler.left
        if not left:
            return 0
        for request, row in left:
            index = int(request.request_id)
            if row >= 0:
                self._num_shared -= self._shared[row]
                self._shared[row] = 0
            if request.status is _FINISHED:
                self.record.preemptions[index] = request.num_preemptions
                self._left_s.pop(index, None)
                self.record.last_s[index] = seen
                self._num_ended += 1
                self._clients.ended(index, seen)
            else:
                self._left_s[index] = float(self._last_s[row])
        count = len(left)
        left.clear()
        return count

    def _count_shared(self, request: Request) -> int:
        """Tokens at its head that other running requests read in the same steps."""
        num_refs, count = self.kv_cache.pool.num_refs, 0
        for block in request.block_ids:
            if num_refs(block) < 2:
                break
            count += 1
        num_tokens = count * self.kv_cache.block_size
        return num_tokens if self.cost.fits_l2(num_tokens) else 0

    def _record_gaps(self, rows: list[int], seen: float) -> int:
        """Gaps before the tokens of this step; how many of them were first tokens."""
        if not rows:
            return 0
        places = np.array(rows)
        gaps = seen - self._last_s[places]
        self._last_s[places] = seen
        known = gaps[~np.isnan(gaps)]
        if len(known):
            if (known == known[0]).all():
                self.record.gaps.add(float(known[0]), len(known))
            else:
                self.record.gaps.add_all(known)
        return len(gaps) - len(known)

    def _record_firsts(self, requests: list[Request], num_firsts: int, seen: float) -> None:
        for request in reversed(requests):
            if len(request.token_ids) == request.num_prompt_tokens + 1:
                index = int(request.request_id)
                self.record.first_s[index] = seen
                self.record.cached[index] = request.num_cached_tokens
                num_firsts -= 1
                if not num_firsts:
                    return
