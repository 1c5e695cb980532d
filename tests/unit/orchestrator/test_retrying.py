"""A run of what another one has left undone: nothing that finished runs again, and the old log stays."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from lattice.errors import ConflictError, InvalidRequestError, RunNotFoundError
from lattice.ids import RunId, TaskId
from lattice.ports.service import Once
from lattice.workflow.events import Placement, TaskSucceeded, Value
from tests.unit.orchestrator.world import LIMITS, World, upload

pytestmark = pytest.mark.anyio

A, B, C = (TaskId(name) for name in "abc")


def reading(name: str, source: str) -> Any:
    reference = {"1": {"key": "x", "input_schema": "from_task", "value": f"{source}.out"}}
    return upload(name, task_input={"input_params": reference})


async def failed_chain(world: World, **options: Any) -> RunId:
    """A run of `a > b > c` in which `b` failed."""
    tasks = [upload("a"), reading("b", "a"), reading("c", "b")]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [], **options)
    world.dispatcher.succeed(run_id, A, out=b"from a")
    world.dispatcher.fail(run_id, B)
    await world.messages(run_id)
    world.dispatcher.submitted.clear()
    return run_id


async def stored(world: World, run_id: RunId) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async for group in world.orchestrator.follow(run_id, None, 0):
        found += [json.loads(text) for text in group]
    return found


async def test_only_what_did_not_succeed_runs(world: World) -> None:
    """In a new run that says whose results it has; the old one is as it was."""
    run_id = await failed_chain(world)
    before = await stored(world, run_id)
    again = await world.orchestrator.retry_run(run_id)
    assert again != run_id
    assert world.dispatcher.submitted == [(B, 1)]
    argument = world.dispatcher.jobs[again, B].arguments[0]
    assert argument.value == Value(6, b"from a")
    world.dispatcher.succeed(again, B, out=b"")
    world.dispatcher.succeed(again, C, out=b"")
    messages = await stored(world, again)
    assert [message["type"] for message in messages] == [
        "finish_task",
        *["start_task", "finish_task"] * 2,
        "finish_workflow",
    ]
    taken = messages[0]["data"]
    assert (taken["task_id"], taken["taken_from"], taken["result"]) == ("a", run_id, {"out": 6})
    described = await world.orchestrator.describe_run(again)
    assert (described["status"], described["retry_of"]) == ("succeeded", run_id)
    assert await world.orchestrator.value_pickle(again, A, "out") == b"from a"
    assert await world.orchestrator.task_result(again, A) == {"out": 6}
    assert await stored(world, run_id) == before
    assert (await world.orchestrator.describe_run(run_id))["retry_of"] is None


async def test_a_retried_run_goes_on_after_a_restart(world: World) -> None:
    """Even one right after it was answered: results were taken over in the commit that made it."""
    run_id = await failed_chain(world)
    again = await world.orchestrator.retry_run(run_id)
    await world.restart()
    assert world.dispatcher.submitted == [(B, 1)]
    assert world.dispatcher.jobs[again, B].arguments[0].value == Value(6, b"from a")


async def test_a_cancelled_run_and_a_retried_one_may_be_retried(world: World) -> None:
    """Results go on from run to run."""
    run_id = await failed_chain(world)
    second = await world.orchestrator.retry_run(run_id)
    world.dispatcher.succeed(second, B, out=b"from b")
    await world.orchestrator.cancel_run(second)
    world.dispatcher.submitted.clear()
    third = await world.orchestrator.retry_run(second)
    assert world.dispatcher.submitted == [(C, 1)]
    messages = await stored_so_far(world, third, 2)
    assert [message["data"]["taken_from"] for message in messages] == [second, second]


async def stored_so_far(world: World, run_id: RunId, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    async for group in world.orchestrator.follow(run_id, None, 0):
        found += [json.loads(text) for text in group]
        if len(found) >= count:
            break
    return found


async def test_what_was_not_shown_has_the_address_of_the_new_run(world: World) -> None:
    """Descriptions lead to the value in the run that has them; a user's own dict stays."""
    tasks = [upload("a"), upload("b")]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    job = world.dispatcher.jobs[run_id, A]
    location = f"runs/{run_id}/a/1/out"
    result = {
        "out": {"type": "x", "size": 9, "url": f"/runs/{run_id}/tasks/a/result/out"},
        "own": {"url": "/runs/other/tasks/a/result/out"},
    }
    world.dispatcher.tell(
        run_id,
        TaskSucceeded(
            A,
            job.attempt,
            world.clock.now(),
            Placement(world.dispatcher.engine[0].node_id, "127.0.0.1", world.clock.now()),
            result,
            {"out": Value(9, location=location)},
        ),
    )
    world.storage.files[location] = b"large"
    world.dispatcher.fail(run_id, B)
    await world.messages(run_id)
    again = await world.orchestrator.retry_run(run_id)
    found = await world.orchestrator.task_result(again, A)
    assert found["out"]["url"] == f"/runs/{again}/tasks/a/result/out"  # type: ignore[index]
    assert found["own"] == result["own"]
    assert await world.orchestrator.value_pickle(again, A, "out") == b"large"


