"""The SQL of every write, and in which statements a group of writes goes to the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Insert, Table, UpdateBase, bindparam, delete, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from lattice.ports.removal import Removal
from lattice.ports.store import (
    AppendMessage,
    DeleteEdge,
    DeleteNode,
    DeleteTask,
    FinishRun,
    PutBlob,
    PutEdge,
    PutLog,
    PutNode,
    PutReply,
    PutRun,
    PutTask,
    PutWorkflow,
    Write,
)
from lattice.store import tables
from lattice.store.removals import RemovalStatements, Row
from lattice.workflow.states import RunStatus


class WriteStatements:
    """Statements for one of the two dialects, made once, so that compiled forms are reused.

    What is put again keeps its position: an upsert changes the row that is there. The statements that
    insert without an ON CONFLICT are of things that must be new; a second one is refused.
    """

    def __init__(self, dialect: str) -> None:
        #: Takes the lease; returns its number.
        self.acquire_lease = (
            _insert(dialect, tables.lease)
            .values(id=1, number=1)
            .on_conflict_do_update(
                index_elements=["id"], set_={"number": tables.lease.c.number + 1, "committed": 0}
            )
            .returning(tables.lease.c.number)
        )
        #: The lease's row, which nobody else can change until the transaction ends. SQLite knows no
        #: FOR UPDATE; there the transaction has locked the whole database: `database.for_writing`.
        self.lock_lease = select(tables.lease.c.number).with_for_update()
        #: The same, and notes the number of the commit that is made. Finds no row if the lease is another, or if that
        #: commit was made before.
        self.note_commit = (
            update(tables.lease)
            .where(
                tables.lease.c.number == bindparam("of_lease"),
                tables.lease.c.committed < bindparam("of_commit"),
            )
            .values(committed=bindparam("of_commit"))
        )
        self.put_workflow = tables.workflows.insert()
        #: A new task comes last, a changed one stays where it is.
        self.put_task = _upsert(
            dialect, tables.tasks, ["workflow_id", "task_id"], ["document", "code"]
        )
        self.delete_node = delete(tables.nodes).where(
            tables.nodes.c.node_id == bindparam("node_id")
        )
        self.delete_task = delete(tables.tasks).where(
            tables.tasks.c.workflow_id == bindparam("workflow_id"),
            tables.tasks.c.task_id == bindparam("task_id"),
        )
        self.delete_edges_of_task = delete(tables.edges).where(
            tables.edges.c.workflow_id == bindparam("workflow_id"),
            or_(
                tables.edges.c.source == bindparam("task_id"),
                tables.edges.c.target == bindparam("task_id"),
            ),
        )
        self.put_edge = _insert(dialect, tables.edges).on_conflict_do_nothing()
        self.delete_edge = delete(tables.edges).where(
            tables.edges.c.workflow_id == bindparam("workflow_id"),
            tables.edges.c.source == bindparam("source"),
            tables.edges.c.target == bindparam("target"),
        )
        self.put_blob = _insert(dialect, tables.blobs).on_conflict_do_nothing()
        self.put_blob_use = _insert(dialect, tables.blob_uses).on_conflict_do_nothing()
        self.put_run = tables.runs.insert()
        self.append_message = tables.messages.insert()
        #: A value that was lost and computed again replaces the lost one.
        self.put_value = _upsert(
            dialect,
            tables.task_values,
            ["run_id", "task_id", "key"],
            ["size", "inline", "location"],
        )
        #: An attempt that a crash made begin anew replaces what it had printed.
        self.put_log = _upsert(
            dialect, tables.task_logs, ["run_id", "task_id", "attempt", "position"], ["document"]
        )
        self.finish_run = (
            update(tables.runs)
            .where(tables.runs.c.run_id == bindparam("ended_run"))
            .values(status=bindparam("status"), finished=bindparam("finished"))
        )
        self.put_node = _upsert(dialect, tables.nodes, ["node_id"], ["document"])
        #: The first answer stands.
        self.put_reply = _insert(dialect, tables.replies).on_conflict_do_nothing()
        self._removals = RemovalStatements(dialect)

    def plan(self, writes: Sequence[Write]) -> list[tuple[UpdateBase, list[Row]]]:
        """Statements, each with the rows to execute it for, that amount to `writes` in their order.

        Many rows for one statement cost a small part of as many statements, so the writes of a kind
        are put together across the others. That changes nothing where two kinds touch different
        tables, nor for a run, which is put before it is finished. Only edits of workflows and nodes depend
        on what is between them (a deleted task takes edges along): of those, neighbours of the same
        kind are put together. Removals come last, so that what is put beside them counts as in use.
        """
        edits: list[tuple[UpdateBase, list[Row]]] = []
        removals: list[Removal] = []
        of_kind: dict[UpdateBase, list[Row]] = {
            self.put_workflow: [],
            self.put_blob: [],
            self.put_blob_use: [],
            self.put_run: [],
            self.append_message: [],
            self.put_value: [],
            self.put_log: [],
            self.finish_run: [],
            self.put_reply: [],
        }

        def edit(statement: UpdateBase, row: Row) -> None:
            if not edits or edits[-1][0] is not statement:
                edits.append((statement, []))
            edits[-1][1].append(row)

        for write in writes:
            match write:
                case AppendMessage():
                    of_kind[self.append_message].append(
                        {
                            "run_id": write.run_id,
                            "seq": write.seq,
                            "task_id": write.task_id,
                            "document": write.document,
                        }
                    )
                    of_kind[self.put_value].extend(_value_rows(write))
                case PutRun():
                    of_kind[self.put_run].append(
                        {
                            "run_id": write.run_id,
                            "workflow_id": write.workflow_id,
                            "graph": write.graph,
                            "status": RunStatus.RUNNING.value,
                            "created": write.created,
                            "finished": None,
                            "deadline": write.deadline,
                            "retry_of": write.retry_of,
                            "trace": write.trace,
                            "tenant": write.tenant,
                        }
                    )
                case FinishRun():
                    of_kind[self.finish_run].append(
                        {
                            "ended_run": write.run_id,
                            "status": write.status,
                            "finished": write.finished,
                        }
                    )
                case PutBlob():
                    of_kind[self.put_blob].append({"digest": write.digest, "data": write.data})
                    of_kind[self.put_blob_use].extend(
                        {"holder": write.digest, "used": used} for used in write.uses
                    )
                case PutReply():
                    of_kind[self.put_reply].append(
                        {
                            "key": write.key,
                            "fingerprint": write.fingerprint,
                            "document": write.document,
                            "created": write.created,
                        }
                    )
                case PutLog():
                    of_kind[self.put_log].append(
                        {
                            "run_id": write.run_id,
                            "task_id": write.task_id,
                            "attempt": write.attempt,
                            "position": write.position,
                            "document": write.document,
                        }
                    )
                case PutNode():
                    edit(self.put_node, {"node_id": write.node_id, "document": write.document})
                case PutWorkflow():
                    of_kind[self.put_workflow].append(
                        {
                            "workflow_id": write.workflow_id,
                            "created": write.created,
                            "tenant": write.tenant,
                        }
                    )
                case PutTask():
                    edit(
                        self.put_task,
                        {
                            "workflow_id": write.workflow_id,
                            "task_id": write.task_id,
                            "document": write.document,
                            "code": write.code,
                        },
                    )
                case DeleteTask():
                    row: Row = {"workflow_id": write.workflow_id, "task_id": write.task_id}
                    edit(self.delete_task, row)
                    edit(self.delete_edges_of_task, row)
                case DeleteNode():
                    edit(self.delete_node, {"node_id": write.node_id})
                case PutEdge():
                    edit(self.put_edge, _edge_row(write))
                case DeleteEdge():
                    edit(self.delete_edge, _edge_row(write))
                case _:
                    removals.append(write)
        kinds = [(statement, rows) for statement, rows in of_kind.items() if rows]
        return edits + kinds + self._removals.plan(removals)


def _insert(dialect: str, table: Table) -> Any:
    # The two classes have the same methods, but no common base that has ON CONFLICT.
    return sqlite.insert(table) if dialect == "sqlite" else postgresql.insert(table)


def _upsert(dialect: str, table: Table, key: list[str], changed: list[str]) -> Insert:
    statement = _insert(dialect, table)
    upsert: Insert = statement.on_conflict_do_update(
        index_elements=key, set_={column: statement.excluded[column] for column in changed}
    )
    return upsert


def _value_rows(write: AppendMessage) -> list[Row]:
    return [
        {
            "run_id": write.run_id,
            "task_id": write.task_id,
            "key": key,
            "size": value.size,
            "inline": value.inline,
            "location": value.location,
        }
        for key, value in write.values.items()
    ]


def _edge_row(write: PutEdge | DeleteEdge) -> Row:
    return {"workflow_id": write.workflow_id, "source": write.source, "target": write.target}
