"""What happened to a run, as the run machine is told. Times are in seconds since the epoch.

Events of a task name the attempt that they belong to; an event of an attempt that is no longer the
current one is late or a duplicate, and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lattice.ids import NodeId, RunId, TaskId


class TimerKind(StrEnum):
    """What a timer of an attempt is for: to begin it after a wait, or to end it at its time-out."""

    RETRY = "retry"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where and when an attempt began. `node_id` is the engine's id of the node.

    Attempts that run on a replica say which, how many calls the batch has that they began in, and of the
    time before they began the seconds in which no replica was there, and those in which the batch filled.
    """

    node_id: NodeId
    node_ip: str
    at: float
    replica: str | None = None
    batch_size: int | None = None
    starting: float = 0.0
    batching: float = 0.0


@dataclass(frozen=True, slots=True)
class ErrorInfo:
    """An error as people and tools see it: qualified class name, text, the user's own traceback.

    `kinds` are the qualified names of the exception's class and of its bases, for retry policies; empty
    where the error is no exception of user code. They are not told to subscribers.
    """

    type: str
    message: str
    traceback: str = ""
    kinds: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Value:
    """Where an output's value is durable: `inline` as opaque bytes, or under `location` in storage.

    `size` is that of the pickled value, in bytes.
    """

    size: int
    inline: bytes | None = None
    location: str | None = None


@dataclass(frozen=True, slots=True)
class Result:
    """What a task returned: its bounded JSON summary, and where each output is."""

    result: Mapping[str, object]
    values: Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class ResultsTakenOver:
    """Before the run begins: results that tasks of `run_id`, a run of the same graph, had are theirs here."""

    run_id: RunId
    at: float
    results: Mapping[TaskId, Result]


@dataclass(frozen=True, slots=True)
class RunRequested:
    """The run begins."""

    at: float


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """A process has begun an attempt."""

    task_id: TaskId
    attempt: int
    placement: Placement


@dataclass(frozen=True, slots=True)
class TaskSucceeded:
    """An attempt returned. `result` is its bounded JSON summary, `values` where each output is.

    `placement` repeats where it ran: a start that was not reported before is made up for.
    """

    task_id: TaskId
    attempt: int
    at: float
    placement: Placement
    result: Mapping[str, object]
    values: Mapping[str, Value] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """An attempt failed by the user's own code or values; None as `placement` if it never began."""

    task_id: TaskId
    attempt: int
    at: float
    error: ErrorInfo
    placement: Placement | None = None


@dataclass(frozen=True, slots=True)
class TaskLost:
    """The process or node that ran an attempt died before it reported."""

    task_id: TaskId
    attempt: int
    at: float
    error: ErrorInfo


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that an `ArmTimer` command asked for is due."""

    task_id: TaskId
    attempt: int
    kind: TimerKind
    at: float


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The time that the run may take is over, as an `ArmDeadline` command asked to be told."""

    at: float


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """Somebody wants the run to end."""

    at: float


@dataclass(frozen=True, slots=True)
class Recovered:
    """The orchestrator restarted: what was running has died with the old one."""

    at: float


Event = (
    ResultsTakenOver
    | RunRequested
    | TaskStarted
    | TaskSucceeded
    | TaskFailed
    | TaskLost
    | TimerFired
    | DeadlineReached
    | CancelRequested
    | Recovered
)
