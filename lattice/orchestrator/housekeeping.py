"""Housekeeping: removes what need not be kept, a little at a time, beside everything else.

Every `period` seconds, and again at once while there is more: runs that are too old or too many go, what
runs that went have left is removed, blobs that nobody refers to, old answers to idempotency keys, and workers
that have left or were lost long ago.
Each step reads a bounded number of rows by an index, in a thread, and appends a small write to the
journal, so nothing here grows with the number of finished runs or stands in the way of a live one.
`lattice.ports.removal` says in which order a run goes and why a crash in between leaks nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from lattice.errors import InvalidRequestError, LatticeError, RunNotFoundError
from lattice.ids import Digest, RunId, Tenant, WorkflowId
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.policies import Retention
from lattice.ports.environment import Clock
from lattice.ports.removal import (
    DeleteLogs,
    DeleteMessages,
    DeleteReplies,
    DeleteRun,
    DeleteUnusedBlobs,
    DeleteValues,
    DropNote,
    PutNote,
    Removal,
)
from lattice.ports.store import Store, ValueStorage, Write
from lattice.workflow.states import RunStatus

_log = logging.getLogger(__name__)

#: Seconds until what a run has left is looked for: attempts that were cancelled with it may still be
#: writing, until their processes are killed.
_GRACE = 10.0
#: Seconds between two batches while there is more.
_PAUSE = 0.2
#: Blobs are looked at in larger batches: a look changes little.
_BLOB_PAGES = 10
#: A note whose files could not be removed is tried again after so many seconds.
_TRY_AGAIN = 300.0


#: See `Housekeeping`.
ForgetNodes = Callable[[float | None], Awaitable[Sequence[Write]]]


class Housekeeping:
    """Removes runs, on request and by age and number, and what is left of them.

    `lock` is held from the look at a run until the write that removes it is appended; whoever takes results
    of a run over holds it too, from reading them until the new run is appended. `forget_nodes` gives what is to be
    written of workers that the engine has not had for so many seconds, and raises what asking the engine raises.
    """

    def __init__(
        self,
        store: Store,
        storage: ValueStorage,
        journal: Journal,
        clock: Clock,
        retention: Retention,
        forget_nodes: ForgetNodes,
    ) -> None:
        self.lock = asyncio.Lock()
        self._store = store
        self._storage = storage
        self._journal = journal
        self._clock = clock
        self._retention = retention
        self._forget_nodes = forget_nodes
        self._last_blob = Digest("")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """From now on, looks every `period` seconds."""
        self._task = asyncio.create_task(self._keep(), name="housekeeping")

    async def close(self) -> None:
        """Stops. What was begun goes on when there is a housekeeping again."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def delete_run(self, run_id: RunId) -> None:
        """Removes a finished run; nobody finds it from now on.

        Raises:
            RunNotFoundError: there is none.
            InvalidRequestError: it has not ended.
        """
        async with self.lock:
            await self._journal.barrier()
            record = await asyncio.to_thread(self._store.load_run, run_id)
            if record is None:
                raise RunNotFoundError(run_id)
            if record.status == RunStatus.RUNNING:
                raise InvalidRequestError(
                    "run_id",
                    f"the run {run_id}, which is running",
                    "only a run that has ended can be deleted; cancel it first",
                )
            await self._delete([run_id])

    async def delete_runs_of(
        self, workflow_id: WorkflowId, limit: int, tenant: Tenant | None = None
    ) -> int:
        """Removes up to `limit` finished runs of a workflow, with `tenant` its own; how many it were.

        The workflow itself may have been deleted.
        """
        deleted = 0
        while deleted < limit:
            async with self.lock:
                await self._journal.barrier()
                batch = min(self._retention.batch, limit - deleted)
                found = await asyncio.to_thread(
                    self._store.finished_runs, batch, workflow_id=workflow_id, tenant=tenant
                )
                await self._delete(found)
            deleted += len(found)
            if len(found) < batch:
                break
        return deleted

    async def tidy(self) -> bool:
        """One batch of everything that is due. Returns whether there may be more.

        Raises StoreUnavailableError while nothing can be written, as what is to go would be asked for again.
        """
        self._journal.check()
        more = [await self._expire_runs(), await self._remove_leftovers()]
        await self._remove_blobs()
        more.append(await self._expire_replies())
        if any(more):
            return True
        # Last and once, as the engine may be away, which is no reason to keep anything else.
        writes = await self._forget_nodes(self._retention.node_seconds)
        if writes:
            await self._journal.append(writes)
        return False

    async def _keep(self) -> None:
        period = self._retention.period
        pause = period
        while True:
            await asyncio.sleep(pause)
            pause = period
            try:
                if await self.tidy():
                    pause = min(_PAUSE, period)
            except LatticeError as error:
                # The journal has stopped, and with it the orchestrator, or the database is away.
                _log.warning("housekeeping was interrupted: %s", error)
            except Exception:
                _log.exception("housekeeping was interrupted")

    async def _delete(self, run_ids: list[RunId]) -> None:
        due = self._clock.now() + _GRACE
        await self._journal.append([DeleteRun(run_id, due) for run_id in run_ids])

    async def _expire_runs(self) -> bool:
        keep, batch, more = self._retention, self._retention.batch, False
        searches: list[dict[str, float]] = []
        if keep.run_seconds is not None:
            searches.append({"before": self._clock.now() - keep.run_seconds})
        if keep.runs is not None:
            searches.append({"keep": keep.runs})
        for search in searches:
            async with self.lock:
                found = await asyncio.to_thread(
                    self._store.finished_runs,
                    batch,
                    **search,  # type: ignore[arg-type]  # one of two keywords with types of their own
                )
                if found:
                    await self._delete(found)
            more = more or len(found) == batch
        return more

    async def _remove_leftovers(self) -> bool:
        batch = self._retention.batch
        notes = await asyncio.to_thread(self._store.due_notes, self._clock.now(), batch)
        for note in notes:
            try:
                await self._clear(note)
            except LatticeError:
                raise
            except Exception:
                # File systems raise errors of their own, and the notes behind this one are to have their turn.
                _log.exception("files of the run %s cannot be removed yet", note.run_id)
                await self._journal.append([PutNote(note.run_id, self._clock.now() + _TRY_AGAIN)])
        # What was cleared may have put notes of its own.
        return bool(notes)

    async def _clear(self, note: DropNote) -> None:
        """Removes what is left of a run. Raises what the storage raises."""
        run_id = note.run_id
        # A note may be of a run that is still there, as one that took its results over has gone: then only
        # files are looked for that nobody needs any more.
        record = await asyncio.to_thread(self._store.load_run, run_id)
        while record is None:
            left = await asyncio.to_thread(self._store.leftovers, run_id, self._retention.batch)
            writes: list[Removal] = []
            if left.last_seq is not None:
                writes.append(DeleteMessages(run_id, left.last_seq))
            if left.outputs:
                outputs = tuple((output.task_id, output.key) for output in left.outputs)
                writes.append(DeleteValues(run_id, outputs))
                owners = {
                    self._storage.owner(output.location)
                    for output in left.outputs
                    if output.location is not None
                }
                now = self._clock.now()
                writes += [PutNote(owner, now) for owner in owners - {run_id}]
            if left.logs:
                writes.append(DeleteLogs(run_id, left.logs))
            if not writes:
                break
            await self._journal.append(writes)
        await asyncio.to_thread(self._remove_files, run_id)
        await self._journal.append([note])

    def _remove_files(self, run_id: RunId) -> None:
        """Removes the files of a run that no run refers to. Blocks. Raises what the storage raises."""
        stored = self._storage.stored_by(run_id)
        needed = self._store.referenced(stored)
        self._storage.delete([location for location in stored if location not in needed])

    async def _remove_blobs(self) -> None:
        """Looks at the next blobs; from the first again after the last.

        Most are in use, so that a full page is no reason to hurry.
        """
        batch = _BLOB_PAGES * self._retention.batch
        found = await asyncio.to_thread(self._store.blobs_after, self._last_blob, batch)
        if found:
            await self._journal.append([DeleteUnusedBlobs(tuple(found))])
        self._last_blob = found[-1] if len(found) == batch else Digest("")

    async def _expire_replies(self) -> bool:
        seconds, batch = self._retention.reply_seconds, self._retention.batch
        if seconds is None:
            return False
        before = self._clock.now() - seconds
        found = await asyncio.to_thread(self._store.replies_before, before, batch)
        if found:
            await self._journal.append([DeleteReplies(tuple(found))])
        return len(found) == batch
