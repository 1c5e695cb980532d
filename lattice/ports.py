"""What the orchestrator needs from outside, and what the API needs from the orchestrator.

Each port is a Protocol of a few methods. `lattice/assembly.py` and `deployments/app.py` choose the
implementations. Every store and every dispatcher of the service passes its suite in `tests/contract/`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from lattice.ids import Digest, NodeId, RunId, TaskId, WorkflowId
from lattice.removal import Removable, Removal
from lattice.workflow.events import (
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)
from lattice.workflow.outline import Outline
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, CodeForm, Resources

# -- store -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PutWorkflow:
    """A new workflow. `created` is in seconds since the epoch."""

    workflow_id: WorkflowId
    created: float


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
    it takes over.
    """

    run_id: RunId
    workflow_id: WorkflowId
    graph: Digest
    created: float
    deadline: float | None = None
    retry_of: RunId | None = None


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
class PutReply:
    """What was answered to the request that carried an idempotency key; `fingerprint` tells requests apart."""

    key: str
    fingerprint: str
    document: str
    created: float


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
    | PutReply
    | Removal
)


@dataclass(frozen=True, slots=True)
class WorkflowRecord:
    """A stored workflow. `tasks` are JSON texts in the order in which the tasks were first put."""

    workflow_id: WorkflowId
    created: float
    tasks: tuple[str, ...]
    edges: tuple[tuple[TaskId, TaskId], ...]


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


@dataclass(frozen=True, slots=True)
class ReplyRecord:
    """A stored answer to a request with an idempotency key."""

    key: str
    fingerprint: str
    document: str


class Store(Removable, Protocol):
    """Durable state. Methods block, may be called from any thread, and are run off the event loop.

    All raise StoreUnavailableError when the database cannot be reached or refuses.
    """

    def acquire_lease(self) -> int:
        """Takes the lease from whoever held it; returns its number, larger than all before it."""

    def commit(self, lease: int, writes: Sequence[Write]) -> None:
        """Makes all of `writes` durable, in their order, or none of them.

        Raises:
            LeaseLostError: a larger lease was acquired; nothing was written.
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
    ) -> list[RunRecord]:
        """Runs, newest first; with `before`, only those older than that run."""

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


# -- execution ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Argument:
    """An input of an attempt: JSON text given by the user, or another task's output.

    `source` names the output, `value` says where it is durable.
    """

    key: str
    json: str | None
    source: tuple[TaskId, str] | None = None
    value: Value | None = None


@dataclass(frozen=True, slots=True)
class Definition:
    """What is to run, and on what: calls of equal definitions may share a process, and a batch.

    Attributes:
        gpus: what `gpu` and `gpu_mem` come to, in GPUs.
        excluded: engine ids of nodes that get nothing new.
    """

    code: Code
    resources: Resources
    gpus: float
    batch: BatchPolicy
    scaling: Scaling
    runtime_env: Mapping[str, object]
    excluded: frozenset[NodeId]


@dataclass(frozen=True, slots=True)
class Job:
    """One attempt of a task.

    Attributes:
        timed: there is a time-out, which begins with the report of the start: it must come first.
    """

    run_id: RunId
    task_id: TaskId
    attempt: int
    name: str
    definition: Definition
    arguments: tuple[Argument, ...]
    output_keys: tuple[str, ...]
    timed: bool


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a function by itself, with pickled arguments, which stay opaque bytes here."""

    name: str
    definition: Definition
    args: bytes
    kwargs: bytes


@dataclass(frozen=True, slots=True)
class CallResult:
    """What a call returned: JSON (or a description of what is none), and the pickled object."""

    json: object
    pickled: bytes


@dataclass(frozen=True, slots=True)
class EngineNode:
    """A live node of the engine and all it has: GPUs, and memory in MiB."""

    node_id: NodeId
    node_ip: str
    cpu: float
    gpu: float
    memory: float


Report = TaskStarted | TaskSucceeded | TaskFailed | TaskLost


class Dispatcher(Protocol):
    """Runs attempts of tasks on the engine. Used from one event loop."""

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: Callable[[Digest], bytes],
    ) -> None:
        """Gets ready. `report` is called on the loop; `load_code` blocks and is called in a thread."""

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""

    def prepare(self, definition: Definition) -> None:
        """Gets ready what the first job of a definition would have to wait for; returns at once."""

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> Mapping[TaskId, str]:
        """What those of a run's attempts wait for that have been submitted and not begun, for people."""

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Drops what is held in memory of a task's output values."""

    async def call(self, call: Call) -> CallResult:
        """Runs a call to its end.

        Raises:
            UserCodeError: the function raised, or its code or arguments do not load.
            TooLargeError: the pickled result is over `max_result_bytes`.
            UnavailableError: the process that ran it died.
        """

    async def render(self, value: Value, limit: int) -> bytes:
        """The JSON text of a stored value, made in a process that runs user code.

        Raises:
            InvalidRequestError: the value is not JSON.
            TooLargeError: the text is longer than `limit` bytes.
            UnavailableError: the process that made it died.
        """

    async def nodes(self) -> list[EngineNode]:
        """The live nodes."""

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""

    async def close(self) -> None:
        """Cancels what runs and lets go of the engine."""


