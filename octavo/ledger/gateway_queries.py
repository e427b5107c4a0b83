"""What reports ask of what the gateway kept: whether escalating pays, and each escalation.

Attempts are kept raw, so these reach back as far as the ledger's retention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import sqlalchemy as sa

from octavo.errors import ConfigError
from octavo.ledger.groups import TIMES, number, time_text
from octavo.ledger.record import FOREVER_NS, HOUR_NS, EscalationRecord
from octavo.ledger.schema import attempts, escalations

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

NAMES = ("feature", "tenant", "key", "rule", "judge", "tier", "backend", "model", "route", *TIMES)
_FILTERS = ("feature", "tenant", "key", "rule", "judge")


class HybridTotals(msgspec.Struct, kw_only=True):
    """Judged attempts of one group, in one currency.

    Attributes:
        num_passed, num_escalated: what the judge said of them.
        cheap_cost_nano: of all of them.
        dear_cost_nano: of the attempts that took the place of those escalated.
        num_priced: of those that passed, how many have a price at the next tier.
        spared_nano: what these tokens would have cost there.
        spared_cheap_nano: what these attempts cost.
        escalated_cheap_nano: what the attempts cost that were thrown away.
    """

    key: tuple[str, ...]
    currency: str
    num_passed: int = 0
    num_escalated: int = 0
    cheap_cost_nano: int = 0
    dear_cost_nano: int = 0
    num_priced: int = 0
    spared_nano: int = 0
    spared_cheap_nano: int = 0
    escalated_cheap_nano: int = 0

    @property
    def saved_nano(self) -> int:
        """What the hybrid saved against the next tier alone, below 0 where it lost: by the requests
        whose price there is known.
        """
        return self.spared_nano - self.spared_cheap_nano - self.escalated_cheap_nano


def hybrid_totals(
    connection: sa.Connection,
    by: Sequence[str] = (),
    start_ns: int | None = None,
    end_ns: int | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
) -> list[HybridTotals]:
    """Sums over judged attempts that ended in `[start_ns, end_ns)`.

    Raises:
        ConfigError: `by` or `where` has a name that is not in `NAMES`.
    """
    _check(by, where or {})
    a, e = attempts.c, escalations.c
    hour = (a.time_ns // number(HOUR_NS)).label("hour")
    texts = [a[name] for name in by if name not in TIMES]
    keys = [hour, *texts, a.currency]
    passed = sa.case((a.status == "ok", 1), else_=0)
    escalated = 1 - passed
    priced = sa.case((sa.and_(a.status == "ok", a.next_cost_nano.is_not(None)), 1), else_=0)
    sums = [
        sa.func.sum(passed),
        sa.func.sum(escalated),
        sa.func.sum(a.cost_nano),
        sa.func.sum(sa.func.coalesce(e.dear_cost_nano, 0)),
        sa.func.sum(priced),
        sa.func.sum(priced * sa.func.coalesce(a.next_cost_nano, 0)),
        sa.func.sum(priced * a.cost_nano),
        sa.func.sum(escalated * a.cost_nano),
    ]
    joined = attempts.outerjoin(
        escalations, sa.and_(e.request_id == a.request_id, e.number == a.number)
    )
    query = (
        sa.select(*keys, *sums)
        .select_from(joined)
        .where(
            a.judge != "",
            a.status.in_(("ok", "escalated")),
            *_within(a.time_ns, start_ns, end_ns),
            *(a[name].in_(values) for name, values in (where or {}).items()),
        )
        .group_by(*keys)
    )
    found: dict[tuple[tuple[str, ...], str], HybridTotals] = {}
    for row in connection.execute(query):
        rest = iter(row[1 : len(keys)])
        group = tuple(time_text(row[0], name) if name in TIMES else next(rest) for name in by)
        currency = next(rest)
        totals = found.setdefault((group, currency), HybridTotals(key=group, currency=currency))
        for name, value in zip(HybridTotals.__struct_fields__[2:], row[len(keys) :], strict=True):
            setattr(totals, name, getattr(totals, name) + int(value))
    return [found[key] for key in sorted(found)]


def list_escalations(
    connection: sa.Connection,
    start_ns: int | None = None,
    end_ns: int | None = None,
    where: Mapping[str, Sequence[str]] | None = None,
    limit: int = 100,
) -> list[EscalationRecord]:
    """The newest escalations.

    Raises:
        ConfigError: `where` has another name than feature, tenant, key, rule and judge.
    """
    for name in where or {}:
        if name not in _FILTERS:
            raise ConfigError(f"escalations have no {name!r}: use {', '.join(_FILTERS)}")
    table = escalations.c
    query = (
        sa.select(escalations)
        .where(
            *_within(table.time_ns, start_ns, end_ns),
            *(table[name].in_(values) for name, values in (where or {}).items()),
        )
        .order_by(table.time_ns.desc(), table.request_id, table.number)
        .limit(limit)
    )
    return [EscalationRecord(**row._mapping) for row in connection.execute(query)]


def _within(column: sa.Column[Any], start_ns: int | None, end_ns: int | None) -> list[Any]:
    return [column >= (start_ns or 0), column < (FOREVER_NS if end_ns is None else end_ns)]


def _check(by: Sequence[str], where: Mapping[str, Sequence[str]]) -> None:
    for name in (*by, *where):
        if name not in NAMES or (name in TIMES and name in where):
            raise ConfigError(f"judged attempts have no {name!r}: use {', '.join(NAMES)}")
    if len(set(by)) < len(by):
        raise ConfigError(f"{', '.join(by)} names something twice")
