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
    from octavo.types import EngineInfo, PositionLogprobs, StepPlan, WorkModel

    PromptLogprobs = Sequence[list[PositionLogprobs] | None]

ENDED = 0
"""The account of requests that the engine ended: work for them was for nobody."""

NO_CHARGE = Charge()
NOT_METERED = DeviceTime()


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
        self._leaving: list[tuple[int, Request]] = []
        self._charges: list[tuple[str, Charge]] = []
        self._add_accounts()

    def turn_to(self, activity: Activity, now: int) -> None:
        """The host turns to something else."""
        self.time.turn_to(activity, now)

    def launch(self, now: int) -> None:
        """A step was launched."""
        self.time.launch(now)

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
        if len(requests) == 1:
            self._charge_one(plan, requests[0], worked)
        else:
            self._charge_many(plan, requests, worked, told)
        if self._leaving:
            self._settle_leaving(plan.step_id)

    def fail(self, plan: StepPlan, now: int) -> None:
        """The oldest step in flight has failed."""
        self.time.fail(now)
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

    def _charge_one(self, plan: StepPlan, request: Request, worked: int) -> None:
        account, computed, new = (
            request.account,
            plan.num_computed_tokens[0],
            plan.num_new_tokens[0],
        )
        if account == ENDED:
            self._run_ahead_ns += worked
            return
        self._requests_ns += worked
        if request.num_preemptions:
            self._note_lost((request,))
        if computed >= self._special[account]:
            self._decode[account] += worked
            return
        of_prompt = min(max(int(self._prompt[account]) - computed, 0), new)
        again = min(max(int(self._lost[account]) - computed, 0), new)
        prefill = worked * of_prompt // new
        self._prefill[account] += prefill
        self._decode[account] += worked - prefill
        self._waste[account] += worked * again // new

    def _charge_many(
        self, plan: StepPlan, requests: Sequence[Request], worked: int, told: PromptLogprobs
    ) -> None:
        num = len(requests)
        listed = [request.account for request in requests]
        accounts = np.array(listed)
        computed = np.array(plan.num_computed_tokens, np.float64)
        new: Floats | None = None
        if max(plan.num_new_tokens) == 1 and all(plan.samples) and not told:
            shares = share_out(worked, self._cost.decodes(computed + 1.0))
        else:
            new = np.array(plan.num_new_tokens, np.float64)
            samples = np.array(plan.samples, np.float64)
            for index, entries in enumerate(told):
                samples[index] += len(entries or ())
            shares = share_out(worked, self._cost.mixed(computed, new, samples))
        for_nobody = int(shares[accounts == ENDED].sum()) if ENDED in listed else 0
        self._run_ahead_ns += for_nobody
        self._requests_ns += worked - for_nobody
        if plan.new_rows:
            self._note_lost(request for request in requests if request.num_preemptions)
        if (computed >= self._special[accounts]).all():
            self._decode[accounts] += shares
        else:
            self._charge_parts(accounts, shares, computed, np.ones(num) if new is None else new)
        if for_nobody:
            self._prefill[ENDED] = self._decode[ENDED] = self._waste[ENDED] = 0

    def _charge_parts(self, accounts: Ints, shares: Ints, computed: Floats, new: Floats) -> None:
        """Divide shares by tokens into prefill and decode, and find how much of them was waste."""
        counts = new.astype(np.int64)
        of_prompt = np.clip(self._prompt[accounts] - computed, 0, new).astype(np.int64)
        prefill = shares * of_prompt // counts
        self._prefill[accounts] += prefill
        self._decode[accounts] += shares - prefill
        again = np.clip(self._lost[accounts] - computed, 0, new)
        if again.any():
            self._waste[accounts] += shares * again.astype(np.int64) // counts

    def _note_lost(self, requests: Iterable[Request]) -> None:
        for request in requests:
            account = request.account
            if account != ENDED:
                self._lost[account] = request.num_lost_tokens
                self._special[account] = max(request.num_lost_tokens, request.num_prompt_tokens)

    def _settle_leaving(self, step_id: int) -> None:
        done = [entry for entry in self._leaving if entry[0] <= step_id]
        if done:
            self._leaving = [entry for entry in self._leaving if entry[0] > step_id]
            self._charges += [(request.request_id, self._take(request)) for _, request in done]

    def _take(self, request: Request) -> Charge:
        """A request's charge; its account is free again."""
        account, request.account = request.account, ENDED
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


class Unmetered:
    """A `Meter` that does not: nothing is charged, and no time is told."""

    def turn_to(self, activity: Activity, now: int) -> None:
        """See `Meter`."""

    def launch(self, now: int) -> None:
        """See `Meter`."""

    def fail_launch(self) -> None:
        """See `Meter`."""

    def ready(self, began: int, now: int) -> None:
        """See `Meter`."""

    def wake(self, now: int) -> None:
        """See `Meter`."""

    def open(self, request: Request) -> None:
        """See `Meter`."""

    def close(self, outputs: Iterable[Output]) -> None:
        """See `Meter`."""

    def leave(self, request_id: str, last_step: int | None) -> None:
        """See `Meter`."""

    def take_charges(self) -> list[tuple[str, Charge]]:
        """There are none."""
        return []

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
        """See `Meter`."""

    def fail(self, plan: StepPlan, now: int) -> None:
        """See `Meter`."""

    def device_time(self, now: int) -> DeviceTime:
        """Nothing is known."""
        return NOT_METERED


def make_meter(info: EngineInfo, now: int) -> Meter | Unmetered:
    """The meter of an engine; one that does nothing where the device's side tells no rates."""
    if info.work is None:
        return Unmetered()
    return Meter(info.work, now, num_devices=info.num_devices)
