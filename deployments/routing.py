"""Which jobs go to replicas and which run as Ray tasks, behind one Dispatcher.

What is batched, needs a GPU or is a class goes to replicas: it gains by company or is costly to start. All
else runs as Ray tasks, which occupy exactly what they ask for and leave nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from ray import serve

from deployments.replicas.dispatcher import CANCEL_GRACE, ReplicaDispatcher
from deployments.replicas.fleet import Fleet
from deployments.replicas.identity import Bounds
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ids import NodeId, RunId, TaskId, Tenant
from lattice.ports.execution import (
    Ahead,
    Call,
    CallResult,
    Definition,
    Dispatcher,
    EngineNode,
    Job,
    Load,
    LoadCode,
    Report,
)
from lattice.settings import LatticeSettings
from lattice.workflow.events import Value
from lattice.workflow.task import has_replicas


class RoutingDispatcher:
    """Implements `lattice.ports.execution.Dispatcher` by two others.

    `everything`: all jobs go to replicas, for tests.
    """

    def __init__(
        self, tasks: RayTaskDispatcher, replicas: ReplicaDispatcher, *, everything: bool = False
    ) -> None:
        self._tasks = tasks
        self._replicas = replicas
        self._everything = everything
        self._closed = False

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: LoadCode,
        ahead: Ahead,
    ) -> None:
        """Gets ready. Only tasks that do not go to replicas are run ahead of their time."""
        await self._tasks.start(report, load_code, ahead)
        await self._replicas.start(report, load_code, self._tasks.starts)

    def load(self) -> Load:
        """What both have to do. May be called from any thread."""
        one, other = self._tasks.load(), self._replicas.load()
        return Load(
            one.waiting + other.waiting,
            one.engaged + other.engaged,
            other.replicas,
            other.definitions,
            one.calls,
        )

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""
        self._of(job.definition).submit(job)

    def _of(self, definition: Definition) -> Dispatcher | ReplicaDispatcher:
        replicated = has_replicas(definition.batch, definition.resources, definition.code)
        return self._replicas if replicated or self._everything else self._tasks

    def prepare(self, definition: Definition) -> None:
        """Gets ready what the first job of a definition would have to wait for; returns at once."""
        self._of(definition).prepare(definition)

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> dict[TaskId, str]:
        """What those of a run's attempts wait for that have been submitted and not begun, for people."""
        tasks, replicas = await asyncio.gather(
            self._tasks.waiting(run_id, attempts), self._replicas.waiting(run_id, attempts)
        )
        return {**tasks, **replicas}

    def exclude(self, nodes: frozenset[NodeId]) -> None:
        """From now on, what has not begun may run on all nodes but these."""
        self._replicas.exclude(nodes)
        self._tasks.exclude(nodes)

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""
        self._replicas.cancel(run_id, task_id, attempt)
        self._tasks.cancel(run_id, task_id, attempt)

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Drops what is held in memory of a task's output values."""
        self._replicas.release(run_id, task_id)
        self._tasks.release(run_id, task_id)

    async def call(self, call: Call) -> CallResult:
        """Runs a call to its end, as a Ray task."""
        return await self._tasks.call(call)

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """The JSON text of a stored value, made in a process that runs user code."""
        return await self._tasks.render(value, limit, tenant)

    async def nodes(self) -> list[EngineNode]:
        """The live nodes."""
        return await self._tasks.nodes()

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""
        return await self._tasks.head_port()

    def pause(self, paused: bool) -> None:
        """Hands over nothing more until it is told otherwise; what runs goes on."""
        self._tasks.pause(paused)
        self._replicas.pause(paused)

    async def close(self) -> None:
        """Cancels what runs and lets go of the engine."""
        if self._closed:
            return
        self._closed = True
        await asyncio.gather(self._replicas.close(), self._tasks.close())


def new_dispatcher(settings: LatticeSettings, tasks: RayTaskDispatcher) -> Dispatcher:
    """The dispatcher of a service on Serve, which runs on `tasks` what does not go to replicas."""
    fleet = Fleet(
        settings.resolved_storage_url,
        scope=settings.resolved_store_url,
        owner=serve.get_replica_context().app_name,
        bounds=Bounds(settings.max_replicas, settings.replica_downscale_seconds),
        max_applications=settings.max_replica_applications,
        idle_seconds=settings.replica_idle_seconds,
        grace=CANCEL_GRACE,
        secrets=tasks.secrets,
        log_format=settings.log_format,
    )
    replicas = ReplicaDispatcher(
        fleet,
        settings.resolved_storage_url,
        settings.inline_value_bytes,
        max_log_bytes=settings.max_log_bytes,
        span_export=tasks.span_export,
        held=tasks.held,
    )
    return RoutingDispatcher(tasks, replicas)
