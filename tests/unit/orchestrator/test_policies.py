"""Deadlines, defaults and bounds: what an operator and a request decide about runs."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from lattice.errors import CallTimeoutError, InvalidRequestError, OverloadedError, TooLargeError
from lattice.ids import RunId, TaskId
from lattice.orchestrator import Defaults
from lattice.ports.execution import Call, CallResult
from lattice.ports.service import Once
from lattice.workflow.retry import RetryPolicy
from tests.unit.orchestrator.world import LIMITS, MakeWorld, World, upload

pytestmark = pytest.mark.anyio

A, B = TaskId("a"), TaskId("b")


async def last_message(world: World, run_id: RunId) -> dict[str, Any]:
    last = ""
    async for group in world.orchestrator.follow(run_id, None, 0):
        last = group[-1]
    data: dict[str, Any] = json.loads(last)["data"]
    return data


# -- deadlines ---------------------------------------------------------------------------------


async def test_a_run_fails_at_its_deadline(world: World) -> None:
    """Counted from its request; what runs is cancelled, and no timer is left."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [], deadline=10)
    world.dispatcher.start_job(run_id, A)
    world.clock.advance(9.9)
    assert world.dispatcher.cancelled == []
    world.clock.advance(0.1)
    assert world.dispatcher.cancelled == [(A, 1)]
    end = await last_message(world, run_id)
    assert end["status"] == "failed"
    assert end["error"]["type"] == "DeadlineExceededError"
    described = await world.orchestrator.describe_run(run_id)
    assert described["deadline"] == "1970-01-12T13:46:50.000000Z"
    world.clock.advance(5)  # for the last words of what was cancelled
    assert world.clock.armed == 0


async def test_a_run_that_ends_in_time_forgets_its_deadline(world: World) -> None:
    workflow_id = await world.workflow("a")
    run_id = await world.orchestrator.run_workflow(workflow_id, deadline=10)
    world.clock.advance(5)  # for the last words of what the world has cancelled
    assert world.clock.armed == 1
    world.dispatcher.succeed(run_id, A, out=b"")
    assert (await last_message(world, run_id))["status"] == "succeeded"
    assert world.clock.armed == 0


