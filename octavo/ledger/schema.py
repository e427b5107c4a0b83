"""The ledger's tables, as SQLAlchemy describes them; the same on SQLite and PostgreSQL.

Importing this imports SQLAlchemy (0.3 s), so only migrations and reports do. How the tables came to
be what they are is in `migrations/`; a test compares the two.

Hours are counted since 1970 UTC. `seq` numbers rows in the order in which they became visible: what
is at most the watermark in `meta` is in the roll-ups, and what is above it is not.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

metadata = sa.MetaData()

_BigInt = sa.BigInteger()
# SQLite numbers rows itself only where the type is spelt INTEGER.
_Seq = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_Json = sa.JSON().with_variant(JSONB(), "postgresql")


def _text(name: str, *, primary_key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text, nullable=False, primary_key=primary_key)


def _int(name: str, *, primary_key: bool = False, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, _BigInt, nullable=nullable, primary_key=primary_key, autoincrement=False)


usage = sa.Table(
    "usage",
    metadata,
    sa.Column("seq", _Seq, sa.Identity(), primary_key=True),
    _text("request_id"),
    _text("parent_id"),
    _int("time_ns"),
    _text("feature"),
    _text("tenant"),
    _text("key"),
    _text("session_id"),
    _text("trace_id"),
    sa.Column("tags", _Json, nullable=False),
    _text("route"),
    _text("backend"),
    _text("model"),
    _int("prefill_ns"),
    _int("decode_ns"),
    _int("waste_ns"),
    _int("num_input_tokens"),
    _int("num_cached_tokens"),
    _int("num_output_tokens"),
    _int("ttft_ns", nullable=True),
    _int("e2e_ns"),
    _text("finish_reason"),
    _int("hourly_rate_nano"),
    _text("currency"),
    _int("cost_nano"),
    # A number that was used is never given again, even when its row is pruned: the watermark's
    # meaning rests on it.
    sqlite_autoincrement=True,
)
sa.Index("usage_request_id", usage.c.request_id, unique=True)
sa.Index("usage_time_ns", usage.c.time_ns)
for _name in ("parent_id", "session_id", "trace_id"):
    _given = usage.c[_name] != sa.text("''")
    sa.Index(f"usage_{_name}", usage.c[_name], sqlite_where=_given, postgresql_where=_given)

outcomes = sa.Table(
    "outcomes",
    metadata,
    sa.Column("seq", _Seq, sa.Identity(), primary_key=True),
    _text("id"),
    _int("time_ns"),
    _text("request_id"),
    _text("session_id"),
    _text("trace_id"),
    _text("name"),
    sa.Column("success", sa.SmallInteger, nullable=False),  # 0 or 1: a boolean has no maximum
    _int("value_nano", nullable=True),
    sa.Column("tags", _Json, nullable=False),
    # 1: its number and value are in `outcomes_hourly`, as its last request was pruned.
    sa.Column("counted", sa.SmallInteger, nullable=False),
    sqlite_autoincrement=True,
)
sa.Index("outcomes_id", outcomes.c.id, unique=True)
sa.Index("outcomes_time_ns", outcomes.c.time_ns)
for _name in ("request_id", "session_id", "trace_id"):
    _given = outcomes.c[_name] != sa.text("''")
    sa.Index(f"outcomes_{_name}", outcomes.c[_name], sqlite_where=_given, postgresql_where=_given)


def _group_columns(time: str) -> list[sa.Column[Any]]:
    """What sums are kept by, in the order of their tables' primary keys."""
    names = ("feature", "tenant", "key", "model", "backend", "finish_reason", "currency")
    return [_int(time, primary_key=True), *(_text(name, primary_key=True) for name in names)]


def _usage_sums(name: str, time: str) -> sa.Table:
    """Sums that stay when the rows they were added up from are pruned."""
    return sa.Table(
        name,
        metadata,
        *_group_columns(time),
        # The largest of `totals.INPUT_EDGES` that the inputs are longer than, or 0.
        _int("input_over", primary_key=True),
        _int("num_requests"),
        _int("num_input_tokens"),
        _int("num_cached_tokens"),
        _int("num_output_tokens"),
        _int("prefill_ns"),
        _int("decode_ns"),
        _int("waste_ns"),
        _int("e2e_ns"),
        _int("cost_nano"),
        sqlite_with_rowid=False,
    )


usage_hourly = _usage_sums("usage_hourly", "hour")
# The same once more by the day: a tenth of the rows for reports over months.
usage_daily = _usage_sums("usage_daily", "day")

# Of pruned requests alone. An outcome counts once, with its last request; each request's cost
# stands where the request stood, once per name of outcome.
outcomes_hourly = sa.Table(
    "outcomes_hourly",
    metadata,
    *_group_columns("hour"),
    _text("name", primary_key=True),
    sa.Column("success", sa.SmallInteger, primary_key=True, autoincrement=False),
    _int("num_outcomes"),
    _int("value_nano"),
    _int("num_requests"),
    _int("device_ns"),
    _int("cost_nano"),
    sqlite_with_rowid=False,
)

