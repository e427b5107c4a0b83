"""One request through the gateway, from its bytes to its last record.

Whatever happens to it, each of these happens once and in this order: the answer's attempt is
closed, the limits' permit is settled, the budgets' reservation is settled, and the attempts go to
the ledger. A client that goes is noticed at once, without a task that waits for that.
"""

from __future__ import annotations

import asyncio
import logging
from functools import lru_cache, partial
from time import perf_counter
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from starlette.requests import ClientDisconnect, Request

from octavo.errors import AuthenticationError, EngineUnavailableError
from octavo.gateway.answer_text import JUDGED_ROUTES
from octavo.gateway.aside import LARGE_BYTES, aside
from octavo.gateway.ceilings import affordable_output, bounded, used
from octavo.gateway.key_scopes import check_scopes
from octavo.gateway.model import ANYBODY, Amount
from octavo.gateway.reading import read_call
from octavo.gateway.relay import NO_CEILING, Ceiling, Relay
from octavo.gateway.usage_cost import cost_of
from octavo.ledger.record import NANO
from octavo.server.auth import presented_key
from octavo.server.dialect import ANTHROPIC, OPENAI
from octavo.server.dialect_responses import RESPONSES
from octavo.server.http import read_body
from octavo.server.lifecycle import DRAIN_RETRY_S
from octavo.server.scope import LEAVES, exchange_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import Receive, Scope, Send

    from octavo.gateway.gateway_metrics import GatewayMetrics
    from octavo.gateway.model import Attempt, Call, KeyInfo, Plan, Route, Target
    from octavo.gateway.parts import Parts
    from octavo.gateway.relay import Headers
    from octavo.gateway.seams import Outcome, Permit, Reservation
    from octavo.server.dialect import Dialect

logger = logging.getLogger("octavo.gateway")

DIALECTS: Mapping[Route, Dialect] = {"messages": ANTHROPIC, "responses": RESPONSES}
"""Of routes whose clients do not speak OpenAI's first one."""

SLACK = 2
"""The estimate of a stream's tokens is at most about so many times too high: a backend that keeps
to the bound that it was given is not cut."""
SLACK_TOKENS = 64
NUM_FRAMES = 24
"""Events of a choice that have no token: its beginnings and ends, and usage."""


