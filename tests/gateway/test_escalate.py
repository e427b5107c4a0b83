"""Plans run against a real server of fake answers: who answers, what is on record, what the client
sees.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from octavo.errors import BudgetExceededError, UpstreamError
from octavo.gateway.config_backends import Backend
from octavo.gateway.config_judges import EscalationSection, JudgeSection
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.escalate import Escalation
from octavo.gateway.judge_build import build_judges
from octavo.gateway.judge_process import JudgeProcesses
from octavo.gateway.model import PATHS, Amount, Call, Plan, Target, Tier, Tokens
from tests.gateway.fake_answers import Answer
from tests.gateway.fake_upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from octavo.gateway.model import Attempt
    from octavo.gateway.seams import Outcome

JUDGES = {
    "sure": {"kind": "logprob", "mean": -0.5},
    "watched": {"kind": "logprob", "mean": -0.5, "hold": "none"},
    "works": {"kind": "refusal"},
    "graded": {"kind": "model", "tier": "grader", "passes_at": 7},
    "graded-or-pass": {"kind": "model", "tier": "broken", "passes_at": 7, "on_error": "pass"},
}

UNSURE = Answer(tokens=("Perhaps", " 41", "?"), logprob=-2.0, num_prompt=10, num_cached=0)
GOOD = Answer(tokens=("It", " is", " 42", "."), logprob=-0.01, num_prompt=10, num_cached=0)
REFUSAL = Answer(tokens=("I", "\u2019m sorry, but I", " can't."), num_prompt=10, num_cached=0)
PRICES = {"small": (1, 2), "dear": (100, 200)}
"""Nano-dollars per token of the prompt and of the answer, by the beginning of a model's name."""


class Gateway:
    """What a test needs of one."""

    def __init__(self, fake: FakeUpstream) -> None:
        self.fake = fake
        self.shadow_attempts: list[Attempt] = []
        names = ("small", "small:2", "small:unsure", "small:refuses", "dear", "dear:refuses")
        grades = ("grader", "grader:low", "grader:mute")
        faults = ("500", "hang-mid", "reset-mid", "stream-error", "400", "slow", "close-mid")
        models: dict[str, Any] = {}
        for name in (*names, *grades, *faults):
            given, output = PRICES.get(name.partition(":")[0], (0, 0))
            price = {"input": given / 1000, "output": output / 1000}
            models[name] = {"price": price}
        backend = msgspec.convert(
            {"url": fake.url, "models": models, "timeouts": {"idle": 0.6, "first_token": 1}},
            Backend,
            strict=False,
        )
        self.dispatcher = Dispatcher({"fake": backend})
        self.processes = JudgeProcesses(1)
        self.escalation = self.made()

    def made(self, **section: Any) -> Escalation:
        tiers = {
            "grader": Tier(name="grader", targets=(Target("fake", "grader"),)),
            "broken": Tier(name="broken", targets=(Target("fake", "500"),)),
        }
        judges = build_judges(
            msgspec.convert(JUDGES, dict[str, JudgeSection]),
            tier_of=tiers.__getitem__,
            processes=self.processes,
        )
        return Escalation(
            self.dispatcher,
            judges,
            worst=lambda call, target: Amount(50_000 if target.model == "dear" else 100),
            records=self,
            section=EscalationSection(**section),
            processes=self.processes,
        )

    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        self.shadow_attempts += attempts


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    answers = {
        "small": GOOD,
        "small:2": GOOD,
        "small:unsure": UNSURE,
        "small:refuses": REFUSAL,
        "dear": GOOD,
        "grader": Answer(tokens=("Score: ", "9"), num_prompt=5, num_cached=0),
        "grader:low": Answer(tokens=("score", " 3"), num_prompt=5, num_cached=0),
        "grader:mute": Answer(tokens=("no idea",), num_prompt=5, num_cached=0),
    }
    async with FakeUpstream(answers=answers, delay_s=0.1) as fake:
        gateway = Gateway(fake)
        yield gateway
        await gateway.escalation.aclose()
        await gateway.dispatcher.close()