async def test_the_snapshot_is_what_runs(world: World) -> None:
    """Whatever became of the workflow since."""
    run_id = await failed_chain(world)
    described = await world.orchestrator.describe_run(run_id)
    for task_id in (C, B, A):
        await world.orchestrator.del_task(described["workflow_id"], task_id)  # type: ignore[arg-type]
    again = await world.orchestrator.retry_run(run_id)
    world.dispatcher.succeed(again, B, out=b"")
    world.dispatcher.succeed(again, C, out=b"")
    assert (await world.messages(again))[-1] == "finish_workflow"


async def test_a_retried_run_has_a_deadline_as_long(world: World) -> None:
    """Counted from its own request."""
    run_id = await failed_chain(world, deadline=10)
    world.clock.advance(100)
    again = await world.orchestrator.retry_run(run_id)
    world.clock.advance(9.9)
    assert (await world.orchestrator.describe_run(again))["status"] == "running"
    world.clock.advance(0.1)
    assert (await stored(world, again))[-1]["data"]["status"] == "failed"


@pytest.mark.parametrize(("before", "left"), [(None, 20.0), (100.0, 20.0), (10.0, 10.0)])
async def test_a_retried_run_has_no_longer_deadline_than_is_allowed_now(
    world: World, before: float | None, left: float
) -> None:
    """Whatever was allowed when the first was started."""
    run_id = await failed_chain(world, deadline=before)
    world.options = {"limits": replace(LIMITS, max_deadline=20.0)}
    await world.restart()
    again = await world.orchestrator.retry_run(run_id)
    world.clock.advance(left - 0.1)
    assert (await world.orchestrator.describe_run(again))["status"] == "running"
    world.clock.advance(0.1)
    assert (await world.orchestrator.describe_run(again))["status"] == "failed"


async def test_runs_that_cannot_be_retried_are_refused(world: World) -> None:
    """One that runs, one that succeeded, one that is not there."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    with pytest.raises(InvalidRequestError, match="which is running"):
        await world.orchestrator.retry_run(run_id)
    world.dispatcher.succeed(run_id, A, out=b"")
    await world.messages(run_id)
    with pytest.raises(InvalidRequestError, match="which has succeeded"):
        await world.orchestrator.retry_run(run_id)
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.retry_run(RunId("none"))
    assert len(await world.orchestrator.list_runs(10)) == 1


async def test_a_retry_with_a_key_is_started_once(world: World) -> None:
    """Also after a restart; another request with the key is refused."""
    run_id = await failed_chain(world)
    once = Once("key", "f")
    again = await world.orchestrator.retry_run(run_id, once)
    assert await world.orchestrator.retry_run(run_id, once) == again
    await world.restart()
    assert await world.orchestrator.retry_run(run_id, once) == again
    with pytest.raises(ConflictError):
        await world.orchestrator.retry_run(run_id, Once("key", "other"))
    assert len(await world.orchestrator.list_runs(10)) == 2
