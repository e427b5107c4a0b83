"""The engine's core where texts become vectors: each step takes whole texts, within a budget.

Knows a policy and an executor. A text has no second step, so there are neither rows nor blocks.
"""

from __future__ import annotations

import logging
from time import perf_counter_ns
from typing import TYPE_CHECKING, Protocol, Self, cast

from octavo.engine.messages import PoolingOutput
from octavo.engine.metering_switch import make_meter
from octavo.engine.metering_time import Activity
from octavo.engine.policy import FCFSPolicy, make_policy
from octavo.engine.request import Request, RequestStatus
from octavo.errors import DeviceLostError, InvalidRequestError
from octavo.types import EngineStats, PoolingPlan, SamplingParams, StepPlan

if TYPE_CHECKING:
    from collections.abc import Iterable
    from concurrent.futures import Future

    from octavo.config import EngineConfig
    from octavo.engine.messages import AddPooling
    from octavo.engine.policy import Policy
    from octavo.types import Charge, EngineInfo, PoolingParams, PoolingResult

logger = logging.getLogger(__name__)

STEP_FAILED = "the engine failed while it computed this request; its log says why"
_NOTHING_SAMPLED = SamplingParams(max_tokens=1)


class PoolingExecutor(Protocol):
    """What the core asks of the device's side; `runner/pooling.py` implements it.

    Attributes:
        info: what was loaded.
        token_budget: tokens that a step may have; at least `info.max_model_len`.
        max_num_seqs: texts that a step may have.
    """

    info: EngineInfo
    token_budget: int
    max_num_seqs: int

    def submit(self, plan: PoolingPlan) -> Future[PoolingResult]:
        """Begin a step. The future carries an exception when the step failed; `DeviceLostError`
        means that no step can run.
        """
        ...


class PoolingRequest(Request):
    """A request as policies order it, with what is wanted instead of tokens."""

    __slots__ = ("pooling",)

    def __init__(self, message: AddPooling) -> None:
        super().__init__(
            message.request_id,
            message.prompt_token_ids,
            _NOTHING_SAMPLED,
            seed=0,
            priority=message.priority,
            tenant=message.tenant,
        )
        self.pooling: PoolingParams = message.params


