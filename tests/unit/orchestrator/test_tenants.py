"""Tenants beside each other: what is another's is as if it were not there, and its tasks wait for nobody."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from lattice.errors import AdminOnlyError, ConflictError, NotFoundError, StoreUnavailableError
from lattice.ids import NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.orchestrator import Tenancy
from lattice.orchestrator.quotas import Quotas
from lattice.ports.service import ANYBODY, Caller, Once, OrchestratorService
from lattice.ports.store import RunRecord
from tests.unit.orchestrator.outage import Outage, over
from tests.unit.orchestrator.world import MakeWorld, World, upload

pytestmark = pytest.mark.anyio

ALICE, BOB = Tenant("alice"), Tenant("bob")
A, B, C = TaskId("a"), TaskId("b"), TaskId("c")


def seen_by(world: World, tenant: str, *, admin: bool = False) -> OrchestratorService:
    return world.orchestrator.for_caller(Caller(Tenant(tenant), admin=admin))


Request = Callable[[OrchestratorService, WorkflowId, RunId], Awaitable[object]]


async def _first(
    service: OrchestratorService, run_id: RunId, workflow_id: WorkflowId | None
) -> object:
    async for group in service.follow(run_id, workflow_id, 0):
        return group
    return None


#: Everything that names a workflow or a run.
OF_WORKFLOW: dict[str, Request] = {
    "add_task": lambda s, w, r: s.add_task(w, "code", "n"),
    "save_task": lambda s, w, r: s.save_task(w, upload("a"), add_edges=False),
    "add_edge": lambda s, w, r: s.add_edge(w, A, B),
    "del_edge": lambda s, w, r: s.del_edge(w, A, B),
    "del_task": lambda s, w, r: s.del_task(w, A),
    "delete_workflow": lambda s, w, r: s.delete_workflow(w),
    "workflow_tasks": lambda s, w, r: s.workflow_tasks(w),
    "run_workflow": lambda s, w, r: s.run_workflow(w),
    "add_langgraph_task": lambda s, w, r: s.add_langgraph_task(w, upload("l")),
    "run_langgraph_task": lambda s, w, r: s.run_langgraph_task(w, A, b"", b""),
}
OF_RUN: dict[str, Request] = {
    "list_runs": lambda s, w, r: s.list_runs(9, before=r),
    "describe_run": lambda s, w, r: s.describe_run(r),
    "cancel_run": lambda s, w, r: s.cancel_run(r),
    "retry_run": lambda s, w, r: s.retry_run(r),
    "delete_run": lambda s, w, r: s.delete_run(r),
    "follow": lambda s, w, r: _first(s, r, None),
    "follow of a workflow": lambda s, w, r: _first(s, r, w),
    "task_result": lambda s, w, r: s.task_result(r, A),
    "task_logs": lambda s, w, r: s.task_logs(r, A),
    "value_json": lambda s, w, r: s.value_json(r, A, "out"),
    "value_pickle": lambda s, w, r: s.value_pickle(r, A, "out"),
}


def test_every_request_is_among_these() -> None:
    """One that is added has to say what a tenant sees of it."""
    others = {
        *("for_caller", "create_workflow", "submit_workflow", "delete_runs", "ready"),
        *("connect_worker", "disconnect_worker", "workers", "head_port"),
    }
    named = {name.partition(" ")[0] for name in (*OF_WORKFLOW, *OF_RUN)} | others
    assert named == {name for name in vars(OrchestratorService) if not name.startswith("_")}


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("what", [*OF_WORKFLOW, *OF_RUN])
async def test_anothers_id_is_refused_as_one_that_names_nothing(
    world: World, what: str, ended: bool
) -> None:
    """Word for word, whether the run goes on or has ended; and nothing has happened."""
    alice, bob = seen_by(world, "alice"), seen_by(world, "bob")
    workflow_id, run_id = await alice.submit_workflow([upload("a"), upload("b")], [(A, B)])
    if ended:
        await alice.cancel_run(run_id)
    before = await alice.describe_run(run_id), await alice.workflow_tasks(workflow_id)
    request = (OF_WORKFLOW | OF_RUN)[what]

    async def refusal(workflow_id: WorkflowId, run_id: RunId) -> tuple[type, str]:
        with pytest.raises(NotFoundError) as refused:
            await request(bob, workflow_id, run_id)
        return type(refused.value), str(refused.value)

    unknown = WorkflowId("none-such"), RunId("no-such-run")
    kind, text = await refusal(*unknown)
    hers = text.replace(unknown[0], workflow_id).replace(unknown[1], run_id)
    assert await refusal(workflow_id, run_id) == (kind, hers)
    assert await bob.delete_runs(workflow_id, 9) == await bob.delete_runs(unknown[0], 9) == 0
    assert (await alice.describe_run(run_id), await alice.workflow_tasks(workflow_id)) == before
    assert len(await alice.list_runs(9)) == 1


async def test_each_tenant_lists_its_own_and_an_admin_all(world: World) -> None:
    """What there was before there were keys is nobody's: admins see it."""
    _, nobodys = await world.orchestrator.submit_workflow([upload("a")], [])
    runs = {}
    for name in ("alice", "bob", "alice"):
        workflow_id = await seen_by(world, name).create_workflow()
        task_id = await seen_by(world, name).add_task(workflow_id, "code", "a")
        saved = upload("a")
        await seen_by(world, name).save_task(
            workflow_id, type(saved)(task_id, None, saved.definition, saved.code), add_edges=False
        )
        runs.setdefault(name, []).insert(0, await seen_by(world, name).run_workflow(workflow_id))

    def ids(found: list[dict[str, object]]) -> list[object]:
        return [run["run_id"] for run in found]

    for name, expected in runs.items():
        assert ids(await seen_by(world, name).list_runs(9)) == expected
    everything = await seen_by(world, "ops", admin=True).list_runs(9)
    assert [run["tenant"] for run in everything] == ["alice", "bob", "alice", None]
    assert ids(await seen_by(world, "nobody").list_runs(9)) == []
    ops = seen_by(world, "ops", admin=True)
    assert await ops.cancel_run(nobodys) == await ops.cancel_run(runs["bob"][0]) == "cancelled"


