"""What Ray has as one task: an attempt, or several short ones of a run; and which of them share one.

How they share it in the worker is in `lattice.execution.fusion`.
"""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

import ray

from lattice.execution import wire
from lattice.execution.attempt import Large
from lattice.execution.pacing import Durations
from lattice.execution.ray_endings import Frame
from lattice.execution.ray_failures import explain
from lattice.execution.ray_remote import CodeSource, CodeSources
from lattice.execution.shape import Shape
from lattice.execution.shortage import Room, shortage
from lattice.ids import RunId, TaskId
from lattice.ports.execution import Ahead, Job, TaskLogged
from lattice.workflow.events import TaskFailed, TaskLost, TaskStarted, TaskSucceeded
from lattice.workflow.fair_queue import FairQueue

#: Most attempts that share a call, how long they may last together, and one of them, in seconds.
_MOST, _TOGETHER, _SHORT = 64, 0.005, 0.002


@dataclass(slots=True, eq=False)
class Attempt:
    """A job on its way.

    Attributes:
        code: its code, or a reference to it, kept until it has ended.
        call: the call that owes its report, once Ray has it.
        started: its start was reported.
        begun: its start, where that was heard before anybody had asked for it.
        ahead: nobody has asked for it yet: it comes after others of its call.
        alone: it shares no call, as the one that it shared has died.
    """

    job: Job
    shape: Shape
    code: CodeSource | None = None
    call: WorkerCall | None = None
    started: bool = False
    begun: TaskStarted | None = None
    ahead: bool = False
    alone: bool = False

    @property
    def key(self) -> tuple[RunId, TaskId, int]:
        return self.job.run_id, self.job.task_id, self.job.attempt


@dataclass(slots=True, eq=False)
class WorkerCall:
    """What Ray has as one task: an attempt, or several short ones of a run, in their order.

    Attributes:
        shape: of all of them, as it was when they were given to Ray.
        number: tells it from others, in notes of its worker.
        counted: how many of them the queue counts as out.
        report: the reference to the frame of their ends.
        large: the reference to the large outputs of the last that ended.
        sources: tasks whose large outputs they were given by reference.
        name: what its process is named after.
        recalled: it is taken back, unless it has begun.
    """

    attempts: list[Attempt]
    shape: Shape
    counted: int
    report: Frame | None = None
    large: ray.ObjectRef[Large | None] | None = None
    sources: tuple[TaskId, ...] = ()
    name: str = ""
    recalled: bool = False
    number: int = field(default_factory=itertools.count(1).__next__)

    @property
    def owed(self) -> list[Attempt]:
        """Those whose report has not come."""
        return [taken for taken in self.attempts if taken.call is self]


class Fusing:
    """Puts attempts together that are as short as all those of their code have been."""

    def __init__(
        self,
        queue: FairQueue[Shape, Attempt],
        durations: Durations,
        codes: CodeSources,
        ahead: Ahead,
    ) -> None:
        self._queue = queue
        self._durations = durations
        self._codes = codes
        self._ahead = ahead

    def call_of(self, taken: Attempt, known: Container[tuple[RunId, TaskId, int]]) -> WorkerCall:
        """A call of an attempt, and of others of its run that are as short and wait, or come after it.

        `known`: keys of attempts that are on their way, which are not told ahead any more.
        """
        left = _TOGETHER - self._expected(taken)
        call = WorkerCall([taken], taken.shape, counted=1)
        if left < 0:
            return call

        def joins(other: Attempt) -> bool:
            nonlocal left
            expected = self._expected(other)
            if expected > left:
                return False
            left -= expected
            return True

        run_id = taken.job.run_id
        beside = self._queue.take_beside(taken.shape, run_id, joins, _MOST - 1)
        call.attempts += beside
        call.counted += len(beside)
        together = {each.job.task_id for each in call.attempts}
        for job in itertools.islice(self._ahead(run_id, [*together]), _MOST - len(call.attempts)):
            if left < self._expected(taken):
                break
            follower = self._follower(job)
            fits = follower.shape == taken.shape and follower.code and follower.key not in known
            if fits and together.issuperset(job.after) and joins(follower):
                together.add(job.task_id)
                call.attempts.append(follower)
        return call

    def _follower(self, job: Job) -> Attempt:
        code = self._codes.get(job.definition.code.digest)
        return Attempt(job, Shape.of(job.definition), code, ahead=True)

    def _expected(self, taken: Attempt) -> float:
        """Seconds that an attempt will take at most, by all that is known; infinite if it is to be alone."""
        job = taken.job
        definition = job.definition
        apart = definition.sandbox is not None or definition.secrets or definition.batch.enabled
        if taken.alone or apart or job.timed or job.attempt > 1:
            return math.inf
        seconds = self._durations.expected(definition.code)
        return seconds if seconds <= _SHORT else math.inf


def end_of(
    taken: Attempt, frame: bytes
) -> tuple[TaskSucceeded | TaskFailed | TaskLost, TaskLogged | None]:
    """How an attempt has ended, by the report of its worker, and what it printed, if it did."""
    job = taken.job
    try:
        entries, frame = wire.split_logs(frame)
        end = wire.decode_end(frame)
        if (end.task_id, end.attempt) != (job.task_id, job.attempt):
            raise wire.FrameError("the report of another attempt")
    except wire.FrameError as problem:
        return TaskFailed(job.task_id, job.attempt, time.time(), explain(problem)), None
    logged = TaskLogged(job.task_id, job.attempt, entries, final=True) if entries else None
    return end, logged


def reasons(queued: Sequence[Attempt], rooms: Sequence[Room]) -> dict[TaskId, str]:
    """Why attempts have not begun, for people; `rooms` is what the nodes of the cluster have free."""
    short = {shape: shortage(shape, rooms) for shape in {taken.shape for taken in queued}}
    return {taken.job.task_id: short[taken.shape] or _waits_for(taken) for taken in queued}


def _waits_for(taken: Attempt) -> str:
    """What an attempt for which there is room waits for."""
    if taken.code is None:
        return "its code, which is being read"
    if taken.call is None:
        return "tasks of other runs that are before it"
    if taken.shape.runtime_env:
        if "pip" in json.loads(taken.shape.runtime_env):
            return "its environment: the pip packages of its runtime_env are installed where it will run"
        return "a worker process, with what its runtime_env asks for"
    return "a worker process"
