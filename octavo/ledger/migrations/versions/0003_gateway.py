"""What the gateway keeps: attempts, escalations, keys, the audit log, budgets' counters."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"

SEQ = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
JSON = sa.JSON().with_variant(JSONB(), "postgresql")
PERIOD = ("budget", "scope")


def text(name: str) -> sa.Column[str]:
    """A column of text."""
    return sa.Column(name, sa.Text, nullable=False)


def integer(name: str, *, nullable: bool = False) -> sa.Column[int]:
    """A column of 64-bit integers."""
    return sa.Column(name, sa.BigInteger, nullable=nullable, autoincrement=False)


def score() -> sa.Column[float]:
    """A judge's score, where it gives one."""
    return sa.Column("score", sa.Double, nullable=True)


def upgrade() -> None:
    """Make the tables."""
    op.create_table(
        "attempts",
        text("request_id"),
        integer("number"),
        text("upstream_id"),
        integer("time_ns"),
        *map(text, ("feature", "tenant", "key", "session_id", "trace_id")),
        *map(text, ("route", "rule", "tier", "backend", "model", "status")),
        integer("http_status", nullable=True),
        *map(integer, ("num_input_tokens", "num_cached_tokens", "num_output_tokens")),
        integer("device_ns", nullable=True),
        integer("cost_nano"),
        text("currency"),
        integer("next_cost_nano", nullable=True),
        integer("ttft_ns", nullable=True),
        integer("e2e_ns"),
        *map(text, ("answer_sha256", "reason", "judge")),
        score(),
        sa.PrimaryKeyConstraint("request_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index("attempts_time_ns", "attempts", ["time_ns"])
    op.create_table(
        "escalations",
        text("request_id"),
        integer("number"),
        integer("time_ns"),
        *map(text, ("feature", "tenant", "key", "rule", "judge", "reason")),
        score(),
        *map(text, ("answer_sha256", "cheap_tier", "cheap_backend", "cheap_model")),
        integer("cheap_cost_nano"),
        *map(text, ("dear_tier", "dear_backend", "dear_model", "dear_status")),
        integer("dear_cost_nano"),
        integer("difference_nano"),
        text("currency"),
        sa.PrimaryKeyConstraint("request_id", "number"),
        sqlite_with_rowid=False,
    )
    op.create_index("escalations_time_ns", "escalations", ["time_ns"])
    op.create_table(
        "keys",
        text("key_id"),
        *map(text, ("digest", "old_digest")),
        integer("old_until_ns", nullable=True),
        *map(text, ("name", "tenant", "team")),
        sa.Column("info", JSON, nullable=False),
        integer("created_ns"),
        integer("changed_ns"),
        *(
            integer(name, nullable=True)
            for name in ("expires_ns", "rotated_ns", "revoked_ns", "last_used_ns")
        ),
        sa.PrimaryKeyConstraint("key_id"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit",
        sa.Column("seq", SEQ, sa.Identity(), primary_key=True),
        integer("time_ns"),
        *map(text, ("actor", "action", "subject")),
        sa.Column("detail", JSON, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "budget_counters",
        *map(text, PERIOD),
        integer("period_start"),
        *map(integer, ("cost_nano", "num_tokens", "device_ns")),
        *map(integer, ("reserved_cost_nano", "reserved_tokens", "reserved_device_ns")),
        sa.PrimaryKeyConstraint(*PERIOD, "period_start"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "budget_reservations",
        text("id"),
        *map(text, PERIOD),
        integer("period_start"),
        *map(integer, ("cost_nano", "num_tokens", "device_ns", "expires_ns")),
        sa.PrimaryKeyConstraint("id", *PERIOD),
        sqlite_with_rowid=False,
    )
    op.create_index("budget_reservations_expires_ns", "budget_reservations", ["expires_ns"])
    op.create_table(
        "budget_alerts",
        *map(text, PERIOD),
        integer("period_start"),
        text("threshold"),
        sa.PrimaryKeyConstraint(*PERIOD, "period_start", "threshold"),
        sqlite_with_rowid=False,
    )
