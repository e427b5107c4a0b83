"""Attempts have what the caller knows the request by, which may stand for several requests."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    """Add the column; earlier attempts have none."""
    op.add_column("attempts", sa.Column("parent_id", sa.Text, nullable=False, server_default=""))
    op.create_index("attempts_parent_id", "attempts", ["parent_id"])
