"""Any plan, any failures, any judgements: who answers, what it costs, and what is on record hang
together.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING, Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import BudgetExceededError, UpstreamError
from octavo.gateway.config_judges import EscalationSection
from octavo.gateway.escalate import Escalation
from octavo.gateway.judge import Verdict
from octavo.gateway.model import Amount, Attempt, Call, Plan, Target, Tier, Tokens

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from octavo.gateway.seams import Ask

EXAMPLES = int(os.environ.get("STATEFUL_EXAMPLES", "100"))
WORST = {"cheap": 10, "middle": 40, "dear": 100}


class FakeReply:
    """An answer that does what its target's name says: `cheap/ok/pass`."""

    content_type = "application/json"

    def __init__(self, world: World, tier: str, target: Target, number: int) -> None:
        self.world = world
        self.tier = tier
        self.target = target
        self.number = number
        self.does = target.model.split("/")[1]
        self.status = 400 if self.does == "refuses" else 200
        self.tokens = Tokens(1, 0, 1)
        self.finish_reason = "stop"
        self.is_closed = False
        world.open.add(self)
        if world.is_stream and self.status == 200:
            self.content_type = "text/event-stream"

    async def read(self) -> bytes:
        if self.does == "breaks":
            raise UpstreamError("it breaks")
        if self.does == "garbage":
            return b"[]"
        message = {"role": "assistant", "content": self.target.model}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return msgspec.json.encode({"choices": [choice]})

    async def events(self) -> AsyncIterator[bytes]:
        chunk = {"choices": [{"index": 0, "delta": {"content": self.target.model}}]}
        yield b"data: %b\n\n" % msgspec.json.encode(chunk)
        if self.does == "breaks":
            raise UpstreamError("it breaks")
        if self.does != "garbage":
            yield b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
        yield b"data: [DONE]\n\n"

    async def close(self, **told: Any) -> Attempt:
        assert not self.is_closed
        self.is_closed = True
        if self.status >= 400 and told.get("status", "ok") == "ok":
            told["status"] = "refused"
        self.world.open.discard(self)
        return self.world.attempt(self.number, self.tier, self.target, **told)


class World:
    """Backends, and a judge that goes by the text."""

    holds = True
    needs_logprobs = False

    def __init__(self, *, is_stream: bool, spends: float, judge_asks: bool) -> None:
        self.is_stream = is_stream
        self.spends = spends
        self.judge_asks = judge_asks
        self.open: set[FakeReply] = set()
        self.sent: list[int] = []

    def worst(self, call: Call, target: Target) -> Amount:
        return Amount(WORST[target.model.split("/")[0]])

    def attempt(self, number: int, tier: str, target: Target, **told: Any) -> Attempt:
        told.pop("tokens", None)
        cost = int(WORST[target.model.split("/")[0]] * self.spends)
        return Attempt(
            request_id="r",
            number=number,
            upstream_id="r",
            time_ns=0,
            tier=tier,
            backend=target.backend,
            model=target.model,
            cost_nano=cost,
            **{"status": "ok", **told},
        )

    async def dispatch(
        self, call: Call, tier: Tier, failed: Callable[[Attempt], None], number: int
    ) -> FakeReply:
        for target in tier.targets:
            self.sent.append(number)
            if target.model.split("/")[1] != "down":
                return FakeReply(self, tier.name, target, number)
            failed(self.attempt(number, tier.name, target, status="error", reason="down"))
            number += 1
        raise UpstreamError("all are down")

    def asks(self, call: Call) -> Sequence[tuple[Call, Tier]]:
        return ()

    async def judge(
        self, call: Call, answer: Mapping[str, Any], *, deadline: float, ask: Ask
    ) -> Verdict:
        if self.judge_asks:
            grader = Tier(name="g", targets=(Target("b", "cheap/ok/pass"),))
            try:
                await ask(msgspec.structs.replace(call, stream=False), grader, b"{}")
            except (UpstreamError, BudgetExceededError) as exc:
                return Verdict(False, None, str(exc))
        text = answer["choices"][0]["message"]["content"]
        return Verdict(text.endswith("/pass"), 0.5, "" if text.endswith("/pass") else "bad")

    async def open_(self, *args: Any, **kwargs: Any) -> FakeReply:
        call, tier, _ = args
        return await self.dispatch(call, tier, kwargs["failed"], kwargs["number"])