def tier(*models: str, judge: str = "") -> Tier:
    targets = tuple(Target("fake", model) for model in models)
    return Tier(name=models[0].partition(":")[0], targets=targets, judge=judge)


def call_of(route: str = "chat", **body: Any) -> Call:
    path = next(path for path, name in PATHS.items() if name == route)
    question: dict[str, Any] = {"messages": [{"role": "user", "content": "What is it?"}]}
    if route == "completions":
        question = {"prompt": "It is"}
    elif route == "responses":
        question = {"input": "What is it?"}
    body = {"model": "auto", "max_tokens": 20, **question, **body}
    return Call(
        request_id="r1",
        arrived=time.perf_counter(),
        route=route,  # type: ignore[arg-type]
        path=path,
        model="auto",
        stream=bool(body.get("stream")),
        body=body,
        num_prompt_tokens=10,
        max_tokens=20,
    )


async def drained(outcome: Outcome) -> bytes:
    if outcome.content_type.startswith("text/event-stream"):
        return b"".join([event async for event in outcome.events()])
    return await outcome.read()


async def asked(
    gateway: Gateway, tiers: Sequence[Tier], call: Call | None = None, **plan: Any
) -> tuple[Outcome, bytes, list[Attempt]]:
    call = call or call_of()
    attempts: list[Attempt] = []
    outcome = await gateway.escalation.run(
        call,
        Plan(rule="test", tiers=tuple(tiers), **plan),
        msgspec.json.encode(call.body),
        attempts=attempts,
    )
    data = await drained(outcome)
    last = await outcome.close(tokens=outcome.tokens)
    assert last in attempts
    assert len({attempt.number for attempt in attempts}) == len(attempts)
    return outcome, data, attempts


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def said(data: bytes) -> str:
    answer = msgspec.json.decode(data)
    return str(answer["choices"][0]["message"]["content"])


async def test_a_good_answer_is_the_first_tiers(gateway: Gateway) -> None:
    outcome, data, attempts = await asked(gateway, [tier("small", judge="sure"), tier("dear")])
    assert said(data) == GOOD.text
    assert dict(outcome.headers) == {}
    assert outcome.tier.name == "small"
    (attempt,) = attempts
    assert (attempt.status, attempt.judge) == ("ok", "sure")
    assert attempt.score == pytest.approx(-0.01)
    assert attempt.cost_nano == 10 * 1 + 4 * 2
    assert len(gateway.fake.seen) == 1


async def test_an_unsure_answer_escalates_and_the_costs_are_on_record(gateway: Gateway) -> None:
    plan = [tier("small:unsure", judge="sure"), tier("dear")]
    outcome, data, attempts = await asked(gateway, plan)
    assert said(data) == GOOD.text
    assert dict(outcome.headers) == {"x-octavo-escalation": "escalated"}
    cheap, dear = attempts
    assert [cheap.status, dear.status] == ["escalated", "ok"]
    assert cheap.reason == "mean logprob -2.000 is below -0.5"
    assert cheap.answer_sha256 == hashlib.sha256(b"Perhaps 41?").hexdigest()
    assert dear.cost_nano - cheap.cost_nano == (10 * 100 + 4 * 200) - (10 * 1 + 3 * 2)
    assert [seen.headers["x-request-id"] for seen in gateway.fake.seen] == ["r1", "r1.1"]


async def test_log_probabilities_for_the_judge_are_not_the_clients(gateway: Gateway) -> None:
    plan = [tier("small", judge="sure"), tier("dear")]
    _, data, _ = await asked(gateway, plan)
    assert gateway.fake.seen[-1].body["logprobs"] is True
    assert msgspec.json.decode(data)["choices"][0]["logprobs"] is None
    _, data, _ = await asked(gateway, plan, call_of(logprobs=True))
    assert len(msgspec.json.decode(data)["choices"][0]["logprobs"]["content"]) == 4
    plan = [tier("small:unsure", judge="sure"), tier("dear")]
    await asked(gateway, plan)
    assert "logprobs" not in gateway.fake.seen[-1].body


