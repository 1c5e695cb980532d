"""Whose workflows and runs are. What was there before belongs to nobody."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("workflows", sa.Column("tenant", sa.Text))
    op.add_column("runs", sa.Column("tenant", sa.Text))
    owned = sa.text("tenant IS NOT NULL")
    op.create_index(
        "ix_runs_tenant_created_position",
        "runs",
        ["tenant", "created", "position"],
        sqlite_where=owned,
        postgresql_where=owned,
    )
