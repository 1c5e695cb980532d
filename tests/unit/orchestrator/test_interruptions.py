"""Requests that are given up, commits that fail while others look, and parts that cannot be read."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence

import pytest

from lattice.errors import LatticeError, StoreRefusedError, StoreUnavailableError, UnavailableError
from lattice.ids import NodeId, RunId, TaskId
from lattice.ports.execution import Job
from lattice.ports.service import Once
from lattice.ports.store import RunRecord, Write
from lattice.workflow.events import Placement, TaskSucceeded, Value
from tests.unit.orchestrator.world import World, upload

pytestmark = pytest.mark.anyio

A, B = TaskId("a"), TaskId("b")


class HeldCommits:
    """Holds commits from now on; `release` lets all of them through."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gate = threading.Event()
        self._entered = threading.Event()
        self._commit = world.store.commit
        monkeypatch.setattr(world.store, "commit", self._held)

    def _held(self, lease: int, writes: Sequence[Write], number: int) -> None:
        self._entered.set()
        assert self._gate.wait(30)
        self._commit(lease, writes, number)

    async def entered(self) -> None:
        await asyncio.to_thread(self._entered.wait, 30)

    def release(self) -> None:
        self._gate.set()


def broken(lease: int, writes: Sequence[Write], number: int) -> None:
    raise StoreRefusedError("disk full")


async def test_a_request_given_up_in_its_commit_is_still_done_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sent again with its key, it gets the answer of the first; there is one run."""
    workflow_id = await world.workflow("a")
    commits = HeldCommits(world, monkeypatch)
    once = Once("key", "f")
    first = asyncio.create_task(world.orchestrator.run_workflow(workflow_id, once))
    await commits.entered()
    first.cancel()
    await asyncio.wait([first])
    second = asyncio.create_task(world.orchestrator.run_workflow(workflow_id, once))
    for _ in range(100):
        await asyncio.sleep(0)
    commits.release()
    run_id = await second
    assert await world.orchestrator.run_workflow(workflow_id, once) == run_id
    running = await world.orchestrator.list_runs(10, workflow_id=workflow_id, status="running")
    assert [run["run_id"] for run in running] == [run_id]


async def test_a_run_is_described_as_it_is_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks while a task's end is being committed waits, and is told nothing if that fails."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [(A, B)])
    commits = HeldCommits(world, monkeypatch)
    world.dispatcher.succeed(run_id, A, out=b"")
    described = asyncio.create_task(world.orchestrator.describe_run(run_id))
    await commits.entered()
    assert not described.done()
    commits.release()
    assert (await described)["last_seq"] == 2
    monkeypatch.setattr(world.store, "commit", broken)
    world.dispatcher.succeed(run_id, B, out=b"")
    with pytest.raises(StoreUnavailableError):
        await world.orchestrator.describe_run(run_id)


async def test_tasks_are_listed_as_they_are_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task that came after the question is not in the answer, durable or not."""
    workflow_id = await world.workflow("a")
    commits = HeldCommits(world, monkeypatch)
    other = asyncio.create_task(world.orchestrator.create_workflow())
    await commits.entered()
    listing = asyncio.create_task(world.orchestrator.workflow_tasks(workflow_id))
    await asyncio.sleep(0)
    late = asyncio.create_task(world.orchestrator.add_task(workflow_id, "code", "late"))
    await asyncio.sleep(0)
    commits.release()
    assert [task["name"] for task in await listing] == ["a"]
    await asyncio.gather(other, late)


async def test_subscribers_are_told_when_nothing_more_can_be_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that wait, and those that come later: none hangs."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    waiting = asyncio.create_task(world.messages(run_id))
    for _ in range(50):
        await asyncio.sleep(0)
    monkeypatch.setattr(world.store, "commit", broken)
    world.dispatcher.succeed(run_id, A, out=b"")
    for follower in (waiting, asyncio.create_task(world.messages(run_id))):
        with pytest.raises(StoreRefusedError, match="disk full"):
            await asyncio.wait_for(follower, 30)