@pytest.mark.parametrize("has_usage", [False, True])
async def test_a_held_stream_is_given_as_it_came(gateway: Gateway, has_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if has_usage else {}
    _, expected, _ = await asked(gateway, [tier("small")], call_of(stream=True, **options))
    plan = [tier("small", judge="sure"), tier("dear")]
    outcome, data, attempts = await asked(gateway, plan, call_of(stream=True, **options))
    assert b'"logprob"' not in data
    assert [msgspec.json.decode(line[6:]) for line in data.split(b"\n\n")[:-2]] == [
        msgspec.json.decode(line[6:]) for line in expected.split(b"\n\n")[:-2]
    ]
    assert data.endswith(b"data: [DONE]\n\n")
    assert (b'"total_tokens"' in data) is has_usage
    assert attempts[0].tokens == outcome.tokens
    assert (attempts[0].tokens.input, attempts[0].tokens.output) == (10, 4)
    assert attempts[0].ttft_ns is not None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ["chat", "completions", "messages", "responses"])
async def test_all_routes_are_judged(gateway: Gateway, route: str, stream: bool) -> None:
    plan = [tier("small:refuses", judge="works"), tier("dear")]
    outcome, data, attempts = await asked(gateway, plan, call_of(route, stream=stream))
    assert [attempt.status for attempt in attempts] == ["escalated", "ok"]
    assert attempts[0].reason == 'refusal: "i\'m sorry, but i"'
    assert attempts[0].answer_sha256 == hashlib.sha256(REFUSAL.text.encode()).hexdigest()
    assert outcome.content_type.startswith("text/event-stream") is stream
    plan = [tier("small", judge="works"), tier("dear")]
    _, data, _ = await asked(gateway, plan, call_of(route, stream=stream))
    _, expected, _ = await asked(gateway, [tier("small")], call_of(route, stream=stream))
    assert data == expected


async def test_routes_without_text_are_not_judged(gateway: Gateway) -> None:
    plan = [tier("small", judge="works"), tier("dear")]
    _, data, attempts = await asked(gateway, plan, call_of("embeddings", input="x"))
    assert msgspec.json.decode(data)["data"]
    assert (attempts[0].judge, len(attempts)) == ("", 1)


async def test_a_model_grades_and_costs(gateway: Gateway) -> None:
    plan = [tier("small", judge="graded"), tier("dear")]
    _, data, attempts = await asked(gateway, plan)
    assert said(data) == GOOD.text
    small, grader = attempts
    assert (small.status, small.judge, small.score) == ("ok", "graded", 9.0)
    assert (grader.tier, grader.model, grader.status) == ("judge", "grader", "ok")
    prompt = gateway.fake.seen[1].body["messages"][0]["content"]
    assert "user: What is it?" in prompt
    assert "It is 42." in prompt
    gateway.fake.answers["grader"] = Answer(tokens=("score", " 3"), num_prompt=5)
    outcome, _, attempts = await asked(gateway, plan)
    assert [(a.tier, a.status) for a in sorted(attempts, key=lambda a: a.number)] == [
        ("small", "escalated"),
        ("judge", "ok"),
        ("dear", "ok"),
    ]
    assert outcome.tier.name == "dear"
    gateway.fake.answers["grader"] = Answer(tokens=("no idea",), num_prompt=5)
    _, _, attempts = await asked(gateway, plan)
    assert attempts[0].reason == "judge graded failed: the grader gives no score: 'no idea'"
    assert attempts[0].status == "escalated"


