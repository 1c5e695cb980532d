"""What is removed, when, and that a crash anywhere in between neither leaks nor takes what is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest

from lattice.errors import (
    InvalidRequestError,
    RunNotFoundError,
    StoreRefusedError,
    StoreUnavailableError,
)
from lattice.ids import Digest, RunId, TaskId, WorkflowId
from lattice.orchestrator import Retention, feed
from lattice.orchestrator.housekeeping import Housekeeping
from lattice.ports.service import Once
from lattice.ports.store import Write
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from lattice.workflow.events import Placement, TaskSucceeded, Value
from tests.unit.orchestrator.world import FakeStorage, World, make, upload

pytestmark = pytest.mark.anyio

A, B = TaskId("a"), TaskId("b")
#: Small, so that every loop over batches is gone through more than once.
RETENTION = Retention(run_seconds=1000, runs=5, reply_seconds=500, period=3600, batch=2)


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    store, clock, ids, storage = MemoryStore(), FakeClock(), CountedIds(), FakeStorage()
    dispatcher = HeldDispatcher(clock)
    options = {"retention": RETENTION}
    orchestrator = make(store, clock, dispatcher, ids, storage, retention=RETENTION)
    world = World(store, clock, dispatcher, orchestrator, ids, storage, options)
    await world.orchestrator.start_monitor()
    yield world
    await world.orchestrator.close()


def housekeeping(world: World) -> Housekeeping:
    return world.orchestrator._parts.housekeeping


async def tidy(world: World) -> None:
    """Housekeeping until there is nothing more, and then what was to wait."""
    for _ in range(2):
        while await housekeeping(world).tidy():
            pass
        world.clock.advance(10)


async def failed_run(world: World, workflow_id: WorkflowId | None = None) -> RunId:
    """A run that failed; its task `a` has left a large value, and a file that came to nothing."""
    if workflow_id is None:
        _, run_id = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [])
    else:
        run_id = await world.orchestrator.run_workflow(workflow_id)
    location = f"runs/{run_id}/a/1/out"
    world.storage.files |= {location: b"large", f"runs/{run_id}/a/1/.half": b"la"}
    now = world.clock.now()
    placement = Placement(world.dispatcher.engine[0].node_id, "127.0.0.1", now)
    values = {"out": Value(5, location=location), "small": Value(1, b"s")}
    world.dispatcher.tell(run_id, TaskSucceeded(A, 1, now, placement, {}, values))
    world.dispatcher.fail(run_id, B)
    await world.messages(run_id)
    return run_id


def files_of(world: World, *run_ids: RunId) -> list[str]:
    return [name for name in world.storage.files if RunId(name.split("/")[1]) in run_ids]


def rows_of(world: World, run_id: RunId) -> object:
    left = world.store.leftovers(run_id, 99)
    return left.last_seq or left.outputs


async def listed(world: World) -> list[object]:
    return [run["run_id"] for run in await world.orchestrator.list_runs(100)]


# -- on request --------------------------------------------------------------------------------


async def test_a_deleted_run_is_gone_at_once_and_its_files_soon(world: World) -> None:
    """Nobody finds it; another run keeps what it has."""
    run_id, other = await failed_run(world), await failed_run(world)
    await world.orchestrator.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.describe_run(run_id)
    with pytest.raises(RunNotFoundError):
        await world.messages(run_id)
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.delete_run(run_id)
    await housekeeping(world).tidy()
    assert len(files_of(world, run_id)) == 2, "attempts may still be writing"
    await tidy(world)
    assert files_of(world, run_id) == []
    assert rows_of(world, run_id) == ()
    assert len(files_of(world, other)) == 2
    assert await world.orchestrator.value_pickle(other, A, "out") == b"large"
    assert world.store.due_notes(float("inf"), 9) == []


async def test_a_run_that_is_running_is_not_deleted(world: World) -> None:
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    with pytest.raises(InvalidRequestError, match="is running; only a run that has ended"):
        await world.orchestrator.delete_run(run_id)
    await world.orchestrator.cancel_run(run_id)
    await world.orchestrator.delete_run(run_id)
    assert await listed(world) == []


async def test_the_runs_of_a_workflow_are_deleted_together(world: World) -> None:
    """Those that have ended, up to a number; other workflows keep theirs."""
    other = await failed_run(world)
    workflow_id, run_id = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [])
    for _ in range(4):
        await failed_run(world, workflow_id)
    assert await world.orchestrator.delete_runs(workflow_id, 3) == 3
    assert len(await listed(world)) == 3
    assert await world.orchestrator.delete_runs(workflow_id, 99) == 1
    assert await world.orchestrator.delete_runs(workflow_id, 99) == 0
    assert await listed(world) == [run_id, other]
    assert await world.orchestrator.delete_runs(WorkflowId("none"), 99) == 0


# -- values that another run needs -------------------------------------------------------------


async def test_a_file_stays_as_long_as_any_run_refers_to_it(world: World) -> None:
    """However many runs took it over, and in whatever order they go."""
    first = await failed_run(world)
    second = await world.orchestrator.retry_run(first)
    await world.orchestrator.cancel_run(second)
    third = await world.orchestrator.retry_run(second)
    await world.orchestrator.cancel_run(third)
    await world.orchestrator.delete_run(first)
    await tidy(world)
    assert files_of(world, first) == [f"runs/{first}/a/1/out"], "what nobody refers to went"
    await world.orchestrator.delete_run(third)
    await tidy(world)
    assert await world.orchestrator.value_pickle(second, A, "out") == b"large"
    await world.orchestrator.delete_run(second)
    await tidy(world)
    assert world.storage.files == {}
    assert world.store.due_notes(float("inf"), 9) == []


async def test_the_source_of_a_retry_keeps_its_files_when_the_retry_goes(world: World) -> None:
    first = await failed_run(world)
    second = await world.orchestrator.retry_run(first)
    await world.orchestrator.cancel_run(second)
    await world.orchestrator.delete_run(second)
    await tidy(world)
    assert await world.orchestrator.value_pickle(first, A, "out") == b"large"
    assert rows_of(world, first)


async def test_a_run_is_not_deleted_while_its_results_are_taken_over(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The deletion waits; then the new run has its values, and its files stay."""
    first = await failed_run(world)
    loop, gate, reached = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    load = world.store.load_values

    def held(run_id: RunId) -> dict[TaskId, dict[str, Value]]:
        loop.call_soon_threadsafe(reached.set)
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        return load(run_id)

    monkeypatch.setattr(world.store, "load_values", held)
    retrying = asyncio.create_task(world.orchestrator.retry_run(first))
    await reached.wait()
    deleting = asyncio.create_task(world.orchestrator.delete_run(first))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not deleting.done()
    gate.set()
    again = await retrying
    await deleting
    await tidy(world)
    assert await world.orchestrator.value_pickle(again, A, "out") == b"large"


