"""What goes into the ledger: rows of entries, and the statements that insert them.

Every insertion may be repeated: usage and outcomes are known by their ids, device time replaces
what the same server said about the same hour before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from octavo.ledger.database import DataRefusedError
from octavo.ledger.record import (
    FOREVER_NS,
    AttemptRecord,
    EngineTime,
    Entry,
    EscalationRecord,
    Outcome,
    UsageRecord,
    cost_nano,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from octavo.ledger.database import Connection

Value = str | int | float | None

INSERT_LOCK = 0x0C7A_0002
"""PostgreSQL's advisory lock: shared by who inserts; see `rollup.visible_seq`."""

MAX_NAME_BYTES = 200
"""Of what reports group by. Longer ones are cut: PostgreSQL takes 2.7 kB in a key of an index."""
MAX_ID_BYTES = 1000
MAX_VALUE = 2**53
"""Of one request: 104 days, or 9 million of the currency. A thousand of them fit into one hour."""

_USAGE_COLUMNS = (
    *(name for name in UsageRecord.__struct_fields__ if name != "price_nano"), "cost_nano"
)  # fmt: skip
_OUTCOME_COLUMNS = (
    "id", "time_ns", "request_id", "session_id", "trace_id", "name", "success", "value_nano",
    "tags", "counted",
)  # fmt: skip


def _numbers(columns: Sequence[str]) -> list[int]:
    """Which columns hold numbers; the first of them is a time."""
    return [
        index
        for index, name in enumerate(columns)
        if name != "difference_nano" and (name.endswith(("_ns", "_nano")) or name.startswith("num"))
    ]


_NUMBERS = _numbers(_USAGE_COLUMNS)
_TEXT_BYTES = {
    "request_id": MAX_ID_BYTES, "parent_id": MAX_ID_BYTES, "upstream_id": MAX_ID_BYTES,
    "reason": MAX_ID_BYTES,
}  # fmt: skip


