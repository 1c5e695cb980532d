"""What a run tells of its tasks: where their time went, and what they wait for."""

from __future__ import annotations

import re
from typing import Any

import pytest

from lattice.ids import RunId, TaskId
from tests.unit.orchestrator.world import World, upload

pytestmark = pytest.mark.anyio

A = TaskId("a")


async def tasks(world: World, run_id: RunId) -> dict[str, dict[str, Any]]:
    described: Any = (await world.orchestrator.describe_run(run_id))["tasks"]
    return {each["task_id"]: each for each in described}


async def test_what_each_task_waits_for(world: World) -> None:
    """The engine says it of queued tasks; the graph and the retry policy of the others."""
    sources = [upload(name) for name in "abcde"]
    uploads = [*sources, upload("f", retry={"max_attempts": 2, "backoff": 5}), upload("z")]
    edges = [(TaskId(name), TaskId("z")) for name in "abcde"]
    _, run_id = await world.orchestrator.submit_workflow(uploads, edges)
    world.dispatcher.fail(run_id, TaskId("f"))
    world.dispatcher.start_job(run_id, TaskId("b"))
    world.clock.advance(1.75)
    waiting = {name: each["waiting_for"] for name, each in (await tasks(world, run_id)).items()}
    assert waiting["a"] == "the test"
    assert waiting["b"] is None
    # Half of the back-off of 5 s is left to chance.
    found = re.fullmatch(r"its next attempt, in (\d\.\d) s", waiting["f"])
    assert found is not None
    assert 0.7 <= float(found.group(1)) <= 3.3
    assert waiting["z"] == "tasks upstream: a, b, c and 2 more"
    world.dispatcher.succeed(run_id, TaskId("a"), out=b"")
    world.dispatcher.succeed(run_id, TaskId("d"), out=b"")
    assert (await tasks(world, run_id))["z"]["waiting_for"] == "tasks upstream: b, c, e"
    await world.orchestrator.cancel_run(run_id)
    assert not any(each["waiting_for"] for each in (await tasks(world, run_id)).values())


async def test_where_the_time_went(world: World) -> None:
    """As far as it is known, while the run is live and afterwards."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    assert (await tasks(world, run_id))["a"]["timing"] is None
    world.clock.advance(1.5)
    world.dispatcher.start_job(run_id, A)
    waited = {"queued": 1.5, "starting": 0.0, "batching": 0.0}
    assert (await tasks(world, run_id))["a"]["timing"] == waited
    world.clock.advance(2.0)
    world.dispatcher.succeed(run_id, A, out=b"")
    timing = waited | {"running": 2.0}
    assert (await tasks(world, run_id))["a"]["timing"] == timing
    await world.messages(run_id)
    await world.restart()
    assert (await tasks(world, run_id))["a"]["timing"] == timing


async def test_the_engine_is_not_asked_without_need(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only if a task is queued."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    world.dispatcher.start_job(run_id, A)

    async def waiting(run_id: RunId) -> dict[TaskId, str]:
        raise AssertionError("asked")

    monkeypatch.setattr(world.dispatcher, "waiting", waiting)
    await tasks(world, run_id)