def counted_reads(world: World, monkeypatch: pytest.MonkeyPatch) -> list[RunId]:
    """The runs that are read from the store from now on."""
    reads, load = list[RunId](), world.store.load_run

    def read(run_id: RunId) -> RunRecord | None:
        reads.append(run_id)
        return load(run_id)

    monkeypatch.setattr(world.store, "load_run", read)
    return reads


@pytest.mark.parametrize("caller", [Caller(Tenant("ops"), admin=True), ANYBODY])
async def test_whose_a_run_is_is_not_looked_up_for_an_admin(
    world: World, monkeypatch: pytest.MonkeyPatch, caller: Caller
) -> None:
    """Nor for whoever needs no key: the store is asked once, by the request itself."""
    service = world.orchestrator.for_caller(caller)
    _, run_id = await service.submit_workflow([upload("a")], [])
    await service.cancel_run(run_id)
    await world.messages(run_id)
    reads = counted_reads(world, monkeypatch)
    await service.delete_run(run_id)
    assert reads == [run_id]


async def test_the_runs_of_a_deleted_workflow_are_deleted_by_whose_they_are(world: World) -> None:
    """Though nobody can be asked any more whose the workflow was."""
    alice, bob = seen_by(world, "alice"), seen_by(world, "bob")
    workflow_id, run_id = await alice.submit_workflow([upload("a")], [])
    await alice.cancel_run(run_id)
    await world.messages(run_id)
    await alice.delete_workflow(workflow_id)
    assert await bob.delete_runs(workflow_id, 9) == 0
    assert len(await alice.list_runs(9)) == 1
    assert await alice.delete_runs(workflow_id, 9) == 1
    assert await alice.list_runs(9) == []