class PoolingCore:
    """Texts in, vectors out (`engine.process.Core`).

    Args:
        executor: runs the steps; whoever made it closes it.
        policy: order of waiting requests; None: first come, first served.
    """

    def __init__(self, executor: PoolingExecutor, *, policy: Policy | None = None) -> None:
        self._executor = executor
        self._policy: Policy = FCFSPolicy() if policy is None else policy
        self._waiting: dict[str, PoolingRequest] = {}
        self._num_received = 0
        self._num_steps = 0
        self._num_prompt_tokens = 0
        self._device_ns = 0
        self._scheduler_ns = 0
        self._meter = make_meter(executor.info, perf_counter_ns())

    @classmethod
    def from_config(cls, executor: PoolingExecutor, config: EngineConfig) -> Self:
        """The core that the flags ask for."""
        return cls(executor, policy=make_policy(config.scheduling_policy))

    @property
    def has_work(self) -> bool:
        """Whether `step` has anything to do."""
        return bool(self._waiting)

    @property
    def stats(self) -> EngineStats:
        """A snapshot between two steps, when nothing runs."""
        return EngineStats(
            num_waiting=len(self._waiting),
            num_free_rows=0 if self._waiting else self._executor.max_num_seqs,
            num_received=self._num_received,
            num_steps=self._num_steps,
            num_prompt_tokens=self._num_prompt_tokens,
            device_ns=self._device_ns,
            scheduler_ns=self._scheduler_ns,
            device_time=self._meter.device_time(perf_counter_ns()),
        )

    def ready(self, began_ns: int) -> None:
        """The engine has started up; its process began then, by `perf_counter_ns`."""
        self._meter.ready(began_ns, perf_counter_ns())

    def take_charges(self) -> list[tuple[str, Charge]]:
        """What aborted requests cost, each once: nothing, for they had waited."""
        return self._meter.take_charges()

    def add(self, message: AddPooling) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: it can never run, or its id is in flight.
        """
        self._num_received += 1
        self._meter.wake(perf_counter_ns())
        num_tokens = len(message.prompt_token_ids)
        if message.request_id in self._waiting:
            raise InvalidRequestError(f"request id {message.request_id!r} is already in flight")
        if not 1 <= num_tokens <= self._executor.token_budget:
            raise InvalidRequestError(
                f"a text has {num_tokens} tokens, but must have 1 to {self._executor.token_budget}"
            )
        request = PoolingRequest(message)
        request.arrival = self._num_received
        self._waiting[request.request_id] = request
        self._policy.push(request)
        self._meter.open(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Forget requests; unknown ids are ignored."""
        for request_id in request_ids:
            request = self._waiting.pop(request_id, None)
            if request is not None:
                request.status = RequestStatus.FINISHED
                self._policy.forget(request)
                self._meter.leave(request_id, None)
        if not self.has_work:
            self._meter.turn_to(Activity.IDLE, perf_counter_ns())

    def step(self) -> list[PoolingOutput]:
        """Plan a step, run it, and take in what came of it.

        A step that fails ends its requests with an error, and nothing else.

        Raises:
            DeviceLostError: no step can run any more.
        """
        begin = perf_counter_ns()
        self._meter.turn_to(Activity.SCHEDULER, begin)
        requests = self._take()
        plan = PoolingPlan(
            self._num_steps,
            [request.token_ids.tolist() for request in requests],
            [request.pooling for request in requests],
        )
        self._num_steps += 1
        launched = perf_counter_ns()
        self._scheduler_ns += launched - begin
        outputs = self._run(plan, requests, launched) if requests else []
        self._meter.close(outputs)
        rest = Activity.MESSAGES if self.has_work else Activity.IDLE
        self._meter.turn_to(rest, perf_counter_ns())
        return outputs

    def _run(
        self, plan: PoolingPlan, requests: list[PoolingRequest], launched: int
    ) -> list[PoolingOutput]:
        rows = _rows(plan)
        self._meter.turn_to(Activity.LAUNCH, launched)
        self._meter.launch(rows, requests, launched)
        try:
            result = self._executor.submit(plan).result()
        except DeviceLostError:
            raise
        except Exception:
            self._meter.fail(rows, perf_counter_ns())
            logger.exception("step %d failed", plan.step_id)
            return [
                PoolingOutput(request.request_id, finish_reason="error", error=STEP_FAILED)
                for request in requests
            ]
        now = perf_counter_ns()
        self._meter.end(rows, requests, result.device_ns, now)
        self._meter.turn_to(Activity.SCHEDULER, now)
        self._device_ns += result.device_ns
        self._num_prompt_tokens += plan.num_tokens
        return [
            PoolingOutput(request.request_id, vector)
            for request, vector in zip(requests, result.vectors, strict=True)
        ]

    def _take(self) -> list[PoolingRequest]:
        """The next requests in the policy's order, as long as they fit into a step."""
        taken: list[PoolingRequest] = []
        left = self._executor.token_budget
        while len(taken) < self._executor.max_num_seqs:
            request = cast("PoolingRequest | None", self._policy.peek())
            if request is None or request.num_prompt_tokens > left:
                break
            self._policy.pop()
            self._policy.charge(request, request.num_prompt_tokens, 0)
            del self._waiting[request.request_id]
            request.status = RequestStatus.FINISHED
            left -= request.num_prompt_tokens
            taken.append(request)
        return taken


def _rows(plan: PoolingPlan) -> StepPlan:
    """What a step computes, in the words of one that generates: whole prompts, and no samples."""
    lengths = [len(text) for text in plan.token_ids]
    num = len(lengths)
    return StepPlan(plan.step_id, [], [-1] * num, [0] * num, lengths, [False] * num, [])
