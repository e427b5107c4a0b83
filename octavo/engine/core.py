"""The engine's heart: each step is plan, run, update.

Knows the scheduler and an executor. Knows nothing of processes, sockets, text or tensors; the
caller runs the loop and carries the messages.
"""

from __future__ import annotations

import logging
from collections import deque
from random import Random
from time import perf_counter_ns
from typing import TYPE_CHECKING, Self

import msgspec

from octavo.engine.kv_cache import KVCacheManager
from octavo.engine.policy import make_policy
from octavo.engine.request import Request
from octavo.engine.scheduler import Scheduler
from octavo.errors import DeviceLostError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from octavo.config import EngineConfig
    from octavo.engine.executor import DeviceExecutor, Executor
    from octavo.engine.messages import AddRequest, TokenOutput
    from octavo.engine.policy import Policy
    from octavo.types import EngineStats, StepPlan, StepResult

logger = logging.getLogger(__name__)

STEP_FAILED = "the engine failed while it computed this request; its log says why"


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
        self._num_received = 0

    @classmethod
    def from_config(cls, executor: DeviceExecutor, config: EngineConfig) -> Self:
        """The core that the flags ask for, over an executor for one device."""
        return cls(
            executor,
            max_num_seqs=executor.max_num_seqs,
            max_num_batched_tokens=executor.token_budget,
            enable_prefix_caching=config.enable_prefix_caching,
            num_steps_ahead=executor.num_steps_ahead,
            policy=make_policy(config.scheduling_policy),
            seed=config.seed,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return self.scheduler.has_work or bool(self._in_flight)

    @property
    def stats(self) -> EngineStats:
        """A snapshot, cheap enough for every step."""
        return msgspec.structs.replace(
            self.scheduler.stats,
            num_received=self._num_received,
            device_ns=self._device_ns,
            scheduler_ns=self._scheduler_ns,
        )

    def add(self, message: AddRequest) -> None:
        """Take a request.

        Raises:
            InvalidRequestError: it can never run.
        """
        self._num_received += 1
        self.scheduler.add(Request.from_message(message, seed=self._random.getrandbits(63)))

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests and free what they hold at once; unknown ids are ignored."""
        for request_id in request_ids:
            self.scheduler.abort(request_id)

    def step(self) -> list[TokenOutput]:
        """Plan a step and run it, and take in the oldest one once it is done.

        A step that fails ends its requests with an error, and nothing else.

        Raises:
            DeviceLostError: no step can run any more.
        """
        begin = perf_counter_ns()
        plan = self.scheduler.plan()
        self._scheduler_ns += perf_counter_ns() - begin
        outputs: list[TokenOutput] = []
        if not plan.is_empty:
            outputs += self._run(plan)
        num_ahead = 0 if plan.is_empty else self._num_steps_ahead
        if len(self._in_flight) > num_ahead:
            outputs += self._update(*self._in_flight.popleft())
        return outputs

    def _run(self, plan: StepPlan) -> list[TokenOutput]:
        try:
            self._in_flight.append((plan, self._executor.submit(plan)))
        except DeviceLostError:
            raise
        except Exception:
            return self._fail(plan)
        return []

    def _update(self, plan: StepPlan, future: Future[StepResult]) -> list[TokenOutput]:
        try:
            result = future.result()
            begin = perf_counter_ns()
            outputs = self.scheduler.update(plan, result)
        except DeviceLostError:
            raise
        except Exception:
            return self._fail(plan)
        self._scheduler_ns += perf_counter_ns() - begin
        self._device_ns += result.device_ns
        return outputs

    def _fail(self, plan: StepPlan) -> list[TokenOutput]:
        logger.exception("step %d failed with %d requests", plan.step_id, len(plan.rows))
        return self.scheduler.fail(plan, STEP_FAILED)
