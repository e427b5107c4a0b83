"""`POST /v1/outcomes`: what came of requests, kept beside what they cost."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable
from uuid import uuid4

from octavo.errors import EngineUnavailableError, InvalidRequestError
from octavo.ledger.outcome_items import to_outcome
from octavo.protocol.outcomes import OutcomeReceipt, OutcomeReceipts, OutcomeRequest
from octavo.server.context import context_of
from octavo.server.http import json_response

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from octavo.ledger.record import Outcome

DURABLE_S = 10.0
"""How long an answer waits for the disk."""

RETRY_S = 5


@runtime_checkable
class OutcomeSink(Protocol):
    """Where outcomes go; `ledger.writer.LedgerWriter` is one."""

    num_lost: int

    def put(self, outcome: Outcome, /) -> object:
        """Take an outcome; never waits and never fails."""
        ...

    async def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was put before is on disk; False: that takes longer."""
        ...


class NotKeptError(EngineUnavailableError):
    """The outcomes are not known to be on disk: the same request may be sent again."""

    def __init__(self, why: str) -> None:
        super().__init__(
            f"{why}: send the same outcomes again, with ids of your own so that none counts twice",
            code="not_kept",
            retry_after_s=RETRY_S,
        )


async def create_outcomes(request: Request) -> Response:
    """Keep what came of requests: one outcome, or a list of them.

    The answer comes when they are on disk. Whether their requests are known is not looked at: they
    may still run, and may be of another server that writes to the same ledger.

    Raises:
        RequestError: a field is wrong, or the server keeps no ledger.
    """
    context = context_of(request)
    items = (await context.read(request, OutcomeRequest)).items()
    sink = context.usage.sink
    if not isinstance(sink, OutcomeSink):
        raise InvalidRequestError(
            "This server keeps no ledger (--ledger none), so outcomes have no place: start it with "
            "--ledger URL, or import them where the ledger is, with octavo outcomes import",
            code="no_ledger",
        )
    now_ns = time.time_ns()
    outcomes = [to_outcome(item, f"outcome_{uuid4().hex}", now_ns) for item in items]
    num_lost = sink.num_lost
    for outcome in outcomes:
        sink.put(outcome)
    if not await sink.flush(DURABLE_S):
        raise NotKeptError("The ledger is slow to write")
    if sink.num_lost > num_lost:
        raise NotKeptError("The ledger cannot write now")
    return json_response(
        OutcomeReceipts(
            data=[OutcomeReceipt(id=outcome.id, name=outcome.name) for outcome in outcomes]
        )
    )
