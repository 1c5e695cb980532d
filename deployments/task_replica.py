"""A replica of a task definition: its code loaded once, its calls run in batches.

A process that runs user code. Calls come in groups, one group a request, and go one by one into the
replica's own `@serve.batch` method, so that a batch holds calls of many groups and runs. A gate in front
lets batches fill while one runs. User code runs off the event loop, in as many threads as batches may run
at a time; what a call comes to goes back in the frames of `lattice.execution.wire`, as from a Ray task.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import time
import traceback
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import RequestRouterConfig

from deployments.replicas.gate import Gate
from deployments.replicas.loaded_code import Loaded, LoadedCode
from deployments.replicas.router import LeastLoadedRouter
from deployments.serve_logs import use_serve_logs
from lattice.execution import attempt, capture, wire
from lattice.execution.announcer import DELAY
from lattice.execution.arguments import UnavailableError
from lattice.execution.assignment import Assignment
from lattice.execution.attempt import Large
from lattice.execution.code import CodeLoadError, Function
from lattice.execution.failures import describe
from lattice.execution.mailbox import owner_of
from lattice.execution.ray_worker import announce, teller
from lattice.execution.secrets import SecretValues, masked
from lattice.execution.storage import FsspecStorage
from lattice.ids import NodeId
from lattice.observability.logs import LogFormat
from lattice.workflow.events import ErrorInfo, Placement, TaskFailed, TaskLost, TaskStarted
from lattice.workflow.task import BatchPolicy, Code

_logger = logging.getLogger(__name__)

Result = TypeVar("Result")
#: What at least is kept of what each call of a batch prints, in bytes.
_LEAST_LOG = 4 * 1024

LargeReference = ray.ObjectRef[Large | None]
#: How a call has ended: its place in its group, the frame, the large outputs if there are any.
End = tuple[int, bytes, LargeReference | None]
#: What a group's stream carries: frames of starts, and ends.
Told = tuple[list[bytes], list[End]]


@dataclass(frozen=True, slots=True)
class ReplicaTask:
    """What a replica runs.

    Attributes:
        source: the code's bytes, or where the storage has them.
        has_gpu: GPUs were asked for.
        grace: seconds that a batch of which nobody wants a result any more has to end.
        has_secrets: calls bring secrets, without which the code is not loaded.
        log_format: form of the lines that the replica itself logs.
    """

    code: Code
    source: bytes | str
    storage_url: str
    batch: BatchPolicy
    has_gpu: bool
    grace: float
    has_secrets: bool = False
    log_format: LogFormat = "text"


class ConstructionError(Exception):
    """The code does not load or its class cannot be constructed; the text carries it all to `serve.status()`."""


class _Outbox:
    """What of a group is to be told."""

    def __init__(self) -> None:
        self.starts: list[bytes] = []
        self.ends: list[End] = []
        self.arrived = asyncio.Event()

    def take(self) -> Told:
        self.arrived.clear()
        taken = self.starts, self.ends
        self.starts, self.ends = [], []
        return taken


class _Item:
    """A call.

    Attributes:
        place: its place in its group.
        upstream: references to the large outputs of other tasks that its assignment counts on.
        admitted: when the gate let it through.
        begun: its batch runs.
        abandoned: nobody wants its result any more.
    """

    __slots__ = ("abandoned", "admitted", "assignment", "begun", "outbox", "place", "upstream")

    def __init__(
        self,
        place: int,
        assignment: Assignment,
        upstream: Sequence[LargeReference],
        outbox: _Outbox,
    ) -> None:
        self.place = place
        self.assignment = assignment
        self.upstream = upstream
        self.outbox = outbox
        self.admitted = 0.0
        self.begun = False
        self.abandoned = False


class _Call:
    """A group of calls that came together.

    Attributes:
        abandoned: nobody hears how they end.
    """

    def __init__(self, items: Sequence[_Item], tasks: Sequence[asyncio.Task[None]]) -> None:
        self.items = items
        self._tasks = tasks
        self.abandoned = False

    def abandon(self) -> None:
        """Takes what has not begun out of the queue; nobody wants the results of the rest any more."""
        self.abandoned = True
        for item, task in zip(self.items, self._tasks, strict=True):
            item.abandoned = True
            if not item.begun:
                task.cancel()
            item.outbox.arrived.set()


class TaskReplica:
    """Runs calls of one definition."""

    async def __init__(self, task: ReplicaTask) -> None:  # type: ignore[misc]  # Serve awaits it
        use_serve_logs(task.log_format)
        self._task = task
        self._threads = ThreadPoolExecutor(task.batch.max_concurrent_batches, "lattice-task")
        self._gate = Gate(task.batch.batch_size, task.batch.max_concurrent_batches)
        self._loop = asyncio.get_running_loop()
        self._id = str(serve.get_replica_context().replica_tag)
        self._node = (
            NodeId(ray.get_runtime_context().get_node_id()),
            str(ray.util.get_node_ip_address()),  # type: ignore[no-untyped-call]  # Ray's own gap
        )

        async def run_batch(items: list[_Item]) -> list[None]:
            return await self._batch(items)

        # Serve looks at the signature at each call, for which Python would make it anew each time.
        signature = inspect.signature(run_batch)
        run_batch.__signature__ = signature  # type: ignore[attr-defined]  # PEP 362
        # One more than run at a time: a full batch is cut before there is room.
        self._batcher: Any = serve.batch(
            max_batch_size=task.batch.batch_size,
            batch_wait_timeout_s=task.batch.batch_timeout,
            max_concurrent_batches=task.batch.max_concurrent_batches + 1,
        )(run_batch)
        self._waiting: set[_Watch] = set()
        self._calls: set[_Call] = set()
        # In the thread that will call it, as some libraries tie what they load to a thread.
        self._code = LoadedCode(task.code.name, self._open, self._in_thread)
        if not task.has_secrets:
            await self._load()

    async def _load(self) -> None:
        try:
            async with self._code.in_use(time.time()):
                pass
        except CodeLoadError as error:
            text = wire.error_text(error.info, self._code.take_printed())
            raise ConstructionError(text) from None

    @contextlib.contextmanager
    def _open(self, secrets: Mapping[str, str]) -> Iterator[Function]:
        code, has_gpu = self._task.code, self._task.has_gpu
        if self._task.has_secrets:
            with attempt.function_with(code, self._fetch, secrets, has_gpu=has_gpu) as function:
                yield function
        else:
            yield attempt.open_function(code, self._fetch, has_gpu=has_gpu)

    def _fetch(self) -> bytes:
        source = self._task.source
        if isinstance(source, bytes):
            return source
        return FsspecStorage(self._task.storage_url).read(source)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await self._loop.run_in_executor(self._threads, work)

    async def run_group(
        self,
        group: bytes,
        upstream: list[list[LargeReference]],
        alone: bool,
        secrets: SecretValues | None = None,
    ) -> AsyncIterator[Told]:
        """Runs encoded assignments; says, as it happens, which have begun and how they ended.

        `upstream`: references for each assignment. `alone`: none of them shares a batch. `secrets`: those that the
        code asks for. Leaving the stream takes what has not begun out of the queue. A group of none gets the
        code loaded.
        """
        if secrets is not None:
            self._code.bring(secrets)
        outbox = _Outbox()
        assignments = zip(attempt.decode_group(group), upstream, strict=True)
        items = [
            _Item(place, assignment, references, outbox)
            for place, (assignment, references) in enumerate(assignments)
        ]
        if not items:
            await self._load()
            return
        self._abandon_before(owner_of(items[0].assignment.mailbox))
        tasks = [asyncio.ensure_future(self._run(item, alone)) for item in items]
        call = _Call(items, tasks)
        self._calls.add(call)
        try:
            left = len(items)
            while left and not call.abandoned:
                await outbox.arrived.wait()
                starts, ends = outbox.take()
                left -= len(ends)
                yield starts, ends
        finally:
            self._calls.discard(call)
            call.abandon()

    def _abandon_before(self, owner: str) -> None:
        """Ends calls of orchestrators before this one. One that was killed does not leave their streams."""
        for call in [*self._calls]:
            if owner_of(call.items[0].assignment.mailbox) < owner:
                call.abandon()

    async def _run(self, item: _Item, alone: bool) -> None:
        first, waited = await self._gate.enter(alone=alone)
        item.admitted = time.time()
        if first:
            # The time-out of a batch counts from its first call, also while another batch ran.
            timeout = 0.0 if alone else max(0.0, self._task.batch.batch_timeout - waited)
            self._batcher.set_batch_wait_timeout_s(timeout)
        try:
            await self._batcher(item)
        except asyncio.CancelledError:
            if not item.begun:
                self._gate.leave(alone=alone)
            raise

    async def _batch(self, items: list[_Item]) -> list[None]:
        """Runs a batch to its end."""
        self._gate.begin()
        for item in items:
            item.begun = True
        watch = _Watch(self._loop, items, self._task.grace, self._nobody_wants_the_code)
        self._waiting.add(watch)
        watch.begin()
        try:
            async with self._code.in_use(
                max(item.assignment.submitted for item in items)
            ) as loaded:
                self._waiting.discard(watch)
                await self._in_thread(lambda: self._work(items, loaded, watch))
        except CodeLoadError as error:
            self._refuse(items, error.info, lost=False)
        except UnavailableError as error:
            self._refuse(items, error.error, lost=error.lost)
        except Exception as error:  # nobody may wait for ever
            self._refuse(items, self._defect(error), lost=False)
        finally:
            self._waiting.discard(watch)
            watch.close()
            self._gate.end()
        return [None] * len(items)

    def _nobody_wants_the_code(self) -> bool:
        """It is being loaded, for batches alone of which nobody wants a result any more."""
        return self._code.is_loading and all(watch.is_abandoned for watch in self._waiting)

    def _defect(self, error: Exception) -> ErrorInfo:
        """What is told of a defect of ours."""
        _logger.error(
            "a batch could not be run\n%s", masked(traceback.format_exc(), self._code.values)
        )
        return self._code.masked(describe(error, self._task.code.name))

    def _refuse(self, items: list[_Item], info: ErrorInfo, *, lost: bool) -> None:
        """None of a batch can run. What its code printed while it was to be loaded is the first call's."""
        info = self._code.masked(info)
        logs = wire.logs_before(self._code.take_printed())
        for item in items:
            placement = self._placement(item, time.time(), len(items))
            frame = _failure(item.assignment, info, placement, lost=lost)
            item.outbox.ends.append((item.place, logs + frame, None))
            item.outbox.arrived.set()
            logs = b""

    def _placement(self, item: _Item, at: float, size: int) -> Placement:
        return Placement(
            *self._node,
            at,
            self._id,
            size,
            starting=max(0.0, self._code.loaded_at - item.assignment.submitted),
            batching=max(0.0, at - max(item.admitted, self._code.loaded_at)),
        )

    # -- in a thread ---------------------------------------------------------------------------

    def _work(self, cut: list[_Item], loaded: Loaded, watch: _Watch) -> None:
        """Runs the calls of a batch that somebody still wants, and hands over how they ended."""
        items = [item for item in cut if not item.abandoned]
        if not items:
            return
        at = time.time()
        placements = [self._placement(item, at, len(items)) for item in items]
        for item, placement in zip(items, placements, strict=True):
            if item.assignment.timed:
                # Its time-out must count even if the code never lets go of the interpreter.
                announce(item.assignment, placement)
        self._loop.call_soon_threadsafe(watch.called, items, placements)
        told: list[tuple[bytes, LargeReference | None]]
        try:
            assignments = [item.assignment for item in items]
            if loaded.secrets:
                assignments = [replace(each, secrets=loaded.secrets) for each in assignments]
            # What a batch prints is that of each of its calls, which therefore keep less of it.
            most = assignments[0].log_bytes
            log_bytes = min(most, max(most // len(items), _LEAST_LOG))
            hidden = self._code.values
            with capture.recording(log_bytes, teller(assignments), hidden) as recorder:
                recorder.take_over(self._code.take_printed())
                ends = attempt.run_items_of(
                    loaded.function,
                    assignments,
                    [_fetched(item.upstream) for item in items],
                    placements,
                )
            logs = wire.logs_before(recorder.kept())
            told = [(logs + frame, _put(large)) for frame, large in ends]
        except Exception as error:  # nobody may wait for ever
            info = self._defect(error)
            told = [
                (_failure(item.assignment, info, placement, lost=False), None)
                for item, placement in zip(items, placements, strict=True)
            ]
        self._loop.call_soon_threadsafe(_tell, items, told)


def _put(large: Large | None) -> LargeReference | None:
    """A reference to large outputs; None if there are none, or no room for them. They are stored in any case."""
    try:
        return ray.put(large) if large else None
    except RayError as error:
        _logger.warning("large outputs are not kept in memory: %s", error)
        return None


def _tell(items: list[_Item], told: list[tuple[bytes, LargeReference | None]]) -> None:
    """Hands over how calls have ended; on the event loop."""
    for item, (frame, large) in zip(items, told, strict=True):
        item.outbox.ends.append((item.place, frame, large))
        item.outbox.arrived.set()


class _Watch:
    """A batch that waits for its code, and then runs; on the event loop.

    Args:
        nobody_wants_the_code: whether what it waits for is loaded for nobody.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        items: list[_Item],
        grace: float,
        nobody_wants_the_code: Callable[[], bool],
    ) -> None:
        self._loop = loop
        self._items = items
        self._grace = grace
        self._nobody_wants_the_code = nobody_wants_the_code
        self._is_called = False
        self._since: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_abandoned(self) -> bool:
        """Nobody wants a result any more."""
        return all(item.abandoned for item in self._items)

    def begin(self) -> None:
        """It is cut."""
        self._timer = self._loop.call_later(self._grace / 2, self._look)

    def called(self, items: list[_Item], placements: list[Placement]) -> None:
        """The code has been called with these."""
        self.close()
        self._is_called = True
        self._since = None
        self._timer = self._loop.call_later(DELAY, self._announce, items, placements)

    def close(self) -> None:
        """It has ended."""
        if self._timer is not None:
            self._timer.cancel()

    def _announce(self, items: list[_Item], placements: list[Placement]) -> None:
        for item, placement in zip(items, placements, strict=True):
            assigned = item.assignment
            started = TaskStarted(assigned.task_id, assigned.attempt, placement)
            item.outbox.starts.append(wire.encode_start(wire.StartNote(assigned.run_id, started)))
            item.outbox.arrived.set()
        self._look()

    def _look(self) -> None:
        """Threads cannot be interrupted: a batch that nobody wants and that does not end takes the process along."""
        now = self._loop.time()
        if not self.is_abandoned or not (self._is_called or self._nobody_wants_the_code()):
            self._since = None
        elif self._since is None:
            self._since = now
        elif now - self._since >= self._grace:
            _logger.warning("a cancelled batch did not end; the replica ends")
            os._exit(1)
        self._timer = self._loop.call_later(self._grace / 2, self._look)


def _fetched(references: Sequence[LargeReference]) -> list[Large | None]:
    """Large outputs of other tasks; None for those that have to come from the storage."""
    found: list[Large | None] = []
    for reference in references:
        try:
            found.append(ray.get(reference))
        except RayError:  # its owner is gone, and with it the value
            found.append(None)
    return found


def _failure(assignment: Assignment, info: ErrorInfo, placement: Placement, *, lost: bool) -> bytes:
    at = time.time()
    if lost:
        return wire.encode_end(TaskLost(assignment.task_id, assignment.attempt, at, info))
    return wire.encode_end(TaskFailed(assignment.task_id, assignment.attempt, at, info, placement))


TaskDeployment = serve.deployment(
    name="task",
    # How many calls a replica gets is the dispatcher's business: Serve's own bound works by refusing and
    # asking again, which starves batches.
    max_ongoing_requests=100_000,
    # The last resort against code that never lets go of the interpreter.
    health_check_period_s=2,
    health_check_timeout_s=30,
    graceful_shutdown_wait_loop_s=0.2,
    # A replica that is scaled down finishes its batch.
    graceful_shutdown_timeout_s=3600,
    request_router_config=RequestRouterConfig(
        request_router_class=LeastLoadedRouter  # type: ignore[arg-type]  # mistyped by Ray
    ),
    logging_config={"enable_access_log": False},
)(TaskReplica)
