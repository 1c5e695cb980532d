"""What the run machine wants done. Each command may be carried out again without harm."""

from __future__ import annotations

from dataclasses import dataclass

from lattice.ids import TaskId
from lattice.workflow.events import TimerKind
from lattice.workflow.messages import Message


@dataclass(frozen=True, slots=True)
class Execute:
    """Begin an attempt of a task; all its inputs are there."""

    task_id: TaskId
    attempt: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """End an attempt, whether it has begun or not; nothing of it counts any more."""

    task_id: TaskId
    attempt: int


@dataclass(frozen=True, slots=True)
class ArmTimer:
    """Report `TimerFired` after `delay` seconds."""

    task_id: TaskId
    attempt: int
    kind: TimerKind
    delay: float


@dataclass(frozen=True, slots=True)
class ArmDeadline:
    """Report `DeadlineReached` after `delay` seconds, unless the run has ended before."""

    delay: float


@dataclass(frozen=True, slots=True)
class Publish:
    """Log a message; once it is durable, tell it to the subscribers."""

    message: Message


@dataclass(frozen=True, slots=True)
class Release:
    """Nobody will ask for this task's output values any more: their memory may go."""

    task_id: TaskId


@dataclass(frozen=True, slots=True)
class Finish:
    """The run is over; its last message has been published. `status` is that of the run."""

    status: str


Command = Execute | Cancel | ArmTimer | ArmDeadline | Publish | Release | Finish
