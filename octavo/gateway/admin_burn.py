"""How a budget was used over its period: the requests that it holds for, out of the ledger.

The budget's own counter knows a sum and no past. The ledger knows requests by feature, tenant, key
and tags, so that a budget's patterns can be asked of them again; a key's team and budgets are taken
as they are now. Not of models: the ledger has the backends' names, and budgets those that callers
ask for.
"""

from __future__ import annotations

from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from octavo.errors import ConfigError, InvalidRequestError, NotFoundError
from octavo.gateway.admin_ledger import amount
from octavo.gateway.budgets_scope import period_of
from octavo.gateway.patterns import matches_any
from octavo.planning.cost_query import from_ns, to_ns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from octavo.gateway.config_budgets import Budget
    from octavo.gateway.model import KeyInfo
    from octavo.ledger.totals import Totals

STEPS = {"day": "hour", "month": "day", "total": "day"}
"""By which times a period's use is added up; an hour has none."""

_LEDGER = ("feature", "tenant", "key")


class BurnDown:
    """Reads budgets' pasts. Any thread may call.

    Args:
        url: of the ledger.
        budgets: of the configuration in force, by name.
        keys: all keys by id; asked only where a budget looks at teams, or at who names it.
        now: the time, with a zone.
    """

    def __init__(
        self,
        url: str,
        budgets: Mapping[str, Budget],
        keys: Callable[[], Mapping[str, KeyInfo]],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._url = url
        self._budgets = budgets
        self._keys = keys
        self._now = now

    def history(self, query: Mapping[str, str]) -> dict[str, object]:
        """What was used of a budget in its current period, by hour or day; not summed up.

        Args:
            query: `budget`, its name, and whom it is for: a value for each of its `per`.

        Raises:
            NotFoundError: there is no such budget.
            InvalidRequestError: a dimension is missing or not the budget's.
            ConfigError: the ledger cannot tell; says why.
        """
        from octavo.ledger.store import open_ledger

        name = query.get("budget", "")
        budget = self._budgets.get(name)
        if budget is None:
            raise NotFoundError(f"There is no budget {name[:100]!r}", code="budget_not_found")
        subject = {part: value for part, value in query.items() if part != "budget"}
        if set(subject) != set(budget.per):
            raise InvalidRequestError(
                f"the budget {name} is per {', '.join(budget.per) or 'nothing'}: give these",
                param="budget",
            )
        step = STEPS.get(budget.period)
        if step is None:
            raise ConfigError("the ledger has sums by the hour, and this budget's period is one")
        if budget.models or "model" in budget.per:
            raise ConfigError(
                "the ledger has the backends' names of models, and this budget those that callers "
                "ask for"
            )
        start_ns, end_ns = period_of(budget.period, to_ns(self._now()))
        where = {part: (subject[part],) for part in budget.per if part != "team"}
        tags = [f"tag:{tag}" for tag in budget.tags if f"tag:{tag}" not in where]
        by = (step, *_LEDGER, *tags)
        with open_ledger(self._url, create=False) as ledger:
            totals = ledger.totals(by, start_ns, end_ns, where)
        counted = self._counted(name, budget, subject)
        sums: dict[str, list[int]] = {}
        for total in totals:
            if counted(dict(zip(by, total.key, strict=True))):
                used = sums.setdefault(total.key[0], [0, 0, 0])
                for index, value in enumerate(_used(total)):
                    used[index] += value
        return {
            "budget": name,
            "subject": subject,
            "step": step,
            "period_start": from_ns(start_ns) if end_ns is not None else None,
            "period_end": None if end_ns is None else from_ns(end_ns),
            "data": [
                {
                    "time": time,
                    "cost": amount(cost_nano),
                    "tokens": num_tokens,
                    "gpu_hours": device_ns / 3600e9,
                }
                for time, (cost_nano, num_tokens, device_ns) in sorted(sums.items())
            ],
        }

    def _counted(
        self, name: str, budget: Budget, subject: Mapping[str, str]
    ) -> Callable[[Mapping[str, str]], bool]:
        """Whether the budget holds for what the ledger has of a request."""
        is_named = budget.holds_for == "named"
        team = subject.get("team")
        known: Mapping[str, KeyInfo] = {}
        if is_named or team is not None or budget.teams:
            known = self._keys()

        def holds(request: Mapping[str, str]) -> bool:
            key = known.get(request["key"])
            of_team = "" if key is None else key.team
            return (
                (not is_named or (key is not None and name in key.budgets))
                and (team is None or of_team == team)
                and matches_any(of_team, budget.teams)
                and matches_any(request["feature"], budget.features)
                and matches_any(request["tenant"], budget.tenants)
                and all(
                    fnmatchcase(request.get(f"tag:{tag}", subject.get(f"tag:{tag}", "")), pattern)
                    for tag, pattern in budget.tags.items()
                )
            )

        return holds


def _used(total: Totals) -> tuple[int, int, int]:
    """What a budget counts, of a group of requests."""
    return (
        total.cost_nano,
        total.num_input_tokens + total.num_output_tokens,
        total.prefill_ns + total.decode_ns,
    )
