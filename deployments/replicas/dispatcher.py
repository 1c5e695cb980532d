"""The Dispatcher over replicas: one autoscaled Serve application for each task definition.

Jobs wait here, per definition and fair between runs; a definition's replicas are given only so many at a
time as keep them busy, so that replicas that start later get their share, and a cancelled job has mostly
not left yet. What is ready together travels in one call, whose answer is a stream. The applications are
the fleet's business.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from deployments.replicas.application import Application, Attempt, Group, Key
from deployments.replicas.fleet import Fleet
from deployments.replicas.serving import Failure
from deployments.replicas.waiting import reason
from deployments.task_replica import LargeReference
from lattice.execution import ray_cluster, wire
from lattice.execution.assignment import Assignment
from lattice.execution.held_values import HeldValues
from lattice.execution.ray_failures import explain, is_lost
from lattice.execution.ray_starts import StartListener
from lattice.execution.ray_tasks import RECALL_AFTER
from lattice.ids import NodeId, RunId, TaskId
from lattice.ports.execution import Definition, Job, Load, LoadCode, LogEntry, Report, TaskLogged
from lattice.ports.secrets import SecretError
from lattice.ports.tracing import SpanExport
from lattice.workflow.events import (
    TaskFailed,
    TaskLost,
    TaskSucceeded,
)
from lattice.workflow.fair_queue import FairQueue

#: Seconds in which jobs gather for a common call while other calls are under way.
_GATHER = 0.003
#: Jobs taken from the queue before other work of the event loop has its turn.
_SLICE = 500
#: How often a job that had not begun is given to the next replica when its replica dies.
_MOVES = 3
#: Seconds that a cancelled batch has to end before its replica is ended.
CANCEL_GRACE = 2.0
#: Jobs remembered because the replica that ran them died.
_MAX_SUSPECTS = 10_000

_logger = logging.getLogger(__name__)


class ReplicaDispatcher:
    """Runs attempts on replicas. Serve runs in the cluster that this process is part of.

    Args:
        fleet: the applications that the replicas are of.
        storage_url: where large values are stored.
        inline_value_bytes: a pickled value up to this size travels inside the report.
        max_log_bytes: what is kept of what an attempt prints.
        span_export: where the spans of traced attempts go.
        held: where references to large outputs are kept.
        cancel_grace: seconds that a cancelled batch has to end before its replica is ended.
    """

    def __init__(
        self,
        fleet: Fleet,
        storage_url: str,
        inline_value_bytes: int,
        *,
        max_log_bytes: int = 64 * 1024,
        span_export: SpanExport | None = None,
        held: HeldValues[LargeReference],
        cancel_grace: float = CANCEL_GRACE,
    ) -> None:
        self._fleet = fleet
        self._storage_url = storage_url
        self._inline_value_bytes = inline_value_bytes
        self._max_log_bytes = max_log_bytes
        self._span_export = span_export
        self._held = held
        self._cancel_grace = cancel_grace
        self._attempts: dict[Key, Attempt] = {}
        self._queue: FairQueue[Application, Attempt] = FairQueue(self._limit)
        self._suspects: OrderedDict[tuple[RunId, TaskId], None] = OrderedDict()
        self._groups: set[Group] = set()
        self._pump_due = False
        self._closed = False

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: LoadCode,
        starts: StartListener,
    ) -> None:
        """Gets ready. `starts` hears of attempts whose start must be told before they run."""
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._starts = starts
        starts.also(self._heard_start)
        await self._fleet.start(self, load_code)

    # -- jobs ----------------------------------------------------------------------------------

    def prepare(self, definition: Definition) -> None:
        """Starts a replica before there is a job; returns at once."""
        if not self._closed:
            self._fleet.warm(self._fleet.find(definition))

    def load(self) -> Load:
        """Jobs that wait here and those in calls, and what the fleet has. May be called from any thread."""
        engaged = sum(len(group.open) for group in [*self._groups])
        waiting = max(0, len(self._attempts) - engaged)
        return Load(waiting, engaged, self._fleet.replicas, self._fleet.definitions)

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""
        key = (job.run_id, job.task_id, job.attempt)
        if self._closed or key in self._attempts:
            return
        application = self._fleet.find(job.definition)
        taken = Attempt(job, application, time.time())
        self._attempts[key] = taken
        application.work.add(taken)
        self._enqueue(taken)
        self._fleet.want(application)

    def _enqueue(self, taken: Attempt) -> None:
        taken.group = None
        self._queue.put(taken.application, taken.job.run_id, taken)
        self._pump_soon()

    def _limit(self, application: Application) -> int:
        """How many jobs the application may have: none more while enough calls are under way."""
        if application.handle is None or application.paused:
            return 0
        replicas = max(1, application.ready)
        if len(application.groups) >= replicas * application.groups_ahead:
            return 0
        return replicas * application.calls_ahead

    def _pump_soon(self) -> None:
        if self._pump_due or not self._queue.has_next or self._closed:
            return
        self._pump_due = True
        self._loop.call_later(_GATHER if self._groups else 0.0, self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._closed:
            return
        taken: dict[tuple[Application, bool], list[Attempt]] = {}
        for _ in range(_SLICE):
            each = self._queue.take()
            if each is None:
                break
            alone = (each.job.run_id, each.job.task_id) in self._suspects
            taken.setdefault((each.application, alone), []).append(each)
        for (application, alone), attempts in taken.items():
            size = 1 if alone else application.group_size
            for start in range(0, len(attempts), size):
                self._send(application, attempts[start : start + size], alone)
        self._pump_soon()

    def pause(self, paused: bool) -> None:
        """Gives replicas nothing more until it is told otherwise; what they have goes on."""
        self._queue.paused = paused
        self._pump_soon()

    def _send(self, application: Application, attempts: list[Attempt], alone: bool) -> None:
        group = Group(application, {each.key: each for each in attempts})
        now = self._loop.time()
        for each in attempts:
            each.group = group
            each.sent = now
        self._groups.add(group)
        application.groups.add(group)
        application.last_used = now
        group.task = asyncio.ensure_future(self._converse(group, alone))

    async def _converse(self, group: Group, alone: bool) -> None:
        """A call with a group of jobs, to its end."""
        application = group.application
        attempts = [*group.open.values()]
        try:
            assignments, upstream = self._assign(group)
            group.stream = self._fleet.call(application, assignments, upstream, alone)
            async for starts, ends in group.stream:
                for frame in starts:
                    self._begun(frame)
                for place, frame, large in ends:
                    self._ended(attempts[place], frame, large)
            # Also when frames could not be read: what is still open then is lost.
            self._break(group, wire.FrameError("a report is missing"))
        except (RayError, RayServeException, SecretError) as error:
            self._break(group, error)
        except asyncio.CancelledError:
            if self._closed:
                raise
            self._break(group, None)
        except Exception as error:
            _logger.exception("a group of jobs could not be run")
            self._break(group, error)
        finally:
            self._groups.discard(group)
            application.groups.discard(group)
            application.last_used = self._loop.time()
            if group.stream is not None:
                # Dropping the stream would leave the call running on the replica.
                with contextlib.suppress(Exception):  # it raises again what the call has raised
                    group.stream.cancel()
            self._queue.recheck()
            self._pump_soon()

    def _assign(self, group: Group) -> tuple[list[Assignment], list[list[LargeReference]]]:
        """What a replica is told of a group, and the references that come along with each job."""
        assignments = []
        references = []
        for taken in group.open.values():
            job = taken.job
            upstream: dict[TaskId, tuple[int, LargeReference]] = {}
            positions = self._held.upstream(job.run_id, job.arguments, upstream)
            references.append([reference for _, reference in upstream.values()])
            assignments.append(
                Assignment.of(
                    job,
                    positions,
                    storage_url=self._storage_url,
                    inline_value_bytes=self._inline_value_bytes,
                    mailbox=self._starts.mailbox,
                    submitted=taken.submitted,
                    log_bytes=self._max_log_bytes,
                    span_export=self._span_export,
                )
            )
        return assignments, references

    def _begun(self, frame: bytes) -> None:
        try:
            self._heard_start(wire.decode_start(frame))
        except wire.FrameError as error:
            _logger.warning("a note of a start is not readable: %s", error)

    def _heard_start(self, note: wire.StartNote) -> None:
        started = note.started
        taken = self._attempts.get((note.run_id, started.task_id, started.attempt))
        if taken is not None and not taken.started:
            taken.started = True
            self._report(note.run_id, started)

    def _ended(self, taken: Attempt, frame: bytes, large: LargeReference | None) -> None:
        group = taken.group
        if group is None or taken.key not in group.open:
            return
        try:
            entries, frame = wire.split_logs(frame)
            end = wire.decode_end(frame)
            if (end.task_id, end.attempt) != (taken.job.task_id, taken.job.attempt):
                raise wire.FrameError("the report of another attempt")
        except wire.FrameError as error:
            _logger.warning("a report is not readable: %s", error)
            return
        if large is not None and not taken.cancelled:
            self._held.keep(taken.job.run_id, taken.job.task_id, large)
        self._log(taken, entries)
        self._finish(taken, end)
        if group.open and all(each.cancelled for each in group.open.values()):
            self._stop(group)

    def _log(self, taken: Attempt, entries: tuple[LogEntry, ...]) -> None:
        """All that an attempt has printed, which has ended."""
        if entries and not taken.cancelled and not self._closed:
            job = taken.job
            self._report(job.run_id, TaskLogged(job.task_id, job.attempt, entries, final=True))

    def _finish(self, taken: Attempt, end: TaskSucceeded | TaskFailed | TaskLost) -> None:
        """The end of a job, wherever it is."""
        self._leave(taken)
        if not taken.cancelled and not self._closed:
            del self._attempts[taken.key]
            self._report(taken.job.run_id, end)

    def _leave(self, taken: Attempt) -> None:
        """A job is neither in the queue nor in a group any more."""
        application = taken.application
        if taken.group is not None:
            if taken.group.open.pop(taken.key, None) is not None:
                self._queue.done(application)
            taken.group = None
        else:
            self._queue.discard(application, taken.job.run_id, taken)
        application.work.discard(taken)
        application.last_used = self._loop.time()
        self._pump_soon()

    def _break(self, group: Group, error: Exception | None) -> None:
        """A call has ended; what of its group has not is moved to another replica, or is lost."""
        for taken in [*group.open.values()]:
            job = taken.job
            if taken.cancelled:
                self._leave(taken)
            elif not taken.started and _excluded(taken) != group.application.definition.excluded:
                del group.open[taken.key]
                self._queue.done(group.application)
                self._rehome(taken)
            elif not taken.started and self._may_move(taken, error):
                del group.open[taken.key]
                self._queue.done(taken.application)
                self._enqueue(taken)
            elif error is None or is_lost(error) or isinstance(error, RayServeException):
                self._suspect(taken)
                info = explain(error or wire.FrameError())
                self._finish(taken, TaskLost(job.task_id, job.attempt, time.time(), info))
            else:
                info = explain(error)
                self._finish(taken, TaskFailed(job.task_id, job.attempt, time.time(), info))

    def _may_move(self, taken: Attempt, error: Exception | None) -> bool:
        """Whether a job that has not begun goes to another replica, because its own is gone."""
        if isinstance(error, RayServeException):
            # There is no replica to go to. The watch knows more in a moment.
            taken.application.paused = True
            return True
        if error is None or isinstance(error, RayActorError):
            taken.moves += 1
            if taken.moves > 1:
                # Its batch may have ended the replica before it could be told that it began.
                self._suspect(taken)
            return taken.moves <= _MOVES
        return False

    def _suspect(self, taken: Attempt) -> None:
        """Its batch has killed a replica: until it is known who did, each of it runs alone."""
        self._suspects[taken.job.run_id, taken.job.task_id] = None
        if len(self._suspects) > _MAX_SUSPECTS:
            self._suspects.popitem(last=False)

    def exclude(self, nodes: frozenset[NodeId]) -> None:
        """What has not begun may run on all nodes but these, on replicas of their own.

        A call whose batch mates in the same call of the handle have begun stays with them.
        """
        for taken in [*self._attempts.values()]:
            if taken.started or _excluded(taken) == nodes:
                continue
            definition = replace(taken.job.definition, excluded=nodes)
            taken.job = replace(taken.job, definition=definition)
            if taken.group is None:
                self._queue.discard(taken.application, taken.job.run_id, taken)
                self._rehome(taken)
        self._loop.call_later(RECALL_AFTER, self._recall)

    def _recall(self) -> None:
        """Takes groups back that have not begun and may not run where they are."""
        for group in () if self._closed else [*self._groups]:
            own = group.application.definition.excluded
            waits = [each for each in group.open.values() if not each.started]
            if len(waits) == len(group.open) and any(_excluded(each) != own for each in waits):
                self._stop(group)

    def _rehome(self, taken: Attempt) -> None:
        """A job goes to the replicas of what its definition is now."""
        taken.application.work.discard(taken)
        taken.application = self._fleet.find(taken.job.definition)
        taken.application.work.add(taken)
        self._enqueue(taken)
        self._fleet.want(taken.application)

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt and frees what it occupied; nothing of it is reported any more."""
        taken = self._attempts.pop((run_id, task_id, attempt), None)
        if taken is None:
            return
        taken.cancelled = True
        group = taken.group
        if group is None:
            self._leave(taken)
        elif all(each.cancelled for each in group.open.values()):
            self._stop(group)
        elif taken.started:
            self._loop.call_later(self._cancel_grace, self._give_up, group, taken)

    def _give_up(self, group: Group, taken: Attempt) -> None:
        """A cancelled job still runs, with others in its group: those that have not begun go elsewhere."""
        if taken.key not in group.open or self._closed:
            return
        if not any(each.started and not each.cancelled for each in group.open.values()):
            self._stop(group)

    def _stop(self, group: Group) -> None:
        """Ends the call with a group."""
        if group.stream is None and group.open and not self._closed:
            # A task that is cancelled before its first step would not clean up.
            self._loop.call_soon(self._stop, group)
        elif group.task is not None:
            group.task.cancel()

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Forgets what is kept of a task."""
        self._suspects.pop((run_id, task_id), None)

    # -- what the fleet tells ------------------------------------------------------------------

    def changed(self, application: Application) -> None:
        """The application can be called, or has another number of replicas."""
        self._queue.recheck()
        self._pump_soon()

    def failed(self, application: Application, failure: Failure, *, lost: bool) -> None:
        """The application cannot have a replica: ends all its jobs.

        What its code printed meanwhile is told with one of each run: it was loaded for all of them.
        """
        kind = TaskLost if lost else TaskFailed
        told: set[RunId] = set()
        for taken in [*application.work]:
            job = taken.job
            if job.run_id not in told:
                told.add(job.run_id)
                self._log(taken, failure.printed)
            self._finish(taken, kind(job.task_id, job.attempt, time.time(), failure.info))
        self.gone(application)

    def gone(self, application: Application) -> None:
        """The application is deleted: ends its calls."""
        for group in [*application.groups]:
            self._stop(group)

    # -- for people ----------------------------------------------------------------------------

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> dict[TaskId, str]:
        """What those of a run's attempts wait for that have been submitted and not begun."""
        found = [self._attempts.get((run_id, *each)) for each in attempts.items()]
        queued = [taken for taken in found if taken is not None and not taken.started]
        rooms = None
        if any(not taken.application.ready for taken in queued):
            rooms = await ray_cluster.ask_rooms()
        return {
            taken.job.task_id: reason(taken, rooms, self._fleet.room, self._loop.time())
            for taken in queued
            if not taken.started
        }

    async def close(self) -> None:
        """Cancels what runs and lets go of the applications."""
        if self._closed:
            return
        self._closed = True
        tasks = [each.task for each in self._groups if each.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._fleet.close()
        self._attempts.clear()


def _excluded(taken: Attempt) -> frozenset[NodeId]:
    return taken.job.definition.excluded
