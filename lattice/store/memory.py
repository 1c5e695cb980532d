"""The store in memory: for tests, and for a service that may forget everything when it stops."""

from __future__ import annotations

import bisect
import itertools
import threading
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import assert_never

from lattice.errors import LeaseLostError, StoreRefusedError
from lattice.ids import Digest, NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.removal import (
    DeleteLogs,
    DeleteMessages,
    DeleteReplies,
    DeleteRun,
    DeleteUnusedBlobs,
    DeleteValues,
    DeleteWorkflow,
    DropNote,
    Leftovers,
    PutNote,
    Removal,
    StoredOutput,
)
from lattice.ports.store import (
    AppendMessage,
    DeleteEdge,
    DeleteNode,
    DeleteTask,
    FinishRun,
    LogRecord,
    PutBlob,
    PutEdge,
    PutLog,
    PutNode,
    PutReply,
    PutRun,
    PutTask,
    PutWorkflow,
    ReplyRecord,
    RunRecord,
    WorkflowRecord,
    Write,
)
from lattice.store.results import is_result
from lattice.workflow.events import Value
from lattice.workflow.states import RunStatus

_SEQ = attrgetter("seq")


@dataclass(slots=True)
class _Draft:
    """The tasks and edges of a workflow, in the order in which they were first put."""

    tasks: dict[TaskId, str] = field(default_factory=dict)
    edges: dict[tuple[TaskId, TaskId], None] = field(default_factory=dict)


@dataclass(slots=True)
class _Log:
    """A run's messages in the order of their seq, and the values of its finished tasks."""

    messages: list[AppendMessage] = field(default_factory=list)
    values: dict[TaskId, dict[str, Value]] = field(default_factory=dict)