class _Dispatch:
    def __init__(self, world: World) -> None:
        self.open = world.open_


targets = st.builds(
    lambda price, does, says: Target("b", f"{price}/{does}/{says}"),
    st.sampled_from(sorted(WORST)),
    st.sampled_from(["ok", "ok", "ok", "down", "breaks", "garbage", "refuses"]),
    st.sampled_from(["pass", "fail"]),
)
tier_lists = st.lists(
    st.tuples(st.lists(targets, min_size=1, max_size=3, unique=True), st.booleans()),
    min_size=1,
    max_size=4,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    tier_lists,
    st.booleans(),
    st.sampled_from([0.0, 0.5, 1.0]),
    st.booleans(),
    st.none() | st.integers(0, 300),
    st.sampled_from(["answer", "error"]),
    st.sampled_from(["next", "error"]),
)
def test_any_chain(
    made: list[tuple[list[Target], bool]],
    is_stream: bool,
    spends: float,
    judge_asks: bool,
    max_cost: int | None,
    if_next_fails: Any,
    if_tier_fails: Any,
) -> None:
    world = World(is_stream=is_stream, spends=spends, judge_asks=judge_asks)
    tiers = tuple(
        Tier(name=f"t{n}", targets=tuple(given_), judge="j" if judged else "")
        for n, (given_, judged) in enumerate(made)
    )
    plan = Plan(rule="", tiers=tiers, max_cost_nano=max_cost)
    call = Call(
        request_id="r",
        arrived=time.perf_counter(),
        route="chat",
        path="/v1/chat/completions",
        model="m",
        stream=is_stream,
        body={"messages": []},
    )
    escalation = Escalation(
        _Dispatch(world),  # type: ignore[arg-type]
        {"j": world},
        worst=world.worst,
        records=None,  # type: ignore[arg-type]
        section=EscalationSection(if_next_fails=if_next_fails, if_tier_fails=if_tier_fails),
    )
    attempts: list[Attempt] = []

    async def run() -> tuple[str, Any]:
        try:
            outcome = await escalation.run(call, plan, b"{}", attempts=attempts)
        except (UpstreamError, BudgetExceededError) as exc:
            return "error", exc
        data = b""
        assert outcome.is_whole is any(a.judge and a.status == "ok" for a in attempts) or (
            outcome.headers.get("x-octavo-escalation") == "failed"
        )
        try:
            if outcome.content_type.startswith("text/event-stream"):
                data = b"".join([event async for event in outcome.events()])
            else:
                data = await outcome.read()
        except UpstreamError:
            await outcome.close(tokens=Tokens(), status="error", reason="it breaks")
            return "broken", outcome
        await outcome.close(tokens=Tokens())
        assert outcome.status == 400 or outcome.target.model.encode() in data or data == b"[]"
        return "answer", outcome

    how, found = asyncio.run(run())
    assert not world.open, "an answer was not closed"
    assert sorted(attempt.number for attempt in attempts) == list(range(len(attempts)))
    assert world.sent == sorted(set(world.sent))
    spent = sum(attempt.cost_nano for attempt in attempts)
    assert max_cost is None or spent <= max_cost
    main = [a for a in attempts if a.tier != "judge"]
    ended = [a for a in main if a.status == "ok"]
    assert len(ended) <= 1
    assert all(a.judge == "j" and a.reason for a in main if a.status == "escalated")
    assert all(a.answer_sha256 for a in main if a.judge)
    if how == "answer":
        header = found.headers.get("x-octavo-escalation")
        escalated = [a for a in main if a.status == "escalated"]
        mine = [a for a in main if a.tier == found.tier.name and a.model == found.target.model]
        if header == "failed":
            assert if_next_fails == "answer"
            assert mine[-1] is escalated[-1]
            assert "no better answer" in mine[-1].reason
        else:
            assert header == ("escalated" if escalated else None)
            assert found.tier.name > max((a.tier for a in escalated), default="")
        if found.status == 400:
            assert header is None
    elif how == "error" and if_next_fails == "answer":
        assert not any(a.status == "escalated" for a in main)
