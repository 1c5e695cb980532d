"""Numbers of commits, so that one whose answer was lost can be asked for again; traces of runs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "lease", sa.Column("committed", sa.BigInteger, nullable=False, server_default=sa.text("0"))
    )
    op.add_column("runs", sa.Column("trace", sa.Text))
