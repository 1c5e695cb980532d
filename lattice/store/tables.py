"""The tables of the SQL store, one description for SQLite and PostgreSQL.

The migrations lead to exactly this; a test compares the two. Times are seconds since the epoch.

There are no foreign keys. Rows come from one writer, whose domain rules are stricter than a key could
be, and a key from `messages` to `runs` would cost a look-up (in PostgreSQL also a row lock) for each of
the thousands of messages a second that are appended.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

#: Numbers that the database gives in the order of insertion. SQLite does so for INTEGER keys only.
_Position = BigInteger().with_variant(Integer(), "sqlite")

#: One row: the number of the lease that may write, and of the last commit that was numbered under it.
lease = Table(
    "lease",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("number", BigInteger, nullable=False),
    Column("committed", BigInteger, nullable=False, server_default=text("0")),
    CheckConstraint("id = 1", name="single_row"),
)

workflows = Table(
    "workflows",
    metadata,
    Column("workflow_id", Text, primary_key=True),
    Column("created", Double, nullable=False),
    # Whose it is; none where there were no API keys.
    Column("tenant", Text),
)

tasks = Table(
    "tasks",
    metadata,
    Column("position", _Position, primary_key=True),
    Column("workflow_id", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("code", Text),
    UniqueConstraint("workflow_id", "task_id"),
    # Whether a code is in use.
    Index(None, "code"),
)

edges = Table(
    "edges",
    metadata,
    Column("position", _Position, primary_key=True),
    Column("workflow_id", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("target", Text, nullable=False),
    UniqueConstraint("workflow_id", "source", "target"),
    # A task that goes takes the edges into it along; the constraint above finds those out of it.
    Index(None, "workflow_id", "target"),
)

blobs = Table(
    "blobs",
    metadata,
    Column("digest", Text, primary_key=True),
    Column("data", LargeBinary, nullable=False),
)

#: Which blobs a blob refers to: the codes of a graph.
blob_uses = Table(
    "blob_uses",
    metadata,
    Column("holder", Text, nullable=False),
    Column("used", Text, nullable=False),
    PrimaryKeyConstraint("holder", "used"),
    # Whether a code is in use.
    Index(None, "used"),
)

runs = Table(
    "runs",
    metadata,
    Column("position", _Position, primary_key=True),
    Column("run_id", Text, nullable=False),
    Column("workflow_id", Text, nullable=False),
    Column("graph", Text, nullable=False),
    Column("status", Text, nullable=False),
    Column("created", Double, nullable=False),
    Column("finished", Double),
    Column("deadline", Double),
    Column("retry_of", Text),
    Column("trace", Text),
    Column("tenant", Text),
    UniqueConstraint("run_id"),
    # Pages of all runs, of a workflow's runs, and of runs with a status, in order without sorting. The
    # last one also finds the unfinished runs without touching a finished one.
    Index(None, "created", "position"),
    Index(None, "workflow_id", "created", "position"),
    Index(None, "status", "created", "position"),
    # Which runs have ended, and when; whether a graph is in use.
    Index(None, "finished", "position"),
    Index(None, "graph"),
    # Pages of a tenant's runs. Without API keys they cost no entry.
    Index(
        None,
        "tenant",
        "created",
        "position",
        sqlite_where=text("tenant IS NOT NULL"),
        postgresql_where=text("tenant IS NOT NULL"),
    ),
)

messages = Table(
    "messages",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("task_id", Text),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("run_id", "seq"),
    # The messages of a task in order, among them its result.
    Index(None, "run_id", "task_id", "seq"),
)

#: A row for each output of a finished task; `size` in bytes.
task_values = Table(
    "task_values",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("inline", LargeBinary),
    Column("location", Text),
    PrimaryKeyConstraint("run_id", "task_id", "key"),
    # Whether something in the storage is in use. Values in the database do not cost an entry.
    Index(
        None,
        "location",
        sqlite_where=text("location IS NOT NULL"),
        postgresql_where=text("location IS NOT NULL"),
    ),
)

#: What attempts have printed, in parts; `position` in bytes.
task_logs = Table(
    "task_logs",
    metadata,
    Column("run_id", Text, nullable=False),
    Column("task_id", Text, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("document", Text, nullable=False),
    PrimaryKeyConstraint("run_id", "task_id", "attempt", "position"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("position", _Position, primary_key=True),
    Column("node_id", Text, nullable=False),
    Column("document", Text, nullable=False),
    UniqueConstraint("node_id"),
)

replies = Table(
    "replies",
    metadata,
    # With the tenant in front: `lattice.ports.service.Once.stored_key`.
    Column("key", Text, primary_key=True),
    Column("fingerprint", Text, nullable=False),
    Column("document", Text, nullable=False),
    Column("created", Double, nullable=False),
    # Which answers are old.
    Index(None, "created"),
)

#: Runs of which something is still to be removed; see `lattice.ports.removal`.
removal_notes = Table(
    "removal_notes",
    metadata,
    Column("run_id", Text, primary_key=True),
    Column("due", Double, nullable=False),
    Index(None, "due"),
)
