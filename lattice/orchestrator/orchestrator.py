"""The orchestrator: owns workflows and runs, and answers the API.

It puts the parts together and keeps their order: a request is checked, becomes writes, is made durable
by the journal, and only then is answered. What each part does is said in its own module.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

from lattice.errors import (
    CallTimeoutError,
    InvalidRequestError,
    LatticeError,
    OrchestratorNotInitializedError,
    RunNotFoundError,
)
from lattice.ids import NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.orchestrator.catalogue import Catalogue
from lattice.orchestrator.parts import Parts, Surroundings
from lattice.orchestrator.replies import Effect
from lattice.orchestrator.tenants import TenantView
from lattice.ports.execution import Call, CallResult
from lattice.ports.service import Caller, LogMessages, Once, OrchestratorService, TaskUpload
from lattice.ports.store import Write
from lattice.workflow import checks
from lattice.workflow.graph import Workflow
from lattice.workflow.task import Task, TaskKind

_log = logging.getLogger(__name__)


class Orchestrator:
    """Implements `lattice.ports.service.OrchestratorService` in this process.

    With `warm_up`, tasks that run on replicas are got ready when they are saved, unless they say otherwise.
    """

    def __init__(self, around: Surroundings, *, warm_up: bool = False) -> None:
        self._around = around
        self._warm_up = warm_up
        self._lease: int | None = None
        self._started: Parts | None = None
        self._closed = False

    # -- life cycle --------------------------------------------------------------------------

    def initialize(self) -> None:
        """Takes charge of the store: from now on, a former orchestrator's commits are refused."""
        if self._lease is None:
            self._lease = self._around.store.acquire_lease()

    async def start_monitor(self) -> None:
        """Listens to the engine and goes on with every run that had not ended."""
        if self._started is not None:
            return
        await asyncio.to_thread(self.initialize)
        assert self._lease is not None
        self._started = await Parts.start(self._around, self._lease)

    async def close(self) -> None:
        """Stops: what runs is cancelled and will be run again by the next orchestrator."""
        if self._closed:
            return
        self._closed = True
        started, self._started = self._started, None
        try:
            if started is not None:
                await started.close()
            else:
                await self._around.dispatcher.close()
        finally:
            await asyncio.to_thread(self._around.store.close)

    def cleanup(self) -> None:
        """Lets go of the store where `close` could not be awaited. Idempotent."""
        if not self._closed:
            self._closed = True
            self._started = None
            self._around.store.close()

    async def ready(self) -> None:
        """Raises UnavailableError unless requests can be answered and made durable."""
        self._parts.check_health()
        self._parts.journal.check()

    async def check_health(self) -> None:
        """Raises UnavailableError once nothing can be made durable by this orchestrator ever again."""
        self._parts.check_health()

    def for_caller(self, caller: Caller) -> OrchestratorService:
        """The same as `caller` sees it."""
        return TenantView(self, caller)

    async def tenant_of_workflow(self, workflow_id: WorkflowId) -> Tenant | None:
        """Whose a workflow is. Raises WorkflowNotFoundError."""
        return (await self._parts.catalogue.workflow(workflow_id)).tenant

    async def tenant_of_run(self, run_id: RunId) -> Tenant | None:
        """Whose a run is. Raises RunNotFoundError."""
        parts = self._parts
        live = parts.runs.live(run_id)
        if live is not None:
            return live.graph.tenant
        await parts.journal.barrier()
        return (await parts.reading.record(run_id)).tenant

    # -- workflows ---------------------------------------------------------------------------

    async def create_workflow(
        self, once: Once | None = None, *, tenant: Tenant | None = None
    ) -> WorkflowId:
        """A new workflow without tasks, of `tenant`."""
        parts = self._parts

        async def prepare() -> Effect:
            workflow, writes = parts.catalogue.create(tenant)
            return Effect({"workflow_id": workflow.workflow_id}, writes)

        return WorkflowId((await parts.replies.perform(once, prepare))["workflow_id"])

    async def add_task(
        self,
        workflow_id: WorkflowId,
        task_type: str,
        name: str,
        once: Once | None = None,
        *,
        tenant: Tenant | None = None,
    ) -> TaskId:
        """A new task of type `code`, without code yet; with `tenant`, only in one of its own workflows.

        Raises:
            InvalidRequestError: another type.
        """
        if task_type != TaskKind.CODE:
            raise InvalidRequestError(
                "task_type",
                checks.shown(task_type),
                "'code' is allowed; tasks of type 'langgraph' are added by /add_langgraph_task",
            )
        parts = self._parts

        async def prepare() -> Effect:
            workflow = await parts.catalogue.workflow(workflow_id, tenant)
            task_id = TaskId(self._around.ids.new_id())
            writes = parts.catalogue.add_task(workflow, task_id, name, TaskKind.CODE)
            return Effect({"task_id": task_id}, writes)

        return TaskId((await parts.replies.perform(once, prepare))["task_id"])

    async def save_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, *, add_edges: bool
    ) -> None:
        """Saves a task's code, parameters and needs; `add_edges` makes references explicit edges.

        A task that runs on replicas is got ready for its first run where it or the settings say so.
        """
        saved: list[tuple[Task, Tenant | None]] = []

        def change(catalogue: Catalogue, workflow: Workflow) -> list[Write]:
            if workflow.task(upload.task_id).kind is not TaskKind.CODE:
                raise InvalidRequestError(
                    "task_id",
                    f"the langgraph task {upload.task_id}",
                    "only tasks of type 'code' are saved; add a langgraph task anew to change it",
                )
            writes = catalogue.save_task(workflow, upload, add_edges=add_edges)
            saved.append((workflow.task(upload.task_id), workflow.tenant))
            return writes

        await self._edit(workflow_id, change)
        task, tenant = saved[-1]
        warm_up = self._warm_up if task.scaling.warm_up is None else task.scaling.warm_up
        if warm_up and task.code is not None and task.on_replicas:
            await self._prepare(task, tenant)

    async def _prepare(self, task: Task, tenant: Tenant | None) -> None:
        """Begins to make ready what the first attempt of a task would have to wait for."""
        parts = self._parts
        try:
            await parts.refresh_nodes()
            parts.check_placement(task.resources, f"task {task.name!r}")
        except LatticeError as error:
            # The task is saved; that no node can hold it (yet) is for its run to say, in the user's words.
            _log.info("task %s is not warmed up: %s", task.task_id, type(error).__name__)
            return
        self._around.dispatcher.prepare(parts.nodes.define(task, tenant))

    async def add_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None:
        """Adds an explicit edge; one that is there stays."""
        await self._edit(
            workflow_id, lambda catalogue, workflow: catalogue.add_edge(workflow, source, target)
        )

    async def del_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None:
        """Removes an explicit edge; the order that a reference implies stays."""
        await self._edit(
            workflow_id, lambda catalogue, workflow: catalogue.del_edge(workflow, source, target)
        )

    async def del_task(self, workflow_id: WorkflowId, task_id: TaskId) -> None:
        """Removes a task with its explicit edges."""
        await self._edit(
            workflow_id, lambda catalogue, workflow: catalogue.del_task(workflow, task_id)
        )

    async def delete_workflow(self, workflow_id: WorkflowId) -> None:
        """Removes a workflow with its tasks; its runs go on, and stay. Raises WorkflowNotFoundError."""
        await self._edit(workflow_id, lambda catalogue, workflow: catalogue.delete(workflow))

    async def _edit(
        self, workflow_id: WorkflowId, change: Callable[[Catalogue, Workflow], Sequence[Write]]
    ) -> None:
        parts = self._parts
        workflow = await parts.catalogue.workflow(workflow_id)
        parts.journal.check()
        try:
            writes = change(parts.catalogue, workflow)
        except LatticeError:
            # One that was replaced may refuse what is right by now.
            await parts.journal.barrier()
            raise
        await parts.journal.append(writes)

    async def workflow_tasks(self, workflow_id: WorkflowId) -> list[dict[str, str]]:
        """The tasks in the order in which they were added, all values as text."""
        workflow = await self._parts.catalogue.workflow(workflow_id)
        listed = [
            {
                "id": task.task_id,
                "name": task.name,
                "type": task.kind.value,
                "saved": "true" if task.code else "false",
            }
            for task in workflow.tasks
        ]
        await self._parts.journal.barrier()
        return listed

    # -- runs --------------------------------------------------------------------------------

    async def run_workflow(
        self,
        workflow_id: WorkflowId,
        once: Once | None = None,
        *,
        deadline: float | None = None,
        tenant: Tenant | None = None,
    ) -> RunId:
        """Starts a run of the workflow, with `tenant` its own, as it is now; `deadline` is in seconds.

        Raises:
            InvalidRequestError: it cannot run as it is, or no node can hold one of its tasks.
            OverloadedError: too much is under way.
        """
        parts = self._parts

        async def prepare() -> Effect:
            await parts.refresh_nodes()
            workflow = await parts.catalogue.workflow(workflow_id, tenant)
            return parts.starts.of_workflow(workflow, [], deadline)

        return RunId((await parts.replies.perform(once, prepare))["run_id"])

    async def submit_workflow(
        self,
        tasks: Sequence[TaskUpload],
        edges: Sequence[tuple[TaskId, TaskId]],
        once: Once | None = None,
        *,
        deadline: float | None = None,
        tenant: Tenant | None = None,
    ) -> tuple[WorkflowId, RunId]:
        """Makes a whole workflow of `tenant` and starts a run of it, or does nothing."""
        parts = self._parts

        async def prepare() -> Effect:
            await parts.refresh_nodes()
            workflow, writes = parts.catalogue.submit(tasks, edges, tenant)
            effect = parts.starts.of_workflow(workflow, writes, deadline)
            parts.catalogue.count_new(workflow)
            return effect

        reply = await parts.replies.perform(once, prepare)
        return WorkflowId(reply["workflow_id"]), RunId(reply["run_id"])

    async def retry_run(
        self, run_id: RunId, once: Once | None = None, *, tenant: Tenant | None = None
    ) -> RunId:
        """Starts a new run that does what a failed or cancelled one, with `tenant` its own, has left undone; its id.

        Raises:
            RunNotFoundError: there is no such run.
            InvalidRequestError: it has not ended, or has succeeded.
            OverloadedError: too much is under way.
        """
        parts = self._parts

        async def prepare() -> Effect:
            await parts.refresh_nodes()
            await parts.journal.barrier()
            return await parts.starts.again(await parts.reading.record(run_id, tenant))

        # Until the new run is durable, the old one and what it refers to must not go.
        async with parts.housekeeping.lock:
            return RunId((await parts.replies.perform(once, prepare))["run_id"])

    async def delete_run(self, run_id: RunId) -> None:
        """Removes a run that has ended, with its messages and values.

        Raises:
            RunNotFoundError: there is no such run.
            InvalidRequestError: it has not ended.
        """
        await self._parts.housekeeping.delete_run(run_id)

    async def delete_runs(
        self, workflow_id: WorkflowId, limit: int, *, tenant: Tenant | None = None
    ) -> int:
        """Removes up to `limit` runs of a workflow that have ended, with `tenant` its own; how many it were."""
        return await self._parts.housekeeping.delete_runs_of(workflow_id, limit, tenant)

    async def list_runs(
        self,
        limit: int,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
        *,
        tenant: Tenant | None = None,
    ) -> list[dict[str, object]]:
        """Runs, newest first; `before` continues a list after its last run; with `tenant`, only its own."""
        return await self._parts.reading.list_runs(limit, workflow_id, status, before, tenant)

    async def describe_run(self, run_id: RunId) -> dict[str, object]:
        """A run, how far each of its tasks is and what it waits for. Raises RunNotFoundError."""
        return await self._parts.reading.describe_run(run_id)

    async def cancel_run(self, run_id: RunId) -> str:
        """Ends a run; its status, which is as it was for a run that had ended."""
        return await self._parts.cancel(run_id)

    async def follow(
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int, *, logs: bool = False
    ) -> AsyncIterator[list[str] | LogMessages]:
        """Messages of a run after `after`, as JSON texts in groups, until the last.

        With `logs` also what its tasks print: first all that is kept so far, then what is new as it comes.

        Raises:
            RunNotFoundError: there is no such run, or it is of another workflow.
        """
        parts = self._parts
        live = parts.runs.live(run_id)
        if live is None or workflow_id is not None:
            await parts.journal.barrier()
            run = live.graph if live is not None else await parts.reading.record(run_id)
            if workflow_id not in (None, run.workflow_id):
                raise RunNotFoundError(run_id, workflow_id)
        if not logs:
            async for group in parts.feed.follow(run_id, after):
                yield group
            return
        with parts.feed.listening(run_id) as listener:
            async for printed in parts.reading.logs_so_far(run_id):
                new = listener.new(printed)
                if new is not None:
                    yield new
            async for group in parts.feed.follow(run_id, after, listener):
                yield group

    async def task_logs(
        self, run_id: RunId, task_id: TaskId, attempt: int | None = None, after: str | None = None
    ) -> dict[str, object]:
        """A page of what a task has printed: `logs`, and `next`, which as `after` gives the next page.

        Raises:
            RunNotFoundError, TaskNotFoundError: there is no such run, or no such task in it.
            InvalidRequestError: `after` is not what an answer had as `next`.
        """
        return await self._parts.reading.task_logs(run_id, task_id, attempt, after)

    async def task_result(self, run_id: RunId, task_id: TaskId) -> dict[str, object]:
        """The summary of a finished task's outputs. Raises ResultNotFoundError."""
        return await self._parts.reading.task_result(run_id, task_id)

    async def value_json(self, run_id: RunId, task_id: TaskId, key: str) -> bytes:
        """The JSON text of one output. Raises ResultNotFoundError, or InvalidRequestError if it is none."""
        return await self._parts.reading.value_json(run_id, task_id, key)

    async def value_pickle(self, run_id: RunId, task_id: TaskId, key: str, start: int = 0) -> bytes:
        """A part of the pickle of one output, as opaque bytes. Raises ResultNotFoundError."""
        return await self._parts.reading.value_pickle(run_id, task_id, key, start)

    # -- LangGraph ---------------------------------------------------------------------------

    async def add_langgraph_task(
        self,
        workflow_id: WorkflowId,
        upload: TaskUpload,
        once: Once | None = None,
        *,
        tenant: Tenant | None = None,
    ) -> TaskId:
        """A new task that is called by itself, with `tenant` only in one of its own workflows. Returns its id.

        That is the one of the upload. With an idempotency key, it is the id which the first request gave.
        """
        parts = self._parts

        async def prepare() -> Effect:
            workflow = await parts.catalogue.workflow(workflow_id, tenant)
            return Effect(
                {"task_id": upload.task_id},
                parts.catalogue.add_saved_task(workflow, upload, TaskKind.LANGGRAPH),
            )

        return TaskId((await parts.replies.perform(once, prepare))["task_id"])

    async def run_langgraph_task(
        self, workflow_id: WorkflowId, task_id: TaskId, args: bytes, kwargs: bytes
    ) -> CallResult:
        """Calls a LangGraph task with pickled arguments and waits for its result.

        Raises:
            UserCodeError: it raised.
            CallTimeoutError: it did not end within `call_timeout`, waiting for resources included.
            InvalidRequestError: it is not a LangGraph task, or no node can hold it.
        """
        parts = self._parts
        workflow = await parts.catalogue.workflow(workflow_id)
        await parts.journal.barrier()
        task = workflow.task(task_id)
        if task.kind is not TaskKind.LANGGRAPH or task.code is None:
            raise InvalidRequestError(
                "task_id",
                f"the task {task_id} of type {task.kind.value!r}",
                "a task of type 'langgraph' is allowed; others run by /run_workflow",
            )
        await parts.refresh_nodes()
        parts.check_placement(task.resources, f"task {task.name!r}")
        call = Call(task.name, parts.nodes.define(task, workflow.tenant), args, kwargs)
        try:
            async with (
                asyncio.timeout(self._around.limits.call_timeout),
                parts.quotas.place(workflow.tenant),
            ):
                return await self._around.dispatcher.call(call)
        except TimeoutError:
            raise CallTimeoutError(self._around.limits.call_timeout) from None

    # -- workers -----------------------------------------------------------------------------

    async def connect_worker(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> None:
        """Registers a node, which may be one that the engine does not have yet."""
        parts = self._parts
        await parts.refresh_nodes(fresh=0.0)
        parts.journal.check()
        await parts.journal.append(parts.nodes.connect(node_id, node_ip, resources))
        parts.exclude_nodes()

    async def disconnect_worker(self, node_id: NodeId, *, leaving: bool = False) -> None:
        """Places nothing new on a node, which is forgotten once it is gone if it is `leaving`, and takes back what
        waits there. Raises WorkerNotFoundError."""
        parts = self._parts
        await parts.refresh_nodes(fresh=0.0)
        parts.journal.check()
        await parts.journal.append([parts.nodes.disconnect(node_id, leaving=leaving)])
        parts.exclude_nodes()

    async def workers(self) -> list[dict[str, object]]:
        """Registered nodes and their status, and the engine's nodes that nobody registered."""
        parts = self._parts
        await parts.refresh_nodes(fresh=0.0)
        described = parts.nodes.describe(parts.running())
        await parts.journal.barrier()
        return described

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""
        return await self._around.dispatcher.head_port()

    # -- parts -------------------------------------------------------------------------------

    @property
    def _parts(self) -> Parts:
        if self._started is None:
            raise OrchestratorNotInitializedError
        return self._started
