"""The orchestrator as one tenant sees it: what is another's is as if it were not there.

Whose a workflow or a run is never changes, so it is looked at before each request and need not be held. A request
with an idempotency key looks later, when no answer is remembered: what the first one named may be gone by now.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lattice.errors import RunNotFoundError, WorkflowNotFoundError
from lattice.ids import NodeId, RunId, TaskId, WorkflowId
from lattice.ports.execution import CallResult
from lattice.ports.service import Caller, LogMessages, Once, OrchestratorService, TaskUpload

if TYPE_CHECKING:
    from lattice.orchestrator.orchestrator import Orchestrator


class TenantView:
    """Implements `lattice.ports.service.OrchestratorService` for `caller`.

    An id of another tenant is refused with the same error as one that names nothing. A caller with `admin`
    sees everything; what it makes is its own tenant's.
    """

    def __init__(self, everything: Orchestrator, caller: Caller) -> None:
        self._everything = everything
        self._caller = caller
        #: Whose things alone the caller sees; None for everybody's.
        self._only = None if caller.admin else caller.tenant

    def for_caller(self, caller: Caller) -> OrchestratorService:
        """The same as `caller` sees it."""
        return self._everything.for_caller(caller)

    async def _check_workflow(self, workflow_id: WorkflowId) -> None:
        if self._caller.admin:
            return
        if await self._everything.tenant_of_workflow(workflow_id) != self._caller.tenant:
            raise WorkflowNotFoundError(workflow_id)

    async def _check_run(self, run_id: RunId) -> None:
        if self._caller.admin:
            return
        if await self._everything.tenant_of_run(run_id) != self._caller.tenant:
            raise RunNotFoundError(run_id)

    def _own(self, once: Once | None) -> Once | None:
        """The key as one of the tenant's: who sends the key of another finds no answer of it."""
        return None if once is None else replace(once, tenant=self._caller.tenant)

    # -- workflows ---------------------------------------------------------------------------

    async def create_workflow(self, once: Once | None = None) -> WorkflowId:
        return await self._everything.create_workflow(self._own(once), tenant=self._caller.tenant)

    async def add_task(
        self, workflow_id: WorkflowId, task_type: str, name: str, once: Once | None = None
    ) -> TaskId:
        return await self._everything.add_task(
            workflow_id, task_type, name, self._own(once), tenant=self._only
        )

    async def save_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, *, add_edges: bool
    ) -> None:
        await self._check_workflow(workflow_id)
        await self._everything.save_task(workflow_id, upload, add_edges=add_edges)

    async def add_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None:
        await self._check_workflow(workflow_id)
        await self._everything.add_edge(workflow_id, source, target)

    async def del_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None:
        await self._check_workflow(workflow_id)
        await self._everything.del_edge(workflow_id, source, target)

    async def del_task(self, workflow_id: WorkflowId, task_id: TaskId) -> None:
        await self._check_workflow(workflow_id)
        await self._everything.del_task(workflow_id, task_id)

    async def delete_workflow(self, workflow_id: WorkflowId) -> None:
        await self._check_workflow(workflow_id)
        await self._everything.delete_workflow(workflow_id)

    async def workflow_tasks(self, workflow_id: WorkflowId) -> list[dict[str, str]]:
        await self._check_workflow(workflow_id)
        return await self._everything.workflow_tasks(workflow_id)

    # -- runs --------------------------------------------------------------------------------

    async def run_workflow(
        self,
        workflow_id: WorkflowId,
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> RunId:
        return await self._everything.run_workflow(
            workflow_id, self._own(once), deadline=deadline, tenant=self._only
        )

    async def submit_workflow(
        self,
        tasks: Sequence[TaskUpload],
        edges: Sequence[tuple[TaskId, TaskId]],
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> tuple[WorkflowId, RunId]:
        return await self._everything.submit_workflow(
            tasks, edges, self._own(once), deadline=deadline, tenant=self._caller.tenant
        )

    async def list_runs(
        self,
        limit: int,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
    ) -> list[dict[str, object]]:
        if before is not None:
            await self._check_run(before)
        return await self._everything.list_runs(
            limit, workflow_id, status, before, tenant=self._only
        )

    async def describe_run(self, run_id: RunId) -> dict[str, object]:
        await self._check_run(run_id)
        return await self._everything.describe_run(run_id)

    async def cancel_run(self, run_id: RunId) -> str:
        await self._check_run(run_id)
        return await self._everything.cancel_run(run_id)

    async def retry_run(self, run_id: RunId, once: Once | None = None) -> RunId:
        return await self._everything.retry_run(run_id, self._own(once), tenant=self._only)

    async def delete_run(self, run_id: RunId) -> None:
        await self._check_run(run_id)
        await self._everything.delete_run(run_id)

    async def delete_runs(self, workflow_id: WorkflowId, limit: int) -> int:
        return await self._everything.delete_runs(workflow_id, limit, tenant=self._only)

    async def follow(
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int, *, logs: bool = False
    ) -> AsyncIterator[list[str] | LogMessages]:
        await self._check_run(run_id)
        async for group in self._everything.follow(run_id, workflow_id, after, logs=logs):
            yield group

    async def task_result(self, run_id: RunId, task_id: TaskId) -> dict[str, object]:
        await self._check_run(run_id)
        return await self._everything.task_result(run_id, task_id)

    async def task_logs(
        self, run_id: RunId, task_id: TaskId, attempt: int | None = None, after: str | None = None
    ) -> dict[str, object]:
        await self._check_run(run_id)
        return await self._everything.task_logs(run_id, task_id, attempt, after)

    async def value_json(self, run_id: RunId, task_id: TaskId, key: str) -> bytes:
        await self._check_run(run_id)
        return await self._everything.value_json(run_id, task_id, key)

    async def value_pickle(self, run_id: RunId, task_id: TaskId, key: str, start: int = 0) -> bytes:
        await self._check_run(run_id)
        return await self._everything.value_pickle(run_id, task_id, key, start)

    # -- LangGraph ---------------------------------------------------------------------------

    async def add_langgraph_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, once: Once | None = None
    ) -> TaskId:
        return await self._everything.add_langgraph_task(
            workflow_id, upload, self._own(once), tenant=self._only
        )

    async def run_langgraph_task(
        self, workflow_id: WorkflowId, task_id: TaskId, args: bytes, kwargs: bytes
    ) -> CallResult:
        await self._check_workflow(workflow_id)
        return await self._everything.run_langgraph_task(workflow_id, task_id, args, kwargs)

    # -- the operator's ----------------------------------------------------------------------

    async def connect_worker(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> None:
        self._caller.check_operator()
        await self._everything.connect_worker(node_id, node_ip, resources)

    async def disconnect_worker(self, node_id: NodeId, *, leaving: bool = False) -> None:
        self._caller.check_operator()
        await self._everything.disconnect_worker(node_id, leaving=leaving)

    async def workers(self) -> list[dict[str, object]]:
        self._caller.check_operator()
        return await self._everything.workers()

    async def head_port(self) -> int:
        self._caller.check_operator()
        return await self._everything.head_port()

    async def ready(self) -> None:
        await self._everything.ready()
