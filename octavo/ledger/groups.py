"""What reports group and filter by, as expressions over the ledger's tables.

`CELL` names are in the roll-ups. A session, a trace, a route and tags are in raw rows alone, which
are pruned: whoever asks for them before the retention's limit is told so.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from octavo.errors import ConfigError
from octavo.ledger.record import HOUR_NS
from octavo.ledger.rollup import CELL
from octavo.ledger.schema import usage

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

TAG = "tag:"
TIMES = {"hour": 13, "day": 10, "month": 7}
"""Names of times, and how many characters of a time they are."""
RAW_ONLY = {"session": "session_id", "trace": "trace_id", "route": "route"}
NAMES = (*CELL, *TIMES, *RAW_ONLY)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
Column = sa.ColumnElement[Any]


class Grouping:
    """What a query is by, and what it lets in.

    Args:
        by: names of `NAMES`, or `tag:NAME`.
        where: by such a name, times excepted, the values that are let in.
        is_sqlite: the dialect.

    Raises:
        ConfigError: an unknown name, or one twice.
    """

    def __init__(
        self, by: Sequence[str], where: Mapping[str, Sequence[str]], *, is_sqlite: bool
    ) -> None:
        for name in (*by, *where):
            known = name in NAMES or (name.startswith(TAG) and len(name) > len(TAG))
            if not known or (name in TIMES and name in where) or '"' in name:
                raise ConfigError(
                    f"the ledger knows no {name!r}: use {', '.join(NAMES)} or tag:NAME"
                )
        if len(set(by)) < len(by):
            raise ConfigError(f"{', '.join(by)} names something twice")
        self.by = tuple(by)
        self.where = where
        self.raw_names = [name for name in (*by, *where) if name not in (*CELL, *TIMES)]
        self._is_sqlite = is_sqlite

    @property
    def is_hourly(self) -> bool:
        """Days are not fine enough."""
        return "hour" in self.by

    def keys(self, table: sa.FromClause, hour: Column) -> list[Column]:
        """What to select and group by: the hour or day, the group's texts, the currency.

        Args:
            table: with the columns of a roll-up or of `usage`.
            hour: of its rows; `usage_daily` has days, and is for groups that are not hourly.

        Sums of one day stay within 64 bits for 100,000 devices, those of all time need not: so a
        day is always among the keys, and Python adds up the days.
        """
        is_time = self.is_hourly or "day" in table.c
        time = hour if is_time else hour // number(24)
        texts = [self._text(table, name) for name in self.by if name not in TIMES]
        return [time.label("time"), *texts, table.c.currency]

    def filters(self, table: sa.FromClause) -> list[Column]:
        """What rows must fulfil."""
        return [self._text(table, name).in_(values) for name, values in self.where.items()]

    def key(self, row: Sequence[Any]) -> tuple[tuple[str, ...], str]:
        """The group and the currency of a row that begins with `keys`."""
        texts = iter(row[1:])
        hours = row[0] if self.is_hourly else row[0] * 24
        group = tuple(
            time_text(hours, name) if name in TIMES else str(next(texts)) for name in self.by
        )
        return group, str(next(texts))

    @property
    def num_keys(self) -> int:
        """How many columns `keys` gives."""
        return 2 + sum(name not in TIMES for name in self.by)

    def _text(self, table: sa.FromClause, name: str) -> Column:
        if not name.startswith(TAG):
            return table.c[RAW_ONLY.get(name, name)]
        tags, tag = usage.c.tags, name.removeprefix(TAG)
        if self._is_sqlite:
            found: Column = sa.func.json_extract(tags, f'$."{tag}"')
        else:
            found = tags.op("->>")(tag)
        return sa.func.coalesce(found, "")


def time_text(hours: int, name: str) -> str:
    """The hour, day or month of an hour since 1970."""
    return (_EPOCH + timedelta(hours=hours)).isoformat()[: TIMES[name]]


def raw_hour() -> Column:
    """The hour of a row of `usage`."""
    return usage.c.time_ns // number(HOUR_NS)


def number(value: int) -> sa.ColumnElement[int]:
    """A number that stands in the statement itself."""
    return sa.literal_column(str(value), sa.BigInteger())


def ordinals(num: int) -> list[sa.TextClause]:
    """The first columns of a query, to group by.

    Written out again they would hold parameters of their own, which PostgreSQL takes for others.
    """
    return [sa.text(str(index + 1)) for index in range(num)]
