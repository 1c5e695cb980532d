"""What tasks that run on replicas may say: whether they are classes, how they scale, whether to warm up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lattice.errors import InvalidRequestError
from lattice.ids import TaskId, WorkflowId
from lattice.ports.service import CodeUpload, TaskUpload
from lattice.workflow.outline import Outline
from lattice.workflow.task import CodeForm
from tests.unit.orchestrator.world import World, upload

pytestmark = pytest.mark.anyio

A = TaskId("a")
CLASS = CodeUpload(CodeForm.PICKLE, b"a class", Outline(last_is_class=True))
BATCHED = {"batch_config": {"batch_size": 4}}
WARM = {"autoscaling": {"warm_up": True}}


def of_class(**definition: object) -> TaskUpload:
    return replace(upload("a", **definition), code=CLASS)


async def save(world: World, saved: TaskUpload) -> WorkflowId:
    """A workflow of the task `a`, saved as given."""
    workflow_id = await world.workflow("a")
    await world.orchestrator.save_task(workflow_id, saved, add_edges=False)
    return workflow_id


async def test_that_code_is_a_class_survives_a_restart(world: World) -> None:
    """It is stored with the task, and with the graphs of runs."""
    workflow_id = await save(world, of_class())
    first = await world.orchestrator.run_workflow(workflow_id)
    await world.restart()
    second = await world.orchestrator.run_workflow(workflow_id)
    for run_id in (first, second):
        assert world.dispatcher.jobs[run_id, A].definition.code.is_class


async def test_the_name_of_the_task_picks_the_class(world: World) -> None:
    """The name may be one that the task has already, which the API does not know."""
    outline = Outline(frozenset({"a"}), frozenset({"f"}), last_is_class=False)
    code = CodeUpload(CodeForm.SOURCE, b"class a: ...\ndef f(): ...", outline)
    for name, expected in ((None, True), ("f", False), ("other", False)):
        workflow_id = await save(world, replace(upload("a"), name=name, code=code))
        run_id = await world.orchestrator.run_workflow(workflow_id)
        assert world.dispatcher.jobs[run_id, A].definition.code.is_class is expected


@pytest.mark.parametrize(
    "saved",
    [
        upload("a", **BATCHED, **WARM),
        upload("a", resources={"gpu": 0.5}, **WARM),
        of_class(**WARM),
        replace(upload("a", **WARM), code=CLASS),
    ],
)
async def test_a_task_with_replicas_may_scale_and_warm_up(world: World, saved: TaskUpload) -> None:
    """What it says comes to the dispatcher once it is durable, and again with the job."""
    workflow_id = await save(world, saved)
    (prepared,) = world.dispatcher.prepared
    assert prepared.scaling.warm_up is True
    run_id = await world.orchestrator.run_workflow(workflow_id)
    assert world.dispatcher.jobs[run_id, A].definition == prepared


async def test_a_task_without_replicas_may_not_scale(world: World) -> None:
    """It is refused, saved or submitted, and stays as it was."""
    with pytest.raises(InvalidRequestError, match=r"autoscaling.*no replicas.*only batched tasks"):
        await save(world, upload("a", **WARM))
    with pytest.raises(InvalidRequestError, match=r"autoscaling.*only batched tasks"):
        await world.orchestrator.submit_workflow([upload("a", **WARM)], [])
    with pytest.raises(InvalidRequestError, match=r"autoscaling.min_replicas: found 3"):
        await save(world, of_class(autoscaling={"min_replicas": 3, "max_replicas": 2}))
    await save(world, upload("a", autoscaling={}))
    assert world.dispatcher.prepared == []


async def test_the_setting_warms_up_what_does_not_say(world: World) -> None:
    """A task's own word wins; what has no replicas, or no place, is not warmed up."""
    world.options = {"warm_up": True}
    await world.restart()
    await save(world, upload("a"))
    await save(world, of_class(autoscaling={"warm_up": False}))
    await save(world, of_class(resources={"gpu": 8}))
    assert world.dispatcher.prepared == []
    await save(world, of_class())
    assert len(world.dispatcher.prepared) == 1
