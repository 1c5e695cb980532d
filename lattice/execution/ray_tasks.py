"""The Dispatcher over plain Ray tasks: one Ray task for each attempt.

A task has two returns. The first, its report, is a small frame that is awaited here. The second holds its
large outputs; only the reference is here, and goes to the tasks that want them, so that large values move
from worker to worker. Should they be lost, or this process be a new one, workers read them from the
storage, where they are too. Nothing of a user is unpickled in this process.

Jobs wait in a fair queue and are submitted in slices: Ray takes about a tenth of a millisecond for each,
on the event loop. Only so many are with Ray at a time (`pacing`), because Ray serves them as they came.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ObjectLostError

from lattice.errors import InvalidRequestError, TooLargeError, UnavailableError, UserCodeError
from lattice.execution import attempt, ray_cluster, ray_worker, wire
from lattice.execution.attempt import Assignment, Large
from lattice.execution.fair_queue import FairQueue
from lattice.execution.held_values import HeldValues
from lattice.execution.pacing import Pacing
from lattice.execution.ray_failures import explain, is_lost
from lattice.execution.ray_remote import CodeSource, CodeSources, RemoteFunctions
from lattice.execution.ray_starts import StartListener
from lattice.execution.shape import Shape, env_of
from lattice.execution.shortage import shortage
from lattice.ids import Digest, RunId, TaskId, Tenant
from lattice.ports.execution import (
    Call,
    CallResult,
    Definition,
    EngineNode,
    Job,
    Load,
    Report,
    TaskLogged,
)
from lattice.ports.tracing import SpanExport
from lattice.workflow.events import (
    ErrorInfo,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)

#: Jobs submitted before other work of the event loop has its turn.
_SLICE = 50
#: Seconds between looks at what the cluster has, while jobs wait.
_NODES_PERIOD = 2.0
#: Seconds that closing waits for cancelled tasks to end.
_CLOSE_WAIT = 5.0
#: Values rendered at once. Rendering asks for no CPU, so that it does not wait behind tasks.
_RENDERERS = 4
_RENDER_SHAPE = Shape(cpus=0, memory=0, gpus=0, runtime_env="", excluded=frozenset())

Frame = ray.ObjectRef[bytes]

_logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Attempt:
    """A job on its way.

    Attributes:
        code: its code, or a reference to it, kept until it has ended.
        report: the reference to its report, once Ray has it.
        large: the reference to its large outputs.
        sources: tasks whose large outputs it was given by reference.
        started: its start was reported.
        cancelled: it owes no report any more.
        force: the timer that ends it the hard way.
    """

    job: Job
    shape: Shape
    code: CodeSource | None = None
    report: Frame | None = None
    large: ray.ObjectRef[Large | None] | None = None
    sources: tuple[TaskId, ...] = ()
    started: bool = False
    cancelled: bool = False
    force: asyncio.TimerHandle | None = None


class RayTaskDispatcher:
    """Runs attempts as Ray tasks. Ray is initialised in this process.

    Args:
        storage_url: where large values are stored, an fsspec URL that all nodes can reach.
        inline_value_bytes: a pickled value up to this size travels inside the report.
        max_result_bytes: largest pickled result of a call.
        max_log_bytes: what is kept of what an attempt prints.
        span_export: where the spans of traced attempts go.
        max_in_flight: most tasks of the same shape that Ray has at a time.
        cancel_grace: seconds that a cancelled task has to end before its process is killed.
        held: where references to large outputs are kept; other dispatchers may share it.
    """

    def __init__(
        self,
        storage_url: str,
        inline_value_bytes: int,
        *,
        max_result_bytes: int = 16 * 1024 * 1024,
        max_log_bytes: int = 64 * 1024,
        span_export: SpanExport | None = None,
        max_in_flight: int = 1000,
        cancel_grace: float = 2.0,
        held: HeldValues[ray.ObjectRef[Large | None]] | None = None,
    ) -> None:
        self._storage_url = storage_url
        self._inline_value_bytes = inline_value_bytes
        self._max_result_bytes = max_result_bytes
        self._max_log_bytes = max_log_bytes
        self.span_export = span_export
        self._cancel_grace = cancel_grace
        self._attempts: dict[tuple[RunId, TaskId, int], _Attempt] = {}
        self._pacing = Pacing(max_in_flight)
        self._queue: FairQueue[Shape, _Attempt] = FairQueue(self._pacing.limit)
        self._in_flight: dict[_Attempt, asyncio.Future[bytes]] = {}
        self._calls: set[Frame] = set()
        self.held = held if held is not None else HeldValues()
        self._pump_due = False
        self._closed = False
        self._node_watch: asyncio.Future[None] | None = None
        self._renderers = asyncio.Semaphore(_RENDERERS)
        self._run_attempt = RemoteFunctions(ray_worker.run_attempt, returns=2)
        self._run_function = RemoteFunctions(ray_worker.run_function, returns=1)
        self._render = RemoteFunctions(ray_worker.render, returns=1)

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: Callable[[Digest], bytes],
    ) -> None:
        """Gets ready. `report` is called on the loop; `load_code` blocks and is called in a thread."""
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._codes = CodeSources(load_code)
        self.starts = StartListener(self._heard_start, report)
        await self.nodes()
        self._node_watch = asyncio.ensure_future(self._watch_nodes())

    # -- attempts ------------------------------------------------------------------------------

    def load(self) -> Load:
        """Attempts that wait here and those that Ray has. May be called from any thread."""
        engaged = len(self._in_flight)
        return Load(waiting=max(0, len(self._attempts) - engaged), engaged=engaged)

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""
        key = (job.run_id, job.task_id, job.attempt)
        if self._closed or key in self._attempts:
            return
        taken = _Attempt(job, Shape.of(job.definition))
        self._attempts[key] = taken
        taken.code = self._codes.get(job.definition.code.digest)
        if taken.code is not None:
            self._enqueue(taken)
        else:
            loading = self._codes.load(job.definition.code.digest)
            loading.add_done_callback(functools.partial(self._code_loaded, taken))

    def _code_loaded(self, taken: _Attempt, loading: asyncio.Task[CodeSource]) -> None:
        if taken.cancelled or loading.cancelled():
            return
        error = loading.exception()
        if error is not None:
            info = ErrorInfo(type(error).__qualname__, f"the task's code is not to be had: {error}")
            self._end(taken, TaskLost(taken.job.task_id, taken.job.attempt, time.time(), info))
            return
        taken.code = loading.result()
        self._enqueue(taken)

    def _enqueue(self, taken: _Attempt) -> None:
        self._queue.put(taken.shape, taken.job.run_id, taken)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pump_due and self._queue.has_next and not self._closed:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        for _ in range(_SLICE):
            taken = None if self._closed else self._queue.take()
            if taken is None:
                return
            self._begin(taken)
        self._pump_soon()

    def _begin(self, taken: _Attempt) -> None:
        """Gives an attempt to Ray."""
        job = taken.job
        try:
            assignment, upstream = self._assign(taken)
            function = self._run_attempt.of(taken.shape)
            taken.report, taken.large = function.remote(
                attempt.encode(assignment), [taken.code], *upstream
            )
        except Exception as error:  # Ray refuses the options, such as a malformed runtime_env
            self._queue.done(taken.shape)
            self._end(taken, TaskFailed(job.task_id, job.attempt, time.time(), explain(error)))
            return
        future = _future(taken.report)
        self._in_flight[taken] = future
        future.add_done_callback(functools.partial(self._landed, taken))

    def _assign(self, taken: _Attempt) -> tuple[Assignment, list[ray.ObjectRef[Large | None]]]:
        """What the worker is told, and the references that come along."""
        job = taken.job
        upstream, positions = self.held.upstream(job.run_id, job.arguments)
        taken.sources = tuple(upstream)
        assignment = Assignment.of(
            job,
            positions,
            storage_url=self._storage_url,
            inline_value_bytes=self._inline_value_bytes,
            mailbox=self.starts.mailbox,
            log_bytes=self._max_log_bytes,
            span_export=self.span_export,
        )
        return assignment, [*upstream.values()]

    def _landed(self, taken: _Attempt, future: asyncio.Future[bytes]) -> None:
        """Ray is done with an attempt."""
        del self._in_flight[taken]
        self._queue.done(taken.shape)
        if taken.force is not None:
            taken.force.cancel()
        error = None if future.cancelled() else future.exception()
        if error is not None and taken.large is not None and not self._closed:
            # The other return holds the same error, which Ray logs if nobody has looked at it.
            _future(taken.large).add_done_callback(
                lambda large: large.cancelled() or large.exception()
            )
        if not taken.cancelled and not self._closed:
            if isinstance(error, ObjectLostError) and taken.sources:
                self._try_from_storage(taken)
            else:
                self._end(taken, self._end_of(taken, future))
        self._pump_soon()

    def _try_from_storage(self, taken: _Attempt) -> None:
        """A large input is gone from the object store: once more, without references."""
        for source in taken.sources:
            self.held.drop(taken.job.run_id, source)
        self._enqueue(taken)

    def _end_of(
        self, taken: _Attempt, future: asyncio.Future[bytes]
    ) -> TaskSucceeded | TaskFailed | TaskLost:
        job = taken.job
        error = future.exception()
        try:
            if error is not None:
                raise error
            entries, frame = wire.split_logs(future.result())
            end = wire.decode_end(frame)
            if (end.task_id, end.attempt) != (job.task_id, job.attempt):
                raise wire.FrameError("the report of another attempt")
        except Exception as problem:
            kind = TaskLost if is_lost(problem) else TaskFailed
            return kind(job.task_id, job.attempt, time.time(), explain(problem))
        if entries:
            self._report(job.run_id, TaskLogged(job.task_id, job.attempt, entries, final=True))
        return end

    def _end(self, taken: _Attempt, end: TaskSucceeded | TaskFailed | TaskLost) -> None:
        job = taken.job
        del self._attempts[job.run_id, job.task_id, job.attempt]
        if not isinstance(end, TaskLost) and end.placement is not None:
            self._pacing.observe(taken.shape, end.at - end.placement.at)
        stored = isinstance(end, TaskSucceeded) and any(
            value.location is not None for value in end.values.values()
        )
        if stored and taken.large is not None:
            self.held.keep(job.run_id, job.task_id, taken.large)
        self._report(job.run_id, end)

    def _heard_start(self, run_id: RunId, started: TaskStarted) -> None:
        taken = self._attempts.get((run_id, started.task_id, started.attempt))
        if taken is not None and not taken.started:
            taken.started = True
            self._report(run_id, started)

    def prepare(self, definition: Definition) -> None:
        """Nothing: a Ray task is ready when its worker is."""

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> dict[TaskId, str]:
        """What those of a run's attempts wait for that have been submitted and not begun, for people."""
        found = [self._attempts.get((run_id, *each)) for each in attempts.items()]
        queued = [taken for taken in found if taken is not None and not taken.started]
        if not queued:
            return {}
        rooms = await ray_cluster.ask_rooms()
        if rooms is None:
            return {taken.job.task_id: "a free worker" for taken in queued}
        short = {shape: shortage(shape, rooms) for shape in {taken.shape for taken in queued}}
        return {
            taken.job.task_id: short[taken.shape] or _waits_for(taken)
            for taken in queued
            if not taken.started
        }

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""
        taken = self._attempts.pop((run_id, task_id, attempt), None)
        if taken is None:
            return
        taken.cancelled = True
        self._queue.discard(taken.shape, run_id, taken)
        if taken.report is not None and taken in self._in_flight:
            ray.cancel(taken.report, force=False)
            taken.force = self._loop.call_later(self._cancel_grace, _kill, taken.report)

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Drops what is held in memory of a task's output values."""
        self.held.drop(run_id, task_id)

    # -- single calls --------------------------------------------------------------------------

    async def call(self, call: Call) -> CallResult:
        """Runs a call to its end. Cancelling the caller ends the call.

        Raises:
            UserCodeError: the function raised, or its code or arguments do not load.
            TooLargeError: the pickled result is over `max_result_bytes`.
            UnavailableError: the process that ran it died.
        """
        definition = call.definition
        digest = definition.code.digest
        code = self._codes.get(digest) or await asyncio.shield(self._codes.load(digest))
        shape = Shape.of(definition)
        try:
            reference = self._run_function.of(shape).remote(
                definition.code,
                [code],
                call.args,
                call.kwargs,
                definition.gpus > 0,
                self._max_result_bytes,
            )
            answer = wire.decode_call(await self._result(reference))
        except Exception as error:
            info = explain(error)
            if is_lost(error):
                raise UnavailableError(info.message) from error
            raise UserCodeError(info.type, info.message, "") from error
        if isinstance(answer, UserCodeError):
            raise answer
        if isinstance(answer, wire.TooLarge):
            raise TooLargeError("max_result_bytes", answer.found, self._max_result_bytes, "bytes")
        return answer

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """The JSON text of a tenant's stored value, made in a process that runs its code.

        Raises:
            InvalidRequestError: the value is not JSON.
            TooLargeError: the text is longer than `limit` bytes.
            UnavailableError: the process that made it died.
        """
        async with self._renderers:
            function = self._render.of(replace(_RENDER_SHAPE, runtime_env=env_of({}, tenant)))
            try:
                frame = await self._result(function.remote(value, self._storage_url, limit))
                rendering = wire.decode_rendering(frame)
            except Exception as error:
                raise UnavailableError(explain(error).message) from error
        if isinstance(rendering, wire.TooLarge):
            raise TooLargeError("max_result_bytes", rendering.found, limit, "bytes")
        advice = "fetch it as a pickle instead"
        if isinstance(rendering, wire.NotJson):
            raise InvalidRequestError("value", f"{rendering.reason}, which is not JSON", advice)
        if isinstance(rendering, ErrorInfo):
            found = f"a value that cannot be loaded ({rendering.type}: {rendering.message})"
            raise InvalidRequestError("value", found, advice)
        return rendering

    async def _result(self, reference: Frame) -> bytes:
        """The frame under `reference`; its task is ended if the caller is cancelled."""
        self._calls.add(reference)
        try:
            frame: bytes = await _future(reference)
            return frame
        except asyncio.CancelledError:
            ray.cancel(reference, force=False)
            self._loop.call_later(self._cancel_grace, _kill, reference)
            raise
        finally:
            self._calls.discard(reference)

    # -- the engine ----------------------------------------------------------------------------

    async def nodes(self) -> list[EngineNode]:
        """The live nodes."""
        nodes = await asyncio.to_thread(ray_cluster.live_nodes)
        self._pacing.set_nodes(nodes)
        return nodes

    async def _watch_nodes(self) -> None:
        """Sees, while jobs wait, that the cluster has grown, and that more of them have room."""
        while True:
            await asyncio.sleep(_NODES_PERIOD)
            if self._queue.waiting:
                try:
                    await self.nodes()
                except Exception:
                    _logger.warning("the nodes of the cluster could not be listed", exc_info=True)
                self._queue.recheck()
                self._pump_soon()

    async def head_port(self) -> int:
        """The port under which other nodes join the engine."""
        return ray_cluster.head_port()

    async def close(self) -> None:
        """Cancels what runs and lets go of the engine."""
        if self._closed:
            return
        self._closed = True
        for taken in self._in_flight:
            if taken.force is not None:
                taken.force.cancel()
            if taken.report is not None:
                _kill(taken.report)
        for reference in self._calls:
            _kill(reference)
        if self._node_watch is not None:
            self._node_watch.cancel()
            await asyncio.wait([self._node_watch])
        await self.starts.close()
        await self._codes.close()
        if self._in_flight:
            await asyncio.wait(self._in_flight.values(), timeout=_CLOSE_WAIT)
        self._attempts.clear()
        self.held.clear()


def _future(reference: ray.ObjectRef[Any]) -> asyncio.Future[Any]:
    future: Any = reference.future()
    return asyncio.wrap_future(future)


def _waits_for(taken: _Attempt) -> str:
    """What an attempt for which there is room waits for."""
    if taken.code is None:
        return "its code, which is being read"
    if taken.report is None:
        return "tasks of other runs that are before it"
    if taken.shape.runtime_env:
        return "a worker process, with what its runtime_env asks for"
    return "a worker process"


def _kill(reference: Frame) -> None:
    ray.cancel(reference, force=True)
