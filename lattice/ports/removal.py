"""What goes from the store when runs go: the writes and reads of housekeeping.

A run goes in steps, each a small commit, so that a large one holds up nobody:

1. `DeleteRun` takes the run itself, so that nobody finds it, and leaves a note that the rest is to go.
2. `DeleteValues`, `DeleteLogs` and `DeleteMessages` take its rows in slices.
3. What its tasks stored in files goes, as far as no other run refers to it.
4. `DropNote` ends it.

A crash in between leaves the note, and the steps go on from there. A run that was retried is referred to by
the run that took its results over, so a file outlives its run as long as somebody needs it; when the last
such run goes, `PutNote` has the files of the first looked through again.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from lattice.ids import Digest, RunId, TaskId, Tenant, WorkflowId


@dataclass(frozen=True, slots=True)
class DeleteRun:
    """A finished run goes; a note that the rest is to go is due at `due`. One that runs stays."""

    run_id: RunId
    due: float


@dataclass(frozen=True, slots=True)
class PutNote:
    """The files of a run are to be looked through at `due`, in seconds since the epoch."""

    run_id: RunId
    due: float


@dataclass(frozen=True, slots=True)
class DropNote:
    """All is done that a note asked for; one that was put anew, with another `due`, stays."""

    run_id: RunId
    due: float


@dataclass(frozen=True, slots=True)
class DeleteMessages:
    """A run's messages up to `last_seq` go."""

    run_id: RunId
    last_seq: int


@dataclass(frozen=True, slots=True)
class DeleteValues:
    """Outputs of a run go, each named by task and key."""

    run_id: RunId
    outputs: tuple[tuple[TaskId, str], ...]


@dataclass(frozen=True, slots=True)
class DeleteLogs:
    """Parts of what a run's attempts have printed go, each named by task, attempt and position."""

    run_id: RunId
    parts: tuple[tuple[TaskId, int, int], ...]


@dataclass(frozen=True, slots=True)
class DeleteWorkflow:
    """A workflow goes, with its tasks and edges. Its runs, which work on graphs of their own, stay."""

    workflow_id: WorkflowId


@dataclass(frozen=True, slots=True)
class DeleteUnusedBlobs:
    """Those of the blobs go that no task, no run and no graph refers to when this is committed."""

    digests: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class DeleteReplies:
    """Answers to idempotency keys go."""

    keys: tuple[str, ...]


Removal = (
    DeleteRun
    | PutNote
    | DropNote
    | DeleteMessages
    | DeleteValues
    | DeleteLogs
    | DeleteWorkflow
    | DeleteUnusedBlobs
    | DeleteReplies
)


@dataclass(frozen=True, slots=True)
class StoredOutput:
    """An output of a run's task; `location` is where in the storage it is, None if it is in the store."""

    task_id: TaskId
    key: str
    location: str | None


@dataclass(frozen=True, slots=True)
class Leftovers:
    """Some rows of a run: the last seq of the first messages, None if there are none, outputs and logs.

    `logs` are named as by `DeleteLogs`.
    """

    last_seq: int | None
    outputs: tuple[StoredOutput, ...]
    logs: tuple[tuple[TaskId, int, int], ...] = ()


class Removable(Protocol):
    """What housekeeping reads of a store: little at a time, found by an index. Methods block."""

    def finished_runs(
        self,
        limit: int,
        *,
        before: float | None = None,
        keep: int | None = None,
        workflow_id: WorkflowId | None = None,
        tenant: Tenant | None = None,
    ) -> list[RunId]:
        """Runs that have ended; with `before`, only those that did so before that time, oldest first.

        With `keep`, only what is older than the newest `keep`; with `workflow_id` and `tenant`, only theirs.
        """

    def due_notes(self, now: float, limit: int) -> list[DropNote]:
        """The notes that are due at `now`, the oldest first, each as the write that ends it."""

    def leftovers(self, run_id: RunId, limit: int) -> Leftovers:
        """Up to `limit` messages, outputs and parts of logs each that are there of a run."""

    def referenced(self, locations: Collection[str]) -> set[str]:
        """Those of `locations` that an output of any run is at."""

    def blobs_after(self, digest: Digest, limit: int) -> list[Digest]:
        """The digests after `digest`, in their order."""

    def replies_before(self, created: float, limit: int) -> list[str]:
        """Keys of the answers that were given before that time, the oldest first."""