async def test_a_grader_that_fails_may_pass_answers(gateway: Gateway) -> None:
    plan = [tier("small", judge="graded-or-pass"), tier("dear")]
    outcome, _, attempts = await asked(gateway, plan)
    assert outcome.tier.name == "small"
    assert [attempt.status for attempt in attempts] == ["ok", "error"]
    assert attempts[0].reason.startswith("judge graded-or-pass failed: ")


@pytest.mark.parametrize("last", ["500", "400", "stream-error"])
async def test_where_no_better_answer_can_be_had_the_client_gets_the_cheap_one(
    gateway: Gateway, last: str
) -> None:
    plan = [tier("small:unsure", judge="sure"), tier(last)]
    stream = last == "stream-error"
    outcome, data, attempts = await asked(gateway, plan, call_of(stream=stream))
    assert outcome.status == 200
    assert b"Perhaps" in data
    assert dict(outcome.headers) == {"x-octavo-escalation": "failed"}
    assert attempts[0].status == "escalated"
    assert "; no better answer: " in attempts[0].reason
    assert attempts[1].status == ("refused" if last == "400" else "error")
    gateway.escalation = gateway.made(if_next_fails="error")
    with pytest.raises(UpstreamError):
        await asked(gateway, plan, call_of(stream=stream))


async def test_a_chain_has_one_budget(gateway: Gateway) -> None:
    plan = [tier("small:unsure", judge="sure"), tier("dear")]
    outcome, data, attempts = await asked(gateway, plan, max_cost_nano=50_010)
    assert said(data) == UNSURE.text
    assert dict(outcome.headers) == {"x-octavo-escalation": "failed"}
    assert len(attempts) == 1
    assert attempts[0].reason.endswith(
        "no better answer: dear may cost more than this request has left: "
        "ask for fewer tokens with max_tokens"
    )
    outcome, _, _ = await asked(gateway, plan, max_cost_nano=50_016)  # 16 were spent
    assert outcome.tier.name == "dear"
    with pytest.raises(BudgetExceededError, match="small may cost more"):
        await asked(gateway, plan, max_cost_nano=99)
    graded = [tier("small", judge="graded"), tier("dear")]
    _, _, attempts = await asked(gateway, graded, max_cost_nano=110)
    assert "judge graded failed: judge may cost more" in attempts[0].reason


async def test_the_worst_case_has_every_tier_and_the_judges(gateway: Gateway) -> None:
    seen: list[Call] = []

    def worst(call: Call, target: Target) -> Amount | None:
        if target.model == "500":
            return None
        if call.max_tokens == 0:
            return Amount(1)  # of the prompt alone, for an attempt that fails
        seen.append(call)
        price = {"small": 1, "small:2": 3, "dear": 100, "grader": 10}[target.model]
        return Amount(price, call.num_prompt_tokens + (call.max_tokens or 0) * call.num_choices, 0)

    gateway.escalation.worst = worst
    call = msgspec.structs.replace(call_of(), num_choices=2)
    plan = Plan(rule="", tiers=(tier("small", "small:2", judge="graded"), tier("dear")))
    found = gateway.escalation.worst_case(call, plan)
    assert found is not None
    assert found.cost_nano == 3 + 1 + 2 * 10 + 100
    graded = [one for one in seen if one.body is not call.body]
    assert len(graded) == 2
    assert graded[0].max_tokens == 64
    _, _, attempts = await asked(gateway, [tier("small", judge="graded"), tier("dear")])
    used = next(attempt for attempt in attempts if attempt.tier == "judge")
    prompt = gateway.fake.seen[1].body["messages"][0]["content"]
    assert used.tokens.input <= len(prompt.encode()) // 2 <= graded[0].num_prompt_tokens
    plan = Plan(rule="", tiers=(tier("small", judge="works"), tier("500")))
    assert gateway.escalation.worst_case(call, plan) is None


