"""The store in a database, by SQLAlchemy Core: one code for SQLite and PostgreSQL.

Each method is one transaction. Reads see one state of the database and hinder nobody.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Engine, Row, Select, func, select, tuple_
from sqlalchemy.exc import DataError

from lattice.errors import LeaseLostError, StoreRefusedError
from lattice.ids import Digest, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.removal import DropNote, Leftovers, StoredOutput
from lattice.ports.store import LogRecord, ReplyRecord, RunRecord, WorkflowRecord, Write
from lattice.store import removals
from lattice.store.database import for_reading, for_writing, refusals_as_unavailable
from lattice.store.results import is_result
from lattice.store.statements import WriteStatements
from lattice.store.tables import (
    blobs,
    edges,
    messages,
    nodes,
    replies,
    runs,
    task_logs,
    task_values,
    tasks,
    workflows,
)
from lattice.workflow.checks import is_storable
from lattice.workflow.events import Value
from lattice.workflow.states import RunStatus

#: Databases bound how many values a statement may have.
_MOST_PARAMETERS = 500

#: Runs as records.
_RUNS = select(
    runs.c.run_id,
    runs.c.workflow_id,
    runs.c.graph,
    runs.c.status,
    runs.c.created,
    runs.c.finished,
    runs.c.deadline,
    runs.c.retry_of,
    runs.c.trace,
    runs.c.tenant,
)

#: Values with what names them.
_VALUES = select(
    task_values.c.task_id,
    task_values.c.key,
    task_values.c.size,
    task_values.c.inline,
    task_values.c.location,
)


class SqlStore:
    """A `Store` in SQLite or PostgreSQL. `engine` is of a database with the current schema."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._writer = for_writing(engine)
        self._reader = for_reading(engine)
        self._statements = WriteStatements(engine.dialect.name)
        # Writers of this process queue here, in a fair way and without holding a connection each.
        self._writing = threading.Lock()

    def acquire_lease(self) -> int:
        """Takes the lease; returns its number. Waits for the commit under way, if there is one."""
        with self._writing, refusals_as_unavailable(), self._writer.begin() as connection:
            return int(connection.execute(self._statements.acquire_lease).scalar_one())

    def commit(self, lease: int, writes: Sequence[Write], number: int | None = None) -> None:
        """Makes all of `writes` durable or none; see `WriteStatements.plan` for how.

        Raises:
            LeaseLostError: a larger lease was acquired.
            StoreUnavailableError: the database cannot be reached, or the answer was lost.
            StoreRefusedError: it refuses one of `writes`, such as a message or a run that exists already,
                or the end of a run that does not.
        """
        plan = self._statements.plan(writes)
        with self._writing, refusals_as_unavailable(), self._writer.begin() as connection:
            note = {"of_lease": lease, "of_commit": number}
            numbered = number is not None and bool(plan)
            if not numbered or not connection.execute(self._statements.note_commit, note).rowcount:
                held = connection.execute(self._statements.lock_lease).scalar()
                if held != lease:
                    raise LeaseLostError(lease, held or 0)
                if numbered:
                    return  # It was made before.
            for statement, rows in plan:
                result = connection.execute(statement, rows)
                if statement is self._statements.finish_run and result.rowcount != len(rows):
                    raise StoreRefusedError(
                        f"store: of {len(rows)} runs to finish only {result.rowcount} exist"
                    )

    def load_workflow(self, workflow_id: WorkflowId) -> WorkflowRecord | None:
        """A workflow with its tasks and explicit edges, or None."""
        of_workflow, of_tasks, of_edges = self._read(
            select(workflows.c.created, workflows.c.tenant).where(
                workflows.c.workflow_id == workflow_id
            ),
            select(tasks.c.document)
            .where(tasks.c.workflow_id == workflow_id)
            .order_by(tasks.c.position),
            select(edges.c.source, edges.c.target)
            .where(edges.c.workflow_id == workflow_id)
            .order_by(edges.c.position),
        )
        if not of_workflow:
            return None
        return WorkflowRecord(
            workflow_id=workflow_id,
            created=of_workflow[0].created,
            tasks=tuple(row.document for row in of_tasks),
            edges=tuple((row.source, row.target) for row in of_edges),
            tenant=of_workflow[0].tenant,
        )

    def load_blob(self, digest: Digest) -> bytes | None:
        """The bytes under `digest`, or None."""
        (rows,) = self._read(select(blobs.c.data).where(blobs.c.digest == digest))
        return rows[0].data if rows else None

    def load_run(self, run_id: RunId) -> RunRecord | None:
        """A run, or None."""
        (rows,) = self._read(_RUNS.where(runs.c.run_id == run_id))
        return RunRecord(**rows[0]._mapping) if rows else None

    def list_runs(
        self,
        limit: int,
        *,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
        tenant: Tenant | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first; none if `before` names no run."""
        statement = _RUNS.order_by(runs.c.created.desc(), runs.c.position.desc()).limit(limit)
        if workflow_id is not None:
            statement = statement.where(runs.c.workflow_id == workflow_id)
        if status is not None:
            statement = statement.where(runs.c.status == status)
        if tenant is not None:
            statement = statement.where(runs.c.tenant == tenant)
        if before is not None:
            # The place of a run in the order never changes, so it can be read in a transaction before.
            (last,) = self._read(
                select(runs.c.created, runs.c.position).where(runs.c.run_id == before)
            )
            if not last:
                return []
            statement = statement.where(tuple_(runs.c.created, runs.c.position) < tuple(last[0]))
        (rows,) = self._read(statement)
        return [RunRecord(**row._mapping) for row in rows]

    def count_workflows(self) -> dict[Tenant | None, int]:
        """How many workflows each tenant has."""
        (rows,) = self._read(
            select(workflows.c.tenant, func.count().label("number")).group_by(workflows.c.tenant)
        )
        return {row.tenant: row.number for row in rows}

    def unfinished_runs(self) -> list[RunRecord]:
        """Every run whose status is `running`, oldest first."""
        (rows,) = self._read(
            _RUNS.where(runs.c.status == RunStatus.RUNNING.value).order_by(
                runs.c.created, runs.c.position
            )
        )
        return [RunRecord(**row._mapping) for row in rows]

    def load_messages(self, run_id: RunId, after: int, limit: int) -> list[str]:
        """Up to `limit` messages with a seq above `after`."""
        (rows,) = self._read(
            select(messages.c.document)
            .where(messages.c.run_id == run_id, messages.c.seq > after)
            .order_by(messages.c.seq)
            .limit(limit)
        )
        return [row.document for row in rows]

    def load_values(self, run_id: RunId) -> dict[TaskId, dict[str, Value]]:
        """The outputs of a run's finished tasks; a task without outputs is not among them."""
        (rows,) = self._read(_VALUES.where(task_values.c.run_id == run_id))
        values: dict[TaskId, dict[str, Value]] = {}
        for row in rows:
            values.setdefault(row.task_id, {})[row.key] = _value(row)
        return values

    def load_task_values(self, run_id: RunId, task_id: TaskId) -> dict[str, Value]:
        """The outputs of a task."""
        (rows,) = self._read(
            _VALUES.where(task_values.c.run_id == run_id, task_values.c.task_id == task_id)
        )
        return {row.key: _value(row) for row in rows}

    def load_task_result(self, run_id: RunId, task_id: TaskId) -> str | None:
        """The JSON text of a task's `finish_task` message, or None."""
        # A task has a few messages, the result being the last of them, or there is none.
        (rows,) = self._read(
            select(messages.c.document)
            .where(messages.c.run_id == run_id, messages.c.task_id == task_id)
            .order_by(messages.c.seq.desc())
        )
        return next((row.document for row in rows if is_result(row.document)), None)

    def load_logs(
        self,
        run_id: RunId,
        limit: int,
        *,
        task_id: TaskId | None = None,
        attempt: int | None = None,
        after: tuple[TaskId, int, int] | None = None,
    ) -> list[LogRecord]:
        """Parts of what the tasks of a run have printed, in the order of the key."""
        place = (task_logs.c.task_id, task_logs.c.attempt, task_logs.c.position)
        statement = (
            select(*place, task_logs.c.document)
            .where(task_logs.c.run_id == run_id)
            .order_by(*place)
            .limit(limit)
        )
        if task_id is not None:
            statement = statement.where(task_logs.c.task_id == task_id)
        if attempt is not None:
            statement = statement.where(task_logs.c.attempt == attempt)
        if after is not None:
            statement = statement.where(tuple_(*place) > after)
        (rows,) = self._read(statement)
        return [LogRecord(**row._mapping) for row in rows]

    def load_nodes(self) -> list[str]:
        """The registered nodes, first put first."""
        (rows,) = self._read(select(nodes.c.document).order_by(nodes.c.position))
        return [row.document for row in rows]

    def load_reply(self, key: str) -> ReplyRecord | None:
        """The stored answer for an idempotency key, or None."""
        (rows,) = self._read(
            select(replies.c.key, replies.c.fingerprint, replies.c.document).where(
                replies.c.key == key
            )
        )
        return ReplyRecord(**rows[0]._mapping) if rows else None

    # -- housekeeping ------------------------------------------------------------------------

    def finished_runs(
        self,
        limit: int,
        *,
        before: float | None = None,
        keep: int | None = None,
        workflow_id: WorkflowId | None = None,
        tenant: Tenant | None = None,
    ) -> list[RunId]:
        """Runs that have ended."""
        (rows,) = self._read(removals.finished_runs(limit, before, keep, workflow_id, tenant))
        return [row.run_id for row in rows]

    def due_notes(self, now: float, limit: int) -> list[DropNote]:
        """Notes that are due at `now`, the oldest first."""
        (rows,) = self._read(removals.DUE_NOTES.params(now=now, most=limit))
        return [DropNote(**row._mapping) for row in rows]

    def leftovers(self, run_id: RunId, limit: int) -> Leftovers:
        """Up to `limit` messages, outputs and parts of logs each that are there of a run."""
        seqs, outputs, logs = self._read(
            removals.FIRST_MESSAGES.params(gone=run_id, most=limit),
            removals.FIRST_OUTPUTS.params(gone=run_id, most=limit),
            removals.FIRST_LOGS.params(gone=run_id, most=limit),
        )
        found = tuple(StoredOutput(**row._mapping) for row in outputs)
        parts = tuple((row.task_id, row.attempt, row.position) for row in logs)
        return Leftovers(seqs[-1].seq if seqs else None, found, parts)

    def referenced(self, locations: Collection[str]) -> set[str]:
        """Those of `locations` that an output of any run is at."""
        # One that no column can hold must not hide the others: who asks deletes what is not found.
        wanted = [location for location in locations if is_storable(location)]
        found: set[str] = set()
        for start in range(0, len(wanted), _MOST_PARAMETERS):
            (rows,) = self._read(removals.referenced(wanted[start : start + _MOST_PARAMETERS]))
            found.update(row.location for row in rows)
        return found

    def blobs_after(self, digest: Digest, limit: int) -> list[Digest]:
        """The digests after `digest`, in their order."""
        (rows,) = self._read(removals.BLOBS_AFTER.params(last=digest, most=limit))
        return [row.digest for row in rows]

    def replies_before(self, created: float, limit: int) -> list[str]:
        """Keys of the answers that were given before that time, the oldest first."""
        (rows,) = self._read(removals.OLD_REPLIES.params(before=created, most=limit))
        return [row.key for row in rows]

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def _read(self, *statements: Select[Any]) -> list[Sequence[Row[Any]]]:
        """The rows of each of `statements`, all of one state of the database."""
        with refusals_as_unavailable(), self._reader.connect() as connection:
            try:
                return [connection.execute(statement).all() for statement in statements]
            except (DataError, UnicodeEncodeError, OverflowError):
                # An id from a request that no column can hold (NUL, half a surrogate pair), or a number
                # beyond its type: then no row has it. Both drivers look before they ask the database.
                return [[] for _ in statements]


def _value(row: Row[Any]) -> Value:
    return Value(size=row.size, inline=row.inline, location=row.location)
