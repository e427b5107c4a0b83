"""Sums over outcomes: what pruning froze, and what joins the raw requests that are left.

An outcome is counted once, with the last of its requests, so that the cost of a day's requests
stands beside what came of them, whenever that became known.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from octavo.ledger.groups import Column, Grouping, number, ordinals, raw_hour
from octavo.ledger.queries import Span, Where
from octavo.ledger.record import FOREVER_NS, HOUR_NS
from octavo.ledger.rollup import JOINS, OUTCOME_SUMS
from octavo.ledger.schema import outcomes, outcomes_hourly, usage
from octavo.ledger.totals import OutcomeTotals

if TYPE_CHECKING:
    from collections.abc import Sequence

_u, _o = usage.alias("u"), outcomes.alias("o")


def outcome_totals(
    connection: sa.Connection,
    by: Sequence[str],
    start_ns: int | None,
    end_ns: int | None,
    where: Where,
    names: Sequence[str] | None,
) -> list[OutcomeTotals]:
    """Sums over outcomes; see `Ledger.outcome_totals`."""
    is_sqlite = connection.dialect.name == "sqlite"
    grouping = Grouping(by, where, is_sqlite=is_sqlite)
    span = Span(connection, start_ns, end_ns)
    found: dict[tuple[Any, ...], OutcomeTotals] = {}

    def add(query: sa.Select[Any], keys: Sequence[Column], sums: dict[str, Column]) -> None:
        for row in connection.execute(
            query.add_columns(*sums.values()).group_by(*ordinals(len(keys)))
        ):
            group, currency = grouping.key(row)
            name, success, *values = row[grouping.num_keys :]
            total = found.setdefault(
                (group, str(name), currency),
                OutcomeTotals(key=group, name=str(name), currency=currency),
            )
            side = total.success if success else total.failure
            for field, value in zip(sums, values, strict=True):
                setattr(side, field, getattr(side, field) + int(value or 0))

    hourly = outcomes_hourly.c
    if span.check(grouping):
        keys = [*grouping.keys(outcomes_hourly, hourly.hour), hourly.name, hourly.success]
        rows = [hourly.hour >= span.first_hour, hourly.hour < span.last_hour, hourly.model != ""]
        rows += [hourly.name.in_(names)] if names is not None else []
        query = sa.select(*keys).where(*rows, *grouping.filters(outcomes_hourly))
        add(query, keys, {name: sa.func.sum(hourly[name]) for name in OUTCOME_SUMS})

    wanted = [] if names is None else [_o.c.name.in_(names)]
    # The outcomes lead to their requests: on SQLite `0 +` hides the index of times, which would
    # walk through all requests of the range instead.
    time: Column = number(0) + _u.c.time_ns if is_sqlite else _u.c.time_ns
    in_range = [] if span.start_ns == 0 else [time >= span.start_ns]
    in_range += [] if span.end_ns == FOREVER_NS else [time < span.end_ns]

    pairs = _pairs([_u.c.seq, _o.c.name, _o.c.success], [*wanted, *in_range]).subquery()
    links = (
        sa.select(pairs.c.seq, pairs.c.name, sa.func.max(pairs.c.success).label("success"))
        .group_by(pairs.c.seq, pairs.c.name)
        .subquery()
    )
    keys = [*grouping.keys(usage, raw_hour()), links.c.name, links.c.success]
    query = sa.select(*keys).join_from(links, usage, usage.c.seq == links.c.seq)
    add(
        query.where(*grouping.filters(usage)),
        keys,
        {
            "num_requests": sa.func.count(),
            "device_ns": sa.func.sum(usage.c.prefill_ns + usage.c.decode_ns),
            "cost_nano": sa.func.sum(usage.c.cost_nano),
        },
    )

    rows = [*wanted, _o.c.counted == 0]
    if in_range:
        rows.append(_o.c.seq.in_(_pairs([_o.c.seq], [*wanted, *in_range])))
    ranked = _ranked(rows)
    last = sa.select(ranked).where(ranked.c.n == 1).subquery()
    keys = [*grouping.keys(usage, raw_hour()), outcomes.c.name, outcomes.c.success]
    query = (
        sa.select(*keys)
        .select_from(last)
        .join(usage, usage.c.seq == last.c.usage_seq)
        .join(outcomes, outcomes.c.seq == last.c.outcome_seq)
        .where(usage.c.time_ns >= span.start_ns, usage.c.time_ns < span.end_ns)
    )
    add(
        query.where(*grouping.filters(usage)),
        keys,
        {"num_outcomes": sa.func.count(), "value_nano": sa.func.sum(outcomes.c.value_nano)},
    )
    return [found[key] for key in sorted(found)]


def unmatched(connection: sa.Connection, start_ns: int | None, end_ns: int | None) -> int:
    """How many outcomes of a time join no request; see `Ledger.num_unmatched_outcomes`."""
    span = Span(connection, start_ns, end_ns)
    none = [~sa.exists().where(sa.text(join)).select_from(_u).correlate(_o) for join in JOINS]
    raw = (
        sa.select(sa.func.count())
        .select_from(_o)
        .where(_o.c.time_ns >= span.start_ns, _o.c.time_ns < span.end_ns, _o.c.counted == 0, *none)
    )
    frozen = sa.select(sa.func.sum(outcomes_hourly.c.num_outcomes)).where(
        outcomes_hourly.c.model == "",
        outcomes_hourly.c.hour >= span.start_ns // HOUR_NS,
        outcomes_hourly.c.hour < -(-span.end_ns // HOUR_NS),
    )
    return int(connection.scalar(raw) or 0) + int(connection.scalar(frozen) or 0)


def _pairs(columns: Sequence[Column], rows: Sequence[Column]) -> sa.CompoundSelect[Any]:
    """Outcomes and their requests; a pair may come twice."""
    return sa.union_all(
        *(
            sa.select(*columns).select_from(_o.join(_u, sa.text(join))).where(*rows)
            for join in JOINS
        )
    )


def _ranked(rows: Sequence[Column]) -> sa.Subquery:
    """Outcomes and their requests, the last request of each first (`n` is 1)."""
    columns = [_o.c.seq.label("outcome_seq"), _u.c.seq.label("usage_seq"), _u.c.time_ns]
    pairs = _pairs(columns, rows).subquery()
    order = (pairs.c.time_ns.desc(), pairs.c.usage_seq.desc())
    n = sa.func.row_number().over(partition_by=pairs.c.outcome_seq, order_by=order)
    return sa.select(pairs.c.outcome_seq, pairs.c.usage_seq, n.label("n")).subquery()