async def test_whose_a_run_is_survives_a_restart_and_a_retry(world: World) -> None:
    """The new orchestrator has only the store."""
    workflow_id, run_id = await seen_by(world, "alice").submit_workflow([upload("a")], [])
    await world.restart()
    assert (await seen_by(world, "alice").describe_run(run_id))["status"] == "running"
    assert world.dispatcher.jobs[run_id, A].definition.tenant == ALICE
    for request in (OF_RUN["describe_run"], OF_WORKFLOW["workflow_tasks"]):
        with pytest.raises(NotFoundError):
            await request(seen_by(world, "bob"), workflow_id, run_id)
    # What an admin starts of hers is hers.
    ops = seen_by(world, "ops", admin=True)
    await ops.cancel_run(run_id)
    for again in (await ops.retry_run(run_id), await ops.run_workflow(workflow_id)):
        assert (await seen_by(world, "alice").describe_run(again))["status"] == "running"
        assert world.dispatcher.jobs[again, A].definition.tenant == ALICE


async def test_each_tenant_has_idempotency_keys_of_its_own(world: World) -> None:
    """The same key of two tenants is two keys, also when it comes back after a restart."""
    made = {}
    for name in (ALICE, BOB, None):
        caller = Caller(name, admin=name is None)
        service = world.orchestrator.for_caller(caller)
        made[name] = await service.create_workflow(Once("k", "print", name))
    assert len(set(made.values())) == 3
    await world.restart()
    for name, workflow_id in made.items():
        service = world.orchestrator.for_caller(Caller(name, admin=name is None))
        assert await service.create_workflow(Once("k", "print", name)) == workflow_id
        with pytest.raises(ConflictError, match="Idempotency-Key 'k' was"):
            await service.create_workflow(Once("k", "another", name))


@pytest.mark.parametrize("admin", [False, True])
async def test_a_remembered_answer_outlives_what_was_asked_of(world: World, admin: bool) -> None:
    """It is given to whom it was given, though the workflow is gone; others hear that there is no such thing."""
    alice, bob = seen_by(world, "alice", admin=admin), seen_by(world, "bob")
    workflow_id, run_id = await alice.submit_workflow([upload("a")], [])
    await alice.cancel_run(run_id)
    keyed: dict[str, Callable[[OrchestratorService], Awaitable[object]]] = {
        "add": lambda s: s.add_task(workflow_id, "code", "n", Once("add", "f")),
        "graph": lambda s: s.add_langgraph_task(workflow_id, upload("l"), Once("graph", "f")),
        "run": lambda s: s.run_workflow(workflow_id, Once("run", "f")),
        "retry": lambda s: s.retry_run(run_id, Once("retry", "f")),
    }
    # The run first: what was added has no code yet.
    first = {name: await keyed[name](alice) for name in ("run", "retry", "add", "graph")}
    await alice.delete_workflow(workflow_id)
    await alice.delete_run(run_id)
    for _ in range(2):
        assert {name: await ask(alice) for name, ask in keyed.items()} == first
        for ask in keyed.values():
            with pytest.raises(NotFoundError):
                await ask(bob)
        await world.restart()
        alice, bob = seen_by(world, "alice", admin=admin), seen_by(world, "bob")


async def test_a_key_is_the_tenants_that_sends_it(world: World) -> None:
    """Whatever it says of itself."""
    forged = Once("k", "f", ALICE)
    hers = await seen_by(world, "alice").create_workflow(Once("k", "f"))
    assert await seen_by(world, "bob").create_workflow(forged) != hers
    assert await seen_by(world, "alice").create_workflow(forged) == hers