# -- by age and number -------------------------------------------------------------------------


async def test_old_runs_go(world: World) -> None:
    """Counted from their end; one that runs stays however old it is."""
    _, live = await world.orchestrator.submit_workflow([upload("a")], [])
    old = [await failed_run(world) for _ in range(3)]
    world.clock.advance(600)
    young = await failed_run(world)
    world.clock.advance(401)
    await tidy(world)
    assert await listed(world) == [young, live]
    assert files_of(world, *old) == []
    assert len(files_of(world, young)) == 2


async def test_of_many_runs_the_newest_stay(world: World) -> None:
    runs = []
    for _ in range(9):
        runs.append(await failed_run(world))
        world.clock.advance(1)
    await tidy(world)
    assert await listed(world) == runs[:3:-1]
    assert files_of(world, *runs[:4]) == []
    await tidy(world)
    assert len(await listed(world)) == 5


async def test_codes_and_graphs_that_nobody_needs_go(world: World) -> None:
    """A code stays for its workflow, and for each run of it, whatever became of the workflow."""

    def blobs() -> int:
        return len(world.store.blobs_after(Digest(""), 999))

    run_id = await failed_run(world)
    described = await world.orchestrator.describe_run(run_id)
    await tidy(world)
    assert blobs() == 3
    for task_id in (A, B):
        await world.orchestrator.del_task(described["workflow_id"], task_id)  # type: ignore[arg-type]
    await tidy(world)
    assert blobs() == 3
    again = await world.orchestrator.retry_run(run_id)
    world.dispatcher.succeed(again, B, out=b"")
    await world.messages(again)
    await world.orchestrator.delete_run(run_id)
    await tidy(world)
    assert blobs() == 3
    await world.orchestrator.delete_run(again)
    await tidy(world)
    assert blobs() == 0


async def test_old_answers_go_and_their_keys_are_free(world: World) -> None:
    once = Once("key", "f")
    first = await world.orchestrator.create_workflow(once)
    world.clock.advance(499)
    await housekeeping(world).tidy()
    assert await world.orchestrator.create_workflow(once) == first
    world.clock.advance(2)
    await tidy(world)
    assert await world.orchestrator.create_workflow(Once("key", "other")) != first


