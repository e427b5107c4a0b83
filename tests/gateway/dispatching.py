"""What tests of calls to backends share: sections, calls, and a dispatcher that leaves nothing."""

from __future__ import annotations

from contextlib import asynccontextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from octavo.gateway.config_backends import (
    Backend,
    Kind,
    ModelInfo,
    PriceSection,
    Probe,
    Timeouts,
)
from octavo.gateway.dispatch import Dispatcher
from octavo.gateway.model import PATHS, Attempt, Call, KeyInfo, Target, Tier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from octavo.gateway.reply import BackendReply
    from tests.gateway.fake_upstream import FakeUpstream

KEY = "sk-proj-0123456789abcdefghij"
QUICK = Timeouts(connect=1.0, first_token=0.4, idle=0.4, total=5.0)
MODELS = {"ok": ModelInfo(price=msgspec.convert({"input": "1", "output": "3"}, PriceSection))}


def backend(fake: FakeUpstream, *, kind: Kind = "openai", **more: Any) -> Backend:
    """A section for a fake, in a hurry."""
    given = {"timeouts": QUICK, "probe": Probe(interval=0), "models": MODELS} | more
    return Backend(url=fake.url, kind=kind, **given)


def call(
    path: str = "/v1/chat/completions", *, stream: bool = False, body: Any = None, **more: Any
) -> Call:
    """A call as it arrives."""
    made = {"model": "alias", "messages": [{"role": "user", "content": "Hello"}]}
    made |= {"stream": True} if stream else {}
    given = {"request_id": "req-1", "num_prompt_tokens": 9, "key": KeyInfo(key_id="k1")} | more
    return Call(
        arrived=perf_counter(),
        route=PATHS[path],
        path=path,
        model="alias",
        stream=stream,
        body=made | (body or {}),
        **given,
    )


@asynccontextmanager
async def dispatching(**backends: Backend) -> AsyncIterator[Dispatcher]:
    """A dispatcher that leaves no connection behind."""
    dispatcher = Dispatcher(backends)
    try:
        yield dispatcher
        assert all(state.num_ours == 0 for state in dispatcher.health.states.values())
    finally:
        await dispatcher.close()


class Tried:
    """One `open`, and what failed before."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher
        self.failed: list[Attempt] = []

    async def open(self, asked: Call, *targets: str, within_s: float = 5.0) -> BackendReply:
        """Ask targets, written `backend/model`."""
        made = tuple(Target(*target.split("/")) for target in targets)
        return await self._dispatcher.open(
            asked,
            Tier(name="tier", targets=made),
            msgspec.json.encode(asked.body),
            deadline=perf_counter() + within_s,
            failed=self.failed.append,
            number=len(self.failed),
        )


async def collect(reply: BackendReply) -> list[bytes]:
    """All events of a stream."""
    return [event async for event in reply.events()]