async def test_what_failures_cost_counts(gateway: Gateway) -> None:
    """A provider takes its money for a prompt that it has read, though no answer came in time."""
    gateway.fake.behaviours["dear"] = "hang"
    gateway.escalation.worst = lambda call, target: Amount(2000)
    both = [tier("dear", "small")]
    call = call_of(stream=True)
    outcome, _, attempts = await asked(gateway, both, call, max_cost_nano=3000)
    assert outcome.target.model == "small"
    assert [(a.status, a.cost_nano) for a in attempts] == [("timeout", 1000), ("ok", 18)]
    with pytest.raises(UpstreamError) as caught:
        await asked(gateway, both, call_of(stream=True), max_cost_nano=2999)
    assert caught.value.status == 504


async def test_a_chain_has_one_deadline(gateway: Gateway) -> None:
    plan = [tier("small:unsure", judge="sure"), tier("hang-mid"), tier("dear")]
    begin = time.perf_counter()
    outcome, data, _ = await asked(gateway, plan, deadline_s=0.4)
    assert time.perf_counter() - begin < 5
    assert said(data) == UNSURE.text
    assert dict(outcome.headers) == {"x-octavo-escalation": "failed"}
    with pytest.raises(UpstreamError) as caught:
        await asked(gateway, [tier("small")], deadline_s=-1.0)
    assert caught.value.status == 504


@pytest.mark.parametrize("fault", ["hang-mid", "reset-mid", "close-mid"])
async def test_a_held_stream_that_breaks_is_asked_of_another_target(
    gateway: Gateway, fault: str
) -> None:
    plan = [tier(fault, "small", judge="works"), tier("dear")]
    outcome, data, attempts = await asked(gateway, plan, call_of(stream=True))
    assert outcome.target.model == "small"
    assert data.count(b"data: [DONE]") == 1
    status = "timeout" if fault == "hang-mid" else "error"
    assert [attempt.status for attempt in attempts] == [status, "ok"]


async def test_a_tier_that_fails_is_passed_over(gateway: Gateway) -> None:
    plan = [tier("500", judge="works"), tier("dear")]
    outcome, _, attempts = await asked(gateway, plan)
    assert (outcome.tier.name, dict(outcome.headers)) == ("dear", {})
    assert [attempt.status for attempt in attempts] == ["error", "ok"]
    gateway.escalation = gateway.made(if_tier_fails="error")
    with pytest.raises(UpstreamError):
        await asked(gateway, plan)


async def test_the_callers_own_fault_is_passed_on(gateway: Gateway) -> None:
    outcome, data, attempts = await asked(gateway, [tier("400", judge="works"), tier("dear")])
    assert outcome.status == 400
    assert b"the fake answers 400" in data
    assert [attempt.status for attempt in attempts] == ["refused"]


async def test_a_client_that_leaves_ends_what_is_held(gateway: Gateway) -> None:
    call = call_of(stream=True)
    attempts: list[Attempt] = []
    plan = Plan(rule="test", tiers=(tier("slow", judge="works"), tier("dear")))
    run = gateway.escalation.run(call, plan, msgspec.json.encode(call.body), attempts=attempts)
    task = asyncio.create_task(run)
    await until(lambda: len(gateway.fake.seen) == 1)
    await asyncio.sleep(0.25)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [attempt.status for attempt in attempts] == ["client_left"]
    await gateway.fake.idle()
    assert gateway.fake.num_cancelled == 1


