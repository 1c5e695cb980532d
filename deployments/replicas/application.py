"""What the dispatcher and the fleet know of a definition's application, and of the jobs it has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

from deployments.replicas import identity
from lattice.ids import RunId, TaskId
from lattice.ports.execution import Definition, Job

#: What an attempt is known by: run, task and the attempt's number.
Key = tuple[RunId, TaskId, int]


@dataclass(slots=True, eq=False)
class Application:
    """A definition's application. Without `handle` it does not exist yet, or not any more.

    Attributes:
        ready: replicas that take calls and may be counted on, as of the last look.
        seen: replicas that Serve said were running at the last look.
        cold_since: since when work waits for a first replica, on the event loop's clock.
        paused: Serve has refused a call; the next look tells why.
        missing: looks in a row in which Serve did not know it.
        refusals: how often in a row Serve has failed to deploy it.
        work: jobs that have not ended, here or on replicas.
        groups: calls of the handle that are under way.
        to_warm: a replica is wanted before there is work.
        warming: the call that makes Serve start it.
        group_size, calls_ahead, groups_ahead: as `identity` has them, which is asked for with each job.
    """

    name: str
    definition: Definition
    last_used: float
    cold_since: float
    handle: Any = None
    creating: asyncio.Task[None] | None = None
    deleting: bool = False
    ready: int = 0
    seen: int = 0
    paused: bool = False
    missing: int = 0
    refusals: int = 0
    work: set[Attempt] = field(default_factory=set)
    groups: set[Group] = field(default_factory=set)
    to_warm: bool = False
    warming: asyncio.Task[None] | None = None
    group_size: int = field(init=False)
    calls_ahead: int = field(init=False)
    groups_ahead: int = field(init=False)

    def __post_init__(self) -> None:
        self.group_size = identity.group_size(self.definition)
        self.calls_ahead = identity.calls_ahead(self.definition)
        self.groups_ahead = identity.groups_ahead(self.definition)

    @property
    def busy(self) -> bool:
        """Whether anybody waits for it."""
        return bool(self.work) or self.to_warm


@dataclass(slots=True, eq=False)
class Attempt:
    """A job on its way.

    Attributes:
        submitted: when it was taken, in seconds since the epoch.
        sent: when its group left, on the event loop's clock.
        moves: how often it has changed replicas before it began.
    """

    job: Job
    application: Application
    submitted: float
    group: Group | None = None
    sent: float = 0.0
    started: bool = False
    cancelled: bool = False
    moves: int = 0

    @property
    def key(self) -> Key:
        """What it is known by."""
        return self.job.run_id, self.job.task_id, self.job.attempt


@dataclass(slots=True, eq=False)
class Group:
    """Jobs in one call of the handle. `open`: those that have not ended."""

    application: Application
    open: dict[Key, Attempt]
    task: asyncio.Task[None] | None = None
    stream: Any = None