async def test_a_retry_reads_once_whose_the_run_is(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = seen_by(world, "alice")
    _, run_id = await alice.submit_workflow([upload("a")], [])
    await alice.cancel_run(run_id)
    await world.messages(run_id)
    reads = counted_reads(world, monkeypatch)
    await alice.retry_run(run_id, Once("k", "f"))
    assert reads == [run_id]


def test_a_caller_is_an_admin_or_has_a_tenant() -> None:
    """Nobody's would be taken for everybody's."""
    with pytest.raises(ValueError, match="has a tenant"):
        Caller(None, admin=False)


async def test_nodes_are_the_operators(world: World) -> None:
    bob, ops = seen_by(world, "bob"), seen_by(world, "ops", admin=True)
    requests: list[Callable[[OrchestratorService], Awaitable[object]]] = [
        lambda s: s.connect_worker(NodeId("n"), "10.0.0.1", {}),
        lambda s: s.disconnect_worker(NodeId("n")),
        lambda s: s.workers(),
        lambda s: s.head_port(),
    ]
    for request in requests:
        with pytest.raises(AdminOnlyError):
            await request(bob)
    for request in requests:
        await request(ops)
    await bob.ready()


# -- batches and quotas ------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [False, True])
async def test_definitions_are_the_tenants_unless_a_setting_says_otherwise(
    make_world: MakeWorld, shared: bool
) -> None:
    """Calls meet in one batch where their definitions are equal."""
    world = await make_world(tenancy=Tenancy(share_definitions=shared))
    definitions = []
    for name in ("alice", "alice", "bob"):
        batched = upload("a", batch_config={"enabled": True, "batch_size": 4})
        _, run_id = await seen_by(world, name).submit_workflow([batched], [])
        definitions.append(world.dispatcher.jobs[run_id, A].definition)
    one, same, other = definitions
    assert one == same
    assert (one == other) is shared


def begun(world: World) -> list[TaskId]:
    return [task_id for task_id, _ in world.dispatcher.submitted]


async def test_tasks_beyond_a_tenants_bound_wait_for_its_own_only(make_world: MakeWorld) -> None:
    """At the bound they run, one over waits and says for what; each that ends lets the next begin."""
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 2}))
    alice = seen_by(world, "alice")
    _, run_id = await alice.submit_workflow([upload(name) for name in "abcd"], [])
    assert begun(world) == ["a", "b"]
    described: Any = await alice.describe_run(run_id)
    waits = {task["task_id"]: task["waiting_for"] for task in described["tasks"]}
    assert waits["c"] == "other tasks of 'alice': 2 of max_concurrent_tasks, 2, run"
    assert waits["a"] == "the test"
    await seen_by(world, "bob").submit_workflow([upload(name) for name in "efgh"], [])
    assert begun(world)[2:] == ["e", "f", "g", "h"]
    world.dispatcher.succeed(run_id, TaskId("b"), out=b"1")
    assert begun(world)[6:] == ["c"]
    world.dispatcher.fail(run_id, TaskId("a"))
    assert begun(world)[6:] == ["c", "d"]
    # What is cancelled, in the queue or not, makes room.
    _, second = await alice.submit_workflow([upload("x"), upload("y")], [])
    _, third = await alice.submit_workflow([upload("z")], [])
    assert begun(world)[8:] == []
    await alice.cancel_run(second)
    await alice.cancel_run(run_id)
    assert begun(world)[8:] == ["z"]
    world.dispatcher.succeed(third, TaskId("z"), out=b"1")
    await alice.submit_workflow([upload(name) for name in "ij"], [])
    assert begun(world)[9:] == ["i", "j"]


async def test_tasks_of_a_bounded_tenant_are_not_run_ahead(make_world: MakeWorld) -> None:
    """Nobody would count them."""
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 1}))
    ahead = {}
    for name in ("alice", "bob"):
        _, run_id = await seen_by(world, name).submit_workflow([upload("a"), upload("b")], [(A, B)])
        ahead[name] = [job.task_id for job in world.dispatcher.ahead(run_id, [A])]
    assert ahead == {"alice": [], "bob": [B]}


async def test_what_fails_for_want_of_a_node_makes_room(make_world: MakeWorld) -> None:
    """It has not begun, and nobody reports its end."""
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 1}))
    alice, placing = seen_by(world, "alice"), world.orchestrator._parts.placing
    await alice.submit_workflow([upload("a", resources={"gpu": 1}), upload("b")], [])
    (with_gpu,) = world.dispatcher.engine
    world.dispatcher.engine[:] = [replace(with_gpu, gpu=0)]
    for _ in range(2):
        await placing.look()
        world.clock.advance(30)
    assert begun(world) == ["a", "b"]


