"""Deadlines, retried runs, and what it takes to remove runs: who refers to which blob and which file."""

from __future__ import annotations

import json

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_tasks = sa.table(
    "tasks", sa.column("position"), sa.column("document", sa.Text), sa.column("code", sa.Text)
)
_runs = sa.table("runs", sa.column("graph", sa.Text))
_blobs = sa.table("blobs", sa.column("digest", sa.Text), sa.column("data", sa.LargeBinary))
_uses = sa.table("blob_uses", sa.column("holder", sa.Text), sa.column("used", sa.Text))


def upgrade() -> None:
    op.add_column("tasks", sa.Column("code", sa.Text))
    op.create_table(
        "blob_uses",
        sa.Column("holder", sa.Text, nullable=False),
        sa.Column("used", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("holder", "used", name="pk_blob_uses"),
    )
    op.add_column("runs", sa.Column("deadline", sa.Double))
    op.add_column("runs", sa.Column("retry_of", sa.Text))
    op.create_table(
        "removal_notes",
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("due", sa.Double, nullable=False),
        sa.PrimaryKeyConstraint("run_id", name="pk_removal_notes"),
    )
    connection = op.get_bind()
    _note_codes_of_tasks(connection)
    _note_codes_of_graphs(connection)
    op.create_index("ix_tasks_code", "tasks", ["code"])
    op.create_index("ix_blob_uses_used", "blob_uses", ["used"])
    op.create_index("ix_runs_finished_position", "runs", ["finished", "position"])
    op.create_index("ix_runs_graph", "runs", ["graph"])
    stored = sa.text("location IS NOT NULL")
    op.create_index(
        "ix_task_values_location",
        "task_values",
        ["location"],
        sqlite_where=stored,
        postgresql_where=stored,
    )
    op.create_index("ix_replies_created", "replies", ["created"])
    op.create_index("ix_removal_notes_due", "removal_notes", ["due"])


def _note_codes_of_tasks(connection: sa.Connection) -> None:
    """Which code each task refers to was only in its document."""
    found = connection.execute(sa.select(_tasks.c.position, _tasks.c.document))
    rows = [
        {"task": row.position, "digest": digest}
        for row in found
        if (digest := _code(json.loads(row.document))) is not None
    ]
    if rows:
        connection.execute(
            sa.update(_tasks)
            .where(_tasks.c.position == sa.bindparam("task"))
            .values(code=sa.bindparam("digest")),
            rows,
        )


def _note_codes_of_graphs(connection: sa.Connection) -> None:
    """The same for the tasks of graphs. One graph at a time, as each may be large."""
    graphs = connection.execute(sa.select(_runs.c.graph).distinct()).scalars().all()
    for graph in graphs:
        data = connection.execute(
            sa.select(_blobs.c.data).where(_blobs.c.digest == graph)
        ).scalar_one_or_none()
        if data is None:
            continue
        codes = {_code(task) for task in json.loads(data)["tasks"]} - {None}
        if codes:
            rows = [{"holder": graph, "used": code} for code in sorted(map(str, codes))]
            connection.execute(sa.insert(_uses), rows)


def _code(task: dict[str, object]) -> object:
    code = task.get("code")
    return code["digest"] if isinstance(code, dict) else None
