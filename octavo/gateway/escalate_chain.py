"""The attempts of one call, one after another, until an answer is good enough."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.errors import BudgetExceededError, RequestError, UpstreamError
from octavo.gateway.answer_collect import Collector, take_events
from octavo.gateway.answer_logprobs import asks_logprobs, with_logprobs
from octavo.gateway.answer_text import (
    JUDGED_ROUTES,
    AnswerError,
    answer_sha256,
    decoded_answer,
    read_answer,
)
from octavo.gateway.judge import Verdict
from octavo.gateway.model import JUDGE_TIER
from octavo.gateway.replay import (
    ESCALATION,
    HeldOutcome,
    PassedOutcome,
    WatchedOutcome,
    batches_of,
    is_stream,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from octavo.gateway.escalate import Escalation
    from octavo.gateway.model import Attempt, Call, Plan, Route, Target, Tier
    from octavo.gateway.seams import Judge, Outcome, Reply


NO_BACKEND = "no_backend"
"""Code of the error where nobody could even be asked: others tell more."""


class Chain:
    """One run of a plan; see `escalate.Escalation.run`."""

    def __init__(
        self, escalation: Escalation, call: Call, plan: Plan, body: bytes, attempts: list[Attempt]
    ) -> None:
        self._escalation = escalation
        self._section = escalation.section
        self._call = call
        self._plan = plan
        self._body = body
        self._attempts = attempts
        self._deadline = call.arrived + plan.deadline_s
        self._number = 0

    async def outcome(self) -> Outcome:
        """The answer for the client."""
        held: HeldOutcome | None = None
        failure: RequestError | None = None
        tiers = self._plan.tiers
        for index, tier in enumerate(tiers):
            is_last = index + 1 == len(tiers)
            headers = {} if held is None else {ESCALATION: "escalated"}
            try:
                found = await self._ask_tier(tier, is_last=is_last, headers=headers)
            except (UpstreamError, BudgetExceededError) as exc:
                failure = failure or exc
                if is_last or self._section.if_tier_fails == "error":
                    break
                continue
            if isinstance(found, HeldOutcome):
                found.headers = headers
                if found.attempt.status == "escalated":
                    held, failure = found, None
                    continue
            elif held is not None and found.status >= 400:
                # What the cheaper tier could answer is no fault of the caller's.
                attempt = await found.close(tokens=found.tokens, status="refused")
                failure = UpstreamError(attempt.reason or f"{tier.name} answers {found.status}")
                continue
            return found
        if held is None:
            raise failure or UpstreamError("the plan has no tiers", status=503)
        return self._after_all(held, failure)

    def _after_all(self, held: HeldOutcome, failure: RequestError | None) -> HeldOutcome:
        """An answer that is not good enough, as there is no better one."""
        assert failure is not None  # the last tier's answer would have been passed on
        if self._section.if_next_fails == "error":
            raise failure
        held.headers = {ESCALATION: "failed"}
        held.amend(reason=f"{held.attempt.reason}; no better answer: {failure.message}")
        return held

    async def _ask_tier(
        self, tier: Tier, *, is_last: bool, headers: Mapping[str, str]
    ) -> HeldOutcome | PassedOutcome:
        """A tier's answer; one that is held is judged.

        Raises:
            UpstreamError: nobody answers.
            BudgetExceededError: nobody is cheap enough.
        """
        call = self._call
        judge = self._judge_of(tier)
        if judge is None or (is_last and judge.holds):
            reply = await self._open(call, tier, self._body)
            return PassedOutcome(reply, tier, headers, self._attempts.append)
        body, strips = self._body, None
        if judge.needs_logprobs and not asks_logprobs(call.route, call.body):
            body, strips = with_logprobs(call.route, body), call.route
        if judge.holds:
            return await self._hold(tier, judge, body, headers, strips)
        reply = await self._open(call, tier, body)
        if reply.status >= 400:
            return PassedOutcome(reply, tier, headers, self._attempts.append)
        return WatchedOutcome(
            reply,
            tier,
            headers,
            self._attempts.append,
            call=call,
            judge=lambda attempt, answer: self._judge_after(judge, tier.judge, attempt, answer),
            max_bytes=self._section.max_held_bytes,
            strips=strips,
        )

    def _judge_of(self, tier: Tier) -> Judge | None:
        call = self._call
        if not tier.judge or call.route not in JUDGED_ROUTES or call.body.get("background"):
            return None
        return self._escalation.judges[tier.judge]

    async def _open(self, call: Call, tier: Tier, body: bytes) -> Reply:
        """The beginning of an answer; attempts that fail are on the list.

        Raises:
            UpstreamError: nobody answers.
            BudgetExceededError: nobody is cheap enough.
        """
        if perf_counter() >= self._deadline:
            raise UpstreamError(
                "the time for the request was over before a backend had answered",
                status=504,
                code="upstream_timeout",
            )
        if self._plan.max_cost_nano is None:
            return await self._send(call, tier, body)
        return await self._open_affordable(call, tier, body)

    async def _open_affordable(self, call: Call, tier: Tier, body: bytes) -> Reply:
        """Ask one target after the other: a provider may charge for an attempt that fails, and then
        the next may be too dear.
        """
        failure: UpstreamError | None = None
        targets = tier.targets
        while targets := self._affordable(call, targets):
            one = msgspec.structs.replace(tier, targets=targets[:1])
            try:
                return await self._send(call, one, body)
            except UpstreamError as exc:
                if failure is None or exc.code != NO_BACKEND:
                    failure = exc
            targets = targets[1:]
        raise failure or BudgetExceededError(
            f"{tier.name} may cost more than this request has left: "
            "ask for fewer tokens with max_tokens",
            code="max_cost_exceeded",
        )

    async def _send(self, call: Call, tier: Tier, body: bytes) -> Reply:
        reply = await self._escalation.dispatch.open(
            call,
            tier,
            body,
            deadline=self._deadline,
            failed=self._failed,
            number=self._number,
        )
        self._number += 1
        return reply

    def _failed(self, attempt: Attempt) -> None:
        self._attempts.append(attempt)
        self._number = attempt.number + 1

    def _affordable(self, call: Call, targets: Sequence[Target]) -> tuple[Target, ...]:
        """Those targets that cannot cost more than the plan has left."""
        most = self._plan.max_cost_nano
        assert most is not None
        left = most - sum(attempt.cost_nano for attempt in self._attempts)
        result = []
        for target in targets:
            worst = self._escalation.worst(call, target)
            if worst is not None and worst.cost_nano <= left:
                result.append(target)
        return tuple(result)

    async def _hold(
        self,
        tier: Tier,
        judge: Judge,
        body: bytes,
        headers: Mapping[str, str],
        strips: Route | None,
    ) -> HeldOutcome | PassedOutcome:
        """The whole answer, judged. What breaks off is asked of the tier's other targets: nothing
        has reached the client.
        """
        left = tier
        while True:
            reply = await self._open(self._call, left, body)
            try:
                found = await self._take(reply, tier, headers, strips)
            except UpstreamError:
                index = left.targets.index(reply.target)
                left = msgspec.structs.replace(left, targets=left.targets[index + 1 :])
                if not left.targets:
                    raise
                continue
            if isinstance(found, PassedOutcome):
                return found
            outcome, answer = found
            await self._judge_held(judge, tier.judge, outcome, answer)
            return outcome

    async def _take(
        self, reply: Reply, tier: Tier, headers: Mapping[str, str], strips: Route | None
    ) -> PassedOutcome | tuple[HeldOutcome, dict[str, Any]]:
        """Take all of an answer, and end its attempt; what cannot be held goes on as it comes.

        Raises:
            UpstreamError: it breaks off, or cannot be read. Its attempt has ended.
        """
        call, most = self._call, self._section.max_held_bytes
        held: list[bytes] = []
        body = b""
        try:
            if reply.status >= 400:
                return PassedOutcome(reply, tier, headers, self._attempts.append)
            if is_stream(reply):
                collector = Collector(call.route)
                batches = batches_of(reply)
                if not await take_events(batches, collector, held, most):
                    return PassedOutcome(
                        reply,
                        tier,
                        headers,
                        self._attempts.append,
                        before=held,
                        rest=batches,
                        strips=strips,
                    )
                answer = collector.whole()
            else:
                body = await reply.read()
                if len(body) > most:
                    return PassedOutcome(reply, tier, headers, self._attempts.append, strips=strips)
                answer = decoded_answer(body)
            said = read_answer(call.route, answer, call.body)
        except AnswerError as exc:
            await self._end(reply, "error", str(exc))
            raise UpstreamError(f"backend {reply.target.backend}: {exc}") from None
        except UpstreamError as exc:
            await self._end(reply, "timeout" if exc.status == 504 else "error", exc.message)
            raise
        except asyncio.CancelledError:
            await self._end(reply, "client_left", "the client left before an answer")
            raise
        except BaseException:
            await self._end(reply, "error", "the gateway failed")
            raise
        attempt = await self._end(reply, "ok", answer_sha256=answer_sha256(said))
        if attempt.status != "ok":
            raise UpstreamError(attempt.reason)
        outcome = HeldOutcome(
            reply,
            tier,
            body=body,
            held=held,
            attempt=attempt,
            tell=self._amend,
            strips=strips,
        )
        return outcome, answer

    async def _end(
        self, reply: Reply, status: str, reason: str = "", *, answer_sha256: str = ""
    ) -> Attempt:
        attempt = await reply.close(
            tokens=reply.tokens, status=status, reason=reason, answer_sha256=answer_sha256
        )
        self._attempts.append(attempt)
        return attempt

    def _amend(self, attempt: Attempt) -> None:
        """Put an attempt in the place of the one with its number."""
        for index, old in enumerate(self._attempts):
            if old.number == attempt.number:
                self._attempts[index] = attempt

    async def _judge_held(
        self, judge: Judge, name: str, outcome: HeldOutcome, answer: Mapping[str, Any]
    ) -> None:
        try:
            verdict = await self._verdict(judge, answer)
        except BaseException:
            outcome.amend(status="client_left", reason="the client left before it was judged")
            raise
        outcome.amend(
            status="ok" if verdict.passes else "escalated",
            judge=name,
            score=verdict.score,
            reason=verdict.reason,
        )

    async def _judge_after(
        self, judge: Judge, name: str, attempt: Attempt, answer: Mapping[str, Any]
    ) -> Attempt:
        """The attempt with what the judge says of an answer that the client has."""
        call = self._call
        try:
            digest = answer_sha256(read_answer(call.route, answer, call.body))
        except AnswerError:
            digest = ""
        verdict = await self._verdict(judge, answer)
        reason = verdict.reason if verdict.passes else f"not good enough: {verdict.reason}"
        attempt = msgspec.structs.replace(
            attempt, judge=name, score=verdict.score, reason=reason, answer_sha256=digest
        )
        self._amend(attempt)
        return attempt

    async def _verdict(self, judge: Judge, answer: Mapping[str, Any]) -> Verdict:
        found = await judge.judge(self._call, answer, deadline=self._deadline, ask=self._ask)
        return Verdict(found.passes, found.score, found.reason)

    async def _ask(self, call: Call, tier: Tier, body: bytes) -> Mapping[str, object]:
        """See `seams.Ask`."""
        tier = msgspec.structs.replace(tier, name=JUDGE_TIER)
        reply = await self._open(call, tier, body)
        try:
            answer = decoded_answer(await reply.read())
        except AnswerError as exc:
            await self._end(reply, "error", str(exc))
            raise UpstreamError(f"backend {reply.target.backend}: {exc}") from None
        except BaseException as exc:
            await self._end(reply, "error", str(exc) or "the judgement was ended")
            raise
        attempt = await self._end(reply, "ok", "asked by a judge")
        if attempt.status != "ok":
            raise UpstreamError(f"backend {reply.target.backend} does not judge: {attempt.reason}")
        return answer
