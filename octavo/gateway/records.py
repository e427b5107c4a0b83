"""From a call's attempts to the ledger's entries: attempts, escalations, and usage.

Engines that write their own usage to the same ledger (`metered: true`) get no usage record from
here, or each token would count twice; all others do, priced as the configuration says. Nothing
waits: entries go into the writer's queue.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.gateway.model import SHADOW_TIER, DevicePrice, actual
from octavo.ledger.record import AttemptRecord, EscalationRecord, UsageRecord

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from octavo.gateway.config_backends import Backend
    from octavo.gateway.model import Attempt, Call, Plan, Status
    from octavo.ledger.record import Entry

_FINISH: dict[Status, str] = {
    "ok": "stop",
    "escalated": "escalated",
    "client_left": "abort",
    "over_budget": "budget",
}
"""What became of attempts that were answered, as usage records say it; others are `error`."""


class GatewayRecords:
    """See the module, and `seams.Records`.

    Args:
        put: takes an entry without waiting (`LedgerWriter.put`).
        backends: by name.
    """

    def __init__(self, put: Callable[[Entry], None], backends: Mapping[str, Backend]) -> None:
        self._put = put
        self._backends = backends

    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        """Keep what a call's attempts used, and its escalations."""
        for attempt in attempts:
            self._put(self._attempt(call, plan, attempt))
            backend = self._backends.get(attempt.backend)
            is_metered = backend is not None and backend.metered
            if not is_metered and (usage := self._usage(call, attempt, backend)):
                self._put(usage)
            if attempt.status == "escalated":
                self._put(_escalation(call, plan, attempt, attempts))

    def _attempt(self, call: Call, plan: Plan, attempt: Attempt) -> AttemptRecord:
        tokens = attempt.tokens
        return AttemptRecord(
            request_id=attempt.request_id,
            parent_id=call.parent_id,
            number=attempt.number,
            upstream_id=attempt.upstream_id,
            time_ns=attempt.time_ns,
            feature=call.feature,
            tenant=call.tenant,
            key=call.key.key_id,
            session_id=call.session_id,
            trace_id=_trace_id(call),
            route=call.path,
            rule=plan.rule,
            tier=attempt.tier,
            backend=attempt.backend,
            model=attempt.model,
            status=attempt.status,
            http_status=attempt.http_status,
            num_input_tokens=tokens.input,
            num_cached_tokens=tokens.cached,
            num_output_tokens=tokens.output,
            device_ns=tokens.device_ns,
            cost_nano=attempt.cost_nano,
            currency=attempt.currency,
            next_cost_nano=self._next_cost(plan, attempt),
            ttft_ns=attempt.ttft_ns,
            e2e_ns=attempt.e2e_ns,
            answer_sha256=attempt.answer_sha256,
            reason=attempt.reason,
            judge=attempt.judge,
            score=attempt.score,
        )

    def _next_cost(self, plan: Plan, attempt: Attempt) -> int | None:
        """What the tokens of a judged attempt would have cost at the tier after its own."""
        if not attempt.judge or attempt.status not in ("ok", "escalated"):
            return None
        names = [tier.name for tier in plan.tiers]
        index = names.index(attempt.tier) + 1 if attempt.tier in names else len(names)
        if index >= len(names):
            return None
        target = plan.tiers[index].targets[0]
        backend = self._backends.get(target.backend)
        price = None if backend is None else backend.price(target.model)
        if price is None or isinstance(price, DevicePrice):
            # Its devices would take another time for the same tokens: that is not known.
            return None
        return actual(attempt.tokens, price).cost_nano

    def _usage(self, call: Call, attempt: Attempt, backend: Backend | None) -> UsageRecord | None:
        """What an attempt used, if it was answered or cost something."""
        tokens = attempt.tokens
        if attempt.status not in _FINISH and not (attempt.cost_nano or tokens.output):
            return None
        price = None if backend is None else backend.price(attempt.model)
        rate = price.hourly_nano if isinstance(price, DevicePrice) else 0
        tags = dict(call.tags)
        if attempt.tier == SHADOW_TIER:
            tags["octavo.shadow"] = "1"
        is_own = attempt.upstream_id == call.request_id
        return UsageRecord(
            request_id=attempt.upstream_id,
            parent_id=call.parent_id or ("" if is_own else call.request_id),
            time_ns=attempt.time_ns,
            feature=call.feature,
            tenant=call.tenant,
            key=call.key.key_id,
            session_id=call.session_id,
            trace_id=_trace_id(call),
            tags=tags,
            route=call.path,
            backend=attempt.backend,
            model=attempt.model,
            prefill_ns=0,
            decode_ns=tokens.device_ns or 0,
            waste_ns=0,
            num_input_tokens=tokens.input,
            num_cached_tokens=tokens.cached,
            num_output_tokens=tokens.output,
            ttft_ns=attempt.ttft_ns,
            e2e_ns=attempt.e2e_ns,
            finish_reason=_FINISH.get(attempt.status, "error"),
            hourly_rate_nano=rate,
            price_nano=attempt.cost_nano,
            currency=attempt.currency,
        )


def _escalation(
    call: Call, plan: Plan, cheap: Attempt, attempts: Sequence[Attempt]
) -> EscalationRecord:
    """An attempt that was not good enough, beside what took its place."""
    dear = _successor(plan, cheap, attempts)
    dear_cost = 0 if dear is None else dear.cost_nano
    return EscalationRecord(
        request_id=cheap.request_id,
        number=cheap.number,
        time_ns=cheap.time_ns if dear is None else dear.time_ns,
        feature=call.feature,
        tenant=call.tenant,
        key=call.key.key_id,
        rule=plan.rule,
        judge=cheap.judge,
        reason=cheap.reason,
        score=cheap.score,
        answer_sha256=cheap.answer_sha256,
        cheap_tier=cheap.tier,
        cheap_backend=cheap.backend,
        cheap_model=cheap.model,
        cheap_cost_nano=cheap.cost_nano,
        dear_tier="" if dear is None else dear.tier,
        dear_backend="" if dear is None else dear.backend,
        dear_model="" if dear is None else dear.model,
        dear_status="" if dear is None else dear.status,
        dear_cost_nano=dear_cost,
        difference_nano=dear_cost - cheap.cost_nano,
        currency=cheap.currency,
    )


def _successor(plan: Plan, cheap: Attempt, attempts: Sequence[Attempt]) -> Attempt | None:
    """The last attempt at the nearest tier after the cheap one's that was asked at all.

    The last, for those before it failed.
    """
    names = [tier.name for tier in plan.tiers]
    after = names[names.index(cheap.tier) + 1 :] if cheap.tier in names else []
    for name in after:
        later = [a for a in attempts if a.tier == name and a.number > cheap.number]
        if later:
            return max(later, key=lambda attempt: attempt.number)
    return None


def _trace_id(call: Call) -> str:
    """Of W3C's `version-trace-parent-flags`."""
    parts = call.traceparent.split("-")
    return parts[1] if len(parts) > 2 else ""