async def test_a_client_that_leaves_while_it_is_judged_is_on_record(gateway: Gateway) -> None:
    gateway.fake.behaviours["grader"] = "hang"
    call = call_of()
    attempts: list[Attempt] = []
    plan = Plan(rule="test", tiers=(tier("small", judge="graded"), tier("dear")))
    run = gateway.escalation.run(call, plan, msgspec.json.encode(call.body), attempts=attempts)
    task = asyncio.create_task(run)
    await until(lambda: len(gateway.fake.seen) == 2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(a.tier, a.status) for a in attempts] == [
        ("small", "client_left"),
        ("judge", "client_left"),
    ]
    assert attempts[0].cost_nano == 18  # it was answered, and is paid


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_too_long_to_be_held_is_passed_on(gateway: Gateway, stream: bool) -> None:
    gateway.fake.answers["small:2"] = Answer(tokens=("word",) * 300, logprob=-3.0)
    gateway.escalation = gateway.made(max_held_bytes=2048)
    plan = [tier("small:2", judge="sure"), tier("dear")]
    _, data, attempts = await asked(gateway, plan, call_of(stream=stream))
    assert data.count(b'"word"') == 300 if stream else said(data) == "word" * 300
    assert b'"logprob"' not in data
    assert [(a.status, a.judge) for a in attempts] == [("ok", "")]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_judge_that_holds_nothing_only_records(gateway: Gateway, stream: bool) -> None:
    plan = [tier("small:unsure", judge="watched"), tier("dear")]
    outcome, data, attempts = await asked(gateway, plan, call_of(stream=stream))
    assert b"Perhaps" in data
    assert b'"logprob"' not in data
    assert dict(outcome.headers) == {}
    (attempt,) = attempts
    assert (attempt.status, attempt.judge, attempt.score) == ("ok", "watched", -2.0)
    assert attempt.reason.startswith("not good enough: ")
    assert attempt.answer_sha256 == hashlib.sha256(b"Perhaps 41?").hexdigest()


async def test_the_last_tier_is_not_held(gateway: Gateway) -> None:
    call = call_of(stream=True)
    attempts: list[Attempt] = []
    plan = Plan(rule="test", tiers=(tier("slow", judge="works"),))
    outcome = await gateway.escalation.run(
        call, plan, msgspec.json.encode(call.body), attempts=attempts
    )
    assert attempts == []
    await drained(outcome)
    await outcome.close(tokens=outcome.tokens)
    assert [(a.status, a.judge) for a in attempts] == [("ok", "")]


async def test_a_client_that_leaves_a_held_answer_is_on_record(gateway: Gateway) -> None:
    call = call_of()
    attempts: list[Attempt] = []
    plan = Plan(rule="test", tiers=(tier("small", judge="works"), tier("dear")))
    outcome = await gateway.escalation.run(
        call, plan, msgspec.json.encode(call.body), attempts=attempts
    )
    attempt = await outcome.close(tokens=Tokens(), status="client_left", reason="gone")
    assert attempts == [attempt]
    assert (attempt.status, attempt.reason, attempt.tokens.output) == ("client_left", "gone", 4)


async def test_shadows_are_seen_by_nobody(gateway: Gateway) -> None:
    gateway.escalation = gateway.made(max_shadows=3)
    shadows = tuple(Target("fake", name) for name in ("slow", "500", "hang-mid", "small:2"))
    _, data, attempts = await asked(gateway, [tier("small")], shadows=shadows)
    assert gateway.escalation.shadows.num_running >= 1  # nobody has waited for the one that hangs
    assert said(data) == GOOD.text
    assert [attempt.tier for attempt in attempts] == ["small"]
    assert gateway.escalation.shadows.num_skipped == 1
    await until(lambda: gateway.escalation.shadows.num_running == 1)
    assert {(a.model, a.number, a.tier, a.status) for a in gateway.shadow_attempts} == {
        ("slow", 1000, "shadow", "ok"),
        ("500", 1001, "shadow", "error"),
    }
    await gateway.escalation.shadows.aclose()
    assert gateway.escalation.shadows.num_running == 0
    assert gateway.shadow_attempts[-1].model == "hang-mid"
    assert gateway.shadow_attempts[-1].status == "client_left"


async def test_a_shadow_stream_is_read_to_its_end(gateway: Gateway) -> None:
    call = call_of(stream=True)
    await asked(gateway, [tier("small")], call, shadows=(Target("fake", "small:2"),))
    await until(lambda: gateway.escalation.shadows.num_running == 0)
    (attempt,) = gateway.shadow_attempts
    assert (attempt.status, attempt.tokens.output, attempt.upstream_id) == ("ok", 4, "r1.1000")
