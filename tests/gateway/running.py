"""A gateway that serves in the test's own loop, with parts that are counted."""

from __future__ import annotations

import asyncio
import textwrap
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx

from octavo.errors import BudgetExceededError
from octavo.gateway.absent import NoReservation
from octavo.gateway.config import load_config
from octavo.gateway.run import Gateway
from octavo.server.listen import bind

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path

    from octavo.gateway.model import Amount, Attempt, Call, Plan

QUICK = """
    timeouts: {connect: 0.5, first_token: 0.5, idle: 0.5, total: 2}
    probe: {interval: 0}
    breaker: {failures: 1000}
"""


class Counted:
    """Counts what must happen once for each request, in the order in which it happens.

    Attributes:
        permits, reservations: what each was settled with; None: not yet.
        records: attempts, as they were given, by request.
        failing: names of what raises when it is settled.
    """

    def __init__(self, gateway: Gateway) -> None:
        self.permits: list[int | None] = []
        self.reservations: list[Amount | None] = []
        self.worst: list[Amount] = []
        self.records: list[tuple[Call, Plan, list[Attempt]]] = []
        self.failing: set[str] = set()
        self.order: list[str] = []
        self._limits = gateway.parts.limits
        parts: Any = gateway.parts
        parts.limits = _Limits(self, gateway.parts.limits)
        parts.budgets = _Budgets(self)
        parts.has_budgets = True
        parts.records = self

    @property
    def all_attempts(self) -> list[Attempt]:
        """Of all requests."""
        return [attempt for _, _, attempts in self.records for attempt in attempts]

    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        """See `seams.Records`."""
        self.order.append("records")
        self.records.append((call, plan, list(attempts)))

    def check(self, num: int = 1) -> None:
        """So many requests were let in, and each ended once."""
        assert len(self.permits) == len(self.reservations) == len(self.records) == num
        assert None not in self.permits
        assert None not in self.reservations


class _Permit:
    def __init__(self, counted: Counted, inner: Any) -> None:
        self._counted = counted
        self._inner = inner
        self._index = len(counted.permits)
        counted.permits.append(None)
        self.headers = inner.headers

    async def settle(self, num_tokens: int) -> None:
        assert self._counted.permits[self._index] is None, "settled twice"
        self._counted.permits[self._index] = num_tokens
        self._counted.order.append("permit")
        await self._inner.settle(num_tokens)
        if "permit" in self._counted.failing:
            raise RuntimeError("the permit's store is gone")


class _Limits:
    def __init__(self, counted: Counted, inner: Any) -> None:
        self._counted = counted
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def admit(self, call: Call) -> _Permit:
        return _Permit(self._counted, await self._inner.admit(call))


class _Reservation(NoReservation):
    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self._index = len(counted.reservations)
        self.left_nano = counted.worst[-1].cost_nano
        counted.reservations.append(None)

    async def settle(self, used: Amount) -> None:
        assert self._counted.reservations[self._index] is None, "settled twice"
        self._counted.reservations[self._index] = used
        self._counted.order.append("reservation")
        if "reservation" in self._counted.failing:
            raise RuntimeError("the budgets' store is gone")


class _Budgets:
    def __init__(self, counted: Counted) -> None:
        self._counted = counted
        self.store = self

    async def reserve(self, call: Call, worst: Amount | None) -> _Reservation:
        if worst is None:
            raise BudgetExceededError("nobody knows", code="price_unknown")
        self._counted.worst.append(worst)
        return _Reservation(self._counted)

    async def close(self) -> None:
        pass


class Running:
    """A gateway that serves, and a client.

    Attributes:
        path: of its configuration.
    """

    def __init__(self, gateway: Gateway, client: httpx.AsyncClient, path: Path) -> None:
        self.gateway = gateway
        self.client = client
        self.path = path

    @property
    def url(self) -> str:
        return str(self.client.base_url)

    def counted(self) -> Counted:
        return Counted(self.gateway)

    async def chat(self, model: str = "ok", **more: Any) -> httpx.Response:
        headers = more.pop("headers", None)
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]} | more
        return await self.client.post("/v1/chat/completions", json=body, headers=headers)

    async def idle(self) -> None:
        """Return when no request is worked on."""
        async with asyncio.timeout(5):
            await self.gateway.app.lifecycle.wait_idle()


@asynccontextmanager
async def running(folder: Path, text: str) -> AsyncIterator[Running]:
    """A gateway with a configuration, which listens where there is room."""
    path = folder / "gateway.yaml"
    path.write_text(textwrap.dedent(text))
    config = load_config(path)
    with bind("127.0.0.1", 0) as listener:
        gateway = Gateway(path, config, listener)
        try:
            await gateway.start()
            port = listener.getsockname()[1]
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url, timeout=10, trust_env=False) as client:
                yield Running(gateway, client, path)
        finally:
            gateway.http.should_exit = True
            await gateway.stop()
