"""What no node can hold any more fails with the reason; what a disconnected node could hold waits."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from lattice.ids import NodeId, RunId, TaskId
from lattice.orchestrator.parts import Parts
from lattice.ports.execution import EngineNode
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from tests.unit.orchestrator.world import World, make, upload

pytestmark = pytest.mark.anyio

A, B = TaskId("a"), TaskId("b")
HEAD = EngineNode(NodeId("head"), "10.0.0.1", 4, 0, 8192)
GPU = EngineNode(NodeId("gpu"), "10.0.0.2", 4, 1, 8192)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    """Two nodes, of which the second has a GPU and is registered with its memory."""
    store, clock, ids = MemoryStore(), FakeClock(), CountedIds()
    dispatcher = HeldDispatcher(clock, [HEAD, GPU])
    orchestrator = make(store, clock, dispatcher, ids)
    world = World(store, clock, dispatcher, orchestrator, ids)
    await orchestrator.start_monitor()
    gpu = {"0": {"gpu_id": 0, "gpu_mem": 16_000, "gpu_num": 1}}
    await orchestrator.connect_worker(GPU.node_id, GPU.node_ip, {"gpu_resource": gpu})
    yield world
    await world.orchestrator.close()


def parts(world: World) -> Parts:
    return world.orchestrator._parts


async def last(world: World, run_id: RunId) -> dict[str, object]:
    """The message before the last of a run that has ended."""
    texts = [text async for group in world.orchestrator.follow(run_id, None, 0) for text in group]
    message: dict[str, object] = json.loads(texts[-2])
    return message


@pytest.mark.parametrize("resources", [{"gpu": 1}, {"gpu_mem": 8000}])
async def test_a_task_whose_only_node_is_lost_fails_with_the_reason(
    world: World, resources: dict[str, float]
) -> None:
    """After a while in which the node might have come back; what fits elsewhere goes on."""
    _, run_id = await world.orchestrator.submit_workflow(
        [upload("a", resources=resources), upload("b")], []
    )
    world.dispatcher.engine[:] = [HEAD]
    await parts(world).placing.look()
    world.clock.advance(29)
    await parts(world).placing.look()
    assert world.dispatcher.cancelled == []
    world.clock.advance(1)
    await parts(world).placing.look()
    assert world.dispatcher.cancelled == [(A, 1)]
    world.dispatcher.succeed(run_id, B, out=b"")
    texts = [text async for group in world.orchestrator.follow(run_id, None, 0) for text in group]
    (failed,) = (json.loads(text) for text in texts if "task_exception" in text)
    assert failed["data"]["task_id"] == A
    assert failed["data"]["error"]["type"] == "NoNodeError"
    assert "gpu" in failed["data"]["result"]
    assert "no such node for 30 s" in failed["data"]["result"]
    assert json.loads(texts[-1])["data"]["status"] == "failed"


async def test_a_node_that_comes_back_in_time_is_waited_for(world: World) -> None:
    """The wait begins anew each time."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a", resources={"gpu": 1})], [])
    for _ in range(3):
        world.dispatcher.engine[:] = [HEAD]
        await parts(world).placing.look()
        world.clock.advance(20)
        world.dispatcher.engine[:] = [HEAD, GPU]
        await parts(world).placing.look()
    assert (run_id, A) in world.dispatcher.jobs


@pytest.mark.parametrize("resources", [{"gpu": 1}, {"gpu_mem": 8000}])
async def test_a_disconnected_node_is_waited_for_however_long(
    world: World, resources: dict[str, float]
) -> None:
    """It is there, and somebody may connect it again."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a", resources=resources)], [])
    await world.orchestrator.disconnect_worker(GPU.node_id)
    for _ in range(3):
        await parts(world).placing.look()
        world.clock.advance(1000)
    assert (run_id, A) in world.dispatcher.jobs


async def test_what_runs_is_not_failed(world: World) -> None:
    """Its end will be told: the engine knows best whether its node is dead."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a", resources={"gpu": 1})], [])
    world.dispatcher.start_job(run_id, A)
    world.dispatcher.engine[:] = [HEAD]
    for _ in range(3):
        await parts(world).placing.look()
        world.clock.advance(1000)
    assert (run_id, A) in world.dispatcher.jobs


