"""Adds usage up by the hour and by the day, and prunes what is older than the retention.

A row of `usage` is in the roll-up when its `seq` is at most the watermark, whatever hour it is of:
late records need no care, and a report that adds the roll-up to the rows above the watermark is
exact at any moment. Each call does a bounded piece in one transaction, so that writers get between.

What pruning keeps of outcomes: each request's cost, once per name of outcome, on the side of
success or failure as it stood then; and each outcome, when the last of its requests goes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.ledger.record import HOUR_NS
from octavo.ledger.totals import INPUT_EDGES
from octavo.ledger.writes import INSERT_LOCK

if TYPE_CHECKING:
    from octavo.ledger.database import Connection

ROLL_ROWS = 10_000
PRUNE_ROWS = 2_000
"""Rows per transaction: some 0.1 s on SQLite, during which other processes' writers wait."""

CELL = ("feature", "tenant", "key", "model", "backend", "finish_reason", "currency")
USAGE_SUMS = (
    "num_input_tokens", "num_cached_tokens", "num_output_tokens", "prefill_ns", "decode_ns",
    "waste_ns", "e2e_ns", "cost_nano",
)  # fmt: skip
OUTCOME_SUMS = ("num_outcomes", "value_nano", "num_requests", "device_ns", "cost_nano")


def _quoted(names: tuple[str, ...], table: str = "") -> str:
    return ", ".join(f'{table}"{name}"' for name in names)


def _add_to(table: str, keys: tuple[str, ...], sums: tuple[str, ...], select: str) -> str:
    """An upsert that adds what the query gives to what is there."""
    added = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in sums)
    return (
        f"INSERT INTO {table} ({_quoted(keys + sums)}) {select} "
        f"ON CONFLICT ({_quoted(keys)}) DO UPDATE SET {added}"
    )


_INPUT_OVER = (
    "CASE "
    + " ".join(f"WHEN num_input_tokens > {edge} THEN {edge}" for edge in reversed(INPUT_EDGES))
    + " ELSE 0 END"
)


def _roll_up_into(table: str, time: str, length_ns: int) -> str:
    """Adds the rows between two `seq` to sums by a length of time."""
    return _add_to(
        table,
        (time, *CELL, "input_over"),
        ("num_requests", *USAGE_SUMS),
        f"SELECT time_ns / {length_ns}, {_quoted(CELL)}, {_INPUT_OVER}, count(*), "
        + ", ".join(f"sum({name})" for name in USAGE_SUMS)
        + " FROM usage WHERE seq > ? AND seq <= ? "
        f"GROUP BY time_ns / {length_ns}, {_quoted(CELL)}, {_INPUT_OVER}",
    )


_ROLL_UPS = (
    _roll_up_into("usage_hourly", "hour", HOUR_NS),
    _roll_up_into("usage_daily", "day", 24 * HOUR_NS),
)

JOINS = (
    "o.request_id = u.request_id AND o.request_id <> ''",
    "o.request_id = u.parent_id AND u.parent_id <> '' AND o.request_id <> ''",
    "o.session_id = u.session_id AND u.session_id <> '' AND o.session_id <> ''",
    "o.trace_id = u.trace_id AND u.trace_id <> '' AND o.trace_id <> ''",
)
"""How an outcome finds its requests; at most one holds for a pair. The empty texts are named so
that indexes of what is not empty may be used."""

# SQLite goes through the tables of a CROSS JOIN in their order: from a few rows to what they join.
# Rows to prune: oldest first, only what is in the roll-up. Parameters: time, watermark.
# Adding 0 keeps SQLite from walking through all numbers instead of the index of times.
_BATCH = "u.time_ns <= ? AND u.seq + 0 <= ?"

_FREEZE_COSTS = _add_to(
    "outcomes_hourly",
    ("hour", *CELL, "name", "success"),
    OUTCOME_SUMS,
    f"SELECT u.time_ns / {HOUR_NS}, {_quoted(CELL, 'u.')}, l.name, l.success, 0, 0, count(*), "
    "sum(u.prefill_ns + u.decode_ns), sum(u.cost_nano) FROM ("
    "SELECT seq, name, max(success) AS success FROM ("
    + " UNION ALL ".join(
        "SELECT u.seq, o.name, o.success FROM usage u CROSS JOIN outcomes o "
        f"WHERE {join} AND {_BATCH}"
        for join in JOINS
    )
    + ") AS pairs GROUP BY seq, name) AS l JOIN usage u ON u.seq = l.seq WHERE true "
    f"GROUP BY u.time_ns / {HOUR_NS}, {_quoted(CELL, 'u.')}, l.name, l.success",
)

_LAST_IN_BATCH = (
    "SELECT o_seq, u_seq FROM (SELECT o_seq, u_seq, time_ns, row_number() OVER "
    "(PARTITION BY o_seq ORDER BY time_ns DESC, u_seq DESC) AS n FROM ("
    + " UNION ALL ".join(
        "SELECT o.seq AS o_seq, u.seq AS u_seq, u.time_ns AS time_ns "
        f"FROM outcomes o CROSS JOIN usage u WHERE {join} AND o.counted = 0 AND o.seq IN "
        f"(SELECT o.seq FROM usage u CROSS JOIN outcomes o WHERE {join} AND {_BATCH})"
        for join in JOINS
    )
    + ") AS pairs) AS ranked WHERE n = 1 AND time_ns <= ? AND u_seq <= ?"
)

