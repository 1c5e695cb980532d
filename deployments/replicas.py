"""The Dispatcher over replicas: one autoscaled Serve application for each task definition.

Jobs wait here, per definition and fair between runs; a definition's replicas are given only so many at a
time as keep them busy (`Definition.ahead`), so that replicas that start later get their share, and a
cancelled job has mostly not left yet. What is ready together travels in one call, whose answer is a
stream. Serve does not fail calls that wait for a replica that cannot start: a watch looks at what Serve
says of the applications while any of them has work, and fails them with the reason.

Applications are created by their first job, removed when they have been idle for a while, and bounded in
number. Their names say what they are, so that the next orchestrator finds those that this one left.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ray.exceptions import RayActorError, RayError
from ray.serve.exceptions import RayServeException

from deployments import applications, identity
from deployments.applications import Scaling, Status
from deployments.task_replica import ReplicaTask
from lattice.execution import attempt, wire
from lattice.execution.attempt import Assignment
from lattice.execution.fair_queue import FairQueue
from lattice.execution.ray_failures import explain, is_lost
from lattice.execution.storage import FsspecStorage
from lattice.ids import Digest, RunId, TaskId
from lattice.ports import Definition, Job, Report
from lattice.workflow.events import ErrorInfo, TaskFailed, TaskLost, TaskSucceeded

#: Seconds between looks at the applications while any has work; while none has.
_WATCH = 0.5
_IDLE_WATCH = 2.0
#: Seconds in which jobs gather for a common call while other calls are under way.
_GATHER = 0.003
#: Jobs taken from the queue before other work of the event loop has its turn.
_SLICE = 500
#: Code up to this many bytes is part of the application, which Serve keeps; the rest is in the storage.
_SMALL_CODE = 64 * 1024
#: How often a job that had not begun is given to the next replica when its replica dies.
_MOVES = 3
#: Jobs remembered because the replica that ran them died.
_MAX_SUSPECTS = 10_000
#: Seconds that closing waits for Serve.
_CLOSE_WAIT = 5.0

_logger = logging.getLogger(__name__)

Key = tuple[RunId, TaskId, int]
Result = TypeVar("Result")


@dataclass(slots=True, eq=False)
class _Attempt:
    """A job on its way. `moves`: how often it has changed replicas before it began."""

    job: Job
    application: _Application
    group: _Group | None = None
    started: bool = False
    cancelled: bool = False
    moves: int = 0

    @property
    def key(self) -> Key:
        return self.job.run_id, self.job.task_id, self.job.attempt


@dataclass(slots=True, eq=False)
class _Group:
    """Jobs in one call, those that have not ended."""

    application: _Application
    open: dict[Key, _Attempt]
    task: asyncio.Task[None] | None = None
    stream: Any = None


@dataclass(slots=True, eq=False)
class _Application:
    """A definition's application. Without `handle` it does not exist yet, or not any more.

    Attributes:
        work: jobs that have not ended, here or on replicas.
        paused: Serve has refused a call; the next look tells why.
        missing: looks in a row in which Serve did not know it.
    """

    name: str
    definition: Definition
    last_used: float
    handle: Any = None
    creating: asyncio.Task[None] | None = None
    deleting: bool = False
    ready: int = 0
    paused: bool = False
    missing: int = 0
    work: set[_Attempt] = field(default_factory=set)
    groups: set[_Group] = field(default_factory=set)


class ReplicaDispatcher:
    """Runs attempts on replicas. Serve runs in the cluster that this process is part of.

    Args:
        storage_url: where large values and large code are stored.
        inline_value_bytes: a pickled value up to this size travels inside the report.
        scope: tells the applications of this service from those of others on the same Serve.
        scaling: bounds for the replicas of each definition.
        max_applications: most definitions that are deployed at a time.
        idle_seconds: seconds without jobs after which a definition is removed.
        cancel_grace: seconds that a cancelled batch has to end before its replica is ended.
    """

    def __init__(
        self,
        storage_url: str,
        inline_value_bytes: int,
        *,
        scope: str,
        scaling: Scaling,
        max_applications: int = 100,
        idle_seconds: float = 300.0,
        cancel_grace: float = 2.0,
    ) -> None:
        self._storage_url = storage_url
        self._inline_value_bytes = inline_value_bytes
        self._scope = scope
        self._scaling = scaling
        self._max_applications = max_applications
        self._idle_seconds = idle_seconds
        self._cancel_grace = cancel_grace
        self._attempts: dict[Key, _Attempt] = {}
        self._applications: dict[str, _Application] = {}
        self._leftovers: dict[str, float] = {}
        self._queue: FairQueue[_Application, _Attempt] = FairQueue(self._limit)
        self._suspects: OrderedDict[tuple[RunId, TaskId], None] = OrderedDict()
        self._groups: set[_Group] = set()
        self._pump_due = False
        self._closed = False
        self._work = asyncio.Event()
        # Serve's client is not made for several threads.
        self._serve_thread = ThreadPoolExecutor(1, "lattice-serve")

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: Callable[[Digest], bytes],
    ) -> None:
        """Gets ready, and takes over what a former dispatcher of the same scope has left."""
        self._loop = asyncio.get_running_loop()
        self._report = report
        self._load_code = load_code
        found = await self._serve(applications.statuses, identity.prefix(self._scope))
        broken = [name for name, status in found.items() if status.failure or status.going]
        await self._serve(applications.delete, broken)
        now = self._loop.time()
        self._leftovers = {name: now for name in found if name not in broken}
        self._watching = asyncio.ensure_future(self._watch())
        self._wake()

    async def _serve(self, function: Callable[..., Result], *args: Any) -> Result:
        return await self._loop.run_in_executor(
            self._serve_thread, functools.partial(function, *args)
        )

    def _wake(self) -> None:
        if self._applications or self._leftovers:
            self._work.set()

    # -- jobs ----------------------------------------------------------------------------------

    def submit(self, job: Job) -> None:
        """Takes a job; returns at once. Its end is reported exactly once, unless it is cancelled."""
        key = (job.run_id, job.task_id, job.attempt)
        if self._closed or key in self._attempts:
            return
        definition = job.definition
        name = identity.application_name(definition, self._scope)
        application = self._applications.get(name)
        if application is None:
            application = _Application(name, definition, self._loop.time())
            self._applications[name] = application
            self._wake()
        if not application.work and application.last_used + self._scaling.idle < self._loop.time():
            # Nobody has looked meanwhile, and Serve will have ended its replicas.
            application.ready = 0
        taken = _Attempt(job, application)
        self._attempts[key] = taken
        application.work.add(taken)
        self._enqueue(taken)
        self._create(application)

    def _enqueue(self, taken: _Attempt) -> None:
        taken.group = None
        self._queue.put(taken.application, taken.job.run_id, taken)
        self._pump_soon()

    def _limit(self, application: _Application) -> int:
        if application.handle is None or application.paused:
            return 0
        return max(1, application.ready) * identity.ahead(application.definition)

    def _pump_soon(self) -> None:
        if self._pump_due or not self._queue.has_next or self._closed:
            return
        self._pump_due = True
        self._loop.call_later(_GATHER if self._groups else 0.0, self._pump)

    def _pump(self) -> None:
        self._pump_due = False
        if self._closed:
            return
        taken: dict[tuple[_Application, bool], list[_Attempt]] = {}
        for _ in range(_SLICE):
            each = self._queue.take()
            if each is None:
                break
            alone = (each.job.run_id, each.job.task_id) in self._suspects
            taken.setdefault((each.application, alone), []).append(each)
        for (application, alone), attempts in taken.items():
            size = 1 if alone else identity.group_size(application.definition)
            for start in range(0, len(attempts), size):
                self._send(application, attempts[start : start + size], alone)
        self._pump_soon()

    def _send(self, application: _Application, attempts: list[_Attempt], alone: bool) -> None:
        group = _Group(application, {each.key: each for each in attempts})
        for each in attempts:
            each.group = group
        self._groups.add(group)
        application.groups.add(group)
        application.last_used = self._loop.time()
        group.task = asyncio.ensure_future(self._converse(group, alone))

    async def _converse(self, group: _Group, alone: bool) -> None:
        """A call with a group of jobs, to its end."""
        application = group.application
        try:
            frames = [attempt.encode(self._assignment(each.job)) for each in group.open.values()]
            stream = application.handle.options(stream=True).run_group.remote(frames, alone)
            group.stream = stream
            async for starts, ends in stream:
                for frame in starts:
                    self._begun(group, frame)
                for frame in ends:
                    self._ended(group, frame)
            # Also when frames could not be read: what is still open then is lost.
            self._break(group, wire.FrameError("a report is missing"))
        except (RayError, RayServeException) as error:
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
            self._pump_soon()

    def _assignment(self, job: Job) -> Assignment:
        return Assignment(
            run_id=job.run_id,
            task_id=job.task_id,
            attempt=job.attempt,
            name=job.name,
            code=job.definition.code,
            arguments=job.arguments,
            upstream=(None,) * len(job.arguments),
            output_keys=job.output_keys,
            batched=job.definition.batch.enabled,
            timed=job.timed,
            has_gpu=job.definition.gpus > 0,
            storage_url=self._storage_url,
            inline_value_bytes=self._inline_value_bytes,
            mailbox="",
        )

    def _begun(self, group: _Group, frame: bytes) -> None:
        try:
            run_id, started = wire.decode_start(frame)
        except wire.FrameError as error:
            _logger.warning("a note of a start is not readable: %s", error)
            return
        taken = group.open.get((run_id, started.task_id, started.attempt))
        if taken is not None and not taken.started:
            taken.started = True
            if not taken.cancelled:
                self._report(run_id, started)

    def _ended(self, group: _Group, frame: bytes) -> None:
        try:
            end = wire.decode_end(frame)
        except wire.FrameError as error:
            _logger.warning("a report is not readable: %s", error)
            return
        for taken in group.open.values():
            if (taken.job.task_id, taken.job.attempt) == (end.task_id, end.attempt):
                break
        else:
            return
        self._finish(taken, end)

    def _finish(self, taken: _Attempt, end: TaskSucceeded | TaskFailed | TaskLost) -> None:
        """The end of a job, wherever it is."""
        self._leave(taken)
        if not taken.cancelled and not self._closed:
            del self._attempts[taken.key]
            self._report(taken.job.run_id, end)

    def _leave(self, taken: _Attempt) -> None:
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

    def _break(self, group: _Group, error: Exception | None) -> None:
        """A call has ended; what of its group has not is moved to another replica, or is lost."""
        for taken in [*group.open.values()]:
            job = taken.job
            if taken.cancelled:
                self._leave(taken)
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

    def _may_move(self, taken: _Attempt, error: Exception | None) -> bool:
        """Whether a job that has not begun goes to another replica, because its own is gone."""
        if isinstance(error, RayServeException):
            # There is no replica to go to. The watch knows more in a moment.
            taken.application.paused = True
            return True
        if error is None or isinstance(error, RayActorError):
            taken.moves += 1
            return taken.moves <= _MOVES
        return False

    def _suspect(self, taken: _Attempt) -> None:
        """Its batch has killed a replica: until it is known who did, each of it runs alone."""
        self._suspects[taken.job.run_id, taken.job.task_id] = None
        if len(self._suspects) > _MAX_SUSPECTS:
            self._suspects.popitem(last=False)

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

    def _give_up(self, group: _Group, taken: _Attempt) -> None:
        """A cancelled job still runs, with others in its group: those that have not begun go elsewhere."""
        if taken.key not in group.open or self._closed:
            return
        if not any(each.started and not each.cancelled for each in group.open.values()):
            self._stop(group)

    def _stop(self, group: _Group) -> None:
        """Ends the call with a group."""
        if group.stream is None and group.open and not self._closed:
            # A task that is cancelled before its first step would not clean up.
            self._loop.call_soon(self._stop, group)
        elif group.task is not None:
            group.task.cancel()

    def prepare(self, definition: Definition) -> None:
        """Gets ready what the first job of a definition would have to wait for; returns at once."""

    async def waiting(self, run_id: RunId) -> dict[TaskId, str]:
        """What submitted attempts of a run that have not begun wait for, for people."""
        return {
            taken.job.task_id: "a replica"
            for taken in self._attempts.values()
            if taken.job.run_id == run_id and not taken.started
        }

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Forgets what is kept of a task."""
        self._suspects.pop((run_id, task_id), None)

    # -- applications --------------------------------------------------------------------------

    def _create(self, application: _Application) -> None:
        """Begins to create an application, if there is room for one more."""
        if (
            application.handle is not None
            or application.creating is not None
            or application.deleting
            or self._closed
        ):
            return
        if not self._has_room(application):
            return
        application.creating = asyncio.ensure_future(self._creation(application))

    def _has_room(self, application: _Application) -> bool:
        """Whether one more may be deployed; begins to remove the one that was not used for longest."""
        deployed = [
            each
            for each in self._applications.values()
            if each.handle is not None or each.creating is not None or each.deleting
        ]
        leftovers = [name for name in self._leftovers if name != application.name]
        if len(deployed) + len(leftovers) < self._max_applications:
            return True
        if leftovers:
            self._forget_leftovers(leftovers[:1])
        else:
            idle = [each for each in deployed if not each.work and each.handle is not None]
            if idle and not any(each.deleting for each in deployed):
                self._remove(min(idle, key=lambda each: each.last_used))
        return False

    async def _creation(self, application: _Application) -> None:
        job = next(iter(application.work)).job
        try:
            if self._leftovers.pop(application.name, None) is not None:
                application.handle = await self._serve(applications.adopt, application.name)
            else:
                data = await asyncio.to_thread(self._code, job)
                task = ReplicaTask(
                    code=job.definition.code,
                    source=data,
                    storage_url=self._storage_url,
                    batch_size=identity.batch_size(job.definition),
                    batch_timeout=job.definition.batch.batch_timeout,
                    has_gpu=job.definition.gpus > 0,
                    grace=self._cancel_grace,
                )
                application.handle = await self._serve(
                    applications.deploy,
                    application.name,
                    application.definition,
                    task,
                    self._scaling,
                )
        except _CodeMissingError as error:
            info = ErrorInfo(type(error.__cause__).__qualname__, str(error))
            self._fail(application, info, TaskLost)
        except Exception as error:  # Serve refuses the options, such as a malformed runtime_env
            self._fail(application, explain(error), TaskFailed)
        finally:
            application.creating = None
        if application.handle is not None:
            application.missing = 0
            application.last_used = self._loop.time()
            self._queue.recheck()
            self._pump_soon()
        elif not application.work:
            self._applications.pop(application.name, None)

    def _code(self, job: Job) -> bytes | str:
        """The code, or where it lies in the storage. Blocks."""
        try:
            data = self._load_code(job.definition.code.digest)
            if len(data) <= _SMALL_CODE:
                return data
            location = f"code/{hashlib.sha256(job.definition.code.digest.encode()).hexdigest()}"
            with FsspecStorage(self._storage_url).write(location) as file:
                file.write(data)
            return location
        except Exception as error:
            raise _CodeMissingError(f"the task's code is not to be had: {error}") from error

    def _fail(
        self, application: _Application, info: ErrorInfo, kind: type[TaskFailed] | type[TaskLost]
    ) -> None:
        """Ends all jobs of an application."""
        for taken in [*application.work]:
            job = taken.job
            self._finish(taken, kind(job.task_id, job.attempt, time.time(), info))
        for group in [*application.groups]:
            self._stop(group)

    def _remove(self, application: _Application) -> None:
        """Deletes an application; jobs that come meanwhile wait for the next of its name."""
        application.deleting = True
        application.handle = None
        application.ready = 0
        application.missing = 0
        self._spawn_delete([application.name])

    def _forget_leftovers(self, names: list[str]) -> None:
        for name in names:
            del self._leftovers[name]
        self._spawn_delete(names)

    def _spawn_delete(self, names: list[str]) -> None:
        future = self._loop.run_in_executor(self._serve_thread, applications.delete, names)
        future.add_done_callback(_log_failure)

    async def _watch(self) -> None:
        """Looks at the applications as long as there are any."""
        while True:
            await self._work.wait()
            if not self._applications and not self._leftovers:
                self._work.clear()
                continue
            busy = any(each.work or each.deleting for each in self._applications.values())
            await asyncio.sleep(_WATCH if busy else _IDLE_WATCH)
            try:
                if busy:
                    found = await self._serve(applications.statuses, identity.prefix(self._scope))
                    for application in [*self._applications.values()]:
                        self._look(application, found.get(application.name))
                self._sweep()
            except Exception:
                _logger.warning("Serve could not be asked for the applications", exc_info=True)

    def _look(self, application: _Application, status: Status | None) -> None:
        """What Serve says of an application changes what is done about it."""
        if application.deleting:
            if status is not None:
                return
            application.deleting = False
            if application.work:
                self._create(application)
            else:
                del self._applications[application.name]
            return
        if application.handle is None:
            if application.work:
                self._create(application)
            return
        if status is None or status.going:
            application.missing += 1
            if application.missing > 1:
                # Somebody has deleted it: what it had is moved to the next of its name.
                self._remove(application)
                for group in [*application.groups]:
                    self._stop(group)
            return
        application.missing = 0
        if status.failure is not None and application.work:
            self._fail(application, status.failure, TaskFailed)
            self._remove(application)
            return
        if status.ready != application.ready or application.paused:
            application.ready = status.ready
            application.paused = False
            self._queue.recheck()
            self._pump_soon()

    def _sweep(self) -> None:
        """Removes what has been idle for long."""
        before = self._loop.time() - self._idle_seconds
        for application in [*self._applications.values()]:
            if application.work or application.creating or application.deleting:
                continue
            if application.handle is None:
                del self._applications[application.name]
            elif application.last_used < before:
                self._remove(application)
        old = [name for name, since in self._leftovers.items() if since < before]
        if old:
            self._forget_leftovers(old)

    async def close(self) -> None:
        """Cancels what runs and deletes all applications."""
        if self._closed:
            return
        self._closed = True
        tasks = [each.task for each in self._groups if each.task is not None]
        tasks += [each.creating for each in self._applications.values() if each.creating]
        tasks.append(self._watching)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        names = [*self._applications, *self._leftovers]
        try:
            async with asyncio.timeout(_CLOSE_WAIT):
                await self._serve(applications.delete, names)
        except Exception as error:
            # Serve itself may be ending, and takes them along.
            _logger.info("the applications of tasks were not deleted: %s", error)
        self._serve_thread.shutdown(wait=False)
        self._attempts.clear()
        self._applications.clear()


class _CodeMissingError(Exception):
    """The code of a definition cannot be loaded or stored just now."""


def _log_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        _logger.warning("an application could not be deleted: %s", future.exception())
