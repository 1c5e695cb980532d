"""The orchestrator: owns workflows and runs, and answers the API.

It puts the parts together and keeps their order: a request is checked, becomes writes, is made durable
by the journal, and only then is answered. What each part does is said in its own module.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass

from lattice.errors import (
    CallTimeoutError,
    InvalidRequestError,
    LatticeError,
    OrchestratorNotInitializedError,
    RunNotFoundError,
)
from lattice.ids import Digest, NodeId, RunId, TaskId, WorkflowId
from lattice.orchestrator.catalogue import Catalogue
from lattice.orchestrator.feed import Feed
from lattice.orchestrator.housekeeping import Housekeeping
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.logs import TaskLogs
from lattice.orchestrator.nodes import NodeRegistry
from lattice.orchestrator.observer import Observer
from lattice.orchestrator.policies import Defaults, Limits, Retention
from lattice.orchestrator.reading import Reading
from lattice.orchestrator.recovery import Graphs, rebuild_each
from lattice.orchestrator.replies import Effect, Replies
from lattice.orchestrator.runs import Runs
from lattice.orchestrator.starts import Starts
from lattice.ports.environment import Clock, Gauges, IdSource, Telemetry
from lattice.ports.execution import Call, CallResult, Dispatcher
from lattice.ports.service import LogMessages, Once, TaskUpload
from lattice.ports.store import Store, ValueStorage, Write
from lattice.ports.tracing import Traces
from lattice.workflow import checks
from lattice.workflow.graph import Workflow
from lattice.workflow.placement import check as check_placement
from lattice.workflow.task import Resources, Task, TaskKind

_log = logging.getLogger(__name__)

#: The list of the engine's nodes is asked for again after this many seconds.
_NODES_FRESH = 1.0

#: Runs that are rebuilt in one go of a thread, which is slow to get its turn on a busy machine.
_REBUILT = 100


@dataclass(frozen=True, slots=True)
class _Parts:
    """What exists between `start_monitor` and `close`."""

    journal: Journal
    feed: Feed
    nodes: NodeRegistry
    catalogue: Catalogue
    replies: Replies
    runs: Runs
    reading: Reading
    starts: Starts
    housekeeping: Housekeeping


class Orchestrator:
    """Implements `lattice.ports.service.OrchestratorService` in this process.

    Without `retention` nothing is removed but on request, and nothing of what is left of that.
    """

    def __init__(
        self,
        store: Store,
        storage: ValueStorage,
        dispatcher: Dispatcher,
        clock: Clock,
        ids: IdSource,
        telemetry: Telemetry,
        limits: Limits,
        defaults: Defaults | None = None,
        retention: Retention | None = None,
        *,
        traces: Traces | None = None,
        warm_up: bool = False,
    ) -> None:
        self._defaults = defaults or Defaults()
        self._retention = retention
        self._store = store
        self._storage = storage
        self._dispatcher = dispatcher
        self._clock = clock
        self._ids = ids
        self._telemetry = telemetry
        self._traces = traces
        self._limits = limits
        self._warm_up = warm_up
        self._lease: int | None = None
        self._started: _Parts | None = None
        self._closed = False
        self._nodes_at = float("-inf")

    # -- life cycle --------------------------------------------------------------------------

    def initialize(self) -> None:
        """Takes charge of the store: from now on, a former orchestrator's commits are refused."""
        if self._lease is None:
            self._lease = self._store.acquire_lease()

    async def start_monitor(self) -> None:
        """Listens to the engine and goes on with every run that had not ended."""
        if self._started is not None:
            return
        self.initialize()
        assert self._lease is not None
        nodes = NodeRegistry(await asyncio.to_thread(self._store.load_nodes))
        feed = Feed(self._store)

        def fail(error: LatticeError) -> None:
            runs.stop()
            feed.fail(error)

        journal = Journal(self._store, self._lease, self._clock, self._telemetry, fail)
        logs = TaskLogs(journal, feed, self._clock, self._limits.max_log_bytes)
        runs = Runs(
            journal,
            feed,
            logs,
            self._dispatcher,
            nodes,
            self._clock,
            Observer(self._telemetry, self._traces),
            self._limits,
        )
        try:
            await self._dispatcher.start(runs.report, self._load_code)
            nodes.refresh(await self._dispatcher.nodes())
            await self._resume(runs)
        except BaseException:
            # What was begun must not go on beside a second attempt to start, or after `close`.
            runs.stop()
            await journal.close()
            raise
        self._started = _Parts(
            journal,
            feed,
            nodes,
            Catalogue(
                self._store,
                journal,
                self._clock,
                self._ids,
                self._limits.max_tasks_per_workflow,
                self._defaults,
            ),
            Replies(self._store, journal, self._clock),
            runs,
            Reading(
                self._store,
                self._storage,
                self._dispatcher,
                journal,
                runs,
                logs,
                self._clock,
                self._limits.max_result_bytes,
            ),
            Starts(
                self._store,
                runs,
                self._clock,
                self._ids,
                self._check_placement,
                self._defaults.deadline,
                self._traces,
            ),
            Housekeeping(
                self._store, self._storage, journal, self._clock, self._retention or Retention()
            ),
        )
        if self._retention is not None:
            self._started.housekeeping.start()
        self._telemetry.watch(functools.partial(self._gauges, journal, feed, runs))

    def _gauges(self, journal: Journal, feed: Feed, runs: Runs) -> Gauges:
        active, tasks = runs.active
        load = self._dispatcher.load()
        return Gauges(
            runs=active,
            tasks=tasks,
            waiting=load.waiting,
            engaged=load.engaged,
            replicas=load.replicas,
            definitions=load.definitions,
            streams=feed.followers,
            available=journal.failure is None and journal.outage is None,
        )

    async def _resume(self, runs: Runs) -> None:
        records = await asyncio.to_thread(self._store.unfinished_runs)
        graphs = Graphs(self._store)
        for start in range(0, len(records), _REBUILT):
            some = records[start : start + _REBUILT]
            for record, run in await asyncio.to_thread(rebuild_each, self._store, some, graphs):
                runs.resume(run, record.created, record.trace)
        if records:
            _log.info("went on with %d unfinished runs", len(records))

    async def close(self) -> None:
        """Stops: what runs is cancelled and will be run again by the next orchestrator."""
        if self._closed:
            return
        self._closed = True
        started, self._started = self._started, None
        try:
            if started is not None:
                # Before the dispatcher closes, as a timer would hand it one more job.
                started.runs.stop()
            await self._dispatcher.close()
            if started is not None:
                await started.housekeeping.close()
                await started.journal.close()
        finally:
            await asyncio.to_thread(self._store.close)

    def cleanup(self) -> None:
        """Lets go of the store where `close` could not be awaited. Idempotent."""
        if not self._closed:
            self._closed = True
            self._started = None
            self._store.close()

    async def ready(self) -> None:
        """Raises UnavailableError unless requests can be answered and made durable."""
        await self.check_health()
        self._parts.journal.check()

    async def check_health(self) -> None:
        """Raises UnavailableError once nothing can be made durable by this orchestrator ever again."""
        journal = self._parts.journal
        if journal.failure is not None:
            raise journal.failure.with_traceback(None)
        if journal.outage is None:
            # Looks at the lease, so that one that was replaced learns of it although nobody asks it for
            # anything. Not awaited: a database that is slow for a while is no reason to be replaced.
            journal.append(())

    # -- workflows ---------------------------------------------------------------------------

    async def create_workflow(self, once: Once | None = None) -> WorkflowId:
        """A new workflow without tasks."""
        parts = self._parts

        async def prepare() -> Effect:
            workflow, writes = parts.catalogue.create()
            return Effect({"workflow_id": workflow.workflow_id}, writes)

        return WorkflowId((await parts.replies.perform(once, prepare))["workflow_id"])

    async def add_task(
        self, workflow_id: WorkflowId, task_type: str, name: str, once: Once | None = None
    ) -> TaskId:
        """A new task of type `code`, without code yet.

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
            workflow = await parts.catalogue.workflow(workflow_id)
            task_id = TaskId(self._ids.new_id())
            writes = parts.catalogue.add_task(workflow, task_id, name, TaskKind.CODE)
            return Effect({"task_id": task_id}, writes)

        return TaskId((await parts.replies.perform(once, prepare))["task_id"])

    async def save_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, *, add_edges: bool
    ) -> None:
        """Saves a task's code, parameters and needs; `add_edges` makes references explicit edges.

        A task that runs on replicas is got ready for its first run where it or the settings say so.
        """
        saved: list[Task] = []

        def change(catalogue: Catalogue, workflow: Workflow) -> list[Write]:
            if workflow.task(upload.task_id).kind is not TaskKind.CODE:
                raise InvalidRequestError(
                    "task_id",
                    f"the langgraph task {upload.task_id}",
                    "only tasks of type 'code' are saved; add a langgraph task anew to change it",
                )
            writes = catalogue.save_task(workflow, upload, add_edges=add_edges)
            saved.append(workflow.task(upload.task_id))
            return writes

        await self._edit(workflow_id, change)
        task = saved[-1]
        warm_up = self._warm_up if task.scaling.warm_up is None else task.scaling.warm_up
        if warm_up and task.code is not None and task.on_replicas:
            await self._prepare(task)

    async def _prepare(self, task: Task) -> None:
        """Begins to make ready what the first attempt of a task would have to wait for."""
        try:
            await self._refresh_nodes()
            self._check_placement(task.resources, f"task {task.name!r}")
        except LatticeError as error:
            # The task is saved; that no node can hold it (yet) is for its run to say.
            _log.info("task %s is not warmed up: %s", task.task_id, error)
            return
        self._dispatcher.prepare(self._parts.nodes.define(task))

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

    async def _edit(
        self, workflow_id: WorkflowId, change: Callable[[Catalogue, Workflow], list[Write]]
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
    ) -> RunId:
        """Starts a run of the workflow as it is now; it fails unless it ends within `deadline` seconds.

        Raises:
            InvalidRequestError: it cannot run as it is, or no node can hold one of its tasks.
            OverloadedError: too much is under way.
        """
        parts = self._parts

        async def prepare() -> Effect:
            await self._refresh_nodes()
            workflow = await parts.catalogue.workflow(workflow_id)
            return parts.starts.of_workflow(workflow, [], deadline)

        return RunId((await parts.replies.perform(once, prepare))["run_id"])

    async def submit_workflow(
        self,
        tasks: Sequence[TaskUpload],
        edges: Sequence[tuple[TaskId, TaskId]],
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> tuple[WorkflowId, RunId]:
        """Makes a whole workflow and starts a run of it, or does nothing."""
        parts = self._parts

        async def prepare() -> Effect:
            await self._refresh_nodes()
            workflow, writes = parts.catalogue.submit(tasks, edges)
            effect = parts.starts.of_workflow(workflow, writes, deadline)
            parts.catalogue.keep(workflow)
            return effect

        reply = await parts.replies.perform(once, prepare)
        return WorkflowId(reply["workflow_id"]), RunId(reply["run_id"])

    async def retry_run(self, run_id: RunId, once: Once | None = None) -> RunId:
        """Starts a new run that does what a failed or cancelled one has left undone; its id.

        Raises:
            RunNotFoundError: there is no such run.
            InvalidRequestError: it has not ended, or has succeeded.
            OverloadedError: too much is under way.
        """
        parts = self._parts

        async def prepare() -> Effect:
            await self._refresh_nodes()
            await parts.journal.barrier()
            return await parts.starts.again(await parts.reading.record(run_id))

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

    async def delete_runs(self, workflow_id: WorkflowId, limit: int) -> int:
        """Removes up to `limit` runs of a workflow that have ended; how many it were."""
        return await self._parts.housekeeping.delete_runs_of(workflow_id, limit)

    async def list_runs(
        self,
        limit: int,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
    ) -> list[dict[str, object]]:
        """Runs, newest first; `before` continues a list after its last run."""
        return await self._parts.reading.list_runs(limit, workflow_id, status, before)

    async def describe_run(self, run_id: RunId) -> dict[str, object]:
        """A run, how far each of its tasks is and what it waits for. Raises RunNotFoundError."""
        return await self._parts.reading.describe_run(run_id)

    async def cancel_run(self, run_id: RunId) -> str:
        """Ends a run; its status, which is as it was for a run that had ended."""
        parts = self._parts
        await parts.journal.barrier()
        await parts.reading.record(run_id)
        parts.runs.cancel(run_id)
        await parts.journal.barrier()
        return (await parts.reading.record(run_id)).status

    async def follow(
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int, *, logs: bool = False
    ) -> AsyncIterator[list[str] | LogMessages]:
        """Messages of a run after `after`, as JSON texts in groups, until the last.

        With `logs` also what its tasks print: first all that is kept so far, then what is new as it comes.

        Raises:
            RunNotFoundError: there is no such run, or it is of another workflow.
        """
        parts = self._parts
        if parts.runs.live(run_id) is None or workflow_id is not None:
            await parts.journal.barrier()
            record = await parts.reading.record(run_id)
            if workflow_id not in (None, record.workflow_id):
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
        self, workflow_id: WorkflowId, upload: TaskUpload, once: Once | None = None
    ) -> TaskId:
        """A new task that is called by itself; the id is that of the upload. Returns the task's id.

        With an idempotency key, that is the id which the first request gave.
        """
        parts = self._parts

        async def prepare() -> Effect:
            workflow = await parts.catalogue.workflow(workflow_id)
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
        await self._refresh_nodes()
        self._check_placement(task.resources, f"task {task.name!r}")
        call = Call(task.name, parts.nodes.define(task), args, kwargs)
        try:
            async with asyncio.timeout(self._limits.call_timeout):
                return await self._dispatcher.call(call)
        except TimeoutError:
            raise CallTimeoutError(self._limits.call_timeout) from None

    # -- workers -----------------------------------------------------------------------------

    async def connect_worker(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> None:
        """Registers a node, which may be one that the engine does not have yet."""
        parts = self._parts
        parts.nodes.refresh(await self._dispatcher.nodes())
        parts.journal.check()
        await parts.journal.append([parts.nodes.connect(node_id, node_ip, resources)])

    async def disconnect_worker(self, node_id: NodeId) -> None:
        """Places nothing new on a node. Raises WorkerNotFoundError."""
        parts = self._parts
        parts.nodes.refresh(await self._dispatcher.nodes())
        parts.journal.check()
        await parts.journal.append([parts.nodes.disconnect(node_id)])

    async def workers(self) -> list[dict[str, object]]:
        """Registered nodes and their status, and the engine's nodes that nobody registered."""
        parts = self._parts
        parts.nodes.refresh(await self._dispatcher.nodes())
        described = parts.nodes.describe()
        await parts.journal.barrier()
        return described

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""
        return await self._dispatcher.head_port()

    # -- parts -------------------------------------------------------------------------------

    @property
    def _parts(self) -> _Parts:
        if self._started is None:
            raise OrchestratorNotInitializedError
        return self._started

    async def _refresh_nodes(self) -> None:
        """Asks for the engine's nodes, unless that was done a moment ago."""
        if abs(self._clock.now() - self._nodes_at) >= _NODES_FRESH:
            self._parts.nodes.refresh(await self._dispatcher.nodes())
            self._nodes_at = self._clock.now()

    def _check_placement(self, resources: Resources, where: str) -> None:
        nodes = self._parts.nodes
        check_placement(resources, where, nodes.capacities(), nodes.gpu_memories)

    def _load_code(self, digest: Digest) -> bytes:
        data = self._store.load_blob(digest)
        if data is None:
            raise LatticeError(f"the code {digest} is missing from the store")
        return data