def _insert(table: str, columns: Sequence[str]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO {table} ({names}) VALUES ({marks})"


_INSERT_USAGE = _insert("usage", _USAGE_COLUMNS) + " ON CONFLICT (request_id) DO NOTHING"
_INSERT_OUTCOME = _insert("outcomes", _OUTCOME_COLUMNS) + " ON CONFLICT (id) DO NOTHING"
_INSERTS: dict[type[msgspec.Struct], tuple[str, list[int]]] = {
    kind: (
        _insert(table, kind.__struct_fields__) + " ON CONFLICT (request_id, number) DO NOTHING",
        [kind.__struct_fields__.index("time_ns"),
         *(i for i in _numbers(kind.__struct_fields__) if kind.__struct_fields__[i] != "time_ns")],
    )
    for table, kind in (("attempts", AttemptRecord), ("escalations", EscalationRecord))
}  # fmt: skip
"""Of kinds whose fields are their table's columns: the statement, and where numbers are."""

_ENGINE_TIME_VALUES = (
    "time_ns", "device_ns", "num_devices", "hourly_rate_nano", "cost_nano", "currency",
)  # fmt: skip
_INSERT_ENGINE_TIME = (
    _insert("engine_time", ("hour", "server", "bucket", *_ENGINE_TIME_VALUES))
    + " ON CONFLICT (hour, server, bucket) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _ENGINE_TIME_VALUES)
    + " WHERE excluded.time_ns >= engine_time.time_ns"
)


def insert(connection: Connection, entries: Sequence[Entry]) -> None:
    """Insert entries of any kind within the caller's transaction."""
    if records := [entry for entry in entries if isinstance(entry, UsageRecord)]:
        insert_usage(connection, records)
    if outcomes := [entry for entry in entries if isinstance(entry, Outcome)]:
        insert_outcomes(connection, outcomes)
    if times := [entry for entry in entries if isinstance(entry, EngineTime)]:
        insert_engine_time(connection, times)
    for kind, (statement, numbers) in _INSERTS.items():
        if rows := [_plain_row(entry, numbers) for entry in entries if isinstance(entry, kind)]:
            connection.execute_many(statement, rows)


def insert_usage(connection: Connection, records: Sequence[UsageRecord]) -> None:
    """Insert records within the caller's transaction; those whose ids are there are not."""
    _announce(connection)
    connection.execute_many(_INSERT_USAGE, [_usage_row(record) for record in records])


def insert_outcomes(connection: Connection, outcomes: Sequence[Outcome]) -> None:
    """Insert outcomes within the caller's transaction; those whose ids are there are not."""
    _announce(connection)
    connection.execute_many(_INSERT_OUTCOME, [_outcome_row(outcome) for outcome in outcomes])


def insert_engine_time(connection: Connection, times: Sequence[EngineTime]) -> None:
    """Insert or replace device time within the caller's transaction; what is older is not taken."""
    connection.execute_many(
        _INSERT_ENGINE_TIME,
        [
            (
                time.hour,
                clean(time.server),
                clean(bucket),
                time.time_ns,
                device_ns,
                time.num_devices,
                time.hourly_rate_nano,
                cost_nano(time.hourly_rate_nano, device_ns),
                clean(time.currency),
            )
            for time in times
            for bucket, device_ns in time.buckets.items()
        ],
    )


def _announce(connection: Connection) -> None:
    if not connection.is_sqlite:
        connection.rows("SELECT pg_advisory_xact_lock_shared(?)", (INSERT_LOCK,))


def _usage_row(record: UsageRecord) -> tuple[Value, ...]:
    row = (
        clean(record.request_id, MAX_ID_BYTES),
        record.time_ns,
        clean(record.parent_id, MAX_ID_BYTES),
        clean(record.feature),
        clean(record.tenant),
        clean(record.key),
        clean(record.session_id, MAX_ID_BYTES),
        clean(record.trace_id, MAX_ID_BYTES),
        _tags(record.tags),
        clean(record.route),
        clean(record.backend),
        clean(record.model),
        record.prefill_ns,
        record.decode_ns,
        record.waste_ns,
        record.num_input_tokens,
        record.num_cached_tokens,
        record.num_output_tokens,
        record.ttft_ns,
        record.e2e_ns,
        clean(record.finish_reason),
        record.hourly_rate_nano,
        clean(record.currency),
        record.cost_nano,
    )
    _check(row, _NUMBERS)
    return row


def _plain_row(entry: Entry, numbers: Sequence[int]) -> tuple[Value, ...]:
    """The fields of an entry as they stand, texts cleaned."""
    row = tuple(
        clean(value, _TEXT_BYTES.get(name, MAX_NAME_BYTES)) if isinstance(value, str) else value
        for name, value in zip(entry.__struct_fields__, msgspec.structs.astuple(entry), strict=True)
    )
    _check(row, numbers)
    return row


def _outcome_row(outcome: Outcome) -> tuple[Value, ...]:
    return (
        clean(outcome.id, MAX_ID_BYTES),
        outcome.time_ns,
        clean(outcome.request_id, MAX_ID_BYTES),
        clean(outcome.session_id, MAX_ID_BYTES),
        clean(outcome.trace_id, MAX_ID_BYTES),
        clean(outcome.name),
        int(outcome.success),
        outcome.value_nano,
        _tags(outcome.tags),
        0,
    )


def _check(row: Sequence[Any], where: Sequence[int]) -> None:
    """Refuse numbers that only a fault can have made: their sums would not fit any more."""
    time_ns, *numbers = [value for index in where if (value := row[index]) is not None]
    if min(numbers) < 0 or max(numbers) > MAX_VALUE or not 0 <= time_ns < FOREVER_NS:
        raise DataRefusedError(f"a number is below 0 or above {MAX_VALUE}: {row}")


def _tags(tags: dict[str, str]) -> str:
    if not tags:
        return "{}"
    cleaned = {clean(name): clean(value, MAX_ID_BYTES) for name, value in tags.items()}
    return msgspec.json.encode(cleaned).decode()


def clean(text: str, max_bytes: int = MAX_NAME_BYTES) -> str:
    """Text that both databases take: no NUL, no half of a surrogate pair, not too long."""
    if text.isascii() and len(text) <= max_bytes and "\0" not in text:
        return text
    encoded = text.replace("\0", "\ufffd").encode("utf-8", "replace")
    return encoded[:max_bytes].decode("utf-8", "ignore")
