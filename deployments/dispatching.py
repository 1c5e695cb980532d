"""Which jobs go to replicas and which run as Ray tasks, behind one Dispatcher.

What is batched, needs a GPU or is a class goes to replicas: it gains by company or is costly to start. All
else runs as Ray tasks, which occupy exactly what they ask for and leave nothing behind. Whether source
ends in a class is read from its syntax, without executing anything. A pickle is opaque here, so that a
pickled class without batches or GPUs stays with the Ray tasks, where each worker process constructs it once.
"""

from __future__ import annotations

import ast
import asyncio
import functools
from collections import OrderedDict
from collections.abc import Callable

from deployments.applications import Scaling
from deployments.replicas import ReplicaDispatcher
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ids import Digest, RunId, TaskId
from lattice.ports import Call, CallResult, Dispatcher, EngineNode, Job, Report
from lattice.settings import LatticeSettings
from lattice.workflow.events import Value
from lattice.workflow.task import Code, CodeForm

#: Source longer than this is not looked at, as a parsed text takes much memory; it runs as Ray tasks.
_MAX_SOURCE = 1024 * 1024
#: Codes of which it is remembered whether they are classes.
_MAX_KNOWN = 10_000

Key = tuple[RunId, TaskId, int]


def is_class(source: bytes, name: str) -> bool:
    """Whether the object that a worker would pick out of `source` for the task `name` is a class."""
    if len(source) > _MAX_SOURCE:
        return False
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # the worker says what is wrong with it
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    definitions = [node for node in body if isinstance(node, kinds)]
    named = [node for node in definitions if node.name == name]
    if not definitions:
        return False
    return isinstance((named or definitions)[-1], ast.ClassDef)


class RoutingDispatcher:
    """Implements `lattice.ports.Dispatcher` by two others.

    `everything`: all jobs go to replicas, for tests.
    """

    def __init__(
        self, tasks: Dispatcher, replicas: ReplicaDispatcher, *, everything: bool = False
    ) -> None:
        self._tasks = tasks
        self._replicas = replicas
        self._everything = everything
        self._classes: OrderedDict[Code, bool] = OrderedDict()
        self._looking: dict[Code, asyncio.Task[bool]] = {}
        self._undecided: dict[Key, Job] = {}
        self._closed = False

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: Callable[[Digest], bytes],
    ) -> None:
        """Gets ready. `report` is called on the loop; `load_code` blocks and is called in a thread."""
        self._load_code = load_code
        await self._tasks.start(report, load_code)
        await self._replicas.start(report, load_code)

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""
        if self._everything or job.batched or job.gpus > 0:
            self._replicas.submit(job)
        elif job.code.form is not CodeForm.SOURCE:
            self._tasks.submit(job)
        elif job.code in self._classes:
            self._classes.move_to_end(job.code)
            self._pass_on(job, self._classes[job.code])
        elif not self._closed:
            self._undecided[job.run_id, job.task_id, job.attempt] = job
            if job.code not in self._looking:
                self._looking[job.code] = asyncio.ensure_future(self._look(job.code))
            looking = self._looking[job.code]
            looking.add_done_callback(functools.partial(self._decided, job))

    async def _look(self, code: Code) -> bool:
        def look() -> bool:
            return is_class(self._load_code(code.digest), code.name)

        try:
            found = await asyncio.to_thread(look)
            self._classes[code] = found
            if len(self._classes) > _MAX_KNOWN:
                self._classes.popitem(last=False)
        except Exception:
            # The code is not to be had; who runs the job finds that too, and reports it.
            return False
        finally:
            del self._looking[code]
        return found

    def _decided(self, job: Job, looking: asyncio.Task[bool]) -> None:
        key = (job.run_id, job.task_id, job.attempt)
        if not looking.cancelled() and self._undecided.pop(key, None) is not None:
            self._pass_on(job, looking.result())

    def _pass_on(self, job: Job, to_replicas: bool) -> None:
        if to_replicas:
            self._replicas.submit(job)
        else:
            self._tasks.submit(job)

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""
        self._undecided.pop((run_id, task_id, attempt), None)
        self._replicas.cancel(run_id, task_id, attempt)
        self._tasks.cancel(run_id, task_id, attempt)

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Drops what is held in memory of a task's output values."""
        self._replicas.release(run_id, task_id)
        self._tasks.release(run_id, task_id)

    async def call(self, call: Call) -> CallResult:
        """Runs a call to its end, as a Ray task."""
        return await self._tasks.call(call)

    async def render(self, value: Value, limit: int) -> bytes:
        """The JSON text of a stored value, made in a process that runs user code."""
        return await self._tasks.render(value, limit)

    async def nodes(self) -> list[EngineNode]:
        """The live nodes."""
        return await self._tasks.nodes()

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""
        return await self._tasks.head_port()

    async def close(self) -> None:
        """Cancels what runs and lets go of the engine."""
        if self._closed:
            return
        self._closed = True
        looking = [*self._looking.values()]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)
        await asyncio.gather(self._replicas.close(), self._tasks.close())


def new_dispatcher(settings: LatticeSettings, tasks: RayTaskDispatcher) -> Dispatcher:
    """The dispatcher of a service on Serve, which runs on `tasks` what does not go to replicas."""
    replicas = ReplicaDispatcher(
        settings.resolved_storage_url,
        settings.inline_value_bytes,
        scope=settings.resolved_store_url,
        scaling=Scaling(settings.max_replicas, settings.replica_downscale_seconds),
        max_applications=settings.max_replica_applications,
        idle_seconds=settings.replica_idle_seconds,
    )
    return RoutingDispatcher(tasks, replicas)
