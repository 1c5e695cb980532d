"""Which tasks may ask for secrets or a sandbox, and with whom those that have secrets share replicas."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lattice.errors import InvalidRequestError
from lattice.execution.secrets import SecretFolder
from lattice.ids import TaskId, Tenant
from lattice.orchestrator import Tenancy
from lattice.ports.execution import Definition
from lattice.ports.service import Caller, CodeUpload
from lattice.workflow.outline import Outline
from lattice.workflow.task import CodeForm
from tests.unit.orchestrator.world import MakeWorld, World, upload

pytestmark = pytest.mark.anyio

A = TaskId("a")
ALICE, BOB = Tenant("alice"), Tenant("bob")
BATCHED = {"batch_config": {"batch_size": 4}}


@pytest.fixture
def folder(tmp_path: Path) -> SecretFolder:
    """Secrets of two tenants and of the service without tenants, under one name."""
    for place in ("", "alice", "bob"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "KEY").write_text(f"of {place}")
    return SecretFolder(tmp_path)


async def define(world: World, caller: Caller, **definition: Any) -> Definition:
    """What the dispatcher is told of a task of a caller's."""
    service = world.orchestrator.for_caller(caller)
    _, run_id = await service.submit_workflow([upload("a", **definition)], [])
    return world.dispatcher.jobs[run_id, A].definition


async def test_langgraph_tasks_ask_for_secrets_by_name(
    make_world: MakeWorld, folder: SecretFolder
) -> None:
    """Their tenant's; one that is not there is refused at once, with the file that is missing."""
    world = await make_world(secrets=folder)
    alice = world.orchestrator.for_caller(Caller(ALICE, admin=False))
    workflow_id = await alice.create_workflow()
    task_id = await alice.add_langgraph_task(workflow_id, upload("n", secrets=["KEY"]))
    await alice.run_langgraph_task(workflow_id, task_id, b"", b"")
    assert world.dispatcher.called[-1].definition.secrets == ("alice/KEY",)
    with pytest.raises(InvalidRequestError, match=r"secrets: found 'NO'.*alice/NO.*secrets_dir"):
        await alice.add_langgraph_task(workflow_id, upload("m", secrets=["NO"]))


async def test_langgraph_tasks_have_no_sandbox(world: World) -> None:
    """The refusal names the field and says what to do."""
    workflow_id = await world.orchestrator.create_workflow()
    with pytest.raises(InvalidRequestError, match=r"sandbox: .*LangGraph.*task of a workflow"):
        await world.orchestrator.add_langgraph_task(workflow_id, upload("n", sandbox=True))
    await world.orchestrator.add_langgraph_task(workflow_id, upload("n", sandbox=False))


@pytest.mark.parametrize(
    "saved",
    [
        upload("a", sandbox=True, **BATCHED),
        upload("a", sandbox=True, resources={"gpu": 1}),
        replace(
            upload("a", sandbox=True),
            code=CodeUpload(CodeForm.PICKLE, b"a class", Outline(last_is_class=True)),
        ),
    ],
)
async def test_tasks_on_replicas_have_no_sandbox(world: World, saved: Any) -> None:
    """The refusal names the field and says what to do."""
    workflow_id = await world.workflow("a")
    with pytest.raises(InvalidRequestError, match=r"sandbox: .*replicas.*plain function"):
        await world.orchestrator.save_task(workflow_id, saved, add_edges=False)


@pytest.mark.parametrize("shared", [False, True])
async def test_what_sees_secrets_serves_one_tenant(
    make_world: MakeWorld, folder: SecretFolder, shared: bool
) -> None:
    """Also where the setting lets tenants share what has none."""
    world = await make_world(secrets=folder, tenancy=Tenancy(share_definitions=shared))
    found = {
        who: await define(world, Caller(who, admin=False), secrets=["KEY"], **BATCHED)
        for who in (ALICE, BOB)
    }
    assert {who: each.tenant for who, each in found.items()} == {ALICE: ALICE, BOB: BOB}
    assert {who: each.secrets for who, each in found.items()} == {
        ALICE: ("alice/KEY",),
        BOB: ("bob/KEY",),
    }
    plain = [await define(world, Caller(who, admin=False), **BATCHED) for who in (ALICE, BOB)]
    assert (plain[0] == plain[1]) is shared