async def test_a_task_that_becomes_ready_later_fails_at_once(world: World) -> None:
    """The node has been away for long enough already."""
    _, run_id = await world.orchestrator.submit_workflow(
        [upload("a"), upload("b", resources={"gpu": 1})], [(A, B)]
    )
    world.dispatcher.engine[:] = [HEAD]
    await parts(world).placing.look()
    world.clock.advance(60)
    world.dispatcher.succeed(run_id, A, out=b"")
    await parts(world).placing.look()
    assert (await last(world, run_id))["type"] == "task_exception"


async def test_the_dispatcher_is_told_of_every_change(world: World) -> None:
    """Of what users do, and of a disconnected node that comes back under another id by itself."""
    await world.orchestrator.submit_workflow([upload("a")], [])
    await world.orchestrator.disconnect_worker(GPU.node_id)
    assert world.dispatcher.excluded == {GPU.node_id}
    again = EngineNode(NodeId("new"), GPU.node_ip, 4, 1, 8192)
    world.dispatcher.engine[:] = [HEAD, again]
    await parts(world).placing.look()
    assert world.dispatcher.excluded == {again.node_id}
    await world.orchestrator.connect_worker(GPU.node_id, GPU.node_ip, {})
    assert world.dispatcher.excluded == frozenset()


async def test_workers_say_how_many_tasks_run_on_them(world: World) -> None:
    """From a task's start to its end, its retry or that of its run."""

    async def running() -> dict[str, object]:
        listed = await world.orchestrator.workers()
        return {str(each["node_id"]): each["running"] for each in listed}

    _, run_id = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [])
    assert await running() == {"gpu": 0, "head": 0}
    for task_id in (A, B):
        world.dispatcher.start_job(run_id, task_id)
    assert await running() == {"gpu": 0, "head": 2}
    world.dispatcher.succeed(run_id, A, out=b"")
    assert await running() == {"gpu": 0, "head": 1}
    world.dispatcher.lose(run_id, B)
    assert await running() == {"gpu": 0, "head": 0}
    world.dispatcher.start_job(run_id, B)
    assert await running() == {"gpu": 0, "head": 1}
    await world.orchestrator.cancel_run(run_id)
    assert await running() == {"gpu": 0, "head": 0}
    # Calls of LangGraph nodes are in no run.
    await world.orchestrator.connect_worker(NodeId("mine"), HEAD.node_ip, {})
    world.dispatcher.calls[HEAD.node_id] = 2
    assert await running() == {"gpu": 0, "mine": 2}


async def test_the_dispatcher_takes_nothing_back_because_a_node_has_left(world: World) -> None:
    """What waits is not on it any more: it was taken back when the node was disconnected."""
    await world.orchestrator.submit_workflow([upload("a")], [])
    await world.orchestrator.disconnect_worker(GPU.node_id)
    world.dispatcher.engine[:] = [HEAD]
    await parts(world).placing.look()
    assert world.dispatcher.excluded == {GPU.node_id}
    # What comes now is like what waits: else no two of them would share a call or a replica.
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    assert world.dispatcher.jobs[run_id, A].definition.excluded == {GPU.node_id}
    await world.orchestrator.connect_worker(GPU.node_id, GPU.node_ip, {})
    world.dispatcher.engine[:] = [HEAD, GPU]
    await parts(world).placing.look()
    assert world.dispatcher.excluded == frozenset()


async def test_the_memory_of_a_lost_gpu_holds_nothing(world: World) -> None:
    """Though its node is still registered, and another has a GPU, which is too small."""
    small = EngineNode(NodeId("small"), "10.0.0.3", 4, 1, 8192)
    world.dispatcher.engine[:] = [HEAD, GPU, small]
    gpu = {"0": {"gpu_id": 0, "gpu_mem": 4000, "gpu_num": 1}}
    await world.orchestrator.connect_worker(small.node_id, small.node_ip, {"gpu_resource": gpu})
    await world.orchestrator.submit_workflow([upload("a", resources={"gpu_mem": 8000})], [])
    world.dispatcher.engine[:] = [HEAD, small]
    await parts(world).placing.look()
    world.clock.advance(30)
    await parts(world).placing.look()
    assert world.dispatcher.cancelled == [(A, 1)]
