"""The fields of `/v1/outcomes`. Their effect is what goes to the ledger."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from tests.server.probes import Probe, Table, changes, refused

if TYPE_CHECKING:
    from octavo.ledger.record import Outcome
    from tests.server.conftest import RunningServer

GOOD: dict[str, Any] = {"name": "won", "success": True, "request_id": "a"}
_NO_REQUEST = {"request_id": None}
_TRACE = "0af7651916cd43dd8448eb211c80319c"


class _Ledger:
    """Stands for a ledger; tells of what it got where the engine tells of its requests."""

    num_lost = 0

    def __init__(self, told: dict[str, Any]) -> None:
        self._told = told

    def put(self, outcome: Outcome) -> None:
        """Tell of it, without what is new each time."""
        made = {"id": ""} if outcome.id.startswith("outcome_") else {}
        now = {"time_ns": 0} if time.time_ns() - outcome.time_ns < 10**12 else {}
        self._told[str(len(self._told))] = msgspec.structs.replace(outcome, **made, **now)

    async def flush(self, timeout_s: float = 10.0) -> bool:
        return True


def _prepare(server: RunningServer) -> None:
    server.app.context.usage.sink = _Ledger(server.engine.pooled)


def _probes(place: str) -> dict[str, Probe]:
    """Of the fields in the body, or in an item of `outcomes`."""

    def put(fields: dict[str, Any]) -> dict[str, Any]:
        if not place:
            return fields
        kept = {key: value for key, value in {**GOOD, **fields}.items() if value is not None}
        return {**dict.fromkeys(GOOD), "outcomes": [kept]}

    plain = put({})
    fields: dict[str, dict[str, Any]] = {
        "name": {"name": "lost"},
        "success": {"success": False},
        "id": {"id": "mine"},
        "request_id": {"request_id": "b"},
        "session_id": {**_NO_REQUEST, "session_id": "s"},
        "trace_id": {**_NO_REQUEST, "trace_id": _TRACE},
        "value": {"value": 2.5},
        "time": {"time": "2026-01-01T00:00:00Z"},
        "tags": {"tags": {"a": "b"}},
    }
    return {f"{place}{name}": changes(put(asks), plain) for name, asks in fields.items()}


TABLE = Table(
    path="/v1/outcomes",
    body=GOOD,
    probes={
        **_probes(""),
        **_probes("outcomes[]."),
        "outcomes": refused({"outcomes": [GOOD]}, name="name"),
    },
    prepare=_prepare,
)
