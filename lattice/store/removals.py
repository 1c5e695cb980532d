"""The SQL of housekeeping: what goes, and what there is to go. See `lattice.ports.removal`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

from sqlalchemy import Select, UpdateBase, bindparam, delete, exists, func, select
from sqlalchemy.dialects import postgresql, sqlite

from lattice.ids import Tenant, WorkflowId
from lattice.ports.removal import (
    DeleteLogs,
    DeleteMessages,
    DeleteReplies,
    DeleteRun,
    DeleteUnusedBlobs,
    DeleteValues,
    DeleteWorkflow,
    DropNote,
    PutNote,
    Removal,
)
from lattice.store.tables import (
    blob_uses,
    blobs,
    edges,
    messages,
    removal_notes,
    replies,
    runs,
    task_logs,
    task_values,
    tasks,
    workflows,
)

Row = dict[str, object]


class RemovalStatements:
    """Statements for one of the two dialects, made once."""

    def __init__(self, dialect: str) -> None:
        insert: Any = sqlite.insert if dialect == "sqlite" else postgresql.insert
        put = insert(removal_notes)
        self.put_note = put.on_conflict_do_update(
            index_elements=["run_id"], set_={"due": put.excluded.due}
        )
        #: The note of a run that is about to go; none for one that runs, or is not there.
        self.note_run = insert(removal_notes).from_select(
            ["run_id", "due"],
            select(runs.c.run_id, bindparam("due_at", type_=removal_notes.c.due.type)).where(
                runs.c.run_id == bindparam("gone"), runs.c.finished.is_not(None)
            ),
        )
        self.note_run = self.note_run.on_conflict_do_update(
            index_elements=["run_id"], set_={"due": self.note_run.excluded.due}
        )
        self.delete_run = delete(runs).where(
            runs.c.run_id == bindparam("gone"), runs.c.finished.is_not(None)
        )
        self.drop_note = delete(removal_notes).where(
            removal_notes.c.run_id == bindparam("gone"), removal_notes.c.due == bindparam("due_at")
        )
        self.delete_messages = delete(messages).where(
            messages.c.run_id == bindparam("gone"), messages.c.seq <= bindparam("last_seq")
        )
        self.delete_value = delete(task_values).where(
            task_values.c.run_id == bindparam("gone"),
            task_values.c.task_id == bindparam("of_task"),
            task_values.c.key == bindparam("output"),
        )
        self.delete_log = delete(task_logs).where(
            task_logs.c.run_id == bindparam("gone"),
            task_logs.c.task_id == bindparam("of_task"),
            task_logs.c.attempt == bindparam("of_attempt"),
            task_logs.c.position == bindparam("at"),
        )
        self.delete_workflow = tuple(
            delete(table).where(table.c.workflow_id == bindparam("gone"))
            for table in (workflows, tasks, edges)
        )
        #: A blob that nobody refers to. Each look is one in an index.
        self.delete_blob = delete(blobs).where(
            blobs.c.digest == bindparam("unused"),
            ~exists().where(tasks.c.code == bindparam("unused")),
            ~exists().where(runs.c.graph == bindparam("unused")),
            ~exists().where(blob_uses.c.used == bindparam("unused")),
        )
        #: A graph that has gone refers to nothing.
        self.delete_uses = delete(blob_uses).where(
            blob_uses.c.holder == bindparam("unused"),
            ~exists().where(blobs.c.digest == bindparam("unused")),
        )
        self.delete_reply = delete(replies).where(replies.c.key == bindparam("old"))

    def plan(self, removals: Sequence[Removal]) -> list[tuple[UpdateBase, list[Row]]]:
        """Statements, each with the rows to execute it for, that amount to `removals`."""
        planned: list[tuple[UpdateBase, list[Row]]] = []

        def add(statement: UpdateBase, rows: list[Row]) -> None:
            if rows:
                planned.append((statement, rows))

        for removal in removals:
            match removal:
                case DeleteRun():
                    add(self.note_run, [{"gone": removal.run_id, "due_at": removal.due}])
                    add(self.delete_run, [{"gone": removal.run_id}])
                case PutNote():
                    add(self.put_note, [{"run_id": removal.run_id, "due": removal.due}])
                case DropNote():
                    add(self.drop_note, [{"gone": removal.run_id, "due_at": removal.due}])
                case DeleteMessages():
                    row: Row = {"gone": removal.run_id, "last_seq": removal.last_seq}
                    add(self.delete_messages, [row])
                case DeleteValues():
                    add(
                        self.delete_value,
                        [
                            {"gone": removal.run_id, "of_task": task_id, "output": key}
                            for task_id, key in removal.outputs
                        ],
                    )
                case DeleteLogs():
                    add(
                        self.delete_log,
                        [
                            {
                                "gone": removal.run_id,
                                "of_task": task_id,
                                "of_attempt": attempt,
                                "at": position,
                            }
                            for task_id, attempt, position in removal.parts
                        ],
                    )
                case DeleteWorkflow():
                    for statement in self.delete_workflow:
                        add(statement, [{"gone": removal.workflow_id}])
                case DeleteUnusedBlobs():
                    digests: list[Row] = [{"unused": digest} for digest in removal.digests]
                    add(self.delete_blob, digests)
                    add(self.delete_uses, digests)
                case DeleteReplies():
                    add(self.delete_reply, [{"old": key} for key in removal.keys])
                case _:
                    assert_never(removal)
        return planned


def finished_runs(
    limit: int,
    before: float | None,
    keep: int | None,
    workflow_id: WorkflowId | None,
    tenant: Tenant | None,
) -> Select[Any]:
    """Runs that have ended, as `lattice.ports.removal.Removable.finished_runs` says."""
    statement = select(runs.c.run_id).where(runs.c.finished.is_not(None)).limit(limit)
    if tenant is not None:
        # Not by the index of the tenant's runs, which are many more than a workflow's.
        statement = statement.where(func.coalesce(runs.c.tenant, "") == tenant)
    if workflow_id is not None:
        statement = statement.where(runs.c.workflow_id == workflow_id)
        return statement.order_by(runs.c.created, runs.c.position)
    if before is not None:
        statement = statement.where(runs.c.finished < before)
    if keep is not None:
        newest_first = statement.order_by(runs.c.finished.desc(), runs.c.position.desc())
        return newest_first.offset(keep)
    return statement.order_by(runs.c.finished, runs.c.position)


#: Notes that are due.
DUE_NOTES = (
    select(removal_notes.c.run_id, removal_notes.c.due)
    .where(removal_notes.c.due <= bindparam("now"))
    .order_by(removal_notes.c.due)
    .limit(bindparam("most"))
)

#: The first messages of a run.
FIRST_MESSAGES = (
    select(messages.c.seq)
    .where(messages.c.run_id == bindparam("gone"))
    .order_by(messages.c.seq)
    .limit(bindparam("most"))
)

#: The first outputs of a run.
FIRST_OUTPUTS = (
    select(task_values.c.task_id, task_values.c.key, task_values.c.location)
    .where(task_values.c.run_id == bindparam("gone"))
    .order_by(task_values.c.task_id, task_values.c.key)
    .limit(bindparam("most"))
)

#: The first parts of what a run's tasks have printed.
FIRST_LOGS = (
    select(task_logs.c.task_id, task_logs.c.attempt, task_logs.c.position)
    .where(task_logs.c.run_id == bindparam("gone"))
    .order_by(task_logs.c.task_id, task_logs.c.attempt, task_logs.c.position)
    .limit(bindparam("most"))
)

#: Blobs in the order of their digests.
BLOBS_AFTER = (
    select(blobs.c.digest)
    .where(blobs.c.digest > bindparam("last"))
    .order_by(blobs.c.digest)
    .limit(bindparam("most"))
)

#: The oldest answers.
OLD_REPLIES = (
    select(replies.c.key)
    .where(replies.c.created < bindparam("before"))
    .order_by(replies.c.created)
    .limit(bindparam("most"))
)


def referenced(locations: Sequence[str]) -> Select[Any]:
    """Those of `locations` that an output is at."""
    return select(task_values.c.location).distinct().where(task_values.c.location.in_(locations))