class Forward:
    """One request. `run` it once.

    Args:
        scope: of ASGI.
        receive: likewise.
        send: likewise.
        route: what is asked for.
        parts: of the configuration in force when it came.
        metrics: where it is counted.
    """

    __slots__ = (
        "_arrived",
        "_attempts",
        "_call",
        "_exchange",
        "_is_ended_by_us",
        "_is_gone",
        "_metrics",
        "_outcome",
        "_parts",
        "_permit",
        "_plan",
        "_receive",
        "_relay",
        "_reservation",
        "_route",
        "_scope",
        "_send",
        "_task",
        "_waited",
    )

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        route: Route,
        parts: Parts,
        metrics: GatewayMetrics,
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._route = route
        self._parts = parts
        self._metrics = metrics
        self._exchange = exchange_of(scope)
        self._attempts: list[Attempt] = []
        self._call: Call | None = None
        self._plan: Plan | None = None
        self._permit: Permit | None = None
        self._reservation: Reservation | None = None
        self._outcome: Outcome | None = None
        self._relay: Relay | None = None
        self._task = asyncio.current_task()
        self._is_gone = self._is_ended_by_us = False
        self._arrived = perf_counter()
        self._waited = 0.0

    def leave(self) -> None:
        """The client has gone: nothing more is done for it."""
        if not (self._is_gone or self._is_ended_by_us):
            self._is_gone = True
            assert self._task is not None
            self._task.cancel()

    def end(self) -> None:
        """The gateway has no more patience: the client is told, as far as its answer lets us."""
        if not (self._is_gone or self._is_ended_by_us):
            self._is_ended_by_us = True
            assert self._task is not None
            self._task.cancel()

    def abort(self) -> None:
        """Not even that can be waited for: its end is all that is left."""
        assert self._task is not None
        self._is_ended_by_us = True
        self._task.cancel()

    async def run(self) -> None:
        """Answer.

        Raises:
            RequestError: it is refused, or nobody answers; nothing was sent.
            ClientDisconnect: the client has gone.
        """
        # Without our own server nobody tells: then a client's absence shows when it is written to.
        leaves = self._scope.get("extensions", {}).get(LEAVES, set())
        leaves.add(self.leave)
        try:
            try:
                key = await who(self._scope, self._parts)
                body = await self._body()
                await self._answer(key, body)
            finally:
                leaves.discard(self.leave)
        except asyncio.CancelledError:
            await self._cancelled()
        finally:
            await self._finish()

    async def _cancelled(self) -> None:
        """A cancellation of our own becomes what it means.

        Raises:
            CancelledError: it was somebody else's.
            ClientDisconnect: the client has gone.
            EngineUnavailableError: the gateway ends, and nothing was sent yet.
        """
        assert self._task is not None
        if self._is_gone:
            self._task.uncancel()
            raise ClientDisconnect from None
        if not self._is_ended_by_us:
            raise
        self._task.uncancel()
        error = EngineUnavailableError(
            "The gateway is shutting down", code="shutting_down", retry_after_s=DRAIN_RETRY_S
        )
        if self._relay is None or not self._relay.is_started:
            raise error from None
        await self._relay.fail(error)

    async def _body(self) -> bytes:
        return await read_body(
            Request(self._scope, self._receive), self._parts.config.server.max_body_bytes
        )

    async def _answer(self, key: KeyInfo, body: bytes) -> None:
        parts = self._parts
        health = parts.dispatcher.health
        request_id, parent_id = self._exchange.unique_id()
        read = partial(
            read_call,
            body,
            self._scope["headers"],
            route=self._route,
            path=self._scope["path"],
            request_id=request_id,
            parent_id=parent_id,
            arrived=self._arrived,
            key=key,
            settings=parts.settings,
        )
        call = read() if len(body) <= LARGE_BYTES else await aside(read)
        check_scopes(call)
        call, body = bounded(call, body, parts.config.server.default_max_tokens)
        self._call = call
        begin = perf_counter()
        self._permit = permit = await parts.limits.admit(call)
        self._waited = perf_counter() - begin
        plan = self._plan = parts.router.route(call, health, health)
        plan = await self._reserve(call, plan)
        dialect = DIALECTS.get(self._route, OPENAI)
        headers = [*_plan_headers(plan.rule), *_encoded(permit.headers)]
        if dialect.id_header:
            headers.append((dialect.id_header.encode(), call.known_as.encode("latin-1")))
        self._relay = relay = Relay(call, self._exchange, dialect, self._send)
        if call.stream and call.route in JUDGED_ROUTES:
            relay.wait(headers, parts.config.server.keep_alive_s)
        try:
            outcome = await self._ask(call, plan, body, relay)
            if outcome is not None:
                headers += _target_headers(outcome.tier.name, outcome.target)
                headers += _encoded(outcome.headers)
                cost = partial(self._cost, outcome) if call.includes_cost else None
                await relay.run(outcome, headers, self._ceiling(call, plan, outcome), cost)
        finally:
            await relay.stop()

    async def _ask(self, call: Call, plan: Plan, body: bytes, relay: Relay) -> Outcome | None:
        """The answer; None: there is none, and the client has been told in its stream.

        Raises:
            RequestError: there is none, and nothing was sent yet.
        """
        try:
            outcome = await self._parts.escalation.run(call, plan, body, attempts=self._attempts)
        except Exception as error:
            await relay.stop()
            if not relay.is_started:
                raise
            await relay.fail(error)
            return None
        self._outcome = outcome
        return outcome

    def _cost(self, outcome: Outcome) -> dict[str, Any]:
        """What the call has cost until now, this answer included."""
        now = None if outcome.is_whole else (outcome.target, outcome.tokens)
        return cost_of(self._attempts, self._parts.price, now)

    async def _reserve(self, call: Call, plan: Plan) -> Plan:
        """Hold the most that the call can cost; the plan, bounded by what is held.

        Raises:
            BudgetExceededError: a budget has not so much left, or nobody knows how much it is.
        """
        parts = self._parts
        if not parts.has_budgets:
            return plan
        worst = parts.escalation.worst_case(call, plan)
        most = plan.max_cost_nano
        if worst is not None and most is not None and most < worst.cost_nano:
            worst = Amount(most, worst.num_tokens, worst.device_ns)
        self._reservation = reservation = await parts.budgets.reserve(call, worst)
        left = reservation.left_nano
        if left is not None and (most is None or left < most):
            plan = msgspec.structs.replace(plan, max_cost_nano=left)
        return plan

    def _ceiling(self, call: Call, plan: Plan, outcome: Outcome) -> Ceiling:
        """Where a stream is cut.

        What was reserved pays for all that a backend may say that keeps to the bound that it was
        given. Where there was none to give, what is left is what it may cost.
        """
        if not call.stream or outcome.is_whole:
            return NO_CEILING
        if call.max_tokens is not None:
            most = call.max_tokens * call.num_choices
            return Ceiling(SLACK * most + SLACK_TOKENS, most + NUM_FRAMES * call.num_choices)
        if plan.max_cost_nano is None:
            return NO_CEILING
        left = plan.max_cost_nano - sum(attempt.cost_nano for attempt in self._attempts)
        price = self._parts.price(outcome.target.backend, outcome.target.model)
        affordable = affordable_output(call, price, left)
        return Ceiling(affordable, affordable + NUM_FRAMES * call.num_choices)

    async def _finish(self) -> None:
        """What happens once, whatever happened. Nothing here is the client's to wait for."""
        parts, call, plan = self._parts, self._call, self._plan
        try:
            await self._close()
        except Exception:
            logger.exception("request %s: its attempt was not closed", self._exchange.request_id)
        try:
            amount = used(self._attempts, parts.price)
            try:
                if self._permit is not None:
                    await self._permit.settle(amount.num_tokens)
            except Exception:
                logger.exception("request %s: limits", self._exchange.request_id)
            if self._reservation is not None:
                await self._reservation.settle(amount)
        except Exception:
            logger.exception("request %s: budgets", self._exchange.request_id)
        finally:
            if call is not None and plan is not None and self._attempts:
                seconds = perf_counter() - call.arrived - self._waited
                seconds -= sum(attempt.e2e_ns for attempt in self._attempts) / NANO
                self._metrics.observe_attempts(self._attempts, max(0.0, seconds))
                parts.records.attempts(call, plan, self._attempts)

    async def _close(self) -> None:
        outcome, relay = self._outcome, self._relay
        if outcome is None:
            return
        status, reason = "error", "the answer was not passed on"
        if self._is_gone:
            status, reason = "client_left", "the client left before the answer's end"
        elif self._is_ended_by_us:
            reason = "the gateway was shut down"
        elif relay is not None:
            status, reason = relay.status, relay.reason
        await outcome.close(tokens=outcome.tokens, status=status, reason=reason)


async def who(scope: Scope, parts: Parts) -> KeyInfo:
    """Whose request it is.

    Raises:
        AuthenticationError: no key, or a wrong one.
    """
    key = presented_key(scope)
    if key is not None:
        return await parts.keys.find(key)
    if parts.config.keys.required or _has_credentials(scope):
        raise AuthenticationError(
            "Give an API key in the header: Authorization: Bearer KEY", code="missing_api_key"
        )
    return ANYBODY


@lru_cache(4096)
def _plan_headers(rule: str) -> tuple[tuple[bytes, bytes], ...]:
    return ((b"x-octavo-rule", quote(rule, safe="/:@ ").encode("ascii")),)


@lru_cache(4096)
def _target_headers(tier: str, target: Target) -> Headers:
    where = quote(f"{target.backend}/{target.model}", safe="/:@ ")
    return [
        (b"x-octavo-tier", quote(tier, safe="/:@ ").encode("ascii")),
        (b"x-octavo-target", where.encode("ascii")),
    ]


def _encoded(headers: Mapping[str, str]) -> Headers:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


def _has_credentials(scope: Scope) -> bool:
    """Whether there are headers for a key, which cannot be read as one."""
    return any(name in (b"authorization", b"x-api-key") for name, _ in scope["headers"])
