"""Planted faults of the journal, the feed, the replies and the catalogue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any

import pytest

from lattice.ids import RunId, TaskId
from lattice.orchestrator.catalogue import Catalogue
from lattice.orchestrator.feed import Feed
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.replies import Replies
from lattice.orchestrator.runs import Runs
from lattice.ports.service import Once
from lattice.ports.store import PutReply, Write
from lattice.store.memory import MemoryStore
from lattice.workflow.graph import Workflow
from tests.simulation.planted import Faults

FAULTS = Faults()


@FAULTS.does("publishes and begins before the commit")
def _(patch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def broken(
        self: Journal, writes: Sequence[Write], then: Callable[[], None] | None = None
    ) -> asyncio.Future[None]:
        if then is not None:
            then()
        return append(self, writes)

    patch.setattr(Journal, "append", broken)


@FAULTS.does("answers before the commit")
def _(patch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def broken(
        self: Journal, writes: Sequence[Write], then: Callable[[], None] | None = None
    ) -> asyncio.Future[None]:
        append(self, writes, then)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    patch.setattr(Journal, "append", broken)


@FAULTS.does("does not ask for the lease in a barrier")
def _(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Journal) -> None:
        if self.failure is not None:
            raise self.failure

    patch.setattr(Journal, "barrier", broken)


@FAULTS.does("ignores that the lease was lost")
def _(patch: pytest.MonkeyPatch) -> None:
    commit = MemoryStore.commit
    patch.setattr(
        MemoryStore, "commit", lambda self, lease, writes: commit(self, self._lease, writes)
    )


@FAULTS.does("goes on running when nothing more can be stored")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Runs, "stop", lambda self: None)


@FAULTS.does("forgets the answers of a former life")
def _(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: Replies, once: Once) -> Mapping[str, str] | None:
        return None

    patch.setattr(Replies, "_stored", broken)


@FAULTS.does("stores the answer apart from what it answers")
def _(patch: pytest.MonkeyPatch) -> None:
    append = Journal.append

    def broken(
        self: Journal, writes: Sequence[Write], then: Callable[[], None] | None = None
    ) -> asyncio.Future[None]:
        replies = [write for write in writes if isinstance(write, PutReply)]
        if not replies:
            return append(self, writes, then)
        done = append(self, [write for write in writes if write not in replies], then)
        done.add_done_callback(lambda first: first.exception() or append(self, replies))
        return done

    patch.setattr(Journal, "append", broken)


@FAULTS.does("does a request twice that comes twice at once")
def _(patch: pytest.MonkeyPatch) -> None:
    async def broken(
        self: Replies, once: Once | None, prepare: Callable[[], Awaitable[Any]]
    ) -> Mapping[str, str]:
        if once is not None and (stored := await self._stored(once)):
            return stored
        return await self._perform(once, prepare)

    patch.setattr(Replies, "perform", broken)


@FAULTS.does("repeats a message where a stream goes on")
def _(patch: pytest.MonkeyPatch) -> None:
    follow = Feed.follow

    def broken(self: Feed, run_id: RunId, after: int) -> AsyncIterator[list[str]]:
        return follow(self, run_id, max(0, after - 1))

    patch.setattr(Feed, "follow", broken)


@FAULTS.does("skips what was published while the store was read")
def _(patch: pytest.MonkeyPatch) -> None:
    follow = Feed.follow

    async def broken(self: Feed, run_id: RunId, after: int) -> AsyncIterator[list[str]]:
        async for group in follow(self, run_id, after):
            live = self._live.get(run_id)
            yield group
            if live is not None and after + len(group) < live.seq:
                async for rest in follow(self, run_id, live.seq):
                    yield rest
                return
            after += len(group)

    patch.setattr(Feed, "follow", broken)


@FAULTS.does("ends the stream of a run when there is nothing new")
def _(patch: pytest.MonkeyPatch) -> None:
    follow = Feed.follow

    async def broken(self: Feed, run_id: RunId, after: int) -> AsyncIterator[list[str]]:
        async for group in follow(self, run_id, after):
            yield group
            after += len(group)
            live = self._live.get(run_id)
            if live is not None and live.seq == after:
                return

    patch.setattr(Feed, "follow", broken)


@FAULTS.does("does not store that a task was deleted")
def _(patch: pytest.MonkeyPatch) -> None:
    del_task = Catalogue.del_task

    def broken(self: Catalogue, workflow: Workflow, task_id: TaskId) -> list[Write]:
        return del_task(self, workflow, task_id)[1:]

    patch.setattr(Catalogue, "del_task", broken)