class MemoryStore:
    """A `Store` whose state lasts as long as the object. One lock makes each method atomic."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lease = 0
        self._committed = 0
        self._workflows: dict[WorkflowId, PutWorkflow] = {}
        self._drafts: dict[WorkflowId, _Draft] = {}
        self._blobs: dict[Digest, bytes] = {}
        self._runs: dict[RunId, RunRecord] = {}
        self._logs: dict[RunId, _Log] = {}
        self._nodes: dict[NodeId, str] = {}
        self._replies: dict[str, ReplyRecord] = {}
        self._uses: dict[Digest, tuple[Digest, ...]] = {}
        self._codes: dict[tuple[WorkflowId, TaskId], Digest | None] = {}
        self._replied: dict[str, float] = {}
        self._notes: dict[RunId, float] = {}
        self._printed: dict[RunId, dict[tuple[TaskId, int, int], str]] = {}

    def acquire_lease(self) -> int:
        """Takes the lease; returns its number."""
        with self._lock:
            self._lease += 1
            self._committed = 0
            return self._lease

    def commit(self, lease: int, writes: Sequence[Write], number: int | None = None) -> None:
        """Applies all of `writes` or, where one of them is refused or the lease is lost, none."""
        with self._lock:
            if lease != self._lease or not self._lease:
                raise LeaseLostError(lease, self._lease)
            if number is not None and number <= self._committed:
                return
            # What may be refused is looked for first, so that nothing ever has to be undone.
            self._refuse_defects(writes)
            for write in writes:
                self._apply(write)
            if number is not None:
                self._committed = number

    def load_workflow(self, workflow_id: WorkflowId) -> WorkflowRecord | None:
        """A workflow with its tasks and explicit edges, or None."""
        with self._lock:
            if workflow_id not in self._workflows:
                return None
            draft = self._drafts.get(workflow_id, _Draft())
            return WorkflowRecord(
                workflow_id=workflow_id,
                created=self._workflows[workflow_id].created,
                tasks=tuple(draft.tasks.values()),
                edges=tuple(draft.edges),
                tenant=self._workflows[workflow_id].tenant,
            )

    def load_blob(self, digest: Digest) -> bytes | None:
        """The bytes under `digest`, or None."""
        with self._lock:
            return self._blobs.get(digest)

    def load_run(self, run_id: RunId) -> RunRecord | None:
        """A run, or None."""
        with self._lock:
            return self._runs.get(run_id)

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
        with self._lock:
            runs = self._oldest_first()
            if before is not None:
                last = self._runs.get(before)
                runs = [] if last is None else runs[: runs.index(last)]
        wanted = (
            run
            for run in reversed(runs)
            if workflow_id in (None, run.workflow_id)
            and status in (None, run.status)
            and tenant in (None, run.tenant)
        )
        return list(itertools.islice(wanted, limit))

    def count_workflows(self) -> dict[Tenant | None, int]:
        """How many workflows each tenant has."""
        with self._lock:
            return dict(Counter(workflow.tenant for workflow in self._workflows.values()))

    def unfinished_runs(self) -> list[RunRecord]:
        """Every run whose status is `running`, oldest first."""
        with self._lock:
            return [run for run in self._oldest_first() if run.status == RunStatus.RUNNING]

    def load_messages(self, run_id: RunId, after: int, limit: int) -> list[str]:
        """Up to `limit` messages with a seq above `after`."""
        with self._lock:
            messages = self._logs.get(run_id, _Log()).messages
            first = bisect.bisect_right(messages, after, key=_SEQ)
            return [message.document for message in messages[first : first + limit]]

    def load_values(self, run_id: RunId) -> dict[TaskId, dict[str, Value]]:
        """The outputs of a run's finished tasks; a task without outputs is not among them."""
        with self._lock:
            values = self._logs.get(run_id, _Log()).values
            return {task_id: dict(outputs) for task_id, outputs in values.items()}

    def load_task_values(self, run_id: RunId, task_id: TaskId) -> dict[str, Value]:
        """The outputs of a task."""
        with self._lock:
            return dict(self._logs.get(run_id, _Log()).values.get(task_id, {}))

    def load_task_result(self, run_id: RunId, task_id: TaskId) -> str | None:
        """The JSON text of a task's `finish_task` message, or None."""
        with self._lock:
            messages = reversed(self._logs.get(run_id, _Log()).messages)
            documents = [message.document for message in messages if message.task_id == task_id]
        return next(filter(is_result, documents), None)

    def load_logs(
        self,
        run_id: RunId,
        limit: int,
        *,
        task_id: TaskId | None = None,
        attempt: int | None = None,
        after: tuple[TaskId, int, int] | None = None,
    ) -> list[LogRecord]:
        """Parts of what the tasks of a run have printed, by task, attempt and position."""
        with self._lock:
            found = sorted(self._printed.get(run_id, {}).items())
        return [
            LogRecord(*place, document)
            for place, document in found
            if task_id in (None, place[0])
            and attempt in (None, place[1])
            and (after is None or place > after)
        ][:limit]

    def load_nodes(self) -> list[str]:
        """The registered nodes, first put first."""
        with self._lock:
            return list(self._nodes.values())

    def load_reply(self, key: str) -> ReplyRecord | None:
        """The stored answer for an idempotency key, or None."""
        with self._lock:
            return self._replies.get(key)

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
        with self._lock:
            ended = [
                (run.finished, at, run)
                for at, run in enumerate(self._runs.values())
                if run.finished is not None
                and workflow_id in (None, run.workflow_id)
                and tenant in (None, run.tenant)
            ]
        ended.sort(key=lambda each: each[:2], reverse=keep is not None)
        if before is not None:
            ended = [each for each in ended if each[0] < before]
        return [run.run_id for _, _, run in ended[keep or 0 :][:limit]]

    def due_notes(self, now: float, limit: int) -> list[DropNote]:
        """Notes that are due at `now`, the oldest first."""
        with self._lock:
            due = [DropNote(run_id, at) for run_id, at in self._notes.items() if at <= now]
        return sorted(due, key=attrgetter("due"))[:limit]

    def leftovers(self, run_id: RunId, limit: int) -> Leftovers:
        """Up to `limit` messages, outputs and parts of logs each that are there of a run."""
        with self._lock:
            log = self._logs.get(run_id, _Log())
            messages = log.messages[:limit]
            outputs = [
                StoredOutput(task_id, key, value.location)
                for task_id, values in log.values.items()
                for key, value in values.items()
            ]
            parts = sorted(self._printed.get(run_id, {}))[:limit]
        last_seq = messages[-1].seq if messages else None
        return Leftovers(last_seq, tuple(outputs[:limit]), tuple(parts))

    def referenced(self, locations: Collection[str]) -> set[str]:
        """Those of `locations` that an output of any run is at."""
        with self._lock:
            return {
                value.location
                for log in self._logs.values()
                for values in log.values.values()
                for value in values.values()
                if value.location is not None
            } & set(locations)

    def blobs_after(self, digest: Digest, limit: int) -> list[Digest]:
        """The digests after `digest`, in their order."""
        with self._lock:
            return sorted(each for each in self._blobs if each > digest)[:limit]

    def replies_before(self, created: float, limit: int) -> list[str]:
        """Keys of the answers that were given before that time, the oldest first."""
        with self._lock:
            old = [key for key, at in self._replied.items() if at < created]
            return sorted(old, key=self._replied.__getitem__)[:limit]

    def close(self) -> None:
        """There is nothing to release."""

    def _oldest_first(self) -> list[RunRecord]:
        # Sorting keeps the order of insertion among runs of the same time.
        return sorted(self._runs.values(), key=attrgetter("created"))

    def _refuse_defects(self, writes: Sequence[Write]) -> None:
        workflows: set[WorkflowId] = set()
        runs: set[RunId] = set()
        messages: set[tuple[RunId, int]] = set()
        for write in writes:
            match write:
                case PutWorkflow(workflow_id=workflow_id):
                    if workflow_id in self._workflows or workflow_id in workflows:
                        raise StoreRefusedError(f"store: workflow {workflow_id} exists")
                    workflows.add(workflow_id)
                case PutRun(run_id=run_id):
                    if run_id in self._runs or run_id in runs:
                        raise StoreRefusedError(f"store: run {run_id} exists")
                    runs.add(run_id)
                case FinishRun(run_id=run_id):
                    if run_id not in self._runs and run_id not in runs:
                        raise StoreRefusedError(f"store: run {run_id} does not exist")
                case AppendMessage(task_id=None, values=values) if values:
                    raise StoreRefusedError("store: values that are no task's")
                case AppendMessage(run_id=run_id, seq=seq):
                    if self._has_message(run_id, seq) or (run_id, seq) in messages:
                        raise StoreRefusedError(f"store: message {seq} of run {run_id} exists")
                    messages.add((run_id, seq))

    def _has_message(self, run_id: RunId, seq: int) -> bool:
        messages = self._logs.get(run_id, _Log()).messages
        at = bisect.bisect_left(messages, seq, key=_SEQ)
        return at < len(messages) and messages[at].seq == seq

    def _apply(self, write: Write) -> None:
        match write:
            case PutWorkflow():
                self._workflows[write.workflow_id] = write
            case PutTask():
                self._draft(write.workflow_id).tasks[write.task_id] = write.document
                self._codes[write.workflow_id, write.task_id] = write.code
            case DeleteTask():
                self._codes.pop((write.workflow_id, write.task_id), None)
                draft = self._draft(write.workflow_id)
                draft.tasks.pop(write.task_id, None)
                draft.edges = {edge: None for edge in draft.edges if write.task_id not in edge}
            case PutEdge():
                self._draft(write.workflow_id).edges[write.source, write.target] = None
            case DeleteEdge():
                self._draft(write.workflow_id).edges.pop((write.source, write.target), None)
            case PutBlob():
                self._blobs.setdefault(write.digest, write.data)
                self._uses.setdefault(write.digest, write.uses)
            case PutRun():
                self._runs[write.run_id] = RunRecord(
                    run_id=write.run_id,
                    workflow_id=write.workflow_id,
                    graph=write.graph,
                    status=RunStatus.RUNNING.value,
                    created=write.created,
                    finished=None,
                    deadline=write.deadline,
                    retry_of=write.retry_of,
                    trace=write.trace,
                    tenant=write.tenant,
                )
            case AppendMessage():
                log = self._logs.setdefault(write.run_id, _Log())
                bisect.insort(log.messages, write, key=_SEQ)
                if write.task_id is not None and write.values:
                    log.values.setdefault(write.task_id, {}).update(write.values)
            case FinishRun():
                run = self._runs[write.run_id]
                self._runs[write.run_id] = replace(
                    run, status=write.status, finished=write.finished
                )
            case PutLog():
                place = write.task_id, write.attempt, write.position
                self._printed.setdefault(write.run_id, {})[place] = write.document
            case PutNode():
                self._nodes[write.node_id] = write.document
            case DeleteNode():
                self._nodes.pop(write.node_id, None)
            case PutReply():
                self._replies.setdefault(
                    write.key, ReplyRecord(write.key, write.fingerprint, write.document)
                )
                self._replied.setdefault(write.key, write.created)
            case _:
                self._remove(write)

    def _drop_if_empty(self, run_id: RunId) -> None:
        log = self._logs.get(run_id)
        if log is not None and not log.messages and not log.values and run_id not in self._runs:
            del self._logs[run_id]

    def _remove(self, removal: Removal) -> None:
        match removal:
            case DeleteRun():
                run = self._runs.get(removal.run_id)
                if run is not None and run.finished is not None:
                    del self._runs[removal.run_id]
                    self._notes[removal.run_id] = removal.due
            case PutNote():
                self._notes[removal.run_id] = removal.due
            case DropNote():
                if self._notes.get(removal.run_id) == removal.due:
                    del self._notes[removal.run_id]
            case DeleteMessages():
                log = self._logs.get(removal.run_id, _Log())
                log.messages = [each for each in log.messages if each.seq > removal.last_seq]
                self._drop_if_empty(removal.run_id)
            case DeleteValues():
                log = self._logs.get(removal.run_id, _Log())
                for task_id, key in removal.outputs:
                    log.values.get(task_id, {}).pop(key, None)
                log.values = {task_id: values for task_id, values in log.values.items() if values}
                self._drop_if_empty(removal.run_id)
            case DeleteLogs():
                printed = self._printed.get(removal.run_id, {})
                for part in removal.parts:
                    printed.pop(part, None)
                if not printed:
                    self._printed.pop(removal.run_id, None)
            case DeleteWorkflow(workflow_id):
                self._workflows.pop(workflow_id, None)
                for task_id in self._drafts.pop(workflow_id, _Draft()).tasks:
                    del self._codes[workflow_id, task_id]
            case DeleteUnusedBlobs():
                for digest in removal.digests:
                    if not self._is_used(digest):
                        self._blobs.pop(digest, None)
                        self._uses.pop(digest, None)
            case DeleteReplies():
                for key in removal.keys:
                    self._replies.pop(key, None)
                    self._replied.pop(key, None)
            case _:
                assert_never(removal)

    def _is_used(self, digest: Digest) -> bool:
        return (
            digest in self._codes.values()
            or any(run.graph == digest for run in self._runs.values())
            or any(digest in uses for uses in self._uses.values())
        )

    def _draft(self, workflow_id: WorkflowId) -> _Draft:
        return self._drafts.setdefault(workflow_id, _Draft())
