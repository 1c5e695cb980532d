"""What clients were told: kept by the clients themselves, and compared with the store in the end."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lattice.client.events import Event, FinishWorkflow


@dataclass(frozen=True, slots=True)
class Seen:
    """A message of a run, and when it reached the client."""

    event: Event
    at: float

    @property
    def happened(self) -> float:
        """When it happened, as the message says, in seconds since the epoch."""
        return datetime.fromisoformat(self.event.time).timestamp()


@dataclass(slots=True, eq=False)
class RunNotes:
    """A run that a client was told is accepted.

    Attributes:
        nonce: of its workflow, as it stands in the side-effect file.
        names: of its tasks, by id.
        asked, accepted: when it was asked for, and when the answer came.
        expected: the outputs of its tasks, by name, if it succeeds.
        cancelled: the status that a request to cancel it was answered with.
        ended: when the client had seen its end.
        results: what the SDK gave as its results.
        deleted: the service said that it is.
    """

    run_id: str
    workflow_id: str
    shape: str
    nonce: str
    names: Mapping[str, str]
    asked: float
    accepted: float
    expected: Mapping[str, Mapping[str, Any]]
    seen: list[Seen] = field(default_factory=list)
    cancelled: str | None = None
    ended: float | None = None
    results: Mapping[str, Mapping[str, Any]] | None = None
    deleted: bool = False

    def tell(self, event: Event) -> None:
        """Notes the next message."""
        self.seen.append(Seen(event, time.time()))
        if isinstance(event, FinishWorkflow):
            self.ended = self.seen[-1].at

    @property
    def status(self) -> str | None:
        """How it ended, as the client was told."""
        last = self.seen[-1].event if self.seen else None
        return last.status if isinstance(last, FinishWorkflow) else None

    def goes_on_since(self, at: float) -> bool:
        """Whether the client has seen something that happened after `at`, or the run's end."""
        return self.ended is not None or bool(self.seen and self.seen[-1].happened > at)

    def went_on(self, at: float) -> float:
        """When the client saw the first message of something that happened after `at`; `at` if none did."""
        return next((seen.at for seen in self.seen if seen.happened > at), at)


@dataclass(slots=True)
class Notes:
    """The notes of all clients. Lists only grow, so any thread may read them.

    Attributes:
        unanswered: how many requests for a run, each repeated under one key, got no answer in the end.
        workflows: ids of workflows that were acknowledged without a run.
        nodes: ids of nodes whose registration was acknowledged, one after another at the same address.
        errors: what the SDK raised where nothing should have gone wrong.
    """

    runs: list[RunNotes] = field(default_factory=list)
    unanswered: int = 0
    workflows: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def in_flight(self) -> list[RunNotes]:
        """Accepted runs whose end no client has seen."""
        return [run for run in self.runs if run.ended is None]
