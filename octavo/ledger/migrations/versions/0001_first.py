"""Usage, outcomes, their roll-ups, and device time."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
CELL = ("feature", "tenant", "key", "model", "backend", "finish_reason", "currency")


def text(name: str) -> sa.Column[str]:
    """A column of text."""
    return sa.Column(name, sa.Text, nullable=False)


def integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """A column of 64-bit integers."""
    return sa.Column(name, sa.BigInteger, nullable=nullable, autoincrement=False)


def small(name: str) -> sa.Column[int]:
    """A column of small integers."""
    return sa.Column(name, sa.SmallInteger, nullable=False, autoincrement=False)


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "usage",
        sa.Column("seq", SEQ, sa.Identity(), primary_key=True),
        text("request_id"),
        text("parent_id"),
        integer("time_ns"),
        *map(text, ("feature", "tenant", "key", "session_id", "trace_id")),
        sa.Column("tags", JSON, nullable=False),
        *map(text, ("route", "backend", "model")),
        *map(integer, ("prefill_ns", "decode_ns", "waste_ns")),
        *map(integer, ("num_input_tokens", "num_cached_tokens", "num_output_tokens")),
        integer("ttft_ns", nullable=True),
        integer("e2e_ns"),
        text("finish_reason"),
        integer("hourly_rate_nano"),
        text("currency"),
        integer("cost_nano"),
        sqlite_autoincrement=True,
    )
    op.create_index("usage_request_id", "usage", ["request_id"], unique=True)
    op.create_index("usage_time_ns", "usage", ["time_ns"])
    given_index("usage", "parent_id")
    given_index("usage", "session_id")
    given_index("usage", "trace_id")
    op.create_table(
        "outcomes",
        sa.Column("seq", SEQ, sa.Identity(), primary_key=True),
        text("id"),
        integer("time_ns"),
        *map(text, ("request_id", "session_id", "trace_id", "name")),
        small("success"),
        integer("value_nano", nullable=True),
        sa.Column("tags", JSON, nullable=False),
        small("counted"),
        sqlite_autoincrement=True,
    )
    op.create_index("outcomes_id", "outcomes", ["id"], unique=True)
    op.create_index("outcomes_time_ns", "outcomes", ["time_ns"])
    given_index("outcomes", "request_id")
    given_index("outcomes", "session_id")
    given_index("outcomes", "trace_id")
    op.create_table(
        "usage_hourly",
        integer("hour"),
        *map(text, CELL),
        integer("input_over"),
        *map(integer, ("num_requests", "num_input_tokens", "num_cached_tokens")),
        *map(integer, ("num_output_tokens", "prefill_ns", "decode_ns", "waste_ns")),
        *map(integer, ("e2e_ns", "cost_nano")),
        sa.PrimaryKeyConstraint("hour", *CELL, "input_over"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "outcomes_hourly",
        integer("hour"),
        *map(text, CELL),
        text("name"),
        small("success"),
        *map(integer, ("num_outcomes", "value_nano", "num_requests", "device_ns", "cost_nano")),
        sa.PrimaryKeyConstraint("hour", *CELL, "name", "success"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "engine_time",
        integer("hour"),
        text("server"),
        text("bucket"),
        *map(integer, ("time_ns", "device_ns", "num_devices", "hourly_rate_nano", "cost_nano")),
        text("currency"),
        sa.PrimaryKeyConstraint("hour", "server", "bucket"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "meta",
        text("name"),
        integer("value"),
        sa.PrimaryKeyConstraint("name"),
        sqlite_with_rowid=False,
    )
    op.execute("INSERT INTO meta (name, value) VALUES ('rolled_seq', 0), ('pruned_hour', 0)")


def given_index(table: str, column: str) -> None:
    """An index of the rows in which the column is not empty."""
    given = sa.text(f"{column} != ''")
    op.create_index(
        f"{table}_{column}", table, [column], sqlite_where=given, postgresql_where=given
    )