# One row per bucket, so that an engine may name new ones.
engine_time = sa.Table(
    "engine_time",
    metadata,
    _int("hour", primary_key=True),
    _text("server", primary_key=True),
    _text("bucket", primary_key=True),
    _int("time_ns"),
    _int("device_ns"),
    _int("num_devices"),
    _int("hourly_rate_nano"),
    _int("cost_nano"),
    _text("currency"),
    sqlite_with_rowid=False,
)


def _float(name: str) -> sa.Column[float]:
    return sa.Column(name, sa.Double, nullable=True)


# One row per attempt of a call at the gateway, raw only: pruned with `usage`.
attempts = sa.Table(
    "attempts",
    metadata,
    _text("request_id", primary_key=True),
    _int("number", primary_key=True),
    _text("parent_id"),
    _text("upstream_id"),
    _int("time_ns"),
    *map(_text, ("feature", "tenant", "key", "session_id", "trace_id")),
    *map(_text, ("route", "rule", "tier", "backend", "model", "status")),
    _int("http_status", nullable=True),
    *map(_int, ("num_input_tokens", "num_cached_tokens", "num_output_tokens")),
    _int("device_ns", nullable=True),
    _int("cost_nano"),
    _text("currency"),
    # What its tokens would have cost at the next tier; of judged attempts alone.
    _int("next_cost_nano", nullable=True),
    _int("ttft_ns", nullable=True),
    _int("e2e_ns"),
    *map(_text, ("answer_sha256", "reason", "judge")),
    _float("score"),
    sqlite_with_rowid=False,
)
sa.Index("attempts_time_ns", attempts.c.time_ns)
sa.Index("attempts_parent_id", attempts.c.parent_id)

# `number` is the cheaper attempt's.
escalations = sa.Table(
    "escalations",
    metadata,
    _text("request_id", primary_key=True),
    _int("number", primary_key=True),
    _int("time_ns"),
    *map(_text, ("feature", "tenant", "key", "rule", "judge", "reason")),
    _float("score"),
    *map(_text, ("answer_sha256", "cheap_tier", "cheap_backend", "cheap_model")),
    _int("cheap_cost_nano"),
    *map(_text, ("dear_tier", "dear_backend", "dear_model", "dear_status")),
    _int("dear_cost_nano"),
    _int("difference_nano"),
    _text("currency"),
    sqlite_with_rowid=False,
)
sa.Index("escalations_time_ns", escalations.c.time_ns)

# API keys of the gateway: digests only. `info` is the rest of `gateway.model.KeyInfo`.
keys = sa.Table(
    "keys",
    metadata,
    _text("key_id", primary_key=True),
    *map(_text, ("digest", "old_digest")),
    _int("old_until_ns", nullable=True),
    *map(_text, ("name", "tenant", "team")),
    sa.Column("info", _Json, nullable=False),
    _int("created_ns"),
    _int("changed_ns"),
    *(
        _int(name, nullable=True)
        for name in ("expires_ns", "rotated_ns", "revoked_ns", "last_used_ns")
    ),
    sqlite_with_rowid=False,
)

# Never pruned.
audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", _Seq, sa.Identity(), primary_key=True),
    _int("time_ns"),
    *map(_text, ("actor", "action", "subject")),
    sa.Column("detail", _Json, nullable=False),
    sqlite_autoincrement=True,
)

# A budget of the configuration, whom it is counted for (a key's id, a tenant's name, ...; empty:
# all), and the beginning of its period, nanoseconds since 1970.
budget_counters = sa.Table(
    "budget_counters",
    metadata,
    _text("budget", primary_key=True),
    _text("scope", primary_key=True),
    _int("period_start", primary_key=True),
    *map(_int, ("cost_nano", "num_tokens", "device_ns")),
    *map(_int, ("reserved_cost_nano", "reserved_tokens", "reserved_device_ns")),
    sqlite_with_rowid=False,
)

budget_reservations = sa.Table(
    "budget_reservations",
    metadata,
    _text("id", primary_key=True),
    _text("budget", primary_key=True),
    _text("scope", primary_key=True),
    _int("period_start"),
    *map(_int, ("cost_nano", "num_tokens", "device_ns", "expires_ns")),
    sqlite_with_rowid=False,
)
sa.Index("budget_reservations_expires_ns", budget_reservations.c.expires_ns)

# Thresholds that were told of.
budget_alerts = sa.Table(
    "budget_alerts",
    metadata,
    _text("budget", primary_key=True),
    _text("scope", primary_key=True),
    _int("period_start", primary_key=True),
    _text("threshold", primary_key=True),
    sqlite_with_rowid=False,
)

# `rolled_seq`: the watermark. `pruned_hour`: usage before this hour is in the roll-ups alone.
meta = sa.Table(
    "meta",
    metadata,
    _text("name", primary_key=True),
    _int("value"),
    sqlite_with_rowid=False,
)