_COUNT_OUTCOME = _add_to(
    "outcomes_hourly",
    ("hour", *CELL, "name", "success"),
    OUTCOME_SUMS,
    f"SELECT u.time_ns / {HOUR_NS}, {_quoted(CELL, 'u.')}, o.name, o.success, 1, "
    "coalesce(o.value_nano, 0), 0, 0, 0 FROM usage u, outcomes o WHERE u.seq = ? AND o.seq = ?",
)

_ORPHANS = "SELECT o.seq, o.counted FROM outcomes o WHERE o.time_ns < ? AND " + " AND ".join(
    f"NOT EXISTS (SELECT 1 FROM usage u WHERE {join})" for join in JOINS
)

_COUNT_ORPHAN = _add_to(
    "outcomes_hourly",
    ("hour", *CELL, "name", "success"),
    OUTCOME_SUMS,
    f"SELECT o.time_ns / {HOUR_NS}, " + "'', " * len(CELL) + "o.name, o.success, 1, "
    "coalesce(o.value_nano, 0), 0, 0, 0 FROM outcomes o WHERE o.seq = ?",
)


def visible_seq(connection: Connection) -> int:
    """The largest `seq` below which no row can appear any more.

    PostgreSQL gives numbers out before their rows are committed. So who inserts holds a lock that
    is shared, and who holds the same lock alone for a moment knows that every number given out
    until then is committed or void, and that later ones are larger.
    """
    with connection.transaction():
        if not connection.is_sqlite:
            connection.rows("SELECT pg_advisory_xact_lock(?)", (INSERT_LOCK,))
        return int(connection.rows("SELECT coalesce(max(seq), 0) FROM usage")[0][0])


def roll_up(connection: Connection, max_rows: int = ROLL_ROWS) -> int:
    """Add the next rows to the sums; 0: there are none, or another process is at it.

    Raises:
        DatabaseUnavailableError: nothing was changed.
    """
    newest = visible_seq(connection)
    with connection.transaction():
        rolled = _claim(connection, "rolled_seq")
        if rolled is None or rolled >= newest:
            return 0
        end = min(newest, rolled + max_rows)
        for statement in _ROLL_UPS:
            connection.execute(statement, (rolled, end))
        _set(connection, "rolled_seq", end)
        return end - rolled


def prune(connection: Connection, before_ns: int, max_rows: int = PRUNE_ROWS) -> int:
    """Delete the oldest requests that ended before the hour of `before_ns`; what is summed stays.

    Requests that are not in the roll-up yet stay until they are. Outcomes go when they are that old
    and no request that they join is left; attempts and escalations at the gateway after them.

    Returns:
        The number of rows deleted; 0: there are none, or another process is at it.

    Raises:
        DatabaseUnavailableError: nothing was changed.
    """
    hour = before_ns // HOUR_NS
    with connection.transaction():
        pruned = _claim(connection, "pruned_hour")
        if pruned is None:
            return 0
        rolled = int(connection.rows("SELECT value FROM meta WHERE name = 'rolled_seq'")[0][0])
        oldest = connection.rows(
            "SELECT max(time_ns) FROM (SELECT time_ns FROM usage "
            "WHERE time_ns < ? AND seq + 0 <= ? ORDER BY time_ns LIMIT ?) AS oldest",
            (hour * HOUR_NS, rolled, max_rows),
        )[0][0]
        if oldest is None:
            return _prune_outcomes(connection, hour, max_rows) or _prune_attempts(
                connection, hour, max_rows
            )
        batch = (oldest, rolled)
        last = connection.rows(_LAST_IN_BATCH, batch * (len(JOINS) + 1))
        connection.execute_many(_COUNT_OUTCOME, [(usage, outcome) for outcome, usage in last])
        connection.execute_many(
            "UPDATE outcomes SET counted = 1 WHERE seq = ?", [(outcome,) for outcome, _ in last]
        )
        connection.execute(_FREEZE_COSTS, batch * len(JOINS))
        _set(connection, "pruned_hour", max(pruned, hour))
        return connection.execute("DELETE FROM usage WHERE time_ns <= ? AND seq + 0 <= ?", batch)


def _prune_outcomes(connection: Connection, hour: int, max_rows: int) -> int:
    orphans = connection.rows(_ORPHANS + " LIMIT ?", (hour * HOUR_NS, max_rows))
    connection.execute_many(_COUNT_ORPHAN, [(seq,) for seq, counted in orphans if not counted])
    connection.execute_many("DELETE FROM outcomes WHERE seq = ?", [(seq,) for seq, _ in orphans])
    return len(orphans)


def _prune_attempts(connection: Connection, hour: int, max_rows: int) -> int:
    """Attempts and escalations are kept raw alone."""
    num_pruned = 0
    for table in ("attempts", "escalations"):
        num_pruned += connection.execute(
            f"DELETE FROM {table} WHERE (request_id, number) IN (SELECT request_id, number "
            f"FROM {table} WHERE time_ns < ? ORDER BY time_ns LIMIT ?)",
            (hour * HOUR_NS, max_rows),
        )
    return num_pruned


def _claim(connection: Connection, name: str) -> int | None:
    """A number of `meta`, ours alone until the transaction ends; None: another process has it."""
    lock = "" if connection.is_sqlite else " FOR UPDATE SKIP LOCKED"
    rows = connection.rows(f"SELECT value FROM meta WHERE name = ?{lock}", (name,))
    return int(rows[0][0]) if rows else None


def _set(connection: Connection, name: str, value: int) -> None:
    connection.execute("UPDATE meta SET value = ? WHERE name = ?", (value, name))
