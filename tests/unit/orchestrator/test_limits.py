"""Limits at their edge: what is exactly at one passes; one over is refused whole, with the setting's name."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from lattice.errors import (
    InvalidRequestError,
    OverloadedError,
    TooLargeError,
    WorkflowNotFoundError,
)
from lattice.ids import TaskId, Tenant, WorkflowId
from lattice.ports.service import Caller, CodeUpload, TaskUpload
from lattice.workflow.graph import Workflow
from lattice.workflow.task import CodeForm
from tests.unit.orchestrator.world import LIMITS, MakeWorld, World, upload

pytestmark = pytest.mark.anyio

A, B, C, D = (TaskId(name) for name in "abcd")


async def world_with(make_world: MakeWorld, **limits: Any) -> World:
    world: World = await make_world(limits=replace(LIMITS, **limits))
    return world


def reading(name: str, *sources: str) -> TaskUpload:
    """A task that refers to an output of each of `sources`."""
    params = {
        str(number): {"key": source, "input_schema": "from_task", "value": f"{source}.out"}
        for number, source in enumerate(sources, 1)
    }
    return upload(name, task_input={"input_params": params})


def sized(name: str, size: int, form: CodeForm) -> TaskUpload:
    return replace(upload(name), code=CodeUpload(form, b"#" * size))


async def test_tasks(make_world: MakeWorld) -> None:
    """One by one, as LangGraph tasks, and all at once."""
    orchestrator = (await world_with(make_world, max_tasks_per_workflow=3)).orchestrator
    workflow_id = await orchestrator.create_workflow()
    for name in "abc":
        await orchestrator.add_task(workflow_id, "code", name)
    with pytest.raises(TooLargeError, match="max_tasks_per_workflow: found 4 tasks; at most 3"):
        await orchestrator.add_task(workflow_id, "code", "d")
    with pytest.raises(TooLargeError, match="max_tasks_per_workflow"):
        await orchestrator.add_langgraph_task(workflow_id, upload("l"))
    assert len(await orchestrator.workflow_tasks(workflow_id)) == 3
    await orchestrator.submit_workflow([upload(name) for name in "abc"], [])
    with pytest.raises(TooLargeError, match="max_tasks_per_workflow"):
        await orchestrator.submit_workflow([upload(name) for name in "abcd"], [])


async def test_edges(make_world: MakeWorld) -> None:
    """Explicit ones and references count, a pair of tasks once; what goes makes room."""
    orchestrator = (await world_with(make_world, max_edges_per_workflow=2)).orchestrator
    tasks = [upload("a"), upload("b"), upload("c"), upload("d")]
    workflow_id, _ = await orchestrator.submit_workflow(tasks, [(A, B)])
    await orchestrator.add_edge(workflow_id, A, C)
    refused = pytest.raises(TooLargeError, match="max_edges_per_workflow: found 3 edges; at most 2")
    with refused:
        await orchestrator.add_edge(workflow_id, A, D)
    # Those that are there already, in either form, are none more.
    await orchestrator.add_edge(workflow_id, A, B)
    await orchestrator.save_task(workflow_id, reading("b", "a"), add_edges=True)
    with refused:
        await orchestrator.save_task(workflow_id, reading("d", "a"), add_edges=False)
    with refused:
        await orchestrator.save_task(workflow_id, reading("b", "a", "c"), add_edges=True)
    await orchestrator.del_edge(workflow_id, A, C)
    await orchestrator.save_task(workflow_id, reading("d", "a"), add_edges=False)
    # In the place of a reference there may be another.
    await orchestrator.save_task(workflow_id, reading("d", "c"), add_edges=False)
    with refused:
        await orchestrator.save_task(workflow_id, reading("d", "c", "a"), add_edges=False)
    await orchestrator.del_task(workflow_id, B)
    await orchestrator.save_task(workflow_id, reading("d", "c", "a"), add_edges=False)
    await orchestrator.submit_workflow([upload("a"), upload("b"), reading("c", "a")], [(A, B)])
    with refused:
        await orchestrator.submit_workflow(
            [upload("a"), upload("b"), reading("c", "a", "b")], [(A, B)]
        )


@pytest.mark.parametrize("form", [*CodeForm])
async def test_code(make_world: MakeWorld, form: CodeForm) -> None:
    """However it comes."""
    orchestrator = (await world_with(make_world, max_code_bytes=100)).orchestrator
    workflow_id, _ = await orchestrator.submit_workflow([sized("a", 100, form)], [])
    await orchestrator.save_task(workflow_id, sized("a", 100, form), add_edges=False)
    await orchestrator.add_langgraph_task(workflow_id, sized("l", 100, form))
    large, refused = (
        sized("a", 101, form),
        pytest.raises(TooLargeError, match="max_code_bytes: found 101"),
    )
    with refused:
        await orchestrator.submit_workflow([large], [])
    with refused:
        await orchestrator.save_task(workflow_id, large, add_edges=False)
    with refused:
        await orchestrator.add_langgraph_task(workflow_id, sized("m", 101, form))


async def test_batch_size(make_world: MakeWorld) -> None:
    orchestrator = (await world_with(make_world, max_batch_size=8)).orchestrator
    at, over = (upload("a", batch_config={"batch_size": size}) for size in (8, 9))
    workflow_id, _ = await orchestrator.submit_workflow([at], [])
    await orchestrator.save_task(workflow_id, at, add_edges=False)
    refused = pytest.raises(InvalidRequestError, match=r"batch_size: found 9; .*max_batch_size")
    with refused:
        await orchestrator.submit_workflow([over], [])
    with refused:
        await orchestrator.save_task(workflow_id, over, add_edges=False)


async def test_bytes(make_world: MakeWorld) -> None:
    """Of all tasks together, as they are now; what is refused changes nothing."""
    orchestrator = (await world_with(make_world, max_workflow_bytes=3_500)).orchestrator

    def sized(name: str, size: int) -> TaskUpload:
        param = {"key": "x", "input_schema": "from_user", "value": size * "x"}
        return upload(name, task_input={"input_params": {"1": param}})

    refused = pytest.raises(
        TooLargeError, match=r"max_workflow_bytes: found \d+ bytes of its tasks"
    )
    with refused:
        await orchestrator.submit_workflow([sized("a", 1_500), sized("b", 1_500)], [])
    workflow_id, _ = await orchestrator.submit_workflow([sized("a", 1_500), sized("b", 100)], [])
    with refused:
        await orchestrator.save_task(workflow_id, sized("b", 1_500), add_edges=False)
    await orchestrator.save_task(workflow_id, sized("a", 100), add_edges=False)
    await orchestrator.save_task(workflow_id, sized("b", 1_500), add_edges=False)
    with refused:
        await orchestrator.add_task(workflow_id, "code", "c" * 1_500)
    assert len(await orchestrator.workflow_tasks(workflow_id)) == 2
    await orchestrator.del_task(workflow_id, TaskId("b"))
    await orchestrator.add_task(workflow_id, "code", "c" * 1_500)


async def test_output_keys(make_world: MakeWorld) -> None:
    """One that no database can hold could never be returned."""
    orchestrator = (await world_with(make_world)).orchestrator

    def with_key(key: str) -> TaskUpload:
        return upload("a", task_output={"output_params": {"1": {"key": key}}})

    await orchestrator.submit_workflow([with_key("é" * 500)], [])
    with pytest.raises(
        InvalidRequestError, match=r"task_output: found the output key .* 1,000 bytes"
    ):
        await orchestrator.submit_workflow([with_key("é" * 501)], [])


async def test_time_outs(make_world: MakeWorld) -> None:
    """A task or a run that says nothing has the longest."""
    world = await world_with(make_world, max_timeout=10.0, max_deadline=100.0)
    orchestrator = world.orchestrator
    await orchestrator.submit_workflow([upload("a", timeout=10)], [], deadline=100)
    with pytest.raises(InvalidRequestError, match=r"timeout: found 10\.1 s; .*max_timeout"):
        await orchestrator.submit_workflow([upload("a", timeout=10.1)], [])
    with pytest.raises(InvalidRequestError, match=r"deadline: found 100\.1 s; .*max_deadline"):
        await orchestrator.submit_workflow([upload("a")], [], deadline=100.1)
    _, run_id = await orchestrator.submit_workflow([upload("a"), upload("b")], [])
    assert world.dispatcher.jobs[run_id, A].timed
    world.dispatcher.start_job(run_id, A)
    world.clock.advance(10.5)
    assert (A, 1) in world.dispatcher.cancelled
    world.clock.advance(90)
    assert (await orchestrator.describe_run(run_id))["status"] == "failed"


async def test_workflows_of_a_tenant(make_world: MakeWorld) -> None:
    """Of each by itself, however they are made, and still after a restart."""
    world = await world_with(make_world, max_workflows_per_tenant=2)
    refused = pytest.raises(
        TooLargeError, match=r"max_workflows_per_tenant: found 3 workflows .*at most 2"
    )
    for name in ("alice", "bob"):
        tenant = world.orchestrator.for_caller(Caller(Tenant(name), admin=False))
        await tenant.create_workflow()
        await tenant.submit_workflow([upload("a")], [])
        for _ in range(2):
            with refused:
                await tenant.create_workflow()
            with refused:
                await tenant.submit_workflow([upload("a")], [])
            await world.restart()
            tenant = world.orchestrator.for_caller(Caller(Tenant(name), admin=False))


async def test_a_workflow_that_is_refused_does_not_count(make_world: MakeWorld) -> None:
    orchestrator = (await world_with(make_world, max_workflows_per_tenant=1)).orchestrator
    for _ in range(3):
        with pytest.raises(InvalidRequestError):
            await orchestrator.submit_workflow([upload("a", timeout=-1)], [])
    await orchestrator.submit_workflow([upload("a")], [])


async def test_live_runs_of_a_tenant(make_world: MakeWorld) -> None:
    """Of each by itself; one that ends makes room; those of before a restart count."""
    world = await world_with(make_world, max_live_runs_per_tenant=2)
    refused = pytest.raises(OverloadedError, match="max_live_runs_per_tenant: 3 runs would be")
    flows: dict[str, WorkflowId] = {}
    for name in ("alice", "bob"):
        tenant = world.orchestrator.for_caller(Caller(Tenant(name), admin=False))
        flows[name], _ = await tenant.submit_workflow([upload("a")], [])
        await tenant.run_workflow(flows[name])
        with refused:
            await tenant.run_workflow(flows[name])
    await world.restart()
    alice = world.orchestrator.for_caller(Caller(Tenant("alice"), admin=False))
    with refused:
        await alice.run_workflow(flows["alice"])
    (first, *_) = await alice.list_runs(1)
    await alice.cancel_run(first["run_id"])  # type: ignore[arg-type]
    await alice.run_workflow(flows["alice"])
    with refused:
        await alice.run_workflow(flows["alice"])


async def test_a_workflow_that_is_deleted_makes_room_and_its_runs_stay(
    make_world: MakeWorld,
) -> None:
    """It is gone for whoever asks, at once and after a restart; its run goes on to its end."""
    world = await world_with(make_world, max_workflows_per_tenant=1)
    orchestrator = world.orchestrator
    workflow_id, run_id = await orchestrator.submit_workflow([upload("a"), upload("b")], [(A, B)])
    with pytest.raises(TooLargeError, match=r"DELETE /workflows/\{workflow_id\} makes room"):
        await orchestrator.create_workflow()
    await orchestrator.delete_workflow(workflow_id)
    for _ in range(2):
        with pytest.raises(WorkflowNotFoundError):
            await world.orchestrator.workflow_tasks(workflow_id)
        with pytest.raises(WorkflowNotFoundError):
            await world.orchestrator.delete_workflow(workflow_id)
        await world.restart()
    other = await world.orchestrator.create_workflow()
    world.dispatcher.succeed(run_id, A, out=b"1")
    world.dispatcher.succeed(run_id, B, out=b"1")
    assert (await world.messages(run_id))[-1] == "finish_workflow"
    assert await world.orchestrator.workflow_tasks(other) == []


async def test_a_workflow_that_is_deleted_while_others_read_it_stays_deleted(
    make_world: MakeWorld,
) -> None:
    """What was read before its end does not come back, and it makes room once."""
    world = await world_with(make_world, max_workflows_per_tenant=2)
    workflow_id = await world.orchestrator.create_workflow()
    await world.orchestrator.create_workflow()
    await world.restart()
    orchestrator = world.orchestrator
    ends = await asyncio.gather(
        orchestrator.delete_workflow(workflow_id),
        orchestrator.workflow_tasks(workflow_id),
        orchestrator.delete_workflow(workflow_id),
        return_exceptions=True,
    )
    assert [type(end) for end in ends] == [type(None), WorkflowNotFoundError, WorkflowNotFoundError]
    with pytest.raises(WorkflowNotFoundError):
        await orchestrator.add_task(workflow_id, "code", "a")
    await orchestrator.create_workflow()
    with pytest.raises(TooLargeError, match="max_workflows_per_tenant"):
        await orchestrator.create_workflow()


async def test_too_many_edges_are_not_linked_first(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body holds a million of them, and linking takes the event loop's time."""
    orchestrator = (await world_with(make_world, max_edges_per_workflow=1)).orchestrator
    monkeypatch.delattr(Workflow, "add_edges")
    with pytest.raises(TooLargeError, match="max_edges_per_workflow: found 2 edges"):
        await orchestrator.submit_workflow(
            [upload("a"), upload("b"), upload("c")], [(A, B), (A, C), (A, B)]
        )