async def test_a_run_that_cannot_be_read_does_not_stop_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart the others go on."""
    _, lost = await world.orchestrator.submit_workflow([upload("a")], [])
    _, run_id = await world.orchestrator.submit_workflow([upload("b")], [])
    record = world.store.load_run(lost)
    assert record is not None
    load = world.store.load_blob
    monkeypatch.setattr(
        world.store,
        "load_blob",
        lambda digest: None if digest == record.graph else load(digest),
    )
    world.dispatcher.start_job(lost, A)
    await world.orchestrator._parts.journal.barrier()
    await world.restart()
    assert world.dispatcher.submitted == [(B, 1)]
    world.dispatcher.succeed(run_id, B, out=b"")
    assert (await world.messages(run_id))[-1] == "finish_workflow"
    # It can be got rid of, also by two at once.
    cancel = world.orchestrator.cancel_run
    assert await asyncio.gather(cancel(lost), cancel(lost)) == ["cancelled"] * 2
    assert await world.messages(lost) == ["start_task", "finish_workflow"]
    (told,) = world.store.load_messages(lost, 1, 9)
    assert (
        json.loads(told)["data"].items()
        >= {"run_id": lost, "seq": 2, "status": "cancelled"}.items()
    )
    await world.orchestrator.delete_run(lost)


async def test_nothing_is_accepted_after_the_end(world: World) -> None:
    """A write that comes too late is refused, not kept waiting."""
    journal = world.orchestrator._parts.journal
    await world.orchestrator.close()
    with pytest.raises(LatticeError):
        await asyncio.wait_for(journal.append([]), 30)


async def test_a_chain_may_be_submitted_in_any_order(world: World) -> None:
    """Tasks that refer to later ones: their order in the request does not matter."""
    names = [f"t{number}" for number in range(50)]
    tasks = [
        upload(
            name,
            task_input={
                "input_params": {
                    "1": {"key": "x", "input_schema": "from_task", "value": f"t{number + 1}.out"}
                }
            }
            if number < 49
            else {},
        )
        for number, name in enumerate(names)
    ]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    for name in reversed(names):
        world.dispatcher.succeed(run_id, TaskId(name), out=b"")
    assert len(await world.messages(run_id)) == 101


async def test_nothing_more_is_run_when_nothing_can_be_stored(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ran is cancelled for the next orchestrator to run again, and no timer begins another try."""
    retried = upload("a", retry={"max_attempts": 2, "backoff": 5})
    _, run_id = await world.orchestrator.submit_workflow([retried, upload("b")], [])
    _, other = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [(A, B)])
    world.dispatcher.fail(run_id, A)
    await world.orchestrator.list_runs(1)
    monkeypatch.setattr(world.store, "commit", broken)
    with pytest.raises(StoreUnavailableError):
        await world.orchestrator.create_workflow()
    assert world.dispatcher.jobs == {}
    world.dispatcher.tell(other, TaskSucceeded(A, 1, 0.0, Placement(NodeId("n"), "ip", 0.0), {}))
    world.clock.advance(60)
    assert world.dispatcher.jobs == {}
    assert world.clock.armed == 0


async def test_closing_disarms_the_timers(world: World) -> None:
    """A task that waits for its next try is left to the next orchestrator."""
    retried = upload("a", retry={"max_attempts": 2, "backoff": 5})
    _, run_id = await world.orchestrator.submit_workflow([retried], [])
    world.dispatcher.fail(run_id, A)
    await world.orchestrator.close()
    assert world.clock.armed == 0
    assert world.dispatcher.jobs == {}
    await world.restart()
    world.clock.advance(5)
    assert world.dispatcher.submitted == [(A, 2)]


async def test_a_start_that_fails_leaves_nothing_running(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had begun ends with it, and a second attempt goes on with every run."""
    for name in "ab":
        await world.orchestrator.submit_workflow([upload(name)], [])
    load, calls = world.store.load_values, 0

    def fails_once(run_id: RunId) -> dict[TaskId, dict[str, Value]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoreUnavailableError("an outage")
        return load(run_id)

    monkeypatch.setattr(world.store, "load_values", fails_once)
    with pytest.raises(StoreUnavailableError):
        await world.restart()
    assert world.dispatcher.jobs == {}
    await world.orchestrator.start_monitor()
    assert sorted(task_id for _, task_id in world.dispatcher.jobs) == [A, B]


async def test_a_dispatcher_that_raises_makes_no_hole_in_the_log(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the machine told is stored all the same, so the run goes on after a restart."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [(A, B)])

    def raises(job: Job) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(world.dispatcher, "submit", raises)
    with pytest.raises(RuntimeError):
        world.dispatcher.succeed(run_id, A, out=b"")
    assert (await world.orchestrator.describe_run(run_id))["last_seq"] == 2
    await world.restart()
    world.dispatcher.succeed(run_id, B, out=b"")
    assert len(await world.messages(run_id)) == 5


async def test_a_run_that_is_cancelled_while_the_service_closes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks is told that it was not done, as the next orchestrator goes on with the run."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    entered, gate, load = threading.Event(), threading.Event(), world.store.load_run

    def held(asked: RunId) -> RunRecord | None:
        entered.set()
        assert gate.wait(30)
        return load(asked)

    monkeypatch.setattr(world.store, "load_run", held)
    cancelling = asyncio.create_task(world.orchestrator.cancel_run(run_id))
    await asyncio.to_thread(entered.wait, 30)
    # A commit under way keeps the journal open.
    commits = HeldCommits(world, monkeypatch)
    creating = asyncio.create_task(world.orchestrator.create_workflow())
    await commits.entered()
    closing = asyncio.create_task(world.orchestrator.close())
    await asyncio.sleep(0)
    gate.set()
    await asyncio.wait([cancelling], timeout=0.1)
    commits.release()
    with pytest.raises(UnavailableError):
        await cancelling
    await asyncio.gather(creating, closing)
