"""Where a run and its tasks can be, and every way from one state to another.

The machine that moves them is in `lattice.workflow.run`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class RunStatus(StrEnum):
    """Where a run is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class TaskState(StrEnum):
    """Where a task of a run is."""

    WAITING = "waiting"  # for tasks upstream
    QUEUED = "queued"  # handed to the engine, not begun
    RUNNING = "running"
    BACKING_OFF = "backing_off"  # failed or lost, to be tried again
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    SKIPPED = "skipped"  # a task upstream failed
    CANCELLED = "cancelled"


class Cause(StrEnum):
    """Why a task changes its state."""

    TAKE_OVER = "take_over"
    EXECUTE = "execute"
    START = "start"
    SUCCEED = "succeed"
    FAIL = "fail"
    RETRY = "retry"
    SKIP = "skip"
    CANCEL = "cancel"


#: Every change of state that a task may undergo. The README's diagram is made from this table.
TRANSITIONS: Mapping[tuple[TaskState, Cause], TaskState] = {
    (TaskState.WAITING, Cause.TAKE_OVER): TaskState.SUCCEEDED,
    (TaskState.WAITING, Cause.EXECUTE): TaskState.QUEUED,
    (TaskState.WAITING, Cause.SKIP): TaskState.SKIPPED,
    (TaskState.WAITING, Cause.CANCEL): TaskState.CANCELLED,
    (TaskState.QUEUED, Cause.START): TaskState.RUNNING,
    (TaskState.QUEUED, Cause.FAIL): TaskState.FAILED,
    (TaskState.QUEUED, Cause.RETRY): TaskState.BACKING_OFF,
    (TaskState.QUEUED, Cause.CANCEL): TaskState.CANCELLED,
    (TaskState.RUNNING, Cause.SUCCEED): TaskState.SUCCEEDED,
    (TaskState.RUNNING, Cause.FAIL): TaskState.FAILED,
    (TaskState.RUNNING, Cause.RETRY): TaskState.BACKING_OFF,
    (TaskState.RUNNING, Cause.CANCEL): TaskState.CANCELLED,
    (TaskState.BACKING_OFF, Cause.EXECUTE): TaskState.QUEUED,
    (TaskState.BACKING_OFF, Cause.CANCEL): TaskState.CANCELLED,
}


@dataclass(slots=True)
class TaskProgress:
    """How far a task of a run is. Only the machine changes it.

    Attributes:
        attempt: number of the current or last attempt; 0 before the first.
        missing: how many tasks upstream have not succeeded.
        consumers: how many tasks downstream have not ended.
        failures, losses: how many attempts failed by their own code, and died with their process.
        started, finished: times of the last `start_task` and of the end, ISO 8601.
        retry_at: when the next attempt is due, in seconds since the epoch, while BACKING_OFF.
        queued_at, started_at: when the attempt was handed to the engine and when it began, in seconds since
            the epoch; not told.
        timing: where the time of the last attempt went, as `start_task` told and then its end.
        error: why the last attempt failed.
        story: the causes of all changes of state, oldest first.
    """

    missing: int
    consumers: int
    state: TaskState = TaskState.WAITING
    attempt: int = 0
    failures: int = 0
    losses: int = 0
    started: str | None = None
    finished: str | None = None
    retry_at: float = 0.0
    queued_at: float = field(default=0.0, compare=False)
    started_at: float = field(default=0.0, compare=False)
    timing: Mapping[str, object] | None = None
    error: Mapping[str, object] | None = None
    story: list[str] = field(default_factory=list)
