"""The database away for a while: who waits is told, what was accepted is kept and goes on, nothing is done twice."""

from __future__ import annotations

import asyncio
import json
import traceback
from collections.abc import Sequence

import pytest

from lattice.errors import LatticeError, StoreRefusedError, StoreUnavailableError
from lattice.ids import Digest, TaskId
from lattice.orchestrator import journal, parts
from lattice.ports.execution import LogEntry, TaskLogged
from lattice.ports.service import LogMessages, Once
from lattice.ports.store import Write
from tests.unit.orchestrator.outage import Outage, known, over, until
from tests.unit.orchestrator.world import World, upload

A, B = TaskId("a"), TaskId("b")


async def test_what_is_printed_meanwhile_is_bounded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though somebody listens: beyond the beginning nothing of it waits for the database."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    heard: list[str] = []

    async def listen() -> None:
        async for group in world.orchestrator.follow(run_id, None, 0, logs=True):
            if isinstance(group, LogMessages):
                heard.extend(text for _, text in group.texts)

    def say(number: int) -> None:
        entry = LogEntry(number * 1000, 5.0, "stdout", "x" * 1000)
        world.dispatcher.tell(run_id, TaskLogged(A, 1, (entry,)))

    listening = asyncio.create_task(listen())
    feed, journal = world.orchestrator._parts.feed, world.orchestrator._parts.journal
    await until(lambda: feed.is_heard(run_id))
    for number in range(50):
        say(number)
    await until(lambda: len(heard) == 50)
    outage = Outage(world, monkeypatch)
    with pytest.raises(StoreUnavailableError):
        await world.orchestrator.create_workflow()
    before = len(journal._pending)
    for number in range(50, 500):
        say(number)
    assert len(journal._pending) == before
    outage.end()
    await over(world)
    say(500)
    await until(lambda: len(heard) > 50)
    assert json.loads(heard[50])["data"]["offset"] == 500_000
    world.dispatcher.succeed(run_id, A, out=b"")
    await listening