@pytest.mark.parametrize(("down", "left"), [(4.0, 3.0), (7.0, 0.0), (100.0, 0.0)])
async def test_a_deadline_survives_a_restart(world: World, down: float, left: float) -> None:
    """With what is left of it; if nothing is, the run ends without beginning anything."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [], deadline=10)
    world.clock.advance(3)
    await world.orchestrator.close()
    world.clock.advance(down)  # the old timers are those of nobody
    await world.restart()
    assert world.dispatcher.submitted == ([(A, 1)] if left else [])
    if left:
        world.clock.advance(left - 0.1)
        assert world.dispatcher.cancelled == []
        world.clock.advance(0.1)
        assert world.dispatcher.cancelled == [(A, 1)]
    assert (await last_message(world, run_id))["error"]["type"] == "DeadlineExceededError"


@pytest.mark.parametrize("deadline", [0, -1, 31_536_001])
async def test_a_deadline_that_makes_no_sense_is_refused(world: World, deadline: float) -> None:
    workflow_id = await world.workflow("a")
    with pytest.raises(InvalidRequestError, match="deadline: found"):
        await world.orchestrator.run_workflow(workflow_id, deadline=deadline)
    with pytest.raises(InvalidRequestError, match="deadline: found"):
        await world.orchestrator.submit_workflow([upload("a")], [], deadline=deadline)
    assert world.dispatcher.jobs == {}


# -- defaults ----------------------------------------------------------------------------------


async def test_defaults_hold_for_what_says_nothing(make_world: MakeWorld) -> None:
    """Tries, wait, time-out and deadline; what a task or a run says itself wins."""
    world = await make_world(
        defaults=Defaults(RetryPolicy(2, backoff=8.0), timeout=5.0, deadline=100.0)
    )
    tasks = [upload("a"), upload("b", retry={"max_attempts": 1}, timeout=50)]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    world.dispatcher.start_job(run_id, A)
    world.dispatcher.start_job(run_id, B)
    world.clock.advance(5)
    assert world.dispatcher.cancelled == [(A, 1)]
    world.clock.advance(3.9)
    assert world.dispatcher.submitted == [(A, 1), (B, 1)]
    world.clock.advance(4.1)
    assert world.dispatcher.submitted[2:] == [(A, 2)]
    world.dispatcher.fail(run_id, B)
    world.clock.advance(86.9)
    assert await world.orchestrator.cancel_run(run_id) == "cancelled"
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    world.clock.advance(100)
    assert (await last_message(world, run_id))["error"]["type"] == "DeadlineExceededError"
    _, run_id = await world.orchestrator.submit_workflow(tasks, [], deadline=200)
    world.clock.advance(150)
    assert (await world.orchestrator.describe_run(run_id))["status"] == "running"


# -- bounds ------------------------------------------------------------------------------------


async def test_runs_beyond_the_bound_are_refused_whole(make_world: MakeWorld) -> None:
    """Until one ends, also after a restart; a request that was answered before gets its answer."""
    world = await make_world(limits=replace(LIMITS, max_live_runs=2))
    workflow_id = await world.workflow("a")
    once = Once("key", "f")
    first = await world.orchestrator.run_workflow(workflow_id, once)
    await world.orchestrator.run_workflow(workflow_id)
    for _ in range(2):
        with pytest.raises(OverloadedError, match="max_live_runs: 3 runs") as caught:
            await world.orchestrator.submit_workflow([upload("new")], [])
        assert caught.value.retry_after == 5.0
        assert await world.orchestrator.run_workflow(workflow_id, once) == first
        await world.restart()
    assert len(await world.orchestrator.list_runs(10, status="running")) == 2
    world.dispatcher.succeed(first, A, out=b"")
    await world.messages(first)
    await world.orchestrator.submit_workflow([upload("new")], [])


async def test_tasks_beyond_the_bound_are_refused_whole(make_world: MakeWorld) -> None:
    """Each task that ends makes room; a run that is larger than the bound never fits."""
    world = await make_world(limits=replace(LIMITS, max_unfinished_tasks=3))
    workflow_id = await world.workflow("a", "b")
    run_id = await world.orchestrator.run_workflow(workflow_id)
    with pytest.raises(OverloadedError, match="max_unfinished_tasks: 4 tasks"):
        await world.orchestrator.run_workflow(workflow_id)
    with pytest.raises(TooLargeError, match="max_unfinished_tasks: found 4 tasks"):
        await world.orchestrator.submit_workflow([upload(name) for name in "abcd"], [])
    await world.restart()
    with pytest.raises(OverloadedError):
        await world.orchestrator.run_workflow(workflow_id)
    world.dispatcher.succeed(run_id, A, out=b"")
    second = await world.orchestrator.run_workflow(workflow_id)
    with pytest.raises(OverloadedError):
        await world.orchestrator.run_workflow(workflow_id)
    await world.orchestrator.cancel_run(second)
    await world.orchestrator.run_workflow(workflow_id)


async def test_runs_that_are_asked_for_at_once_share_the_bound(make_world: MakeWorld) -> None:
    """Those that are not durable yet count."""
    world = await make_world(limits=replace(LIMITS, max_live_runs=3))
    workflow_id = await world.workflow("a")
    answers = await asyncio.gather(
        *(world.orchestrator.run_workflow(workflow_id) for _ in range(10)), return_exceptions=True
    )
    refused = [answer for answer in answers if isinstance(answer, OverloadedError)]
    assert len(refused) == 7
    assert len(world.dispatcher.submitted) == 3


async def test_a_call_that_never_gets_resources_is_given_up(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an error that says so, and not as one of the user's code."""
    world = await make_world(limits=replace(LIMITS, call_timeout=0.01))
    given_up = asyncio.Event()

    async def waits(call: Call) -> CallResult:
        try:
            await asyncio.Event().wait()
        finally:
            given_up.set()
        raise AssertionError

    monkeypatch.setattr(world.dispatcher, "call", waits)
    workflow_id = await world.orchestrator.create_workflow()
    await world.orchestrator.add_langgraph_task(workflow_id, upload("g"))
    with pytest.raises(CallTimeoutError, match=r"within call_timeout, 0\.01 s"):
        await world.orchestrator.run_langgraph_task(workflow_id, TaskId("g"), b"", b"")
    assert given_up.is_set()