class Clock(Protocol):
    """Time and timers."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` on the loop after `delay` seconds; calling what it returns prevents that."""


class IdSource(Protocol):
    """New ids."""

    def new_id(self) -> str:
        """An id that was never given before: a UUID in its usual form."""


class Telemetry(Protocol):
    """What an operator counts."""

    def run_started(self) -> None:
        """A run was started or taken up again after a restart."""

    def run_finished(self, status: str, seconds: float) -> None:
        """A run ended, `seconds` after it was requested."""

    def task_finished(self, state: str, seconds: float) -> None:
        """An attempt ended (`succeeded`, `failed`, `lost`), `seconds` after it began."""

    def committed(self, writes: int, seconds: float) -> None:
        """A group of writes became durable within `seconds`."""


# -- orchestrator ------------------------------------------------------------------------------


#: A value is handed on in parts of this size, so that it is never whole in the control plane.
VALUE_PART_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Once:
    """An idempotency key and a fingerprint of the request that carries it."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class CodeUpload:
    """Code as a user sent it. `data` is opaque; `outline` tells what in it is a class."""

    form: CodeForm
    data: bytes
    outline: Outline = field(default_factory=Outline)


@dataclass(frozen=True, slots=True)
class TaskUpload:
    """What a user saves in a task: raw JSON documents, and code. `name` of None keeps the name.

    `definition` may have the keys `task_input`, `task_output`, `resources`, `batch_config`,
    `autoscaling`, `retry`, `timeout`, `runtime_env`, in the wire form of the API.
    """

    task_id: TaskId
    name: str | None
    definition: Mapping[str, object]
    code: CodeUpload | None


class OrchestratorService(Protocol):
    """What the API asks of the orchestrator, in its own process or another. All may raise LatticeError."""

    async def create_workflow(self, once: Once | None = None) -> WorkflowId: ...

    async def add_task(
        self, workflow_id: WorkflowId, task_type: str, name: str, once: Once | None = None
    ) -> TaskId: ...

    async def save_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, *, add_edges: bool
    ) -> None: ...

    async def add_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None: ...

    async def del_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None: ...

    async def del_task(self, workflow_id: WorkflowId, task_id: TaskId) -> None: ...

    async def workflow_tasks(self, workflow_id: WorkflowId) -> list[dict[str, str]]: ...

    async def run_workflow(
        self,
        workflow_id: WorkflowId,
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> RunId: ...

    async def submit_workflow(
        self,
        tasks: Sequence[TaskUpload],
        edges: Sequence[tuple[TaskId, TaskId]],
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> tuple[WorkflowId, RunId]: ...

    async def add_langgraph_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, once: Once | None = None
    ) -> TaskId: ...

    async def run_langgraph_task(
        self, workflow_id: WorkflowId, task_id: TaskId, args: bytes, kwargs: bytes
    ) -> CallResult: ...

    async def list_runs(
        self,
        limit: int,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
    ) -> list[dict[str, object]]: ...

    async def describe_run(self, run_id: RunId) -> dict[str, object]: ...

    async def cancel_run(self, run_id: RunId) -> str: ...

    async def retry_run(self, run_id: RunId, once: Once | None = None) -> RunId: ...

    async def delete_run(self, run_id: RunId) -> None: ...

    async def delete_runs(self, workflow_id: WorkflowId, limit: int) -> int: ...

    def follow(
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int
    ) -> AsyncIterator[list[str]]:
        """Messages of a run after `after`, as JSON texts in groups, until the last.

        Raises RunNotFoundError before the first group.
        """

    async def task_result(self, run_id: RunId, task_id: TaskId) -> dict[str, object]: ...

    async def value_json(self, run_id: RunId, task_id: TaskId, key: str) -> bytes: ...

    async def value_pickle(self, run_id: RunId, task_id: TaskId, key: str, start: int = 0) -> bytes:
        """The part of an output's pickle from `start`: `VALUE_PART_BYTES`, or less at its end."""

    async def connect_worker(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> None: ...

    async def disconnect_worker(self, node_id: NodeId) -> None: ...

    async def workers(self) -> list[dict[str, object]]: ...

    async def head_port(self) -> int: ...

    async def ready(self) -> None: ...
