"""What is made durable: the writes and records of a store, and where large values lie.

Every store passes one suite in `tests/contract/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lattice.ids import Digest, NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.removal import Removable, Removal
from lattice.workflow.events import Value


@dataclass(frozen=True, slots=True)
class PutWorkflow:
    """A new workflow of `tenant`. `created` is in seconds since the epoch."""

    workflow_id: WorkflowId
    created: float
    tenant: Tenant | None = None


@dataclass(frozen=True, slots=True)
class PutTask:
    """A task of a workflow, new or changed. `document` is JSON text; new tasks come last.

    `code` is the blob that the task refers to.
    """

    workflow_id: WorkflowId
    task_id: TaskId
    document: str
    code: Digest | None = None


@dataclass(frozen=True, slots=True)
class DeleteTask:
    """A task leaves its workflow, with every edge that it is an end of."""

    workflow_id: WorkflowId
    task_id: TaskId


@dataclass(frozen=True, slots=True)
class PutEdge:
    """An explicit edge; putting it twice is putting it once."""

    workflow_id: WorkflowId
    source: TaskId
    target: TaskId


@dataclass(frozen=True, slots=True)
class DeleteEdge:
    """An explicit edge goes; deleting one that is not there changes nothing."""

    workflow_id: WorkflowId
    source: TaskId
    target: TaskId


@dataclass(frozen=True, slots=True)
class PutBlob:
    """Bytes by their digest: code, and the graphs that runs work on. Putting twice is putting once.

    `uses` are the blobs that this one refers to: the codes of a graph.
    """

    digest: Digest
    data: bytes
    uses: tuple[Digest, ...] = ()


@dataclass(frozen=True, slots=True)
class PutRun:
    """A new run of the graph whose JSON text is the blob `graph`.

    `deadline` is when it has to have ended, in seconds since the epoch; `retry_of` the run whose results
    it takes over; `trace` the trace context of its request.
    """

    run_id: RunId
    workflow_id: WorkflowId
    graph: Digest
    created: float
    deadline: float | None = None
    retry_of: RunId | None = None
    trace: str | None = None
    tenant: Tenant | None = None


@dataclass(frozen=True, slots=True)
class AppendMessage:
    """The next message of a run's log. `document` is the message's JSON text as subscribers get it.

    `values` are the outputs that a `finish_task` message stands for; empty for the others.
    """

    run_id: RunId
    seq: int
    document: str
    task_id: TaskId | None = None
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FinishRun:
    """A run has ended with `status`, at `finished` seconds since the epoch."""

    run_id: RunId
    status: str
    finished: float


@dataclass(frozen=True, slots=True)
class PutNode:
    """A registered worker node, new or changed. `document` is JSON text."""

    node_id: NodeId
    document: str


@dataclass(frozen=True, slots=True)
class DeleteNode:
    """A worker node is registered no longer."""

    node_id: NodeId


@dataclass(frozen=True, slots=True)
class PutReply:
    """What was answered to the request that carried an idempotency key; `fingerprint` tells requests apart."""

    key: str
    fingerprint: str
    document: str
    created: float


@dataclass(frozen=True, slots=True)
class PutLog:
    """A part of what an attempt has printed; put again at the same `position`, it takes the place of the former.

    `position` is where it begins, in bytes of all that the attempt has printed; `document` is JSON text.
    """

    run_id: RunId
    task_id: TaskId
    attempt: int
    position: int
    document: str


Write = (
    PutWorkflow
    | PutTask
    | DeleteTask
    | PutEdge
    | DeleteEdge
    | PutBlob
    | PutRun
    | AppendMessage
    | FinishRun
    | PutNode
    | DeleteNode
    | PutReply
    | PutLog
    | Removal
)


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A stored workflow. `tasks` are JSON texts in the order in which the tasks were first put."""

    workflow_id: WorkflowId
    created: float
    tasks: tuple[str, ...]
    edges: tuple[tuple[TaskId, TaskId], ...]
    tenant: Tenant | None = None


