"""The attempts of the last requests, in memory: the admin page's playground shows what became of a
request as soon as it has ended, and where there is no ledger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from octavo.gateway.admin_ledger import amount
from octavo.planning.cost_query import from_ns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.gateway.model import Attempt, Call, Plan
    from octavo.gateway.seams import Records

MAX_REQUESTS = 512


class _Request(NamedTuple):
    """What is shown of a request beside its attempts; never what was asked."""

    facts: dict[str, object]
    attempts: list[Attempt]


class RecentAttempts:
    """Remembers the attempts of requests.

    Args:
        most: requests that are remembered.
    """

    def __init__(self, most: int = MAX_REQUESTS) -> None:
        self._most = most
        self._kept: dict[str, _Request] = {}

    def before(self, records: Records) -> Records:
        """Records that are remembered here, and go on to others."""
        return _Remembered(self, records)

    def add(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        """See `seams.Records`. Those of a request's shadows come by themselves, and are added."""
        kept = self._kept.get(call.request_id)
        if kept is None:
            if len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            facts: dict[str, object] = {
                "parent_id": call.parent_id,
                "feature": call.feature,
                "tenant": call.tenant,
                "key": call.key.key_id,
                "route": call.path,
                "rule": plan.rule,
            }
            kept = self._kept[call.request_id] = _Request(facts, [])
        kept.attempts.extend(attempts)

    def view(self, request_id: str) -> list[dict[str, object]]:
        """A request's attempts as `LedgerViews.attempts` has them; none: it is not remembered.
        Callers may have given one id to several.
        """
        return [
            kept.facts | _view(attempt)
            for known, kept in self._kept.items()
            if request_id in (known, kept.facts["parent_id"])
            for attempt in kept.attempts
        ]


class _Remembered:
    """See `RecentAttempts.before`."""

    def __init__(self, recent: RecentAttempts, records: Records) -> None:
        self._recent = recent
        self._records = records

    def attempts(self, call: Call, plan: Plan, attempts: Sequence[Attempt]) -> None:
        """See `seams.Records`."""
        self._recent.add(call, plan, attempts)
        self._records.attempts(call, plan, attempts)


def _view(attempt: Attempt) -> dict[str, object]:
    tokens = attempt.tokens
    names = (
        "request_id", "number", "tier", "backend", "model", "status", "http_status", "currency",
        "reason", "judge", "score",
    )  # fmt: skip
    return {name: getattr(attempt, name) for name in names} | {
        "time": from_ns(attempt.time_ns),
        "num_input_tokens": tokens.input,
        "num_cached_tokens": tokens.cached,
        "num_output_tokens": tokens.output,
        "device_s": None if tokens.device_ns is None else tokens.device_ns / 1e9,
        "cost": amount(attempt.cost_nano),
        "ttft_s": None if attempt.ttft_ns is None else attempt.ttft_ns / 1e9,
        "e2e_s": attempt.e2e_ns / 1e9,
    }
