"""What the API needs from the orchestrator."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from lattice.errors import AdminOnlyError
from lattice.ids import NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.execution import CallResult
from lattice.workflow.outline import Outline
from lattice.workflow.task import CodeForm

#: A value is handed on in parts of this size, so that it is never whole in the control plane.
VALUE_PART_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `tenant` is whom what is made belongs to.

    With `admin` the caller sees what all tenants have, else only what is the tenant's own.

    Raises:
        ValueError: neither, as that would be taken for everything.
    """

    tenant: Tenant | None
    admin: bool

    def __post_init__(self) -> None:
        if self.tenant is None and not self.admin:
            raise ValueError("a caller that is no admin has a tenant")

    def check_operator(self) -> None:
        """Raises AdminOnlyError for a tenant without `admin`: what is nobody's own is the operator's."""
        if not self.admin:
            raise AdminOnlyError(self.tenant or "")


#: Whoever asks a service that has no API keys: sees everything, and what is made belongs to nobody.
ANYBODY = Caller(None, admin=True)


@dataclass(frozen=True, slots=True)
class Once:
    """An idempotency key and a fingerprint of the request that carries it.

    Each tenant has keys of its own: `tenant` is set by the service that sees things as a caller does.
    """

    key: str
    fingerprint: str
    tenant: Tenant | None = None

    @property
    def stored_key(self) -> str:
        """What its answer is found by: no key of a request and no tenant has a line break."""
        return self.key if self.tenant is None else f"{self.tenant}\n{self.key}"


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
    `autoscaling`, `retry`, `timeout`, `runtime_env`, `sandbox`, in the wire form of the API.
    """

    task_id: TaskId
    name: str | None
    definition: Mapping[str, object]
    code: CodeUpload | None


@dataclass(frozen=True, slots=True)
class LogMessages:
    """Messages, as JSON texts, about what an attempt has printed; each comes with its offset, and has no seq.

    Offsets grow, and of messages that come twice, such as from a stream that was opened again, they are the same.
    """

    task_id: TaskId
    attempt: int
    texts: tuple[tuple[int, str], ...]

    def unseen(self, told: dict[tuple[TaskId, int], int]) -> LogMessages | None:
        """Those that come after what was `told`, which is brought up to date; None if there are none."""
        key = self.task_id, self.attempt
        last = told.get(key, -1)
        texts = tuple(each for each in self.texts if each[0] > last)
        if not texts:
            return None
        told[key] = texts[-1][0]
        return replace(self, texts=texts)


class OrchestratorService(Protocol):
    """What the API asks of the orchestrator, in its own process or another. All may raise LatticeError."""

    def for_caller(self, caller: Caller) -> OrchestratorService:
        """The same as `caller` sees it: what is another tenant's is as if it were not there."""

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

    async def delete_workflow(self, workflow_id: WorkflowId) -> None: ...

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
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int, *, logs: bool = False
    ) -> AsyncIterator[list[str] | LogMessages]:
        """Messages of a run after `after`, as JSON texts in groups, until the last.

        With `logs` also what its tasks print: first all that is kept so far, then what is new as it comes.
        Raises RunNotFoundError before the first group.
        """

    async def task_result(self, run_id: RunId, task_id: TaskId) -> dict[str, object]: ...

    async def task_logs(
        self, run_id: RunId, task_id: TaskId, attempt: int | None = None, after: str | None = None
    ) -> dict[str, object]:
        """A page of what a task has printed: `logs`, and `next`, which as `after` gives the next page."""

    async def value_json(self, run_id: RunId, task_id: TaskId, key: str) -> bytes: ...

    async def value_pickle(self, run_id: RunId, task_id: TaskId, key: str, start: int = 0) -> bytes:
        """The part of an output's pickle from `start`: `VALUE_PART_BYTES`, or less at its end."""

    async def connect_worker(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> None: ...

    async def disconnect_worker(self, node_id: NodeId, *, leaving: bool = False) -> None: ...

    async def workers(self) -> list[dict[str, object]]: ...

    async def head_port(self) -> int: ...

    async def ready(self) -> None: ...
