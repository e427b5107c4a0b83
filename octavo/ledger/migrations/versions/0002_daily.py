"""Sums by the day beside those by the hour: reports over months read a tenth of the rows."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

CELL = 'feature, tenant, "key", model, backend, finish_reason, currency, input_over'
SUMS = (
    "num_requests", "num_input_tokens", "num_cached_tokens", "num_output_tokens", "prefill_ns",
    "decode_ns", "waste_ns", "e2e_ns", "cost_nano",
)  # fmt: skip


def integer(name: str, *, primary_key: bool = False) -> sa.Column[int]:
    """A column of 64-bit integers."""
    return sa.Column(
        name, sa.BigInteger, nullable=False, primary_key=primary_key, autoincrement=False
    )


def upgrade() -> None:
    """Make the table, and fill it from the hours."""
    op.create_table(
        "usage_daily",
        integer("day", primary_key=True),
        *(
            sa.Column(name.strip().strip('"'), sa.Text, nullable=False, primary_key=True)
            for name in CELL.split(",")[:-1]
        ),
        integer("input_over", primary_key=True),
        *map(integer, SUMS),
        sqlite_with_rowid=False,
    )
    sums = ", ".join(f"sum({name})" for name in SUMS)
    op.execute(
        f"INSERT INTO usage_daily (day, {CELL}, {', '.join(SUMS)}) "
        f"SELECT hour / 24, {CELL}, {sums} FROM usage_hourly GROUP BY hour / 24, {CELL}"
    )