async def test_the_bound_holds_after_a_restart(make_world: MakeWorld) -> None:
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 1}))
    _, run_id = await seen_by(world, "alice").submit_workflow([upload("a"), upload("b")], [])
    await world.restart()
    assert len(begun(world)) == 1
    world.dispatcher.succeed(run_id, begun(world)[0], out=b"1")
    assert sorted(begun(world)) == ["a", "b"]


async def call(quotas: Quotas) -> None:
    async with quotas.place(ALICE):
        pass


async def test_the_runs_and_the_calls_of_a_bounded_tenant_take_turns() -> None:
    """A run of ten thousand tasks holds up neither the tenant's run of three nor its calls; who left is forgotten."""
    quotas, begun = Quotas({ALICE: 1}), list[tuple[RunId, int]]()
    large, small = RunId("large"), RunId("small")

    def enter(holder: tuple[RunId, int]) -> None:
        quotas.enter(ALICE, holder[0], holder, lambda: begun.append(holder))

    for run, count in ((large, 10_000), (small, 3)):
        for number in range(count):
            enter((run, number))
    calling = asyncio.create_task(call(quotas))
    await asyncio.sleep(0)
    for _ in range(20):
        quotas.leave(ALICE, begun[-1][0], begun[-1])
        await asyncio.sleep(0)
    assert calling.done()
    assert [number for run, number in begun if run == small] == [0, 1, 2]
    for run, count in ((small, 3), (large, 10_000)):
        for number in range(count):
            quotas.leave(ALICE, run, (run, number))
    assert not quotas._waiting
    assert not quotas._queue._lanes


async def test_what_waited_and_was_cancelled_meanwhile_does_not_begin(
    make_world: MakeWorld,
) -> None:
    """The end of a run makes room first for what ends with it."""
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 1}))
    alice = seen_by(world, "alice")
    _, first = await alice.submit_workflow([upload(name) for name in "abc"], [])
    await alice.submit_workflow([upload("d")], [])
    await alice.cancel_run(first)
    assert begun(world) == ["a", "d"]


async def test_what_waited_does_not_begin_when_the_orchestrator_has_stopped(
    make_world: MakeWorld,
) -> None:
    """Its successor runs it; what made room was a call, which ends later."""
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 1}))
    parts = world.orchestrator._parts
    async with parts.quotas.place(ALICE):
        await seen_by(world, "alice").submit_workflow([upload("a")], [])
        parts.runs.stop()
    assert begun(world) == []


@pytest.mark.parametrize("cancelled", [False, True])
async def test_what_waited_for_its_tenant_waits_for_the_database(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, cancelled: bool
) -> None:
    """Within the bound also when it is back; what was cancelled meanwhile does not begin."""
    world = await make_world(tenancy=Tenancy(max_concurrent_tasks={ALICE: 1}))
    alice = seen_by(world, "alice")
    _, first = await alice.submit_workflow([upload("a")], [])
    _, second = await alice.submit_workflow([upload("b"), upload("c")], [])
    outage = Outage(world, monkeypatch)
    with pytest.raises(StoreUnavailableError):
        await alice.create_workflow()
    world.dispatcher.succeed(first, A, out=b"1")
    assert begun(world) == ["a"]
    if cancelled:
        world.orchestrator._parts.runs.cancel(second)
    outage.end()
    await over(world)
    # What waited is committed after what the database was asked for meanwhile.
    await world.orchestrator._parts.journal.barrier()
    assert begun(world) == (["a"] if cancelled else ["a", "b"])


async def test_what_a_subscriber_reads_names_no_tenant(world: World) -> None:
    """Messages are as they were without keys."""
    alice = seen_by(world, "alice")
    _, run_id = await alice.submit_workflow([upload("a")], [])
    await alice.cancel_run(run_id)
    texts: list[str] = []
    async for group in alice.follow(run_id, None, 0):
        texts += [str(text) for text in group]  # type: ignore[union-attr]  # no logs were asked for
    assert texts
    assert not any("alice" in json.dumps(json.loads(text)) for text in texts)