async def test_requests_are_refused_at_once_and_nothing_is_lost(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The orchestrator stays in charge; the end of a task that ran meanwhile counts."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    workflow_id = await world.orchestrator.create_workflow()
    following = asyncio.create_task(world.messages(run_id))
    outage = Outage(world, monkeypatch)
    world.dispatcher.succeed(run_id, A, out=b"")
    await known(world)
    asked = (
        world.orchestrator.create_workflow(),
        world.orchestrator.add_task(workflow_id, "code", "late"),
        world.orchestrator.add_edge(workflow_id, A, B),
        world.orchestrator.describe_run(run_id),
        world.orchestrator.list_runs(10),
        world.orchestrator.cancel_run(run_id),
        world.orchestrator.delete_run(run_id),
        world.orchestrator.disconnect_worker(world.dispatcher.engine[0].node_id),
        world.orchestrator.ready(),
    )
    for each in asked:
        with pytest.raises(StoreUnavailableError, match=r"closed the connection.*Idempotency-Key"):
            await asyncio.wait_for(each, 30)
    await world.orchestrator.check_health()
    assert not following.done()
    outage.end()
    assert (await asyncio.wait_for(following, 30))[-1] == "finish_workflow"
    await over(world)
    await world.orchestrator.ready()
    assert await world.orchestrator.workflow_tasks(workflow_id) == []


async def test_a_request_under_way_is_done_once_when_asked_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told that it may still be done; with its key it then gets the run that was started."""
    workflow_id = await world.workflow("a")
    once = Once("key", "f")
    outage = Outage(world, monkeypatch)
    with pytest.raises(StoreUnavailableError, match="may still be done"):
        await asyncio.wait_for(world.orchestrator.run_workflow(workflow_id, once), 30)
    outage.end()
    await over(world)
    run_id = await world.orchestrator.run_workflow(workflow_id, once)
    running = await world.orchestrator.list_runs(10, workflow_id=workflow_id, status="running")
    assert [run["run_id"] for run in running] == [run_id]
    assert world.dispatcher.submitted == [(A, 1)]


async def test_a_commit_whose_answer_was_lost_is_not_done_twice(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each message is stored once, although the group was committed again and again."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    outage = Outage(world, monkeypatch, done=True)
    world.dispatcher.succeed(run_id, A, out=b"")
    await until(lambda: outage.tries > 2)
    outage.end()
    assert (await world.messages(run_id))[-1] == "finish_workflow"
    assert world.orchestrator._parts.journal.failure is None


async def test_what_would_begin_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless it is no longer wanted by then."""
    chain = [upload("a"), upload("b")]
    _, run_id = await world.orchestrator.submit_workflow(chain, [(A, B)])
    _, late = await world.orchestrator.submit_workflow(chain, [(A, B)], deadline=5)
    outage = Outage(world, monkeypatch)
    for each in (run_id, late):
        world.dispatcher.start_job(each, A)
    await known(world)
    for each in (run_id, late):
        world.dispatcher.succeed(each, A, out=b"")
    world.clock.advance(6)
    assert world.dispatcher.jobs == {}
    outage.end()
    await over(world)
    # What waited is committed after what the database was asked for meanwhile.
    await world.orchestrator._parts.journal.barrier()
    assert list(world.dispatcher.jobs) == [(run_id, B)]
    assert (await world.messages(late))[-1] == "finish_workflow"


async def test_the_dispatcher_pauses_meanwhile(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has been given already would begin, too, and a crash would have it all repeated."""
    outage = Outage(world, monkeypatch)
    with pytest.raises(StoreUnavailableError):
        await world.orchestrator.create_workflow()
    assert world.dispatcher.paused
    outage.end()
    await over(world)
    assert not world.dispatcher.paused


async def test_code_is_waited_for(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that refuses for a moment costs no task; one that will never have it does."""
    await world.orchestrator.submit_workflow([upload("a")], [])
    (job,) = world.dispatcher.jobs.values()
    digest, load = job.definition.code.digest, world.orchestrator._parts._load_code
    errors: list[Exception] = [StoreUnavailableError("too many clients")] * 3
    read = world.store.load_blob

    def load_blob(digest: Digest) -> bytes | None:
        if errors:
            raise errors.pop()
        return read(digest)

    monkeypatch.setattr(parts, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(world.store, "load_blob", load_blob)
    assert await load(digest) == b"def a(params): ..."
    assert errors == []
    with pytest.raises(LatticeError, match="is missing from the store"):
        await load(Digest("0" * 64))
    errors.append(StoreRefusedError("no such table"))
    with pytest.raises(StoreRefusedError, match="no such table"):
        await load(digest)


async def test_a_commit_that_hangs_counts_as_an_outage(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits is told after a while, and what hung is made durable in the end."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    monkeypatch.setattr(journal, "_PATIENCE", 0.05)
    gate, commit = asyncio.Event(), world.store.commit
    loop = asyncio.get_running_loop()

    def hangs(lease: int, writes: Sequence[Write], number: int) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result(30)
        commit(lease, writes, number)

    monkeypatch.setattr(world.store, "commit", hangs)
    world.dispatcher.succeed(run_id, A, out=b"")
    with pytest.raises(StoreUnavailableError, match="has not ended within"):
        await asyncio.wait_for(world.orchestrator.describe_run(run_id), 30)
    gate.set()
    assert (await world.messages(run_id))[-1] == "finish_workflow"


async def test_the_end_of_an_orchestrator_does_not_wait_for_the_database(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one goes on from what is durable."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    outage = Outage(world, monkeypatch)
    world.dispatcher.succeed(run_id, A, out=b"")
    await known(world)
    await asyncio.wait_for(world.orchestrator.close(), 30)
    outage.end()
    await world.restart()
    world.dispatcher.succeed(run_id, A, out=b"")
    assert (await world.messages(run_id))[-1] == "finish_workflow"


async def test_an_outage_holds_nothing_of_whom_it_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does housekeeping ask again and again for what it cannot do: memory does not grow with the time."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    outage = Outage(world, monkeypatch)
    world.dispatcher.succeed(run_id, A, out=b"")
    await known(world)
    parts = world.orchestrator._parts
    pending = len(parts.journal._pending)
    for _ in range(50):
        with pytest.raises(StoreUnavailableError):
            await world.orchestrator.create_workflow()
        with pytest.raises(StoreUnavailableError):
            await parts.housekeeping.tidy()
    assert len(parts.journal._pending) == pending
    error = parts.journal.outage
    assert error is not None
    assert len([*traceback.walk_tb(error.__traceback__)]) < 10
    outage.end()
    await over(world)
