"""What each request costs of the device: every step's time, shared over those who were in it.

The core tells what the host turns to, which steps it launches and how they end. Requests' shares
and the buckets add up to all of the device's time, to the nanosecond, at any moment: time is only
ever moved, from `DeviceTimeline` to a bucket or through `share_out` to requests. Knows no models,
policies or clients, and reads no clock. See `docs/metering.md`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from octavo.engine.metering_split import StepCost, share_out
from octavo.engine.metering_time import Activity, DeviceTimeline
from octavo.types import Charge, DeviceTime

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from octavo.engine.messages import Output
    from octavo.engine.metering_split import Floats, Ints
    from octavo.engine.request import Request
    from octavo.types import PositionLogprobs, StepPlan, WorkModel

    PromptLogprobs = Sequence[list[PositionLogprobs] | None]

ENDED = 0
"""The account of requests that the engine ended: work for them was for nobody."""

FEW_ROWS = 8
"""Rows that are charged one by one faster than by numpy."""

NO_CHARGE = Charge()
_NONE = np.zeros(0)


class Meter:
    """See the module.

    A request has an account from `open` until its charge is final: in its last output where the
    engine ended it (`close`), else when the last step in flight with it is done (`leave`).

    Args:
        work: what tokens cost.
        now_ns: the device has been ours since then, and starts up.
        num_devices: that run each step together.

    Attributes:
        time: what the host is at, and which steps are in flight.
    """

    def __init__(self, work: WorkModel, now_ns: int, *, num_devices: int = 1) -> None:
        self.time = DeviceTimeline(now_ns)
        self._cost = StepCost(work)
        self._num_devices = num_devices
        self._requests_ns = self._run_ahead_ns = 0
        self._open: dict[str, Request] = {}
        self._free: list[int] = []
        self._prefill, self._decode, self._waste = (np.zeros(1, np.int64) for _ in range(3))
        # Tokens before these positions are the prompt's, and were computed once already; and before
        # the larger of the two, a request's tokens are no plain decode.
        self._prompt, self._lost, self._special = (np.zeros(1) for _ in range(3))
        # The last step's, if each of them decoded: most steps have the same rows as the one before.
        self._decoders: list[Request] = []
        self._accounts = self._prompt.astype(np.int64)
        self._context = np.zeros(1)
        # By step: requests that may begin anew in it, and how many tokens they had lost by then.
        self._restarts: dict[int, list[tuple[Request, int]]] = {}
        self._leaving: list[tuple[int, Request]] = []
        self._charges: list[tuple[str, Charge]] = []
        self._add_accounts()

    def turn_to(self, activity: Activity, now: int) -> None:
        """The host turns to something else."""
        self.time.turn_to(activity, now)

    def launch(self, plan: StepPlan, requests: Sequence[Request], now: int) -> None:
        """A step was launched; `requests` are in the plan's order."""
        self.time.launch(now)
        if plan.new_rows:
            again = [(each, each.num_lost_tokens) for each in requests if each.num_preemptions]
            if again:
                self._restarts[plan.step_id] = again

    def fail_launch(self) -> None:
        """What the host was at since its last turn was a step that could not be launched."""
        self.time.rename(Activity.FAILED)

    def ready(self, began: int, now: int) -> None:
        """The engine is ready; its process had begun at `began`."""
        self.time.extend_back(began)
        self.time.turn_to(Activity.IDLE, now)

    def wake(self, now: int) -> None:
        """A request has come."""
        if self.time.activity in (Activity.IDLE, Activity.STARTUP):
            self.time.turn_to(Activity.MESSAGES, now)

    def open(self, request: Request) -> None:
        """A request may be scheduled from now on."""
        if not self._free:
            self._add_accounts()
        account = request.account = self._free.pop()
        self._prompt[account] = self._special[account] = request.num_prompt_tokens
        self._open[request.request_id] = request

    def close(self, outputs: Iterable[Output]) -> None:
        """Charge the requests that these outputs end: what still runs for them is for nobody."""
        for output in outputs:
            if output.finish_reason is not None:
                request = self._open.pop(output.request_id, None)
                output.charge = NO_CHARGE if request is None else self._take(request)

    def leave(self, request_id: str, last_step: int | None) -> None:
        """A request was aborted; its charge comes when its last step in flight is done.

        Args:
            request_id: unknown ones cost nothing.
            last_step: id of that step; None: none is in flight.
        """
        request = self._open.pop(request_id, None)
        if request is None:
            self._charges.append((request_id, NO_CHARGE))
        elif last_step is None:
            self._charges.append((request_id, self._take(request)))
        else:
            self._leaving.append((last_step, request))

    def take_charges(self) -> list[tuple[str, Charge]]:
        """Charges of aborted requests that came to be final since the last call."""
        charges, self._charges = self._charges, []
        return charges

    def end(
        self,
        plan: StepPlan,
        requests: Sequence[Request],
        device_ns: int,
        now: int,
        *,
        waited_ns: int = 0,
        told: PromptLogprobs = (),
    ) -> None:
        """The oldest step in flight is done.

        Args:
            plan: what it computed.
            requests: in the plan's order; those that have ended since are still among them.
            device_ns: how long it took, by the device's clock.
            now: when the host saw its end.
            waited_ns: how much of its time the device waited for masks.
            told: log-probabilities of prompts' tokens, which took the output layer too.
        """
        worked = self.time.end(device_ns, waited_ns, now) * self._num_devices
        for request, num_lost in self._restarts.pop(plan.step_id, ()):
            if (account := request.account) != ENDED:
                self._lost[account] = num_lost
                self._special[account] = max(num_lost, request.num_prompt_tokens)
        if len(requests) == 1:
            self._decoders = []
            self._charge_row(plan, 0, requests[0], worked)
        else:
            self._charge_many(plan, requests, worked, told)
        if self._leaving:
            self._settle_leaving(plan.step_id)

    def fail(self, plan: StepPlan, now: int) -> None:
        """The oldest step in flight has failed."""
        self.time.fail(now)
        self._restarts.pop(plan.step_id, None)
        self._settle_leaving(plan.step_id)

    def device_time(self, now: int) -> DeviceTime:
        """Where the time went until now."""
        self.time.settle(now)
        num, buckets = self._num_devices, self.time.buckets_ns
        return DeviceTime(
            num_devices=num,
            wall_ns=now - self.time.begin_ns,
            requests_ns=self._requests_ns,
            startup_ns=num * buckets[Activity.STARTUP],
            idle_ns=num * buckets[Activity.IDLE],
            scheduler_ns=num * buckets[Activity.SCHEDULER],
            messages_ns=num * buckets[Activity.MESSAGES],
            launch_ns=num * buckets[Activity.LAUNCH],
            grammar_ns=num * buckets[Activity.GRAMMAR],
            run_ahead_ns=self._run_ahead_ns,
            failed_ns=num * buckets[Activity.FAILED],
            in_flight_ns=num * (now - self.time.settled_ns),
        )

    def check_integrity(self) -> None:
        """Raise AssertionError unless accounts and sums are consistent; for tests."""
        accounts = [request.account for request in self._open.values()]
        accounts += [request.account for _, request in self._leaving]
        accounts += [*self._free, ENDED]
        assert sorted(accounts) == list(range(len(self._prefill))), "accounts"
        assert not self._prefill[self._free].any(), "a free account holds time"
        assert not self._decode[self._free].any(), "a free account holds time"

    def _charge_row(self, plan: StepPlan, index: int, request: Request, share: int) -> None:
        """Charge one row of a step; `_charge_rows` does the same for many."""
        account = request.account
        if account == ENDED:
            self._run_ahead_ns += share
            return
        self._requests_ns += share
        computed, new = plan.num_computed_tokens[index], plan.num_new_tokens[index]
        if computed >= self._special[account]:
            self._decode[account] += share
            return
        of_prompt = min(max(int(self._prompt[account]) - computed, 0), new)
        again = min(max(int(self._lost[account]) - computed, 0), new)
        prefill = share * of_prompt // new
        self._prefill[account] += prefill
        self._decode[account] += share - prefill
        self._waste[account] += share * again // new

    def _charge_many(
        self, plan: StepPlan, requests: Sequence[Request], worked: int, told: PromptLogprobs
    ) -> None:
        computed, new, samples = plan.num_computed_tokens, plan.num_new_tokens, plan.samples
        num_tokens, num_samples = sum(new), sum(samples) + sum(len(t) for t in told if t)
        num = self._count_decoders(plan, requests)
        weights = _NONE
        if num:
            weights = self._cost.decodes(self._context, num_tokens, num_samples)
        if len(requests) - num > FEW_ROWS:
            begins, counts, sampled = (
                np.array(column[num:], np.float64) for column in (computed, new, samples)
            )
            for index, entries in enumerate(told[num:]):
                sampled[index] += len(entries or ())
            others = self._cost.rows(begins, counts, sampled, num_tokens, num_samples)
        else:
            others = np.array(
                [
                    self._cost.row(
                        computed[index],
                        new[index],
                        samples[index] + (len(told[index] or ()) if told else 0),
                        num_tokens,
                        num_samples,
                    )
                    for index in range(num, len(requests))
                ]
            )
        shares = share_out(worked, np.concatenate((weights, others)) if len(others) else weights)
        if num:
            self._decode[self._accounts] += shares[:num]
            self._requests_ns += int(shares[:num].sum())
        if len(requests) - num > FEW_ROWS:
            self._charge_rows(requests[num:], shares[num:], begins, counts)
            return
        for index, share in enumerate(shares[num:].tolist(), start=num):
            self._charge_row(plan, index, requests[index], share)

    def _count_decoders(self, plan: StepPlan, requests: Sequence[Request]) -> int:
        """How many requests in front decode and do nothing else; `_accounts` and `_context` are
        theirs then.

        Schedulers put decodes first, and most steps have the same as the step before: those need
        not be looked at one by one.
        """
        computed, new = plan.num_computed_tokens, plan.num_new_tokens
        num = len(requests)
        while num and not (
            new[num - 1] == 1
            and (account := requests[num - 1].account) != ENDED
            and computed[num - 1] >= self._special[account]
        ):
            num -= 1
        if not num or sum(new[:num]) != num:
            self._decoders = []
            return 0
        decoders = list(requests[:num])
        if decoders == self._decoders and not plan.new_rows:
            self._context += 1.0
            return num
        self._decoders = []
        accounts = np.array([request.account for request in decoders])
        context = np.array(computed[:num], np.float64)
        special = self._special[accounts]
        if not accounts.all() or (context < special).any() or not all(plan.samples[:num]):
            return 0
        context += 1.0
        self._decoders, self._accounts, self._context = decoders, accounts, context
        return num

    def _charge_rows(
        self, requests: Sequence[Request], shares: Ints, computed: Floats, new: Floats
    ) -> None:
        """Divide shares by tokens into prefill and decode, and find how much of them was waste.

        An ended request's share was for nobody. No account but theirs is here twice.
        """
        accounts = np.array([request.account for request in requests])
        counts = new.astype(np.int64)
        of_prompt = np.clip(self._prompt[accounts] - computed, 0, new).astype(np.int64)
        prefill = shares * of_prompt // counts
        self._prefill[accounts] += prefill
        self._decode[accounts] += shares - prefill
        again = np.clip(self._lost[accounts] - computed, 0, new)
        if again.any():
            self._waste[accounts] += shares * again.astype(np.int64) // counts
        for_nobody = int(shares[accounts == ENDED].sum())
        self._run_ahead_ns += for_nobody
        self._requests_ns += int(shares.sum()) - for_nobody
        self._prefill[ENDED] = self._decode[ENDED] = 0

    def _settle_leaving(self, step_id: int) -> None:
        done = [entry for entry in self._leaving if entry[0] <= step_id]
        if done:
            self._leaving = [entry for entry in self._leaving if entry[0] > step_id]
            self._charges += [(request.request_id, self._take(request)) for _, request in done]

    def _take(self, request: Request) -> Charge:
        """A request's charge; its account is free again."""
        account, request.account = request.account, ENDED
        self._decoders = []
        charge = Charge(
            int(self._prefill[account]), int(self._decode[account]), int(self._waste[account])
        )
        self._prefill[account] = self._decode[account] = self._waste[account] = 0
        self._lost[account] = 0
        self._free.append(account)
        return charge

    def _add_accounts(self) -> None:
        """Room for twice as many requests."""
        size = max(2 * len(self._prefill), 64)
        self._free += range(len(self._prefill), size)
        for name in ("_prefill", "_decode", "_waste", "_prompt", "_lost", "_special"):
            old = getattr(self, name)
            grown = np.zeros(size, old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)
