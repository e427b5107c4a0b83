"""The engine's heart: each step is plan, run, update.

Knows the scheduler and an executor. Knows nothing of processes, sockets, text or tensors; the
caller runs the loop and carries the messages.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from concurrent.futures import Future
from random import Random
from time import perf_counter_ns
from typing import TYPE_CHECKING, Any, Self

import msgspec

from octavo.engine.constraints import Constraints
from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.messages import TokenOutput
from octavo.engine.metering_switch import make_meter
from octavo.engine.metering_time import Activity
from octavo.engine.policy import make_policy
from octavo.engine.request import Request
from octavo.engine.scheduler import Scheduler
from octavo.errors import DeviceLostError, InvalidRequestError
from octavo.types import ITERATION_BUCKETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from octavo.config import EngineConfig
    from octavo.engine.constraints import Grammars
    from octavo.engine.executor import DeviceExecutor, Executor
    from octavo.engine.messages import AddRequest
    from octavo.engine.policy import Policy
    from octavo.types import Charge, EngineStats, StepMasks, StepPlan, StepResult

logger = logging.getLogger(__name__)

STEP_FAILED = "the engine failed while it computed this request; its log says why"

COMPILE_WAIT_S = 0.05
"""How long a step without any other work waits for a grammar, seconds: messages wait meanwhile."""


class EngineCore:
    """Requests in, tokens out.

    Args:
        executor: runs the steps; whoever made it closes it.
        max_num_seqs: most requests in a batch; the executor must have as many rows.
        max_num_batched_tokens: token budget of a step.
        enable_prefix_caching: share computed prefixes between requests.
        num_steps_ahead: steps that may be in flight when `step` returns; 0 waits for each.
        policy: order of waiting requests; None: first come, first served.
        seed: base of the seeds drawn for requests that bring none; None: unpredictable.
        grammars: makes what binds outputs, when it is first needed; None: such requests fail.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        enable_prefix_caching: bool = True,
        num_steps_ahead: int = 0,
        policy: Policy | None = None,
        seed: int | None = None,
        grammars: Callable[[], Grammars[Any]] | None = None,
    ) -> None:
        info = executor.info
        kv_cache = KVCacheManager(
            info.kv_cache.num_blocks,
            info.kv_cache.block_size,
            enable_prefix_caching=enable_prefix_caching,
        )
        self.scheduler = Scheduler(
            kv_cache,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_model_len=info.max_model_len,
            policy=policy,
        )
        self._executor = executor
        self._num_steps_ahead = num_steps_ahead
        self._in_flight: deque[tuple[StepPlan, Future[StepResult]]] = deque()
        self._random = Random(seed)
        self._device_ns = 0
        self._scheduler_ns = 0
        self._iteration_tokens = [0] * (len(ITERATION_BUCKETS) + 2)
        self._num_received = 0
        self._constraints = Constraints(grammars, info.vocab_size)
        self._meter = make_meter(info, perf_counter_ns())

    @classmethod
    def from_config(
        cls,
        executor: DeviceExecutor,
        config: EngineConfig,
        grammars: Callable[[], Grammars[Any]] | None = None,
    ) -> Self:
        """The core that the flags ask for, over an executor for one device."""
        return cls(
            executor,
            max_num_seqs=executor.max_num_seqs,
            max_num_batched_tokens=executor.token_budget,
            enable_prefix_caching=config.enable_prefix_caching,
            num_steps_ahead=executor.num_steps_ahead,
            policy=make_policy(config.scheduling_policy),
            seed=config.seed,
            grammars=grammars,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return (
            self.scheduler.has_work or bool(self._in_flight) or bool(self._constraints.num_pending)
        )

    @property
    def stats(self) -> EngineStats:
        """A snapshot, cheap enough for every step."""
        stats = self.scheduler.stats
        return msgspec.structs.replace(
            stats,
            num_waiting=stats.num_waiting + self._constraints.num_pending,
            num_deferred=self._constraints.num_pending,
            iteration_tokens=self._iteration_tokens.copy(),
            num_received=self._num_received,
            device_ns=self._device_ns,
            scheduler_ns=self._scheduler_ns,
            device_time=self._meter.device_time(perf_counter_ns()),
        )

    def ready(self, began_ns: int) -> None:
        """The engine has started up; its process began then, by `perf_counter_ns`."""
        self._meter.ready(began_ns, perf_counter_ns())

    def take_charges(self) -> list[tuple[str, Charge]]:
        """What aborted requests cost, each once, when no step with them is in flight any more.

        What the others cost stands in their last outputs.
        """
        return self._meter.take_charges()

    def add(self, message: AddRequest) -> None:
        """Take a request. One that is bound to a grammar is queued when that is compiled.

        Raises:
            InvalidRequestError: it can never run.
        """
        self._num_received += 1
        self._meter.wake(perf_counter_ns())
        if message.params.structured_outputs is not None:
            self._constraints.prepare(message)
        else:
            self._queue(message)

    def _queue(self, message: AddRequest) -> None:
        request = Request.from_message(message, seed=self._random.getrandbits(63))
        self.scheduler.add(request, perf_counter_ns())
        self._meter.open(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests and free what they hold at once; unknown ids are ignored."""
        for request_id in request_ids:
            if self._constraints.forget(request_id):
                self._meter.leave(request_id, None)
            elif (request := self.scheduler.abort(request_id)) is not None:
                self._meter.leave(request_id, self.scheduler.last_step_of(request))
        if not self.has_work:
            self._meter.turn_to(Activity.IDLE, perf_counter_ns())

    def step(self) -> list[TokenOutput]:
        """Plan a step and run it, and take in the oldest one once it is done.

        A step that fails ends its requests with an error, and nothing else.

        Raises:
            DeviceLostError: no step can run any more.
        """
        outputs: list[TokenOutput] = []
        meter = self._meter
        if self._constraints.num_pending:
            meter.turn_to(Activity.GRAMMAR, perf_counter_ns())
            outputs += self._queue_compiled()
        begin = perf_counter_ns()
        meter.turn_to(Activity.SCHEDULER, begin)
        plan = self.scheduler.plan(begin)
        self._scheduler_ns += perf_counter_ns() - begin
        if not plan.is_empty:
            num_tokens = plan.num_tokens
            self._iteration_tokens[bisect_left(ITERATION_BUCKETS, num_tokens)] += 1
            self._iteration_tokens[-1] += num_tokens
            outputs += self._run(plan)
        num_ahead = 0 if plan.is_empty else self._num_steps_ahead
        if len(self._in_flight) > num_ahead:
            outputs += self._update(*self._in_flight.popleft())
        rest = Activity.MESSAGES if self.has_work else Activity.IDLE
        meter.turn_to(rest, perf_counter_ns())
        return outputs

    def close(self) -> None:
        """End the threads that compile grammars."""
        self._constraints.close()

    def _queue_compiled(self) -> list[TokenOutput]:
        """Queue requests whose grammars are there; ends of those that cannot run."""
        is_idle = not (self.scheduler.has_work or self._in_flight)
        ready, outputs = self._constraints.take_ready(COMPILE_WAIT_S if is_idle else 0.0)
        for message in ready:
            try:
                self._queue(message)
            except InvalidRequestError as error:
                self._constraints.forget(message.request_id)
                outputs.append(
                    TokenOutput(message.request_id, [], finish_reason="error", error=error.message)
                )
        self._meter.close(outputs)
        return outputs

    def _run(self, plan: StepPlan) -> list[TokenOutput]:
        """Submit a plan. One with bound rows is sampled when the tokens before are known: the
        device computes the rest of the step meanwhile.
        """
        masks: Future[StepMasks] | None = None
        outputs: list[TokenOutput] = []
        if self._constraints and self._constraints.binds(plan, self.scheduler.requests_of(plan)):
            masks = Future()
            if not self._in_flight:
                outputs += self._mask(plan, masks)
        launched = perf_counter_ns()
        self._meter.turn_to(Activity.LAUNCH, launched)
        try:
            if masks is None:
                future = self._executor.submit(plan)
            else:
                future = self._executor.submit(plan, masks)
        except DeviceLostError:
            raise
        except Exception:
            self._meter.fail_launch()
            return outputs + self._fail(plan)
        self._meter.launch(plan, self.scheduler.requests_of(plan), launched)
        self._in_flight.append((plan, future))
        if masks is not None and not masks.done():
            try:
                while len(self._in_flight) > 1:
                    outputs += self._update(*self._in_flight.popleft())
                outputs += self._mask(plan, masks)
            finally:
                masks.cancel()  # where it was not set: nobody must wait for it
        return outputs

    def _mask(self, plan: StepPlan, masks: Future[StepMasks]) -> list[TokenOutput]:
        """Tell the device which tokens the plan's bound rows may get."""
        self._meter.turn_to(Activity.GRAMMAR, perf_counter_ns())
        try:
            allowed, ends = self._constraints.masks(plan, self.scheduler.requests_of(plan))
        except Exception as error:  # the step fails, and with it its requests
            masks.set_exception(error)
            return []
        masks.set_result(allowed)
        return self._end(ends)

    def _end(self, ends: list[TokenOutput]) -> list[TokenOutput]:
        """Forget requests that these outputs end."""
        for end in ends:
            self.scheduler.abort(end.request_id)
        self._meter.close(ends)
        return ends

    def _update(self, plan: StepPlan, future: Future[StepResult]) -> list[TokenOutput]:
        meter = self._meter
        meter.turn_to(Activity.LAUNCH, perf_counter_ns())
        try:
            result = future.result()
        except DeviceLostError:
            raise
        except Exception:
            meter.fail(plan, perf_counter_ns())
            return self._fail(plan)
        begin = perf_counter_ns()
        meter.end(
            plan, self.scheduler.requests_of(plan), result.device_ns, begin,
            waited_ns=result.waited_ns, told=result.prompt_logprobs,
        )  # fmt: skip
        meter.turn_to(Activity.SCHEDULER, begin)
        try:
            outputs = self.scheduler.update(plan, result, begin)
        except Exception:
            return self._fail(plan)
        meter.close(outputs)
        if self._constraints:
            outputs += self._end(self._constraints.advance(outputs))
        self._scheduler_ns += perf_counter_ns() - begin
        self._device_ns += result.device_ns
        return outputs

    def _fail(self, plan: StepPlan) -> list[TokenOutput]:
        self._meter.turn_to(Activity.FAILED, perf_counter_ns())
        logger.exception("step %d failed with %d requests", plan.step_id, len(plan.rows))
        outputs = self.scheduler.fail(plan, STEP_FAILED)
        self._meter.close(outputs)
        for output in outputs:
            self._constraints.forget(output.request_id)
        return outputs
