"""From attempts to the ledger: priced, paired, counted once."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, TypeVar

from octavo.gateway.config_backends import Backend, ModelInfo, PriceSection
from octavo.gateway.model import Attempt, Call, KeyInfo, Plan, Target, Tier, Tokens
from octavo.gateway.records import GatewayRecords
from octavo.ledger.record import AttemptRecord, Entry, EscalationRecord, UsageRecord

T = TypeVar("T")
TOKENS = PriceSection(input=Decimal(2), output=Decimal(8), cached_input=Decimal("0.5"))
DEVICE = PriceSection(device_hour=Decimal("3.6"))
BACKENDS = {
    "near": Backend(url="http://near", models={"small": ModelInfo(price=DEVICE)}, metered=True),
    "own": Backend(url="http://own", models={"small": ModelInfo(price=DEVICE)}),
    "cloud": Backend(url="https://cloud", models={"big": ModelInfo(price=TOKENS)}),
}
CALL = Call(
    request_id="r1", arrived=0.0, route="chat", path="/v1/chat/completions", model="auto", body={},
    key=KeyInfo(key_id="k1"), feature="support", tenant="acme", session_id="s", tags={"a": "b"},
    traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)  # fmt: skip
PLAN = Plan(
    rule="default",
    tiers=(
        Tier(name="small", targets=(Target("near", "small"),), judge="sure"),
        Tier(name="large", targets=(Target("cloud", "big"),)),
    ),
)
USED = Tokens(input=1000, cached=400, output=250)


def attempt(number: int, tier: str, backend: str, model: str, **fields: Any) -> Attempt:
    values: dict[str, Any] = {"status": "ok", "time_ns": 10 + number, "tokens": USED}
    return Attempt(
        request_id="r1", number=number, upstream_id=f"r1.{number}" if number else "r1", tier=tier,
        backend=backend, model=model, **(values | fields),
    )  # fmt: skip


def kept(*attempts: Attempt, plan: Plan = PLAN) -> list[Entry]:
    entries: list[Entry] = []
    GatewayRecords(entries.append, BACKENDS).attempts(CALL, plan, attempts)
    return entries


def of(kind: type[T], entries: list[Entry]) -> list[T]:
    return [entry for entry in entries if isinstance(entry, kind)]


def test_an_escalation_says_what_was_dropped_for_what_and_the_difference() -> None:
    cheap = attempt(
        0, "small", "near", "small", status="escalated", judge="sure", score=-2.5, reason="unsure",
        answer_sha256="ab", cost_nano=70, tokens=Tokens(1000, 400, 250, device_ns=70_000),
    )  # fmt: skip
    dear = attempt(2, "large", "cloud", "big", cost_nano=3_400_000)
    entries = kept(
        cheap, attempt(1, "large", "cloud", "big", status="error", tokens=Tokens()), dear
    )
    [escalation] = of(EscalationRecord, entries)
    assert (escalation.request_id, escalation.number) == ("r1", 0)
    assert (escalation.reason, escalation.score, escalation.answer_sha256) == ("unsure", -2.5, "ab")
    assert (escalation.cheap_backend, escalation.dear_backend) == ("near", "cloud")
    assert (escalation.cheap_cost_nano, escalation.dear_cost_nano) == (70, 3_400_000)
    assert escalation.difference_nano == 3_400_000 - 70
    assert escalation.dear_status == "ok"
    assert len(of(AttemptRecord, entries)) == 3


def test_a_judged_attempt_is_priced_at_the_next_tier() -> None:
    entries = kept(attempt(0, "small", "near", "small", judge="sure"))
    [record] = of(AttemptRecord, entries)
    # 600 x 2 + 400 x 0.5 + 250 x 8 dollars per million.
    assert record.next_cost_nano == 3_400_000
    assert record.trace_id == "4bf92f3577b34da6a3ce929d0e0e4736"
    [record] = of(AttemptRecord, kept(attempt(0, "large", "cloud", "big", judge="sure")))
    assert record.next_cost_nano is None  # it is the last tier


def test_engines_that_meter_themselves_are_not_counted_twice() -> None:
    assert not of(UsageRecord, kept(attempt(0, "small", "near", "small")))
    own = attempt(0, "small", "own", "small", cost_nano=5, tokens=Tokens(9, 0, 3, device_ns=5_000))
    [usage] = of(UsageRecord, kept(own))
    assert (usage.total_ns, usage.hourly_rate_nano, usage.cost_nano) == (5000, 3_600_000_000, 5)
    assert (usage.request_id, usage.parent_id, usage.key) == ("r1", "", "k1")


def test_attempts_at_clouds_are_usage_by_their_price() -> None:
    entries = kept(
        attempt(0, "large", "cloud", "big", status="timeout", tokens=Tokens()),
        attempt(1, "large", "cloud", "big", cost_nano=3_400_000),
    )
    [usage] = of(UsageRecord, entries)
    assert (usage.request_id, usage.parent_id) == ("r1.1", "r1")
    assert (usage.cost_nano, usage.total_ns, usage.finish_reason) == (3_400_000, 0, "stop")
    assert (usage.num_input_tokens, usage.num_cached_tokens, usage.num_output_tokens) == (
        1000, 400, 250,
    )  # fmt: skip
    [cut] = of(UsageRecord, kept(attempt(0, "large", "cloud", "big", status="over_budget")))
    assert cut.finish_reason == "budget"


def test_nothing_followed_an_escalation_that_could_not_be_afforded() -> None:
    [escalation] = of(
        EscalationRecord,
        kept(attempt(0, "small", "near", "small", status="escalated", judge="sure", cost_nano=9)),
    )
    assert (escalation.dear_backend, escalation.dear_cost_nano) == ("", 0)
    assert escalation.difference_nano == -9


def test_shadows_are_told_apart() -> None:
    shadow = attempt(0, "shadow", "cloud", "big", cost_nano=1)
    [usage] = of(UsageRecord, kept(shadow))
    assert usage.tags == {"a": "b", "octavo.shadow": "1"}
