"""What the admin API reads of the ledger: spend, escalations, and the attempts of one request.

Called in threads. Amounts of money are exact, and so texts in JSON; times are UTC. Spend is what
reports add up, roll-ups included, and imports SQLAlchemy when it is asked for first; the rest are
the newest raw rows, read through the driver.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from octavo.errors import InvalidRequestError
from octavo.ledger.database import Database, ensure_schema
from octavo.ledger.record import from_nano
from octavo.planning.cost_query import check_field, from_ns, parse_by, parse_time
from octavo.planning.escalation_report import rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from octavo.ledger.database import Connection

MAX_ROWS = 10_000
MAX_PAGE = 1000

_ATTEMPT = (
    "request_id", "parent_id", "number", "time_ns", "feature", "tenant", "key", "route", "rule",
    "tier",
    "backend", "model", "status", "http_status", "num_input_tokens", "num_cached_tokens",
    "num_output_tokens", "device_ns", "cost_nano", "currency", "ttft_ns", "e2e_ns", "reason",
    "judge", "score",
)  # fmt: skip
_ESCALATION = (
    "request_id", "number", "time_ns", "feature", "tenant", "key", "rule", "judge", "reason",
    "score", "answer_sha256", "cheap_tier", "cheap_backend", "cheap_model", "cheap_cost_nano",
    "dear_tier", "dear_backend", "dear_model", "dear_status", "dear_cost_nano", "difference_nano",
    "currency",
)  # fmt: skip
_FILTERS = ("feature", "tenant", "key", "rule", "judge")


class LedgerViews:
    """Reads one ledger. Any thread may call. Every method may raise DatabaseUnavailableError.

    Args:
        url: as `ledger.database.Database` takes it.
        keys_of_team: ids of the keys that a team has; the ledger knows keys and no teams.
        now: the time, with a zone.
    """

    def __init__(
        self,
        url: str,
        *,
        keys_of_team: Callable[[str], Sequence[str]] = lambda team: (),
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._url = url
        self._database = Database(url)
        self._keys_of_team = keys_of_team
        self._now = now

    def spend(self, query: Mapping[str, str]) -> dict[str, object]:
        """What requests used, by group.

        Args:
            query: `by`, as `feature,day` (left out: `feature`); `since` and `until`, as the command
                line has them (left out: the last 7 days); and filters: any name that `by` takes,
                and `team`, with the value that is let in.

        Raises:
            ConfigError: an unknown name or time, or what is asked for is pruned.
        """
        from octavo.ledger.store import open_ledger

        by = parse_by(query.get("by") or "feature")
        since_ns, until_ns = self._span(query)
        where: dict[str, Sequence[str]] = {}
        for name, value in query.items():
            if name in ("by", "since", "until", "team"):
                continue
            check_field(name, times=False)
            where[name] = (_text(name, value),)
        if team := query.get("team"):
            own = set(self._keys_of_team(team))
            where["key"] = sorted(own.intersection(where["key"]) if "key" in where else own)
        with open_ledger(self._url, create=False) as ledger:
            totals = ledger.totals(by, since_ns, until_ns, where)
        totals.sort(key=lambda group: -group.cost_nano)
        return {
            "by": by,
            "since": _time(since_ns),
            "until": _time(until_ns),
            "data": [
                {
                    "key": group.key,
                    "num_requests": group.num_requests,
                    "num_input_tokens": group.num_input_tokens,
                    "num_cached_tokens": group.num_cached_tokens,
                    "num_output_tokens": group.num_output_tokens,
                    "device_seconds": (group.prefill_ns + group.decode_ns) / 1e9,
                    "cost": amount(group.cost_nano),
                    "currency": group.currency,
                }
                for group in totals[:MAX_ROWS]
            ],
            "has_more": len(totals) > MAX_ROWS,
        }

    def escalations(self, query: Mapping[str, str]) -> dict[str, object]:
        """Escalations, the newest first, and whether escalating pays, by feature and judge.

        Args:
            query: `since` and `until` as in `spend`; any of feature, tenant, key, rule and judge
                with the value that is let in; `limit` (100); `before`: a page's `next`, whose
                answer has no sums.

        Raises:
            ConfigError: no such time.
            InvalidRequestError: another parameter, or one that is wrong.
        """
        since_ns, until_ns = self._span(query)
        limit = _limit(query)
        filters = {n: v for n, v in query.items() if n not in ("since", "until", "limit", "before")}
        for name in filters:
            if name not in _FILTERS:
                raise InvalidRequestError(
                    f"there is no {name[:64]!r}: use {', '.join(_FILTERS)}", param=name[:64]
                )
        where = ["time_ns >= ?", *(f"{name} = ?" for name in filters)]
        values: list[Any] = [since_ns, *(_text(name, value) for name, value in filters.items())]
        if until_ns is not None:
            where.append("time_ns < ?")
            values.append(until_ns)
        before = query.get("before")
        if before:
            where.append("(time_ns, request_id, number) < (?, ?, ?)")
            values += _cursor(before)
        with self._reading() as connection:
            rows = connection.rows(
                f"SELECT {', '.join(_ESCALATION)} FROM escalations WHERE {' AND '.join(where)} "
                f"ORDER BY time_ns DESC, request_id DESC, number DESC LIMIT {limit + 1}",
                values,
            )
        shown = [dict(zip(_ESCALATION, row, strict=True)) for row in rows[:limit]]
        last = shown[-1] if len(rows) > limit else None
        return {
            "data": [_told(row) for row in shown],
            "next": last and f"{last['time_ns']}:{last['number']}:{last['request_id']}",
            "totals": [] if before else self._hybrid(since_ns, until_ns, filters),
        }

    def _hybrid(
        self, since_ns: int, until_ns: int | None, filters: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """What judged answers cost and saved, the most first; as `octavo cost escalations`."""
        from octavo.ledger.store import open_ledger

        by = ("feature", "judge")
        where = {name: (value,) for name, value in filters.items()}
        with open_ledger(self._url, create=False) as ledger:
            rows = rows_of(ledger.hybrid_totals(by, since_ns, until_ns, where), by)
        return sorted(rows, key=lambda row: -int(row["judged"]))

    def attempts(self, request_id: str) -> dict[str, object]:
        """All attempts of one request, and its escalations; none: it is not known, or not yet.

        Args:
            request_id: its own, or the caller's, who may have given that to several.
        """
        answer: dict[str, object] = {}
        ids = "SELECT request_id FROM attempts WHERE parent_id = ?"
        with self._reading() as connection:
            for name, columns in (("attempts", _ATTEMPT), ("escalations", _ESCALATION)):
                rows = connection.rows(
                    f"SELECT {', '.join(columns)} FROM {name} WHERE request_id = ? "
                    f"OR request_id IN ({ids}) ORDER BY time_ns, number LIMIT {MAX_PAGE}",
                    (request_id, request_id),
                )
                answer[name] = [_told(dict(zip(columns, row, strict=True))) for row in rows]
        return answer

    def _span(self, query: Mapping[str, str]) -> tuple[int, int | None]:
        now = self._now()
        since_ns = parse_time(query.get("since") or "7d", now)
        until = query.get("until")
        return since_ns, parse_time(until, now) if until else None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Connection]:
        ensure_schema(self._database, create=False)
        connection = self._database.connect()
        try:
            yield connection
        finally:
            connection.close()


def amount(nano: int) -> str:
    """Money as the API writes it: exact, all nine decimals."""
    return f"{from_nano(nano):f}"


def _told(row: dict[str, Any]) -> dict[str, Any]:
    """A row for people: amounts, times and durations in place of nano-units."""
    told: dict[str, Any] = {}
    for name, value in row.items():
        if name == "time_ns":
            told["time"] = _time(value)
        elif name.endswith("_nano"):
            told[name.removesuffix("_nano")] = amount(int(value))
        elif name.endswith("_ns"):
            told[f"{name.removesuffix('_ns')}_s"] = None if value is None else value / 1e9
        else:
            told[name] = value
    return told


def _text(name: str, value: str) -> str:
    """A value to look for.

    Raises:
        InvalidRequestError: no database has such a text.
    """
    if "\0" in value:
        raise InvalidRequestError(f"{name} must be a text without NUL", param=name)
    return value


def _time(time_ns: int | None) -> datetime | None:
    return None if time_ns is None else from_ns(time_ns)


def _limit(query: Mapping[str, str]) -> int:
    text = query.get("limit") or "100"
    is_number = text.isascii() and text.isdecimal() and len(text) < 10
    if not is_number or not 1 <= int(text) <= MAX_PAGE:
        raise InvalidRequestError(f"limit must be a number from 1 to {MAX_PAGE}", param="limit")
    return int(text)


def _cursor(text: str) -> tuple[int, str, int]:
    """What `next` of a page says.

    Raises:
        InvalidRequestError: it is none.
    """
    time_ns, _, rest = text.partition(":")
    number, _, request_id = rest.partition(":")
    if not all(
        part.isascii() and part.isdecimal() and len(part) < 20 for part in (time_ns, number)
    ):
        raise InvalidRequestError("before must be `next` of a page", param="before")
    return int(time_ns), request_id, int(number)
