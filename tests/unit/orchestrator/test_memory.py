"""What stays in memory is bounded by its size, and what is not there any more is read again."""

from __future__ import annotations

import asyncio

import pytest

from lattice.ids import Digest, RunId, TaskId, WorkflowId
from lattice.orchestrator import catalogue, feed
from lattice.orchestrator.feed import Feed
from lattice.ports.store import AppendMessage, PutRun
from lattice.store.memory import MemoryStore
from tests.unit.orchestrator.world import World, upload


async def test_submitted_workflows_leave_memory_with_their_runs(world: World) -> None:
    """Few of them are ever asked for again, and those can be run again."""
    workflow_id, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    kept = world.orchestrator._parts.catalogue._workflows
    assert not kept
    again = await world.orchestrator.run_workflow(workflow_id)
    assert again != run_id
    assert [*kept] == [workflow_id]


async def test_large_workflows_are_dropped_sooner(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that was not used for longest goes; none is lost, and the last may be as large as it is."""
    monkeypatch.setattr(catalogue, "_KEPT_SIZE", 2_000)
    made = []
    for number in range(4):
        workflow_id = await world.orchestrator.create_workflow()
        made.append(workflow_id)
        for name in ("a", "b"):
            await world.orchestrator.add_task(workflow_id, "code", f"{name}{number * 600 * 'x'}")
    parts = world.orchestrator._parts.catalogue
    assert [*parts._workflows] == [made[3]]
    for workflow_id in made:
        assert len(await world.orchestrator.workflow_tasks(workflow_id)) == 2
    await world.orchestrator.delete_workflow(made[3])
    assert parts._size == sum(kept.size for kept in parts._workflows.values())
    for kept in parts._workflows.values():
        assert kept.size == sum(kept.sizes.values())


@pytest.mark.anyio
async def test_recent_messages_of_all_runs_together_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of the run that was silent for longest go; followers get them from the store."""
    monkeypatch.setattr(feed, "_RECENT_OF_ALL", 250)
    store = MemoryStore()
    lease = store.acquire_lease()
    tested = Feed(store)
    runs = [RunId(name) for name in "abc"]
    for run_id in runs:
        store.commit(lease, [PutRun(run_id, WorkflowId("w"), Digest("0"), 1.0)])
        tested.open(run_id, 0)
    for number in range(2):
        for run_id in runs:
            text = f"{run_id}{number}" + 48 * "x"
            store.commit(lease, [AppendMessage(run_id, number + 1, text, TaskId("t"))])
            tested.publish(run_id, [text])
    assert [*tested._kept] == ["b", "c"]
    assert tested._size == 200
    for run_id in runs:
        following = tested.follow(run_id, 0)
        found: list[str] = []
        while len(found) < 2:
            group = await asyncio.wait_for(anext(following), 30)
            assert isinstance(group, list)
            found += group
        assert [text[:2] for text in found] == [f"{run_id}0", f"{run_id}1"]
        tested.close(run_id)
    assert tested._size == 0
