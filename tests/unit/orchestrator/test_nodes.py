"""Workers that the engine does not have any more: what is told of them, and when they are forgotten."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from lattice.errors import StoreUnavailableError, WorkerNotFoundError
from lattice.ids import NodeId, TaskId
from lattice.orchestrator import Retention
from lattice.ports.execution import EngineNode
from lattice.ports.store import Write
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from tests.unit.orchestrator.world import World, make, upload

pytestmark = pytest.mark.anyio

A = TaskId("a")
HEAD = EngineNode(NodeId("head"), "10.0.0.1", 4, 0, 8192)
NODE = EngineNode(NodeId("node"), "10.0.0.2", 4, 0, 8192)
AGAIN = EngineNode(NodeId("again"), "10.0.0.2", 4, 0, 8192)
OPTIONS = {"retention": Retention(node_seconds=1000, period=10**6)}


@pytest.fixture
async def world(anyio_backend: str) -> AsyncIterator[World]:
    """A head, and a registered node."""
    store, clock, ids = MemoryStore(), FakeClock(), CountedIds()
    dispatcher = HeldDispatcher(clock, [HEAD, NODE])
    orchestrator = make(store, clock, dispatcher, ids, retention=OPTIONS["retention"])
    world = World(store, clock, dispatcher, orchestrator, ids, options=OPTIONS)
    await orchestrator.start_monitor()
    await orchestrator.connect_worker(NODE.node_id, NODE.node_ip, {})
    yield world
    await world.orchestrator.close()


async def listed(world: World) -> dict[object, object]:
    """Registered nodes and their status."""
    found = {each["node_id"]: each["status"] for each in await world.orchestrator.workers()}
    del found["head"]
    return found


def stored(world: World) -> set[str]:
    return {json.loads(text)["node_id"] for text in world.store.load_nodes()}


async def tidy(world: World) -> None:
    await world.orchestrator._parts.housekeeping.tidy()


def lose(world: World) -> None:
    world.dispatcher.engine[:] = [HEAD]


async def test_a_worker_that_has_left_is_forgotten_at_once(world: World) -> None:
    """But not before it is gone: what runs there may end, and nothing new is placed there."""
    await world.orchestrator.disconnect_worker(NODE.node_id, leaving=True)
    await tidy(world)
    assert await listed(world) == {"node": "disconnected"}
    lose(world)
    await tidy(world)
    assert await listed(world) == {}
    assert stored(world) == set()
    with pytest.raises(WorkerNotFoundError):
        await world.orchestrator.disconnect_worker(NODE.node_id)
    # To the dispatcher nothing has changed: else it would take back what waits elsewhere.
    assert world.dispatcher.excluded == {NODE.node_id}
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    assert world.dispatcher.jobs[run_id, A].definition.excluded == {NODE.node_id}


async def test_one_that_leaves_and_is_connected_again_stays(world: World) -> None:
    """Whoever connects it expects it."""
    await world.orchestrator.disconnect_worker(NODE.node_id, leaving=True)
    await world.orchestrator.connect_worker(NODE.node_id, NODE.node_ip, {})
    lose(world)
    await tidy(world)
    assert await listed(world) == {"node": "lost"}


async def test_a_lost_worker_is_listed_for_a_while(world: World) -> None:
    """With the time at which it was found to be gone, from which restarts do not begin to count anew."""
    lose(world)
    (before,) = {each["gone_since"] for each in await world.orchestrator.workers()} - {None}
    world.clock.advance(400)
    await tidy(world)
    assert await listed(world) == {"node": "lost"}
    world.clock.advance(300)
    await world.restart()
    (told,) = {each["gone_since"] for each in await world.orchestrator.workers()} - {None}
    assert told == before == "1970-01-12T13:46:40.000000Z"
    world.clock.advance(299)
    await tidy(world)
    assert await listed(world) == {"node": "lost"}
    world.clock.advance(1)
    await tidy(world)
    assert await listed(world) == {}
    assert stored(world) == set()


async def test_a_worker_that_comes_back_counts_anew(world: World) -> None:
    """Also after a restart: that it is back is written, as that it is gone."""
    for _ in range(3):
        lose(world)
        await tidy(world)
        world.clock.advance(999)
        await tidy(world)
        world.dispatcher.engine.append(NODE)
        await tidy(world)
        assert await listed(world) == {"node": "active"}
        assert {each["gone_since"] for each in await world.orchestrator.workers()} == {None}
        lose(world)
        await world.restart()
    assert await listed(world) == {"node": "lost"}


async def test_what_an_operator_disconnected_is_remembered_as_long(world: World) -> None:
    """It may come back under its address, after a repair, and is still to get nothing then."""
    await world.orchestrator.disconnect_worker(NODE.node_id)
    lose(world)
    await tidy(world)
    world.clock.advance(999)
    await tidy(world)
    assert await listed(world) == {"node": "disconnected"}
    world.dispatcher.engine.append(AGAIN)
    await tidy(world)
    assert world.dispatcher.excluded == {AGAIN.node_id}
    lose(world)
    await tidy(world)
    world.clock.advance(1000)
    await tidy(world)
    assert await listed(world) == {}


async def test_one_that_never_comes_is_forgotten_too(world: World) -> None:
    """And one that is expected no more, as soon as somebody says so."""
    for node_id in ("late", "never"):
        await world.orchestrator.connect_worker(NodeId(node_id), "10.0.0.9", {})
    assert await listed(world) == {"node": "active", "late": "waiting", "never": "waiting"}
    await world.orchestrator.disconnect_worker(NodeId("never"), leaving=True)
    await tidy(world)
    assert await listed(world) == {"node": "active", "late": "waiting"}
    world.clock.advance(1000)
    await tidy(world)
    assert await listed(world) == {"node": "active"}
    assert stored(world) == {"node"}


async def test_without_a_time_lost_workers_stay(world: World) -> None:
    """Those that left go in any case."""
    world.options = {"retention": Retention(period=10**6)}
    await world.orchestrator.connect_worker(NodeId("left"), "10.0.0.9", {})
    await world.orchestrator.disconnect_worker(NodeId("left"), leaving=True)
    await world.restart()
    lose(world)
    await tidy(world)
    world.clock.advance(10**9)
    await tidy(world)
    assert await listed(world) == {"node": "lost"}


async def test_a_crash_before_it_is_written_forgets_it_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was forgotten and is still stored goes with the next orchestrator."""
    await world.orchestrator.disconnect_worker(NODE.node_id, leaving=True)
    lose(world)

    def refuse(*_: object) -> None:
        raise StoreUnavailableError("the orchestrator was killed")

    with monkeypatch.context() as patch:
        patch.setattr(world.orchestrator._parts.journal, "append", refuse)
        with pytest.raises(StoreUnavailableError):
            await tidy(world)
    assert stored(world) == {"node"}
    await world.restart()
    assert await listed(world) == {"node": "disconnected"}
    await tidy(world)
    assert await listed(world) == {}
    assert stored(world) == set()


