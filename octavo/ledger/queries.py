"""What reports ask of a ledger: sums of the roll-ups, and of the raw rows that are not in them.

Every function runs in one transaction of the caller's, whose view of the database does not move, so
that a roll-up at the same moment takes nothing away and adds nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from octavo.errors import ConfigError
from octavo.ledger.groups import Column, Grouping, number, ordinals, raw_hour, time_text
from octavo.ledger.record import FOREVER_NS, HOUR_NS
from octavo.ledger.rollup import USAGE_SUMS
from octavo.ledger.schema import engine_time, meta, usage, usage_daily, usage_hourly
from octavo.ledger.totals import INPUT_EDGES, EngineTotals, Totals

Where = Mapping[str, Sequence[str]]


class Span:
    """A range of time, and which of its parts come from where.

    Args:
        connection: of the ledger.
        start_ns, end_ns: `[start_ns, end_ns)`; None: without a limit.

    Attributes:
        first_hour, last_hour: the whole hours in it, `[first_hour, last_hour)`.
        rolled: the watermark.
        pruned_hour: raw rows before this hour are gone.
    """

    def __init__(self, connection: sa.Connection, start_ns: int | None, end_ns: int | None) -> None:
        self.start_ns = max(0, start_ns or 0)
        self.end_ns = max(self.start_ns, min(FOREVER_NS, FOREVER_NS if end_ns is None else end_ns))
        self.first_hour = -(-self.start_ns // HOUR_NS)
        self.last_hour = max(self.first_hour, self.end_ns // HOUR_NS)
        numbers = {row.name: int(row.value) for row in connection.execute(sa.select(meta))}
        self.rolled = numbers["rolled_seq"]
        self.pruned_hour = numbers["pruned_hour"]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The parts at both ends that are less than an hour, nanoseconds."""
        return _around(self.start_ns, self.end_ns, self.first_hour, self.last_hour, HOUR_NS)

    @property
    def days(self) -> tuple[int, int]:
        """The whole days in it."""
        first = -(-self.first_hour // 24)
        return first, max(first, self.last_hour // 24)

    @property
    def hours_around_days(self) -> list[tuple[int, int]]:
        """The whole hours at both ends that are no whole days."""
        return _around(self.first_hour, self.last_hour, *self.days, 24)

    def check_raw(self, what: str, low_ns: int) -> None:
        """Refuse to answer out of raw rows that are gone.

        Raises:
            ConfigError: names the time from which on they are there.
        """
        if low_ns < self.pruned_hour * HOUR_NS:
            since = time_text(self.pruned_hour, "hour")
            raise ConfigError(
                f"{what} cannot be told before {since}:00Z: older requests are kept as hourly sums "
                f"only (by feature, tenant, key, model, backend, finish_reason); begin at {since}"
            )

    def check(self, grouping: Grouping, edges: Sequence[int] = ()) -> bool:
        """Whether the roll-ups can answer together with raw rows; else raw rows must, alone.

        Raises:
            ConfigError: raw rows are needed and gone.
        """
        lengths = [str(edge) for edge in edges if edge not in INPUT_EDGES]
        needs = grouping.raw_names + [f"inputs longer than {length}" for length in lengths]
        if needs:
            self.check_raw(" and ".join(needs), self.start_ns)
            return False
        for low, _ in self.edges:
            self.check_raw("a part of an hour", low)
        return True


def usage_totals(
    connection: sa.Connection,
    by: Sequence[str],
    start_ns: int | None,
    end_ns: int | None,
    where: Where,
    edges: Sequence[int],
) -> list[Totals]:
    """Sums over requests; see `Ledger.totals`."""
    grouping = Grouping(by, where, is_sqlite=connection.dialect.name == "sqlite")
    span = Span(connection, start_ns, end_ns)
    found: dict[tuple[Any, ...], list[int]] = {}

    def add(table: sa.Table, hour: Column, band: Column, num: Column, *rows: Column) -> None:
        keys = [*grouping.keys(table, hour), band]
        sums = [num, *(sa.func.sum(table.c[name]) for name in USAGE_SUMS)]
        query = sa.select(*keys, *sums).where(*rows, *grouping.filters(table))
        for row in connection.execute(query.group_by(*ordinals(len(keys)))):
            band_of, *values = map(int, row[grouping.num_keys :])
            key = (*grouping.key(row), band_of)
            known = found.get(key)
            found[key] = [*map(int.__add__, known, values)] if known else values

    def add_rolled(table: sa.Table, time: Column, begin: int, end: int) -> None:
        band = _band(table.c.input_over + number(1), edges)
        add(table, time, band, sa.func.sum(table.c.num_requests), time >= begin, time < end)

    def add_raw(*rows: Column) -> None:
        add(usage, raw_hour(), _band(usage.c.num_input_tokens, edges), sa.func.count(), *rows)

    time_ns = usage.c.time_ns
    if not span.check(grouping, edges):
        add_raw(time_ns >= span.start_ns, time_ns < span.end_ns)
    else:
        hours = [(span.first_hour, span.last_hour)]
        if not grouping.is_hourly:
            add_rolled(usage_daily, usage_daily.c.day, *span.days)
            hours = span.hours_around_days
        for begin, end in hours:
            add_rolled(usage_hourly, usage_hourly.c.hour, begin, end)
        # The watermark leaves few rows, the time may leave all: `0 +` keeps SQLite from taking the
        # other index.
        time: Column = number(0) + time_ns
        add_raw(usage.c.seq > span.rolled, time >= span.start_ns, time < span.end_ns)
        for low, high in span.edges:
            add_raw(number(0) + usage.c.seq <= span.rolled, time_ns >= low, time_ns < high)
    names = ("num_requests", *USAGE_SUMS)
    return [
        Totals(key=key, currency=currency, band=band, **dict(zip(names, values, strict=True)))
        for (key, currency, band), values in sorted(found.items())
    ]


def engine_totals(
    connection: sa.Connection, by: Sequence[str], start_ns: int | None, end_ns: int | None
) -> list[EngineTotals]:
    """Sums over device time; see `Ledger.engine_totals`."""
    times = [name for name in by if name != "server"]
    if len(set(by)) < len(by) or not set(times) <= {"hour", "day", "month"}:
        raise ConfigError("device time is known by hour, day, month and server")
    table = engine_time.c
    time = table.hour if "hour" in by else table.hour // number(24)
    server: Column = table.server if "server" in by else sa.literal_column("''", sa.Text())
    keys = [time.label("time"), server.label("of"), table.currency, table.bucket]
    query = sa.select(*keys, sa.func.sum(table.device_ns), sa.func.sum(table.cost_nano)).group_by(
        *ordinals(len(keys))
    )
    # An hour belongs to the range in which it begins.
    query = query.where(table.hour >= -(-max(0, start_ns or 0) // HOUR_NS))
    if end_ns is not None:
        query = query.where(table.hour < -(-end_ns // HOUR_NS))
    found: dict[tuple[Any, ...], EngineTotals] = {}
    for row in connection.execute(query):
        when, name, currency, bucket, device_ns, cost = tuple(row)
        hours = when if "hour" in by else when * 24
        key = tuple(str(name) if part == "server" else time_text(hours, part) for part in by)
        total = found.setdefault(
            (key, currency), EngineTotals(key=key, currency=currency, buckets={}, cost_nano={})
        )
        total.buckets[bucket] = total.buckets.get(bucket, 0) + int(device_ns)
        total.cost_nano[bucket] = total.cost_nano.get(bucket, 0) + int(cost)
    return [found[key] for key in sorted(found)]


def _band(length: Column, edges: Sequence[int]) -> Column:
    """How many of the edges a length is above."""
    band: Column = number(0)
    for edge in edges:
        band = band + sa.case((length > edge, number(1)), else_=number(0))
    return band.label("band")


def _around(start: int, end: int, first: int, last: int, length: int) -> list[tuple[int, int]]:
    """What of `[start, end)` is before and after its whole units `[first, last)` of a length."""
    begin = first * length
    parts = [(start, min(begin, end)), (max(last * length, begin), end)]
    return [(low, high) for low, high in parts if low < high]
