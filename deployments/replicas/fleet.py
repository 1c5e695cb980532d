"""The applications of task definitions: created when they are wanted, watched, and removed.

Serve does not fail calls that wait for a replica that cannot start: a watch looks at what Serve says of
the applications while any of them has work, and passes on the reason. Applications go when they have been
idle for a while, and their number is bounded. Their names say what they are, so that the next orchestrator
finds those that this one left; while Serve only replaces the orchestrator, they stay.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from deployments.replicas import identity, serving
from deployments.replicas.application import Application
from deployments.replicas.code_files import CodeFiles
from deployments.replicas.identity import Bounds
from deployments.replicas.serving import Failure, Status
from deployments.task_replica import LargeReference, ReplicaTask
from lattice.execution import attempt, ray_cluster
from lattice.execution.assignment import Assignment
from lattice.execution.ray_failures import explain
from lattice.execution.secrets import SecretValues, values_of
from lattice.execution.shape import Shape
from lattice.execution.shortage import kinds_lacking, occupies
from lattice.execution.storage import FsspecStorage
from lattice.observability.logs import LogFormat
from lattice.ports.execution import Definition, LoadCode
from lattice.ports.secrets import NoSecrets, Secrets
from lattice.workflow.events import ErrorInfo

#: Seconds between looks while work waits for a replica; while all that is wanted runs; while nothing is.
_WATCH = 0.5
_BUSY_WATCH = 1.0
_IDLE_WATCH = 2.0
#: Code up to this many bytes is part of the application, which Serve keeps; the rest is in the storage.
_SMALL_CODE = 64 * 1024
#: Seconds that work waits for a first replica before idle ones of other definitions give way.
_PATIENCE = 1.0
#: How often in a row Serve may fail to deploy an application before its jobs are told.
_MAX_REFUSALS = 60
#: Seconds that closing waits for Serve.
_CLOSE_WAIT = 5.0

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class Crew(Protocol):
    """Who has the work that the applications are for."""

    def changed(self, application: Application) -> None:
        """It can be called, or has another number of replicas."""

    def failed(self, application: Application, failure: Failure, *, lost: bool) -> None:
        """It cannot have a replica. `lost`: not because of the task itself."""

    def gone(self, application: Application) -> None:
        """Somebody has deleted it; what it had is to go to the next of its name."""


class Fleet:
    """Applications by name.

    Args:
        storage_url: where large code is stored.
        scope: tells the applications of this service from those of others on the same Serve.
        owner: the application whose end is theirs too; None if theirs is that of `close`.
        bounds: what scales definitions that do not say themselves.
        max_applications: most definitions that are deployed at a time.
        idle_seconds: seconds without jobs after which a definition is removed, unless it keeps replicas.
        grace: seconds that a cancelled batch has to end before its replica is ended.
        secrets: what replicas are given that ask for it.
        log_format: form of the lines that the replicas themselves log.
    """

    def __init__(
        self,
        storage_url: str,
        *,
        scope: str,
        owner: str | None,
        bounds: Bounds,
        max_applications: int,
        idle_seconds: float,
        grace: float,
        secrets: Secrets | None = None,
        log_format: LogFormat = "text",
    ) -> None:
        self._storage_url = storage_url
        self._codes = CodeFiles(FsspecStorage(storage_url))
        self._scope = scope
        self._owner = owner
        self._bounds = bounds
        self._max_applications = max_applications
        self._idle_seconds = idle_seconds
        self._grace = grace
        self._secrets = secrets or NoSecrets()
        self._log_format = log_format
        self._applications: dict[str, Application] = {}
        self._leftovers: dict[str, float] = {}
        self._closed = False
        self._work = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        # Serve's client is not made for several threads.
        self._serve_thread = ThreadPoolExecutor(1, "lattice-serve")

    async def start(self, crew: Crew, load_code: LoadCode) -> None:
        """Takes over what a former fleet of the same scope has left."""
        self._loop = asyncio.get_running_loop()
        self._crew = crew
        self._load_code = load_code
        found = await self._serve(serving.statuses, identity.prefix(self._scope))
        broken = [name for name, status in found.items() if status.failure]
        await self._serve(self._delete, broken)
        await self._serve(self._codes.sweep, identity.prefix(self._scope), [*found])
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

    @property
    def room(self) -> str:
        """How many of the places are taken, for people."""
        return f"{len(self._deployed()) + len(self._leftovers)} of {self._max_applications}"

    @property
    def replicas(self) -> int:
        """Replicas that take calls, as of the last look."""
        return sum(each.ready for each in [*self._applications.values()])

    @property
    def definitions(self) -> int:
        """Definitions that are deployed."""
        return sum(each.handle is not None for each in [*self._applications.values()])

    def find(self, definition: Definition) -> Application:
        """The application of a definition, which need not exist in Serve yet."""
        name = identity.application_name(definition, self._scope)
        now = self._loop.time()
        application = self._applications.get(name)
        if application is None:
            application = Application(name, definition, now, now)
            self._applications[name] = application
            self._wake()
        idle = application.definition.scaling.downscale_delay
        idle = self._bounds.downscale_delay if idle is None else idle
        if not application.busy:
            application.cold_since = now
            if application.last_used + idle < now:
                # Nobody has looked meanwhile, and Serve will have ended its replicas.
                application.ready = 0
        return application

    def call(
        self,
        application: Application,
        assignments: Sequence[Assignment],
        upstream: Sequence[Sequence[LargeReference]],
        alone: bool,
    ) -> Any:
        """The stream of a call with a group of jobs; see `TaskReplica.run_group`. Raises SecretError."""
        arguments: list[Any] = [attempt.encode_group(assignments), upstream, alone]
        if keys := application.definition.secrets:
            # Beside the jobs, which may be so large that the engine writes them to disk.
            read_at = time.time()
            arguments.append(SecretValues(read_at, values_of(keys, self._secrets)))
        return application.handle.options(stream=True).run_group.remote(*arguments)

    def warm(self, application: Application) -> None:
        """Makes Serve start a replica, for work that is to come."""
        if application.ready or application.to_warm or self._closed:
            return
        application.to_warm = True
        if application.handle is not None:
            application.warming = asyncio.ensure_future(self._warming(application))
        self.want(application)

    async def _warming(self, application: Application) -> None:
        """Calls without any jobs, which lasts until there is a replica."""
        stream = None
        try:
            stream = self.call(application, [], [], False)
            async for _ in stream:
                pass
            application.to_warm = False
            application.warming = None
        except Exception as error:
            # The call, or the secrets for it, cannot be had; whatever it is, nothing would ask again.
            application.warming = None
            self._cool(application, str(serving.own_failure(str(error)) or error))
        finally:
            application.last_used = self._loop.time()
            if stream is not None:
                with contextlib.suppress(Exception):  # it raises again what the call has raised
                    stream.cancel()

    def _cool(self, application: Application, reason: str) -> None:
        """Gives up starting a replica before there is work."""
        if application.to_warm:
            _logger.warning("a task is not warmed up: %s", reason)
            application.to_warm = False
        if application.warming is not None:
            application.warming.cancel()
            application.warming = None

    def want(self, application: Application) -> None:
        """Begins to create an application that is not there, if there is room for one more."""
        if (
            application.handle is not None
            or application.creating is not None
            or application.deleting
            or self._closed
            or not self._has_room(application)
        ):
            return
        application.creating = asyncio.ensure_future(self._creation(application))

    def _deployed(self) -> list[Application]:
        return [
            each
            for each in self._applications.values()
            if each.handle is not None or each.creating is not None or each.deleting
        ]

    def _has_room(self, application: Application) -> bool:
        """Whether one more may be deployed; begins to remove the one that was not used for longest."""
        deployed = self._deployed()
        leftovers = [name for name in self._leftovers if name != application.name]
        if len(deployed) + len(leftovers) < self._max_applications:
            return True
        if leftovers:
            self._forget_leftovers(leftovers[:1])
        else:
            idle = [each for each in deployed if not each.work and each.handle is not None]
            if idle and not any(each.deleting for each in deployed):
                # What is only being got ready goes last.
                self.remove(min(idle, key=lambda each: (each.to_warm, each.last_used)))
        return False

    async def _creation(self, application: Application) -> None:
        try:
            if self._leftovers.pop(application.name, None) is not None:
                application.handle = await self._serve(serving.adopt, application.name)
            else:
                application.handle = await self._deploy(application)
        except _CodeMissingError as error:
            info = ErrorInfo(type(error.__cause__).__qualname__, str(error))
            self._fail(application, Failure(info), lost=True)
        except (TypeError, ValueError) as error:
            # Options that the engine refuses, such as a malformed runtime_env.
            self._fail(application, Failure(explain(error)), lost=False)
        except Exception as error:
            # Serve itself has a problem, or is ending: the watch tries again.
            application.refusals += 1
            _logger.warning("an application could not be deployed: %s", error)
            if application.refusals > _MAX_REFUSALS:
                application.refusals = 0
                self._fail(application, Failure(explain(error)), lost=True)
        finally:
            application.creating = None
        if application.handle is not None:
            application.missing = 0
            application.refusals = 0
            application.last_used = self._loop.time()
            if application.to_warm and application.warming is None:
                application.warming = asyncio.ensure_future(self._warming(application))
            self._crew.changed(application)
        elif not application.busy:
            self._applications.pop(application.name, None)

    async def _deploy(self, application: Application) -> Any:
        definition = application.definition
        task = ReplicaTask(
            code=definition.code,
            source=await self._source(application),
            storage_url=self._storage_url,
            batch=identity.batch_policy(definition),
            has_gpu=definition.gpus > 0,
            grace=self._grace,
            has_secrets=bool(definition.secrets),
            log_format=self._log_format,
        )
        return await self._serve(serving.deploy, application.name, definition, task, self._bounds)

    async def _source(self, application: Application) -> bytes | str:
        """The code, or where it lies in the storage."""
        try:
            data = await self._load_code(application.definition.code.digest)
            if len(data) <= _SMALL_CODE:
                return data
            # In this thread, behind what still deletes an application of the same name.
            return await self._serve(self._codes.put, application.name, data)
        except Exception as error:
            raise _CodeMissingError(f"the task's code is not to be had: {error}") from error

    def _fail(self, application: Application, failure: Failure, *, lost: bool) -> None:
        self._cool(application, str(failure))
        self._crew.failed(application, failure, lost=lost)

    def remove(self, application: Application) -> None:
        """Deletes an application; jobs that come meanwhile wait for the next of its name."""
        application.deleting = True
        application.handle = None
        application.ready = 0
        application.missing = 0
        # Its call would wait for replicas of what is gone.
        self._cool(application, "its application is removed")
        self._spawn_delete([application.name])

    def _forget_leftovers(self, names: list[str]) -> None:
        for name in names:
            del self._leftovers[name]
        self._spawn_delete(names)

    def _spawn_delete(self, names: list[str]) -> None:
        future = self._loop.run_in_executor(self._serve_thread, self._delete, names)
        future.add_done_callback(_log_failure)

    def _delete(self, names: list[str]) -> None:
        """Deletes applications with their code. Blocks."""
        serving.delete(names)
        self._codes.delete(names)

    async def _watch(self) -> None:
        """Looks at the applications as long as there are any."""
        while True:
            await self._work.wait()
            if not self._applications and not self._leftovers:
                self._work.clear()
                continue
            applications = self._applications.values()
            busy = any(each.busy or each.deleting for each in applications)
            waiting = any(each.deleting or (each.busy and not each.ready) for each in applications)
            await asyncio.sleep(_WATCH if waiting else _BUSY_WATCH if busy else _IDLE_WATCH)
            try:
                if busy:
                    found = await self._serve(serving.statuses, identity.prefix(self._scope))
                    for application in [*self._applications.values()]:
                        self._look(application, found.get(application.name))
                    # Serve that ends deletes them itself, and the process that this is in after them.
                    leaving = [name for name, status in found.items() if status.deleting]
                    await self._serve(serving.end_unplaced, leaving)
                    await self._make_places()
                self._sweep()
            except Exception:
                _logger.warning("Serve could not be asked for the applications", exc_info=True)

    def _look(self, application: Application, status: Status | None) -> None:
        """What Serve says of an application changes what is done about it."""
        if application.deleting:
            if status is not None:
                return
            application.deleting = False
            if application.busy:
                self.want(application)
            else:
                del self._applications[application.name]
            return
        if application.handle is None:
            if application.busy:
                self.want(application)
            return
        if status is None:
            application.missing += 1
            if application.missing > 1:
                self.remove(application)
                self._crew.gone(application)
            return
        application.missing = 0
        if status.failure is not None:
            # Also of one that nobody waits for any more: the next job is to find it mended.
            self._fail(application, status.failure, lost=False)
            self.remove(application)
            return
        # The router of the handle hears of a new replica a moment later than Serve's status: what is sent on
        # its account too soon would queue up at the others. The first needs no such care.
        ready = min(status.ready, max(1, application.seen))
        application.seen = status.ready
        if ready != application.ready or application.paused:
            if not ready:
                application.cold_since = self._loop.time()
            application.ready = ready
            application.paused = False
            self._crew.changed(application)

    async def _make_places(self) -> None:
        """Idle replicas give way where work of others has waited for what they occupy."""
        now = self._loop.time()
        applications = self._applications.values()
        stuck = [
            each
            for each in applications
            if each.work
            and each.handle is not None
            and not each.ready
            and each.cold_since + _PATIENCE < now
        ]
        idle = [
            each
            for each in applications
            if not each.work and each.ready and not each.definition.scaling.min_replicas
        ]
        if not stuck or not idle:
            return
        rooms = await ray_cluster.ask_rooms()
        wanted = [Shape.of(each.definition) for each in stuck]
        lacking = {kind for shape in wanted for kind in kinds_lacking(shape, rooms or [])}
        idle = [
            each
            for each in idle
            if not each.work and not each.deleting and occupies(Shape.of(each.definition), lacking)
        ]
        if idle:
            self.remove(min(idle, key=lambda each: each.last_used))

    def _sweep(self) -> None:
        """Removes what has been idle for long."""
        before = self._loop.time() - self._idle_seconds
        for application in [*self._applications.values()]:
            if application.busy or application.creating or application.deleting:
                continue
            if application.handle is None:
                del self._applications[application.name]
            elif application.last_used < before and not application.definition.scaling.min_replicas:
                self.remove(application)
        old = [name for name, since in self._leftovers.items() if since < before]
        if old:
            self._forget_leftovers(old)

    async def close(self) -> None:
        """Lets go of the applications, and deletes them unless another orchestrator takes them over."""
        self._closed = True
        if self._watching is None:
            # It was not started, and knows of none.
            self._serve_thread.shutdown(wait=False)
            return
        applications = self._applications.values()
        tasks = [self._watching]
        tasks += [each.creating for each in applications if each.creating is not None]
        tasks += [each.warming for each in applications if each.warming is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_CLOSE_WAIT):
                if self._owner is None or await self._serve(serving.is_leaving, self._owner):
                    await self._serve(self._delete, [*self._applications, *self._leftovers])
        except Exception as error:
            # Serve itself may be ending, and takes them along.
            _logger.info("the applications of tasks were not deleted: %s", error)
        self._serve_thread.shutdown(wait=False)
        self._applications.clear()


class _CodeMissingError(Exception):
    """The code of a definition cannot be loaded or stored just now."""


def _log_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        _logger.warning("an application could not be deleted: %s", future.exception())