async def test_by_default_nothing_goes_by_itself(world: World) -> None:
    """An orchestrator that was given no retention keeps everything."""
    world.options = {}
    run_id = await failed_run(world)
    await world.restart()
    world.clock.advance(10**9)
    await tidy(world)
    assert await listed(world) == [run_id]


# -- when something breaks ---------------------------------------------------------------------


@pytest.mark.parametrize("commits", range(8))
async def test_a_crash_anywhere_leaks_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, commits: int
) -> None:
    """After so many commits of a removal the orchestrator dies; the next one ends what it began."""
    first = await failed_run(world)
    second = await world.orchestrator.retry_run(first)
    await world.orchestrator.cancel_run(second)
    kept = await failed_run(world)
    left, commit = commits, world.store.commit

    def dying(lease: int, writes: Sequence[Write], number: int) -> None:
        nonlocal left
        if left == 0 and writes:
            raise StoreRefusedError("killed")
        left -= bool(writes)
        commit(lease, writes, number)

    monkeypatch.setattr(world.store, "commit", dying)
    try:
        await world.orchestrator.delete_run(first)
        await world.orchestrator.delete_run(second)
        await tidy(world)
    except StoreUnavailableError:
        pass
    monkeypatch.setattr(world.store, "commit", commit)
    await world.restart()
    for run_id in (first, second):
        if world.store.load_run(run_id) is not None:
            await world.orchestrator.delete_run(run_id)
    await tidy(world)
    assert files_of(world, first, second) == []
    assert rows_of(world, first) == rows_of(world, second) == ()
    assert world.store.due_notes(float("inf"), 9) == []
    assert await world.orchestrator.value_pickle(kept, A, "out") == b"large"


async def test_a_storage_that_is_away_is_asked_again_later(world: World) -> None:
    """The note stays; the others go on."""
    run_id = await failed_run(world)
    await world.orchestrator.delete_run(run_id)
    world.storage.fails = True
    world.clock.advance(10)
    await tidy(world)
    assert len(files_of(world, run_id)) == 2
    world.storage.fails = False
    await tidy(world)
    assert len(files_of(world, run_id)) == 2
    world.clock.advance(300)
    await tidy(world)
    assert files_of(world, run_id) == []


async def test_it_looks_by_itself_and_ends_with_the_orchestrator() -> None:
    """Every period; an error of one look does not end it."""
    store, clock = MemoryStore(), FakeClock()
    dispatcher = HeldDispatcher(clock)
    retention = Retention(run_seconds=10, period=0.001)
    orchestrator = make(store, clock, dispatcher, CountedIds(), retention=retention)
    await orchestrator.start_monitor()
    _, run_id = await orchestrator.submit_workflow([upload("a")], [])
    dispatcher.succeed(run_id, A, out=b"")
    fails, find = [RuntimeError("a defect"), StoreUnavailableError("away")], store.due_notes

    def failing(now: float, limit: int) -> object:
        if fails:
            raise fails.pop()
        return find(now, limit)

    store.due_notes = failing  # type: ignore[method-assign, assignment]
    clock.advance(11)
    async with asyncio.timeout(30):
        while store.load_run(run_id) is not None or fails:  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.001)
    await orchestrator.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "housekeeping"]


async def test_an_error_of_a_file_system_holds_up_nothing_else(world: World) -> None:
    """File systems raise errors of their own, which need not be OSErrors."""
    first = await failed_run(world)
    second = await failed_run(world)
    delete = world.storage.delete

    def refused(locations: Sequence[str]) -> None:
        if any(first in location for location in locations):
            raise RuntimeError("403 from the bucket")
        delete(locations)

    world.storage.delete = refused  # type: ignore[method-assign]  # what a bucket may do
    for run_id in (first, second):
        await world.orchestrator.delete_run(run_id)
    world.clock.advance(10)
    await tidy(world)
    assert files_of(world, first) != []
    assert files_of(world, second) == []
    world.storage.delete = delete  # type: ignore[method-assign]  # as it was
    world.clock.advance(300)
    await tidy(world)
    assert world.storage.files == {}


async def test_a_deletion_in_the_middle_of_a_stream_is_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber neither misses messages nor takes the end of the stream for that of the run."""
    monkeypatch.setattr(feed, "_GROUP", 2)
    run_id = await failed_run(world)
    stream = aiter(world.orchestrator.follow(run_id, None, 0))
    assert len(await anext(stream)) == 2
    await world.orchestrator.delete_run(run_id)
    with pytest.raises(RunNotFoundError):
        await anext(stream)