BESIDE = EngineNode(NodeId("beside"), HEAD.node_ip, 4, 0, 8192)


async def test_a_worker_that_goes_does_not_take_what_was_beside_it(world: World) -> None:
    """A machine may have several nodes, such as the head and a worker: the head goes on getting work."""
    for leaving in (True, False):
        world.dispatcher.engine[:] = [HEAD, NODE, BESIDE]
        await world.orchestrator.connect_worker(BESIDE.node_id, BESIDE.node_ip, {})
        await world.orchestrator.disconnect_worker(BESIDE.node_id, leaving=leaving)
        assert world.dispatcher.excluded == {BESIDE.node_id}
        world.dispatcher.engine[:] = [HEAD, NODE]
        await tidy(world)
        found = {each["node_id"]: each for each in await world.orchestrator.workers()}
        assert found["head"]["status"] == "unregistered"
        assert HEAD.node_id not in world.dispatcher.excluded
        assert (BESIDE.node_id in found) is not leaving


async def test_the_next_worker_of_a_machine_takes_the_place_of_the_one_that_is_lost(
    world: World,
) -> None:
    """Also where the head is on that machine."""
    for node_id in ("first", "second"):
        node = EngineNode(NodeId(node_id), HEAD.node_ip, 4, 0, 8192)
        world.dispatcher.engine[:] = [HEAD, NODE, node]
        await world.orchestrator.connect_worker(node.node_id, node.node_ip, {})
        world.dispatcher.engine[:] = [HEAD, NODE]
        await tidy(world)
    assert await listed(world) == {"node": "active", "second": "lost"}


async def test_a_leave_is_not_taken_back_by_a_disconnect(world: World) -> None:
    """It says less than what was said before."""
    await world.orchestrator.disconnect_worker(NODE.node_id, leaving=True)
    await world.orchestrator.disconnect_worker(NODE.node_id)
    lose(world)
    await tidy(world)
    assert await listed(world) == {}


async def test_an_engine_that_is_away_hinders_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While there is more to remove, the engine is not asked."""

    async def away(_: float | None) -> list[Write]:
        raise RuntimeError("the engine is away")

    housekeeping = world.orchestrator._parts.housekeeping
    monkeypatch.setattr(housekeeping, "_forget_nodes", away)
    with pytest.raises(RuntimeError):
        await housekeeping.tidy()

    async def more() -> bool:
        return True

    monkeypatch.setattr(housekeeping, "_expire_replies", more)
    assert await housekeeping.tidy()
