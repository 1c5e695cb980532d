"""The first schema."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

#: What this revision made, in words that do not change when `tables.py` does.
_Position = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("id", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lease"),
        sa.CheckConstraint("id = 1", name="ck_lease_single_row"),
    )
    op.create_table(
        "workflows",
        sa.Column("workflow_id", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("workflow_id", name="pk_workflows"),
    )
    op.create_table(
        "tasks",
        sa.Column("position", _Position, nullable=False),
        sa.Column("workflow_id", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_tasks"),
        sa.UniqueConstraint("workflow_id", "task_id", name="uq_tasks_workflow_id_task_id"),
    )
    op.create_table(
        "edges",
        sa.Column("position", _Position, nullable=False),
        sa.Column("workflow_id", sa.Text, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_edges"),
        sa.UniqueConstraint(
            "workflow_id", "source", "target", name="uq_edges_workflow_id_source_target"
        ),
    )
    op.create_index("ix_edges_workflow_id_target", "edges", ["workflow_id", "target"])
    op.create_table(
        "blobs",
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_blobs"),
    )
    op.create_table(
        "runs",
        sa.Column("position", _Position, nullable=False),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("workflow_id", sa.Text, nullable=False),
        sa.Column("graph", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.Column("finished", sa.Double),
        sa.PrimaryKeyConstraint("position", name="pk_runs"),
        sa.UniqueConstraint("run_id", name="uq_runs_run_id"),
    )
    op.create_index("ix_runs_created_position", "runs", ["created", "position"])
    op.create_index(
        "ix_runs_workflow_id_created_position", "runs", ["workflow_id", "created", "position"]
    )
    op.create_index("ix_runs_status_created_position", "runs", ["status", "created", "position"])
    op.create_table(
        "messages",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, nullable=False),
        sa.Column("task_id", sa.Text),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "seq", name="pk_messages"),
    )
    op.create_index("ix_messages_run_id_task_id_seq", "messages", ["run_id", "task_id", "seq"])
    op.create_table(
        "task_values",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("task_id", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("inline", sa.LargeBinary),
        sa.Column("location", sa.Text),
        sa.PrimaryKeyConstraint("run_id", "task_id", "key", name="pk_task_values"),
    )
    op.create_table(
        "nodes",
        sa.Column("position", _Position, nullable=False),
        sa.Column("node_id", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_nodes"),
        sa.UniqueConstraint("node_id", name="uq_nodes_node_id"),
    )
    op.create_table(
        "replies",
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("document", sa.Text, nullable=False),
        sa.Column("created", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_replies"),
    )
