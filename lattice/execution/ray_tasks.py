"""The Dispatcher over plain Ray tasks: one Ray task for each attempt, or for several short ones of a run.

A task has two returns. The first, its report, is a small frame that is awaited here. The second holds the
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
from dataclasses import replace

import ray
from ray.exceptions import ObjectLostError

from lattice.execution import attempt, ray_cluster, ray_worker, wire
from lattice.execution.assignment import Assignment
from lattice.execution.attempt import Large
from lattice.execution.held_values import HeldValues
from lattice.execution.pacing import Durations, Pacing
from lattice.execution.ray_attempts import Attempt, Fusing, WorkerCall, end_of, reasons
from lattice.execution.ray_calls import RayCalls
from lattice.execution.ray_endings import Endings, force, ray_future
from lattice.execution.ray_failures import explain, is_lost
from lattice.execution.ray_remote import CodeSource, CodeSources, RemoteFunctions
from lattice.execution.ray_starts import StartListener
from lattice.execution.secrets import values_of
from lattice.execution.shape import Shape
from lattice.ids import NodeId, RunId, TaskId, Tenant
from lattice.ports.execution import (
    Ahead,
    Call,
    CallResult,
    Definition,
    EngineNode,
    Job,
    Load,
    LoadCode,
    Report,
    TaskLogged,
)
from lattice.ports.secrets import NoSecrets, Secrets
from lattice.ports.tracing import SpanExport
from lattice.workflow.events import (
    ErrorInfo,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)
from lattice.workflow.fair_queue import FairQueue

#: Jobs submitted before other work of the event loop has its turn.
_SLICE = 50
#: Seconds between looks at what the cluster has, while jobs wait.
_NODES_PERIOD = 2.0
#: Seconds that closing waits for cancelled tasks to end.
_CLOSE_WAIT = 5.0
#: Seconds after which what has begun has been heard of, on any node.
RECALL_AFTER = 1.0

_logger = logging.getLogger(__name__)


class RayTaskDispatcher:
    """Runs attempts as Ray tasks. Ray is initialised in this process.

    Args:
        storage_url: where large values are stored, an fsspec URL that all nodes can reach.
        inline_value_bytes: a pickled value up to this size travels inside the report.
        max_result_bytes: largest pickled result of a call.
        max_log_bytes: what is kept of what an attempt prints.
        span_export: where the spans of traced attempts go.
        secrets: what is put into the environment of attempts that ask for it.
        max_in_flight: most tasks of the same shape that Ray has at a time.
        cancel_grace: seconds that a cancelled task has to end before it is forced to, and then before its process is
            killed.
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
        secrets: Secrets | None = None,
        max_in_flight: int = 1000,
        cancel_grace: float = 2.0,
        held: HeldValues[ray.ObjectRef[Large | None]] | None = None,
    ) -> None:
        self._storage_url = storage_url
        self._inline_value_bytes = inline_value_bytes
        self._max_log_bytes = max_log_bytes
        self.span_export = span_export
        self.secrets = secrets or NoSecrets()
        self._endings = Endings(cancel_grace)
        self._attempts: dict[tuple[RunId, TaskId, int], Attempt] = {}
        self._pacing = Pacing(max_in_flight)
        self._durations = Durations()
        self._queue: FairQueue[Shape, Attempt] = FairQueue(self._pacing.limit)
        self._in_flight: dict[WorkerCall, asyncio.Future[bytes]] = {}
        self._calls = RayCalls(storage_url, max_result_bytes, self._endings, self.secrets)
        self.held = held if held is not None else HeldValues()
        self._excluded: frozenset[NodeId] | None = None
        self._pump_due = False
        self._closed = False
        self._node_watch: asyncio.Future[None] | None = None
        self._run_attempts = RemoteFunctions(ray_worker.run_attempts, returns=2)

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: LoadCode,
        ahead: Ahead,
    ) -> None:
        """Gets ready; see `lattice.ports.execution.Dispatcher`."""
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._codes = CodeSources(load_code)
        self._fusing = Fusing(self._queue, self._durations, self._codes, ahead)
        self.starts = StartListener(self._heard_start, self._heard_logs)
        self._calls.listen(self.starts)
        self._node_watch = asyncio.ensure_future(self._watch_nodes())
        await self.nodes()

    # -- attempts ------------------------------------------------------------------------------

    def load(self) -> Load:
        """Attempts that wait here and those that Ray has. May be called from any thread."""
        engaged = sum(len(call.owed) for call in [*self._in_flight])
        waiting = max(0, len(self._attempts) - engaged)
        return Load(waiting=waiting, engaged=engaged, calls=self._calls.running())

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""
        known = self._attempts.get((job.run_id, job.task_id, job.attempt))
        if known is not None and known.ahead:
            # It is on its way with those that it comes after; now all of its arguments are known.
            known.job, known.ahead = job, False
            if known.begun is not None:
                self._loop.call_soon(self._tell_start, known, known.begun)
        if self._closed or known is not None:
            return
        taken = Attempt(job, Shape.of(job.definition))
        self._attempts[taken.key] = taken
        taken.code = self._codes.get(job.definition.code.digest)
        if taken.code is not None:
            self._enqueue(taken)
        else:
            loading = self._codes.load(job.definition.code.digest)
            loading.add_done_callback(functools.partial(self._code_loaded, taken))

    def _code_loaded(self, taken: Attempt, loading: asyncio.Task[CodeSource]) -> None:
        if self._attempts.get(taken.key) is not taken or loading.cancelled():
            return
        error = loading.exception()
        if error is not None:
            info = ErrorInfo(type(error).__qualname__, f"the task's code is not to be had: {error}")
            self._end(taken, TaskLost(taken.job.task_id, taken.job.attempt, time.time(), info))
            return
        taken.code = loading.result()
        self._enqueue(taken)

    def _enqueue(self, taken: Attempt) -> None:
        if self._excluded is not None and taken.shape.excluded != self._excluded:
            taken.shape = replace(taken.shape, excluded=self._excluded)
        self._queue.put(taken.shape, taken.job.run_id, taken)
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pump_due and self._queue.has_next and not self._closed:
            self._pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        begun = 0
        while begun < _SLICE:
            taken = None if self._closed else self._queue.take()
            if taken is None:
                return
            call = self._fused(taken)
            self._begin(call)
            begun += len(call.attempts)
        self._pump_soon()

    def pause(self, paused: bool) -> None:
        """Hands nothing more to Ray until it is told otherwise; what Ray has goes on."""
        self._queue.paused = paused
        self._pump_soon()

    def _fused(self, taken: Attempt) -> WorkerCall:
        """The call in which an attempt runs."""
        call = self._fusing.call_of(taken, self._attempts)
        for each in call.attempts:
            if each.ahead:
                self._attempts[each.key] = each
        return call

    def _begin(self, call: WorkerCall) -> None:
        """Gives attempts to Ray."""
        try:
            keys = {key for taken in call.attempts for key in taken.job.definition.secrets}
            secrets = values_of(keys, self.secrets)
            codes = {taken.job.definition.code.digest: taken.code for taken in call.attempts}
            assignments, upstream = self._assign(call)
            function = self._run_attempts.of(call.shape)
            call.report, call.large = function.remote(
                attempt.encode_group(assignments), codes, secrets, *upstream
            )
        except Exception as error:  # Ray refuses the options, such as a malformed runtime_env
            self._count_back(call)
            for taken in call.attempts:
                job = taken.job
                end = TaskFailed(job.task_id, job.attempt, time.time(), explain(error))
                if taken.ahead:
                    del self._attempts[taken.key]
                else:
                    self._end(taken, end)
            return
        for taken in call.attempts:
            taken.call = call
        future = ray_future(call.report)
        self._in_flight[call] = future
        future.add_done_callback(functools.partial(self._landed, call))

    def _assign(
        self, call: WorkerCall
    ) -> tuple[list[Assignment], list[ray.ObjectRef[Large | None]]]:
        """What the worker is told, and the references that come along."""
        upstream: dict[TaskId, tuple[int, ray.ObjectRef[Large | None]]] = {}
        assignments = [
            Assignment.of(
                taken.job,
                self.held.upstream(taken.job.run_id, taken.job.arguments, upstream),
                storage_url=self._storage_url,
                inline_value_bytes=self._inline_value_bytes,
                mailbox=self.starts.mailbox,
                log_bytes=self._max_log_bytes,
                span_export=self.span_export,
                call=call.number,
            )
            for taken in call.attempts
        ]
        call.name = assignments[0].call_name
        call.sources = tuple(upstream)
        return assignments, [reference for _, reference in upstream.values()]

    def _count_back(self, call: WorkerCall) -> None:
        for _ in range(call.counted):
            self._queue.done(call.shape)

    def _landed(self, call: WorkerCall, future: asyncio.Future[bytes]) -> None:
        """Ray is done with a call."""
        del self._in_flight[call]
        self._count_back(call)
        error = None if future.cancelled() else future.exception()
        if error is not None and call.large is not None and not self._closed:
            # The other return holds the same error, which Ray logs if nobody has looked at it.
            ray_future(call.large).add_done_callback(
                lambda large: large.cancelled() or large.exception()
            )
        if not self._closed:
            try:
                if error is not None:
                    raise error
                ends = wire.decode_ends(future.result(), len(call.attempts), first=True)
            except Exception as problem:
                self._fell(call, problem)
            else:
                try:
                    self._deliver(call, ends)
                finally:
                    self._give_back(call)
        self._pump_soon()

    def _deliver(self, call: WorkerCall, ends: Mapping[int, bytes]) -> None:
        """Reports the ends of a call, each after those that it comes after."""
        for place, frame in ends.items():
            taken = call.attempts[place]
            if taken.call is not call:
                continue
            taken.call = None
            if taken.ahead:
                # What it came after has succeeded, and still nobody wants it.
                del self._attempts[taken.key]
            else:
                end, logged = end_of(taken, frame)
                if logged is not None:
                    self._report(taken.job.run_id, logged)
                if call.recalled and isinstance(end, TaskLost) and not taken.started:
                    self._enqueue(taken)  # It had just begun, and was interrupted.
                else:
                    self._end(taken, end, call.large)

    def _give_back(
        self, call: WorkerCall, kept: Attempt | None = None, *, alone: bool = False
    ) -> None:
        """Those of a call that were not begun wait again, but for those that nobody has asked for."""
        for taken in call.owed:
            if taken is kept:
                continue
            taken.call = None
            taken.alone = taken.alone or alone
            if taken.ahead:
                del self._attempts[taken.key]
            else:
                self._enqueue(taken)

    def _fell(self, call: WorkerCall, problem: Exception) -> None:
        """A call came to no ends. Which of several attempts is at fault, nobody knows: each runs again, alone."""
        if isinstance(problem, ObjectLostError) and call.sources:
            # A large input is gone from the object store: once more, without references.
            for source in call.sources:
                self.held.drop(call.attempts[0].job.run_id, source)
            self._give_back(call)
        elif call.recalled and is_lost(problem) and not any(each.started for each in call.owed):
            self._give_back(call)
        elif len(call.attempts) > 1 and not any(each.started or each.begun for each in call.owed):
            self._give_back(call, alone=True)
        else:
            # It was alone, or had the call for itself.
            kind = TaskLost if is_lost(problem) else TaskFailed
            for taken in call.owed:
                taken.call = None
                job = taken.job
                if taken.ahead:
                    del self._attempts[taken.key]
                else:
                    end = kind(job.task_id, job.attempt, time.time(), explain(problem))
                    self._end(taken, end)

    def _end(
        self,
        taken: Attempt,
        end: TaskSucceeded | TaskFailed | TaskLost,
        large: ray.ObjectRef[Large | None] | None = None,
    ) -> None:
        job = taken.job
        del self._attempts[taken.key]
        if not isinstance(end, TaskLost) and end.placement is not None:
            seconds = end.at - end.placement.at
            self._pacing.observe(taken.shape, seconds)
            self._durations.observe(job.definition.code, seconds)
        stored = isinstance(end, TaskSucceeded) and any(
            value.location is not None for value in end.values.values()
        )
        if stored and large is not None:
            self.held.keep(job.run_id, job.task_id, large)
        self._report(job.run_id, end)

    def _heard_start(self, note: wire.StartNote) -> None:
        started = note.started
        taken = self._attempts.get((note.run_id, started.task_id, started.attempt))
        call = None if taken is None else taken.call
        if taken is None or call is None or call.number != note.call:
            # It has ended, or waits for another call, as this one is lost.
            return
        if len(call.owed) > 1:
            # It takes longer than was expected, and has its call for itself from now on.
            try:
                self._deliver(call, wire.decode_ends(note.ends, len(call.attempts), first=False))
            except wire.FrameError as error:
                # They come again, with the next note or when the call ends.
                _logger.warning("the ends in a note of a start are not readable: %s", error)
                return
            self._give_back(call, kept=taken)
        self._tell_start(taken, started)

    def _heard_logs(self, run_id: RunId, logged: TaskLogged) -> None:
        # It may be an attempt of a dispatcher beside this one. Of what nobody has asked for, the end tells all.
        taken = self._attempts.get((run_id, logged.task_id, logged.attempt))
        if taken is None or not taken.ahead:
            self._report(run_id, logged)

    def _tell_start(self, taken: Attempt, started: TaskStarted) -> None:
        if taken.ahead:
            taken.begun = started
        elif not taken.started and self._attempts.get(taken.key) is taken:
            taken.started = True
            self._report(taken.job.run_id, started)

    def exclude(self, nodes: frozenset[NodeId]) -> None:
        """What has not begun may run on all nodes but these; what Ray has of it is taken back.

        That is in a moment, as what has begun may not have been heard of yet, and would be interrupted.
        """
        self._excluded = self._calls.excluded = nodes
        for taken in [*self._attempts.values()]:
            if taken.call is None and self._queue.discard(taken.shape, taken.job.run_id, taken):
                self._enqueue(taken)
        self._loop.call_later(RECALL_AFTER, self._recall)

    def _recall(self) -> None:
        for call in () if self._closed else self._in_flight:
            owed = call.owed
            if call.recalled or call.shape.excluded == self._excluded or not owed:
                continue
            if not any(taken.started for taken in owed):
                call.recalled = True
                ray.cancel(call.report, force=False)

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
        return reasons([taken for taken in queued if not taken.started], rooms)

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""
        taken = self._attempts.pop((run_id, task_id, attempt), None)
        if taken is None:
            return
        self._queue.discard(taken.shape, run_id, taken)
        call, taken.call = taken.call, None
        if call is not None and all(each.ahead for each in call.owed):
            # Nobody waits for the rest of the call.
            assert call.report is not None
            self._endings.end(call.report, call.name)

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Drops what is held in memory of a task's output values."""
        self.held.drop(run_id, task_id)

    # -- single calls --------------------------------------------------------------------------

    async def call(self, call: Call) -> CallResult:
        """Runs a call to its end; see `RayCalls.call`."""
        return await self._calls.call(call, self._codes)

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """The JSON text of a tenant's stored value; see `RayCalls.render`."""
        return await self._calls.render(value, limit, tenant)

    # -- the engine ----------------------------------------------------------------------------

    async def nodes(self) -> list[EngineNode]:
        """The live nodes."""
        nodes = await asyncio.to_thread(ray_cluster.live_nodes)
        self._pacing.set_nodes(nodes)
        self._calls.nodes = nodes
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
        if self._node_watch is None:
            return  # It was not started.
        for call in self._in_flight:
            if call.report is not None:
                force(call.report)
        self._endings.close()
        self._calls.close()
        self._node_watch.cancel()
        await asyncio.wait([self._node_watch])
        await self.starts.close()
        await self._codes.close()
        if self._in_flight:
            await asyncio.wait(self._in_flight.values(), timeout=_CLOSE_WAIT)
        self._attempts.clear()
        self.held.clear()
