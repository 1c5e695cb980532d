"""A replica of a task definition: its code loaded once, its calls run in batches.

A process that runs user code. Calls come in groups, one group a request, and go one by one into the
replica's own `@serve.batch` method, so that a batch holds calls of many groups and runs. A gate in front
lets batches fill while one runs. User code runs off the event loop, in one thread, one batch at a time;
what a call comes to goes back in the frames of `lattice.execution.wire`, as from a Ray task.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray import serve

from deployments.gate import Gate
from lattice.execution import attempt, wire
from lattice.execution.attempt import Assignment
from lattice.execution.code import CodeLoadError
from lattice.execution.failures import describe
from lattice.execution.storage import FsspecStorage
from lattice.ids import NodeId
from lattice.workflow.events import Placement, TaskFailed, TaskStarted
from lattice.workflow.task import Code

#: Seconds that a batch must have run before its start is announced; ends repeat the start.
_ANNOUNCE = 0.005

_logger = logging.getLogger("ray.serve")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ReplicaTask:
    """What a replica runs.

    Attributes:
        source: the code's bytes, or where the storage has them.
        has_gpu: GPUs were asked for.
        grace: seconds that a batch of which nobody wants a result any more has to end.
    """

    code: Code
    source: bytes | str
    storage_url: str
    batch_size: int
    batch_timeout: float
    has_gpu: bool
    grace: float


class ConstructionError(Exception):
    """The code does not load or its class cannot be constructed; the text carries it all to `serve.status()`."""


class _Outbox:
    """What of a group is to be told: frames of starts and of ends."""

    def __init__(self) -> None:
        self.starts: list[bytes] = []
        self.ends: list[bytes] = []
        self.arrived = asyncio.Event()

    def take(self) -> tuple[list[bytes], list[bytes]]:
        self.arrived.clear()
        taken = self.starts, self.ends
        self.starts, self.ends = [], []
        return taken


class _Item:
    """A call. `begun`: its batch runs. `abandoned`: nobody wants its result any more."""

    __slots__ = ("abandoned", "assignment", "begun", "outbox")

    def __init__(self, assignment: Assignment, outbox: _Outbox) -> None:
        self.assignment = assignment
        self.outbox = outbox
        self.begun = False
        self.abandoned = False


class TaskReplica:
    """Runs calls of one definition."""

    async def __init__(self, task: ReplicaTask) -> None:  # type: ignore[misc]  # Serve awaits it
        self._task = task
        self._thread = ThreadPoolExecutor(1, "lattice-task")
        self._gate = Gate(task.batch_size)
        self._running: list[_Item] = []
        self._id = str(serve.get_replica_context().replica_tag)
        self._node = (
            NodeId(ray.get_runtime_context().get_node_id()),
            str(ray.util.get_node_ip_address()),  # type: ignore[no-untyped-call]  # Ray's own gap
        )
        batch: Any = self._batch
        batch.set_max_batch_size(task.batch_size)
        batch.set_batch_wait_timeout_s(task.batch_timeout)
        try:
            # In the thread that will call it, as some libraries tie what they load to a thread.
            self._function = await self._in_thread(
                lambda: attempt.open_function(task.code, self._fetch, has_gpu=task.has_gpu)
            )
        except CodeLoadError as error:
            raise ConstructionError(wire.error_text(error.info)) from None

    def _fetch(self) -> bytes:
        source = self._task.source
        if isinstance(source, bytes):
            return source
        return FsspecStorage(self._task.storage_url).read(source)

    async def _in_thread(self, work: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def run_group(
        self, group: list[bytes], alone: bool
    ) -> AsyncIterator[tuple[list[bytes], list[bytes]]]:
        """Runs encoded assignments; says in groups, as it happens, which have begun and how they ended.

        `alone`: none of them shares a batch. Leaving the stream takes what has not begun out of the queue.
        """
        outbox = _Outbox()
        items = [_Item(attempt.decode(data), outbox) for data in group]
        tasks = [asyncio.ensure_future(self._run(item, alone)) for item in items]
        try:
            left = len(items)
            while left:
                await outbox.arrived.wait()
                starts, ends = outbox.take()
                left -= len(ends)
                yield starts, ends
        finally:
            for item, task in zip(items, tasks, strict=True):
                item.abandoned = True
                if not item.begun:
                    task.cancel()
            self._end_if_abandoned()

    async def _run(self, item: _Item, alone: bool) -> None:
        await self._gate.enter(alone=alone)
        try:
            batch: Any = self._batch
            await batch(item)
        except asyncio.CancelledError:
            if not item.begun:
                self._gate.leave(alone=alone)
            raise

    @serve.batch(max_batch_size=1, batch_wait_timeout_s=0.0)
    async def _batch(self, items: list[_Item]) -> list[None]:
        """Runs a batch to its end."""
        self._gate.close()
        self._running = items
        placement = Placement(*self._node, time.time(), self._id, len(items))
        for item in items:
            item.begun = True
        announcing = asyncio.get_running_loop().call_later(
            _ANNOUNCE, self._announce, items, placement
        )
        assignments = [item.assignment for item in items]
        try:
            frames = await self._in_thread(
                lambda: attempt.run_items_of(self._function, assignments, placement)
            )
        except Exception as error:  # a defect of ours; nobody may wait for ever
            _logger.exception("a batch could not be run")
            info = describe(error, self._task.code.name)
            at = time.time()
            frames = [
                wire.encode_end(TaskFailed(each.task_id, each.attempt, at, info, placement))
                for each in assignments
            ]
        finally:
            announcing.cancel()
            self._running = []
            self._gate.open()
        for item, frame in zip(items, frames, strict=True):
            item.outbox.ends.append(frame)
            item.outbox.arrived.set()
        return [None] * len(items)

    def _announce(self, items: list[_Item], placement: Placement) -> None:
        for item in items:
            assigned = item.assignment
            started = TaskStarted(assigned.task_id, assigned.attempt, placement)
            item.outbox.starts.append(wire.encode_start(assigned.run_id, started))
            item.outbox.arrived.set()

    def _end_if_abandoned(self) -> None:
        """Threads cannot be interrupted: a batch that nobody wants and that does not end takes the process along."""
        running = self._running
        if running and all(item.abandoned for item in running):

            def end() -> None:
                if self._running is running:
                    _logger.warning("a cancelled batch did not end; the replica ends")
                    os._exit(1)

            asyncio.get_running_loop().call_later(self._task.grace, end)


TaskDeployment = serve.deployment(
    name="task",
    # How many calls a replica gets is the dispatcher's business: Serve's own bound works by refusing and
    # asking again, which starves batches.
    max_ongoing_requests=100_000,
    health_check_period_s=2,
    graceful_shutdown_wait_loop_s=0.2,
    # A replica that is scaled down finishes its batch.
    graceful_shutdown_timeout_s=3600,
    logging_config={"enable_access_log": False},
)(TaskReplica)
