"""Decides which request computes how many tokens in each step, and takes in what came of it.

Knows counts, ids and rows. Knows nothing of models, devices, clients or threads, and no clock: it
is told the time.

There are no phases: a request gets some of the tokens between `num_computed_tokens` and
`num_tokens`. Those with one token left (decodes) come first, then other running requests, then
waiting ones, within a budget of tokens. A plan counts as done as soon as it is made, so that the
next one can be made while the device still runs it; a token in flight is counted and not known.
"""

from __future__ import annotations

from bisect import insort
from typing import TYPE_CHECKING, Any

from octavo.engine.messages import TokenOutput
from octavo.engine.policy import FCFSPolicy
from octavo.engine.request import RequestStatus
from octavo.errors import EngineError, InvalidRequestError
from octavo.types import EngineStats, StepPlan

if TYPE_CHECKING:
    from octavo.engine.kv_cache import KVCacheManager
    from octavo.engine.policy import Policy
    from octavo.engine.request import Request
    from octavo.types import FinishReason, StepResult

NONE: list[Any] = []
"""For the many entries of a step that are empty; nobody changes it."""

WAITING, RUNNING, FINISHED = RequestStatus.WAITING, RequestStatus.RUNNING, RequestStatus.FINISHED


class Scheduler:
    """All requests of an engine, from `add` to their last output.

    Progress: running requests are visited in the policy's order, and one that lacks a block takes
    it from requests behind it, so the first in order always advances. No request can need more
    blocks than the pool has, see `add`.

    Args:
        kv_cache: whose blocks the scheduler alone uses.
        max_num_seqs: rows of the device's table.
        max_num_batched_tokens: token budget of a step. No more requests than this run at once, so
            that each running one advances in every step but for the prompts among them.
        max_model_len: most tokens of prompt and output together.
        policy: order of waiting requests; None: first come, first served.
    """

    def __init__(
        self,
        kv_cache: KVCacheManager,
        *,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        max_model_len: int,
        policy: Policy | None = None,
    ) -> None:
        if min(max_num_seqs, max_num_batched_tokens, max_model_len) < 1:
            raise ValueError("max_num_seqs, max_num_batched_tokens, max_model_len: at least 1 each")
        self.kv_cache = kv_cache
        self.max_num_batched_tokens = max_num_batched_tokens
        self.max_model_len = max_model_len
        self.policy: Policy = FCFSPolicy() if policy is None else policy
        self._requests: dict[str, Request] = {}
        # Sorted by the policy's key.
        self._running: list[Request] = []
        self._num_rows = min(max_num_seqs, max_num_batched_tokens)
        self._free_rows = list(range(self._num_rows))[::-1]
        self._in_flight: dict[int, list[Request]] = {}
        self._num_arrivals = 0
        self._num_steps = 0
        self._num_preemptions = 0
        self._num_prompt_tokens = 0
        self._num_generation_tokens = 0
        self._num_cached_prompt_tokens = 0
        self._num_queried_tokens = 0
        self._num_hit_tokens = 0

    @property
    def has_work(self) -> bool:
        """Whether any request is unfinished. If so, and no step is in flight, `plan` has some."""
        return bool(self._requests)

    @property
    def requests(self) -> list[Request]:
        """All unfinished requests."""
        return list(self._requests.values())

    @property
    def stats(self) -> EngineStats:
        """A snapshot; what the scheduler cannot know (times) is zero."""
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._requests) - len(self._running),
            num_free_rows=len(self._free_rows),
            kv_cache_usage=self.kv_cache.usage,
            num_steps=self._num_steps,
            num_preemptions=self._num_preemptions,
            num_prompt_tokens=self._num_prompt_tokens,
            num_generation_tokens=self._num_generation_tokens,
            num_cached_prompt_tokens=self._num_cached_prompt_tokens,
            prefix_cache_queries=self._num_queried_tokens,
            prefix_cache_hits=self._num_hit_tokens,
        )

    def add(self, request: Request, now_ns: int = 0) -> None:
        """Queue a request. It ends at the latest where context or KV cache are full.

        `now_ns` is the monotonic time, here and below: for what is told of the request's way.

        Raises:
            InvalidRequestError: it can never run, or its id is in flight.
        """
        if request.request_id in self._requests:
            raise InvalidRequestError(f"request id {request.request_id!r} is already in flight")
        num_prompt, num_slots = request.num_prompt_tokens, self.kv_cache.num_tokens
        if not num_prompt:
            raise InvalidRequestError("the prompt is empty", param="prompt")
        if num_prompt >= min(self.max_model_len, num_slots):
            where = (
                f"the context of {self.max_model_len} tokens"
                if self.max_model_len <= num_slots
                else f"the KV cache of {num_slots} tokens ({self.kv_cache.num_blocks} blocks of "
                f"{self.kv_cache.block_size})"
            )
            raise InvalidRequestError(
                f"the prompt has {num_prompt} tokens; with at least one token of output it does "
                f"not fit {where}",
                param="prompt",
                code="context_length_exceeded",
            )
        # The last token's KV is never needed: it may lie one beyond the cache.
        request.max_num_tokens = min(
            request.max_num_tokens, self.max_model_len, self.kv_cache.num_tokens + 1
        )
        request.queued_ns = now_ns
        request.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._requests[request.request_id] = request
        self.policy.push(request)

    def abort(self, request_id: str) -> Request | None:
        """Forget a request and free what it holds; no output follows. None: no such request."""
        request = self._requests.get(request_id)
        if request is None:
            return None
        if request.status is RUNNING:
            self._running.remove(request)
            self._finish(request)
        else:
            self._finish(request)
            self.policy.forget(request)
        return request

    def plan(self, now_ns: int = 0) -> StepPlan:
        """The next step. May be called while earlier steps are in flight."""
        budget = self.max_num_batched_tokens
        step_id = self._num_steps
        plan = StepPlan(step_id, [], [], [], [], [], [])
        scheduled: list[Request] = []
        prefills: list[Request] = []
        preempted = self._num_preemptions
        if not self._free_rows:
            self._make_room()
        block_size = self.kv_cache.block_size
        rows, computed, samples = plan.rows, plan.num_computed_tokens, plan.samples
        new_block_ids = plan.new_block_ids
        # A victim of preemption leaves the list behind the current place, or at it if it is last:
        # never one that is in `prefills` or scheduled already.
        for request in self._running:
            num_computed = request.num_computed_tokens
            if num_computed + 1 != request.num_tokens:
                prefills.append(request)
                continue
            if request.num_tokens == request.max_num_tokens:
                continue  # its last token is in flight
            if num_computed < len(request.block_ids) * block_size:
                blocks = NONE
            elif (grown := self._grow(request)) is not None:
                blocks = grown
            else:
                continue
            request.num_computed_tokens = num_computed + 1
            request.num_tokens += 1
            scheduled.append(request)
            rows.append(request.row)
            computed.append(num_computed)
            samples.append(True)
            new_block_ids.append(blocks)
        plan.num_new_tokens += [1] * len(rows)
        budget -= len(rows)
        for request in prefills:
            if budget:
                budget -= self._schedule(plan, request, [], budget)
                scheduled.append(request)
        if budget and preempted == self._num_preemptions:
            self._admit(plan, scheduled, budget, now_ns)
        if scheduled:
            self._num_steps += 1
            self._in_flight[step_id] = scheduled
        return plan

    def update(self, plan: StepPlan, result: StepResult, now_ns: int = 0) -> list[TokenOutput]:
        """Take in a step's result; plans must be updated, or failed, in the order of their making.

        Raises:
            EngineError: the result is not the plan's; nothing changed, `fail` may follow.
        """
        tokens, logprobs = result.token_ids, result.logprobs
        if (
            result.step_id != plan.step_id
            or len(tokens) != sum(plan.samples)
            or len(logprobs) not in (0, len(tokens))
            or len(result.prompt_logprobs) not in (0, len(plan.rows))
        ):
            raise EngineError(
                f"step {plan.step_id} was answered with {len(tokens)} tokens and {len(logprobs)} "
                f"logprobs of step {result.step_id}; expected {sum(plan.samples)}"
            )
        step_id, block_size = plan.step_id, self.kv_cache.block_size
        outputs: list[TokenOutput] = []
        firsts: list[tuple[int, Request]] = []
        num_done, index = 0, -1
        if result.prompt_logprobs:
            self._report_prompts(plan, result, outputs)
        charge = self.policy.charge if self.policy.counts_service else None
        for request, num_computed, num_new, samples in zip(
            self._in_flight.pop(step_id),
            plan.num_computed_tokens,
            plan.num_new_tokens,
            plan.samples,
            strict=True,
        ):
            index += samples
            status = request.status
            if status is FINISHED:
                continue
            # A request preempted since then keeps its token, but its blocks are gone.
            if status is RUNNING and request.start_step <= step_id:
                num_computed += num_new
                if num_new > 1 or not num_computed % block_size:
                    self.kv_cache.commit(request, num_computed)
            if not samples:
                continue
            token = tokens[index]
            known = request.token_ids
            if len(known) == request.num_prompt_tokens:
                self._num_prompt_tokens += request.num_prompt_tokens
                self._num_cached_prompt_tokens += request.num_cached_tokens
                firsts.append((len(outputs), request))
            known.append(token)
            if charge is not None:
                charge(request, 0, 1)
            finish_reason: FinishReason | None = None
            stop_reason: int | None = None
            if token in request.end_token_ids:
                finish_reason = "stop"
                stop_reason = None if token in request.eos_token_ids else token
            elif len(known) == request.max_num_tokens:
                finish_reason = "length"
            entry = logprobs[index] if logprobs else None
            outputs.append(
                TokenOutput(
                    request.request_id,
                    [token],
                    NONE if entry is None else [entry],
                    finish_reason,
                    stop_reason,
                    None,
                    request.num_cached_tokens,
                    request.num_preemptions,
                )
            )
            if finish_reason is not None:
                self._finish_in_update(request)
                num_done += 1
        for place, request in firsts:
            outputs[place].queue_ns = request.started_ns - request.queued_ns
            outputs[place].prefill_ns = now_ns - request.started_ns
        self._num_generation_tokens += sum(len(output.token_ids) for output in outputs)
        if num_done:
            self._running = [r for r in self._running if r.status is RUNNING]
        return outputs

    def _report_prompts(
        self, plan: StepPlan, result: StepResult, outputs: list[TokenOutput]
    ) -> None:
        """Outputs without tokens, of what the step computed of prompts' tokens.

        A prompt is computed again after a preemption: what was told is not told again.
        """
        for request, num_computed, entries in zip(
            self._in_flight[plan.step_id],
            plan.num_computed_tokens,
            result.prompt_logprobs,
            strict=True,
        ):
            if not entries or request.status is FINISHED:
                continue
            new = entries[max(request.num_prompt_logprobs - num_computed, 0) :]
            if new:
                request.num_prompt_logprobs += len(new)
                outputs.append(
                    TokenOutput(
                        request.request_id,
                        [],
                        num_cached_tokens=request.num_cached_tokens,
                        prompt_logprobs=new,
                    )
                )

    def requests_of(self, plan: StepPlan) -> list[Request]:
        """The requests of a plan in flight, in the order of its rows."""
        return self._in_flight[plan.step_id]

    def last_step_of(self, request: Request) -> int | None:
        """Id of the last step in flight that computes something for the request."""
        steps = (step for step, requests in self._in_flight.items() if request in requests)
        return max(steps, default=None)

    def fail(self, plan: StepPlan, message: str) -> list[TokenOutput]:
        """End the requests of a failed step, alone, with an error. Takes the place of `update`."""
        outputs: list[TokenOutput] = []
        for request in self._in_flight.pop(plan.step_id):
            if request.status is not FINISHED:
                outputs.append(
                    TokenOutput(
                        request.request_id,
                        [],
                        finish_reason="error",
                        error=message,
                        num_cached_tokens=request.num_cached_tokens,
                    )
                )
                self._finish_in_update(request)
        self._running = [r for r in self._running if r.status is RUNNING]
        return outputs

    def check_integrity(self) -> None:
        """Raise AssertionError unless rows, blocks and lists are consistent; for tests."""
        self.kv_cache.check_integrity(self._requests.values())
        keys = [self.policy.key(request) for request in self._running]
        assert keys == sorted(keys), "running requests are out of order"
        rows = [request.row for request in self._running]
        assert sorted(rows + self._free_rows) == list(range(self._num_rows)), "rows"
        for request in self._requests.values():
            running = request.status is RUNNING
            assert running == (request in self._running) == (request.row >= 0), request
            assert running == bool(request.block_ids), request
            assert request.num_computed_tokens < request.num_tokens <= request.max_num_tokens
            assert len(request.token_ids) <= request.num_tokens, request

    def _schedule(self, plan: StepPlan, request: Request, blocks: list[int], budget: int) -> int:
        """Enter as many of the request's tokens into the plan as the budget allows."""
        num_computed = request.num_computed_tokens
        num_new = min(request.num_tokens - num_computed, budget)
        is_last = num_computed + num_new == request.num_tokens
        plan.rows.append(request.row)
        plan.num_computed_tokens.append(num_computed)
        plan.num_new_tokens.append(num_new)
        plan.samples.append(is_last)
        plan.new_block_ids.append(blocks)
        request.num_computed_tokens = num_computed + num_new
        request.num_tokens += is_last
        return num_new

    def _admit(self, plan: StepPlan, scheduled: list[Request], budget: int, now_ns: int) -> None:
        """Start waiting requests while rows, blocks and budget last.

        A request gets blocks for all its tokens at once, so only decodes ever lack one. One block
        per running request stays free, so that a newcomer is not the next one's victim.
        """
        kv_cache, policy = self.kv_cache, self.policy
        for woken in kv_cache.woken:
            policy.push(woken)
        kv_cache.woken.clear()
        while budget and self._free_rows and (request := policy.peek()) is not None:
            if len(request.token_ids) < request.num_tokens:
                break  # preempted with a token in flight: the next plan knows it
            # What is said of a prompt's tokens comes of computing them.
            prefix = kv_cache.find_prefix(request)
            if request.owes_prompt_logprobs:
                prefix = []
            elif kv_cache.wait_for_prefix(request, len(prefix)):
                policy.pop()
                continue
            if not kv_cache.start(request, prefix, num_spare=len(self._running)):
                break
            policy.pop()
            request.status = RUNNING
            request.row = self._free_rows.pop()
            request.start_step = plan.step_id
            insort(self._running, request, key=policy.key)
            if not request.num_preemptions:
                request.started_ns = now_ns
                request.num_cached_tokens = request.num_computed_tokens
                policy.charge(request, request.num_tokens - request.num_computed_tokens, 0)
                if kv_cache.enable_prefix_caching:
                    self._num_queried_tokens += request.num_prompt_tokens
                    self._num_hit_tokens += request.num_cached_tokens
            plan.new_rows.append(request.row_init())
            budget -= self._schedule(plan, request, request.block_ids.copy(), budget)
            scheduled.append(request)

    def _make_room(self) -> None:
        """Take rows from whom the policy names, for those that are next in the queue.

        These start with the next plan: by then no step in flight has the rows.
        """
        waiting = self.policy.peek()
        if waiting is not None and len(waiting.token_ids) == waiting.num_tokens:
            for victim in self.policy.victims(waiting, self._running):
                self._preempt(victim)

    def _grow(self, request: Request) -> list[int] | None:
        """Blocks for the request's next token, at the cost of those behind it, or of itself."""
        while True:
            blocks = self.kv_cache.allocate(request, request.num_tokens)
            if blocks is not None:
                return blocks
            behind = self._running[self._running.index(request) + 1 :]
            # The cheapest to compute again; of equals the last.
            victim = min(reversed(behind), key=_cost, default=request)
            self._preempt(victim)
            if victim is request:
                return None

    def _preempt(self, request: Request) -> None:
        """Back to the queue without blocks; tokens and seed stay, so that it goes on the same."""
        self._running.remove(request)
        request.num_lost_tokens = max(request.num_lost_tokens, request.num_computed_tokens)
        self._release(request)
        request.status = WAITING
        request.num_preemptions += 1
        self._num_preemptions += 1
        self.policy.push(request)

    def _finish(self, request: Request) -> None:
        del self._requests[request.request_id]
        if request.status is RUNNING:
            self._release(request)
        request.status = FINISHED

    def _finish_in_update(self, request: Request) -> None:
        """As `_finish`; the caller sweeps finished requests out of `_running`."""
        was_waiting = request.status is WAITING
        self._finish(request)
        if was_waiting:
            self.policy.forget(request)

    def _release(self, request: Request) -> None:
        self.kv_cache.free(request)
        self._free_rows.append(request.row)
        request.row = -1


def _cost(request: Request) -> int:
    return request.num_computed_tokens