@dataclass(frozen=True, slots=True)
class RunRecord:
    """A stored run. `status` is `running` until it is finished; times in seconds since the epoch."""

    run_id: RunId
    workflow_id: WorkflowId
    graph: Digest
    status: str
    created: float
    finished: float | None
    deadline: float | None = None
    retry_of: RunId | None = None
    trace: str | None = None
    tenant: Tenant | None = None


@dataclass(frozen=True, slots=True)
class ReplyRecord:
    """A stored answer to a request with an idempotency key."""

    key: str
    fingerprint: str
    document: str


@dataclass(frozen=True, slots=True)
class LogRecord:
    """A stored part of what an attempt has printed."""

    task_id: TaskId
    attempt: int
    position: int
    document: str


class Store(Removable, Protocol):
    """Durable state. Methods block, may be called from any thread, and are run off the event loop.

    All raise StoreUnavailableError when the database cannot be reached or refuses.
    """

    def acquire_lease(self) -> int:
        """Takes the lease from whoever held it; returns its number, larger than all before it."""

    def commit(self, lease: int, writes: Sequence[Write], number: int | None = None) -> None:
        """Makes all of `writes` durable, in their order, or none of them.

        Whoever does not learn whether a commit took effect may ask for it again under the same `number`:
        under one lease, a number that is not above the last one has been committed, and nothing is done.

        Raises:
            LeaseLostError: a larger lease was acquired; nothing was written.
            StoreRefusedError: it cannot be done, now or later; nothing was written.
        """

    def load_workflow(self, workflow_id: WorkflowId) -> WorkflowRecord | None:
        """A workflow with its tasks and explicit edges, or None."""

    def load_blob(self, digest: Digest) -> bytes | None:
        """The bytes that were put under `digest`, or None."""

    def load_run(self, run_id: RunId) -> RunRecord | None:
        """A run, or None."""

    def list_runs(
        self,
        limit: int,
        *,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
        tenant: Tenant | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first; with `before`, only those older than that run; with `tenant`, only its own."""

    def count_workflows(self) -> dict[Tenant | None, int]:
        """How many workflows each tenant has."""

    def unfinished_runs(self) -> list[RunRecord]:
        """Every run whose status is `running`, oldest first."""

    def load_messages(self, run_id: RunId, after: int, limit: int) -> list[str]:
        """Up to `limit` messages of a run with a seq above `after`, in order, as JSON texts."""

    def load_values(self, run_id: RunId) -> dict[TaskId, dict[str, Value]]:
        """Where the outputs of all finished tasks of a run are."""

    def load_task_values(self, run_id: RunId, task_id: TaskId) -> dict[str, Value]:
        """Where the outputs of one task of a run are; empty if it has not finished."""

    def load_task_result(self, run_id: RunId, task_id: TaskId) -> str | None:
        """The JSON text of a task's `finish_task` message, found by an index; None if there is none."""

    def load_logs(
        self,
        run_id: RunId,
        limit: int,
        *,
        task_id: TaskId | None = None,
        attempt: int | None = None,
        after: tuple[TaskId, int, int] | None = None,
    ) -> list[LogRecord]:
        """Up to `limit` parts of what the tasks of a run have printed, by task, attempt and position.

        With `task_id` and `attempt` only theirs; with `after` only what comes after that task, attempt and
        position.
        """

    def load_nodes(self) -> list[str]:
        """The registered nodes, as JSON texts, in the order in which they were first put."""

    def load_reply(self, key: str) -> ReplyRecord | None:
        """The stored answer for an idempotency key, or None."""

    def close(self) -> None:
        """Releases connections. The store is not used afterwards."""


class ValueStorage(Protocol):
    """Output values too large for the database, as opaque bytes under keys. Methods block."""

    def read(self, location: str, start: int = 0, size: int = -1) -> bytes:
        """Up to `size` bytes under `location` from `start`, all for -1. Raises FileNotFoundError."""

    def owner(self, location: str) -> RunId:
        """The run whose task stored what is under `location`."""

    def stored_by(self, run_id: RunId) -> list[str]:
        """Every location under which tasks of a run have left something, be it whole or not."""

    def delete(self, locations: Sequence[str]) -> None:
        """Removes what is under `locations`; what is not there is no error. Raises OSError."""
