"""The orchestrator's order: checked, durable, answered; runs go on after a restart; nothing is told twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from lattice.errors import (
    ConflictError,
    InvalidRequestError,
    LeaseLostError,
    OrchestratorNotInitializedError,
    ResultNotFoundError,
    RunNotFoundError,
    StoreUnavailableError,
    TaskNotFoundError,
    TooLargeError,
    WorkerNotFoundError,
    WorkflowNotFoundError,
)
from lattice.ids import NodeId, RunId, TaskId, WorkflowId
from lattice.ports.execution import EngineNode
from lattice.ports.service import CodeUpload, Once
from lattice.ports.store import PutReply, Write
from lattice.workflow.task import CodeForm
from tests.unit.orchestrator.world import World, upload

pytestmark = pytest.mark.anyio

A, B = TaskId("a"), TaskId("b")


async def test_a_run_from_submission_to_its_last_message(world: World) -> None:
    """Upstream values reach the next job, and are let go of when nobody needs them."""
    reference = {"1": {"key": "x", "input_schema": "from_task", "value": "a.out"}}
    tasks = [upload("a"), upload("b", task_input={"input_params": reference})]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    world.dispatcher.start_job(run_id, A)
    world.dispatcher.succeed(run_id, A, out=b"pickled")
    argument = world.dispatcher.jobs[run_id, B].arguments[0]
    assert argument.key == "x"
    assert argument.source == (A, "out")
    assert argument.value is not None
    assert argument.value.inline == b"pickled"
    world.dispatcher.succeed(run_id, B, out=b"")
    assert await world.messages(run_id) == [
        "start_task",
        "finish_task",
        "start_task",
        "finish_task",
        "finish_workflow",
    ]
    assert world.dispatcher.released == [B, A]
    assert await world.orchestrator.task_result(run_id, A) == {"out": 7}
    assert await world.orchestrator.value_pickle(run_id, A, "out") == b"pickled"
    report = await world.orchestrator.describe_run(run_id)
    assert report["status"] == "succeeded"
    assert report["last_seq"] == 5


async def test_editing_a_workflow_does_not_touch_its_runs(world: World) -> None:
    """A run works on the workflow as it was."""
    workflow_id = await world.workflow("a", "b", edges="a>b")
    run_id = await world.orchestrator.run_workflow(workflow_id)
    await world.orchestrator.del_task(workflow_id, B)
    world.dispatcher.succeed(run_id, A, out=b"")
    world.dispatcher.succeed(run_id, B, out=b"")
    assert (await world.messages(run_id))[-1] == "finish_workflow"


async def test_workflows_survive_a_restart(world: World) -> None:
    """Tasks with all that was saved, in their order, and edges."""
    workflow_id = await world.workflow("a", "b", "c", edges="b>a c>b")
    before = await world.orchestrator.workflow_tasks(workflow_id)
    await world.restart()
    assert await world.orchestrator.workflow_tasks(workflow_id) == before
    run_id = await world.orchestrator.run_workflow(workflow_id)
    for name in "cba":
        world.dispatcher.succeed(run_id, TaskId(name), out=b"")
    assert len(await world.messages(run_id)) == 7


async def test_a_run_goes_on_after_a_restart(world: World) -> None:
    """What finished is not run again, and its value is there; what ran is run again."""
    workflow_id = await world.workflow("a", "b", "c", edges="a>c b>c")
    run_id = await world.orchestrator.run_workflow(workflow_id)
    world.dispatcher.succeed(run_id, A, out=b"value")
    world.dispatcher.start_job(run_id, B)
    await world.orchestrator.describe_run(run_id)
    await world.restart()
    assert world.dispatcher.submitted == [(B, 2)]
    world.dispatcher.succeed(run_id, B, out=b"")
    world.dispatcher.succeed(run_id, TaskId("c"), out=b"")
    assert await world.messages(run_id) == [
        "start_task",
        "finish_task",
        "start_task",
        "task_retry",
        "start_task",
        "finish_task",
        "start_task",
        "finish_task",
        "finish_workflow",
    ]


async def test_the_former_orchestrator_can_write_nothing(world: World) -> None:
    """Its next commit is refused, and it says so; the new one is not disturbed."""
    former, former_dispatcher = world.orchestrator, world.dispatcher
    workflow_id = await world.workflow("a")
    run_id = await former.run_workflow(workflow_id)
    await world.restart()
    former_dispatcher.succeed(run_id, A, out=b"")
    with pytest.raises(LeaseLostError):
        await former.create_workflow()
    with pytest.raises(LeaseLostError):
        await former.ready()
    world.dispatcher.succeed(run_id, A, out=b"")
    assert (await world.messages(run_id))[-1] == "finish_workflow"


async def test_the_former_orchestrator_answers_nothing(world: World) -> None:
    """What it remembers may be out of date, so it neither tells nor refuses anything by it."""
    workflow_id = await world.workflow("a")
    run_id = await world.orchestrator.run_workflow(workflow_id)
    formers = []
    for _ in range(6):
        formers.append(world.orchestrator)
        await world.orchestrator.workflow_tasks(workflow_id)
        await world.restart()
    await world.orchestrator.add_task(workflow_id, "code", "b")
    with pytest.raises(LeaseLostError):
        await formers[0].workflow_tasks(workflow_id)
    with pytest.raises(LeaseLostError):
        await formers[1].describe_run(run_id)
    with pytest.raises(LeaseLostError):
        await formers[2].del_task(workflow_id, TaskId("b"))
    with pytest.raises(LeaseLostError):
        await formers[3].run_langgraph_task(workflow_id, A, b"", b"")
    with pytest.raises(LeaseLostError):
        await anext(aiter(formers[4].follow(run_id, workflow_id, 0)))
    world.dispatcher.jobs.clear()
    with pytest.raises(InvalidRequestError, match="without code"):
        await world.orchestrator.run_workflow(workflow_id)


async def test_the_former_orchestrator_learns_of_it_by_its_health_check(world: World) -> None:
    """Although nobody asks it for anything; those who wait for its runs are told."""
    former = world.orchestrator
    workflow_id = await world.workflow("a")
    run_id = await former.run_workflow(workflow_id)
    waiting = asyncio.ensure_future(anext(aiter(former.follow(run_id, None, 0))))
    await world.restart()
    await former.ready()
    with pytest.raises(LeaseLostError):
        await asyncio.wait_for(waiting, 30)
    with pytest.raises(LeaseLostError):
        await former.ready()


async def test_subscribers_see_every_message_once_in_order(world: World) -> None:
    """Early, late, from the middle, and after the end; many at once; from a live run's past too."""
    names = [f"t{number}" for number in range(40)]
    workflow_id = await world.workflow(*names)
    run_id = await world.orchestrator.run_workflow(workflow_id)

    async def seqs(after: int) -> list[int]:
        found = []
        async for group in world.orchestrator.follow(run_id, workflow_id, after):
            found += [json.loads(text)["data"]["seq"] for text in group]
        return found

    early = [asyncio.create_task(seqs(after)) for after in (0, 0, 5)]
    for name in names[:20]:
        await asyncio.sleep(0)
        world.dispatcher.succeed(run_id, TaskId(name), out=b"")
    middle = [asyncio.create_task(seqs(after)) for after in (0, 39, 50)]
    for name in names[20:]:
        await asyncio.sleep(0)
        world.dispatcher.succeed(run_id, TaskId(name), out=b"")
    everything = list(range(1, 82))
    assert await asyncio.gather(*early) == [everything, everything, everything[5:]]
    assert await asyncio.gather(*middle) == [everything, everything[39:], everything[50:]]
    assert await seqs(0) == everything
    assert await seqs(80) == [81]
    assert await seqs(81) == await seqs(1000) == []


async def test_nothing_is_visible_before_it_is_durable(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subscriber gets a message only after its commit; the next task need not wait for that."""
    workflow_id = await world.workflow("a", "b", edges="a>b")
    run_id = await world.orchestrator.run_workflow(workflow_id)
    loop, gate = asyncio.get_running_loop(), asyncio.Event()
    commit = world.store.commit

    def held(lease: int, writes: Sequence[Write], number: int) -> None:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        commit(lease, writes, number)

    monkeypatch.setattr(world.store, "commit", held)
    stream = world.orchestrator.follow(run_id, None, 0)
    first = asyncio.ensure_future(anext(stream))
    world.dispatcher.succeed(run_id, A, out=b"")
    assert (run_id, B) in world.dispatcher.jobs
    for _ in range(50):
        await asyncio.sleep(0)
    assert not first.done()
    gate.set()
    assert len(await first) == 2
    await stream.aclose()  # type: ignore[attr-defined]  # it is an async generator


async def test_a_commit_that_fails_stops_everything_loudly(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No request is answered as if it had worked, and the health check says why."""

    def broken(lease: int, writes: Sequence[Write], number: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(world.store, "commit", broken)
    with pytest.raises(StoreUnavailableError, match="disk full"):
        await world.orchestrator.create_workflow()
    with pytest.raises(StoreUnavailableError, match="disk full"):
        await world.orchestrator.ready()


async def test_the_same_key_gives_the_same_answer(world: World) -> None:
    """Sent twice at once, again later, and after a restart; another request with it is refused."""
    once = Once("key", "fingerprint")
    first, second = await asyncio.gather(
        world.orchestrator.create_workflow(once), world.orchestrator.create_workflow(once)
    )
    assert first == second == await world.orchestrator.create_workflow(once)
    await world.restart()
    assert await world.orchestrator.create_workflow(once) == first
    with pytest.raises(ConflictError):
        await world.orchestrator.create_workflow(replace(once, fingerprint="other"))
    assert await world.orchestrator.create_workflow(Once("other", "f")) != first


async def test_a_run_with_a_key_is_started_once(world: World) -> None:
    """The second request starts nothing."""
    workflow_id = await world.workflow("a")
    once = Once("key", "f")
    runs = {await world.orchestrator.run_workflow(workflow_id, once) for _ in range(3)}
    assert len(runs) == 1
    assert world.dispatcher.submitted == [(A, 1)]


async def test_a_failed_request_leaves_its_key_free(world: World) -> None:
    """It answered nothing that could be repeated."""
    once = Once("key", "f")
    with pytest.raises(WorkflowNotFoundError):
        await world.orchestrator.run_workflow(WorkflowId("none"), once)
    assert world.store.load_reply("key") is None
    assert await world.orchestrator.create_workflow(once)


async def test_an_answer_is_committed_with_its_effect(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no moment with one and without the other."""
    groups: list[Sequence[Write]] = []
    commit = world.store.commit

    def noted(lease: int, writes: Sequence[Write], number: int) -> None:
        groups.append(writes)
        commit(lease, writes, number)

    monkeypatch.setattr(world.store, "commit", noted)
    await world.orchestrator.create_workflow(Once("key", "f"))
    [group] = filter(None, groups)
    assert [type(write).__name__ for write in group] == ["PutWorkflow", "PutReply"]
    assert isinstance(group[1], PutReply)


async def test_timers_of_finished_tasks_are_forgotten(world: World) -> None:
    """A long time-out of a short task leaves nothing behind; a short one ends its attempt."""
    tasks = [upload("a", timeout=3600), upload("b", timeout=5)]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    world.dispatcher.start_job(run_id, A)
    world.dispatcher.start_job(run_id, B)
    world.dispatcher.succeed(run_id, A, out=b"")
    assert world.clock.armed == 1
    world.clock.advance(5)
    assert world.dispatcher.cancelled == [(B, 1)]
    assert (await world.messages(run_id))[-2:] == ["task_exception", "finish_workflow"]
    world.clock.advance(5)  # for the last words of what was cancelled
    assert world.clock.armed == 0


async def test_a_retry_waits_for_its_time(world: World) -> None:
    """The job is submitted again when the wait is over: between half of `backoff` and all of it."""
    _, run_id = await world.orchestrator.submit_workflow(
        [upload("a", retry={"max_attempts": 2, "backoff": 3})], []
    )
    world.dispatcher.fail(run_id, A)
    world.clock.advance(1.4)
    assert world.dispatcher.submitted == [(A, 1)]
    world.clock.advance(1.6)
    assert world.dispatcher.submitted == [(A, 1), (A, 2)]


async def test_cancelling_is_idempotent(world: World) -> None:
    """Also for a run that has ended; an unknown one is not found."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    assert await world.orchestrator.cancel_run(run_id) == "cancelled"
    assert await world.orchestrator.cancel_run(run_id) == "cancelled"
    assert world.dispatcher.cancelled == [(A, 1)]
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.cancel_run(RunId("none"))


async def test_what_no_node_can_hold_is_refused_at_the_run(world: World) -> None:
    """By `run_workflow`, `submit_workflow` and LangGraph calls; nothing is started."""
    with pytest.raises(InvalidRequestError, match="cpu 64 asked"):
        await world.orchestrator.submit_workflow([upload("a", resources={"cpu": 64})], [])
    assert await world.orchestrator.list_runs(10) == []
    workflow_id = await world.orchestrator.create_workflow()
    await world.orchestrator.add_langgraph_task(workflow_id, upload("g", resources={"gpu": 2}))
    with pytest.raises(InvalidRequestError, match="gpu 2 asked"):
        await world.orchestrator.run_langgraph_task(workflow_id, TaskId("g"), b"", b"")


async def test_nodes_are_matched_named_and_left_alone(world: World) -> None:
    """By id, else by address; a disconnected one gets nothing new, also after a restart."""
    world.dispatcher.engine[:] = [
        EngineNode(NodeId("engine-1"), "10.0.0.1", 4, 0, 8192),
        EngineNode(NodeId("engine-2"), "10.0.0.2", 4, 0, 8192),
    ]
    world.clock.advance(2)
    for node_id, address in (("engine-2", "wrong"), ("mine", "10.0.0.1"), ("late", "10.0.0.3")):
        await world.orchestrator.connect_worker(NodeId(node_id), address, {"cpu": 4})
    found = {each["node_id"]: each["status"] for each in await world.orchestrator.workers()}
    assert found == {"engine-2": "active", "mine": "active", "late": "waiting"}
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    assert world.dispatcher.jobs[run_id, A].definition.excluded == frozenset()
    world.dispatcher.succeed(run_id, A, out=b"")
    async for group in world.orchestrator.follow(run_id, None, 0):
        assert all(json.loads(text)["data"].get("node_id", "mine") == "mine" for text in group)
    await world.orchestrator.disconnect_worker(NodeId("mine"))
    await world.restart()
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    assert world.dispatcher.jobs[run_id, A].definition.excluded == {"engine-1"}
    await world.orchestrator.disconnect_worker(NodeId("engine-2"))
    with pytest.raises(InvalidRequestError, match="no node"):
        await world.orchestrator.submit_workflow([upload("a")], [])
    await world.orchestrator.connect_worker(NodeId("mine"), "10.0.0.1", {"cpu": 4})
    await world.orchestrator.submit_workflow([upload("a")], [])
    with pytest.raises(WorkerNotFoundError):
        await world.orchestrator.disconnect_worker(NodeId("nobody"))


async def test_a_node_takes_the_place_of_what_has_left_its_address(world: World) -> None:
    """Engines give a new id to what joins again. Others stay: what is there, elsewhere or never was there."""
    world.dispatcher.engine[:] = [
        EngineNode(NodeId("left"), "10.0.0.1", 4, 0, 8192),
        EngineNode(NodeId("beside"), "10.0.0.1", 4, 0, 8192),
        EngineNode(NodeId("elsewhere"), "10.0.0.2", 4, 0, 8192),
    ]

    async def connect(node_id: str, address: str) -> None:
        await world.orchestrator.connect_worker(NodeId(node_id), address, {})

    for node in [*world.dispatcher.engine]:
        await connect(node.node_id, node.node_ip)
    await connect("expected", "10.0.0.1")
    del world.dispatcher.engine[0], world.dispatcher.engine[-1]
    world.dispatcher.engine.append(EngineNode(NodeId("again"), "10.0.0.1", 4, 0, 8192))
    await world.restart()
    await connect("again", "10.0.0.1")
    for _ in range(2):
        found = {each["node_id"]: each["status"] for each in await world.orchestrator.workers()}
        assert found == {
            "beside": "active",
            "elsewhere": "lost",
            "expected": "waiting",
            "again": "active",
        }
        await world.restart()


@pytest.mark.parametrize(
    "resources",
    [
        {"cpus": 1},
        {"cpu": -1},
        {"gpu_resource": []},
        {"gpu_resource": {"0": {"gpu_mem": "8"}}},
        {"gpu_resource": {"0": {"memory": 8}}},
        {"gpu_resource": {"0": {"gpu_id": 1.5}}},
    ],
)
async def test_bad_workers_are_refused(world: World, resources: dict[str, object]) -> None:
    """And not registered."""
    with pytest.raises(InvalidRequestError, match="resources"):
        await world.orchestrator.connect_worker(NodeId("n"), "10.0.0.9", resources)
    assert [each["status"] for each in await world.orchestrator.workers()] == ["unregistered"]


async def test_limits_are_said_by_name(world: World) -> None:
    """Too many tasks, one by one or at once."""
    with pytest.raises(TooLargeError, match="max_tasks_per_workflow: found 51"):
        await world.orchestrator.submit_workflow([upload(f"t{n}") for n in range(51)], [])
    workflow_id = await world.workflow(*[f"t{n}" for n in range(50)])
    with pytest.raises(TooLargeError):
        await world.orchestrator.add_task(workflow_id, "code", "one more")


async def test_refused_submissions_leave_nothing(world: World) -> None:
    """A bad task among good ones: no workflow, no run, no job."""
    bad = upload("b", resources={"cpu": "x"})
    with pytest.raises(InvalidRequestError):
        await world.orchestrator.submit_workflow([upload("a"), bad], [])
    with pytest.raises(InvalidRequestError, match="twice"):
        await world.orchestrator.submit_workflow([upload("a"), upload("a")], [])
    with pytest.raises(TaskNotFoundError):
        await world.orchestrator.submit_workflow([upload("a")], [(A, B)])
    assert world.dispatcher.jobs == {}
    assert await world.orchestrator.list_runs(10) == []


async def test_saving_without_code_keeps_the_code(world: World) -> None:
    """Parameters can be changed alone; a new code replaces the old one."""
    workflow_id = await world.workflow("a")
    old = replace(upload("a"), code=None, name="renamed")
    await world.orchestrator.save_task(workflow_id, old, add_edges=True)
    tasks = await world.orchestrator.workflow_tasks(workflow_id)
    assert tasks == [{"id": "a", "name": "renamed", "type": "code", "saved": "true"}]
    run_id = await world.orchestrator.run_workflow(workflow_id)
    before = world.dispatcher.jobs[run_id, A].definition.code
    assert before.name == "a"
    new = replace(old, code=CodeUpload(CodeForm.PICKLE, b"other"))
    await world.orchestrator.save_task(workflow_id, new, add_edges=True)
    run_id = await world.orchestrator.run_workflow(workflow_id)
    assert world.dispatcher.jobs[run_id, A].definition.code.digest != before.digest


async def test_results_that_are_not_there_say_why(world: World) -> None:
    """Unknown run, unfinished task, unknown output."""
    _, run_id = await world.orchestrator.submit_workflow([upload("a")], [])
    with pytest.raises(RunNotFoundError):
        await world.orchestrator.task_result(RunId("none"), A)
    with pytest.raises(ResultNotFoundError, match="not finished"):
        await world.orchestrator.task_result(run_id, A)
    world.dispatcher.succeed(run_id, A, out=b"x")
    with pytest.raises(ResultNotFoundError, match="it returned out"):
        await world.orchestrator.value_pickle(run_id, A, "other")


async def test_a_run_of_another_workflow_is_not_found(world: World) -> None:
    """The WebSocket's path names both."""
    workflow_id = await world.workflow("a")
    run_id = await world.orchestrator.run_workflow(workflow_id)
    with pytest.raises(RunNotFoundError):
        await anext(aiter(world.orchestrator.follow(run_id, WorkflowId("w"), 0)))


async def test_finished_runs_leave_memory(world: World) -> None:
    """Only the store remembers them."""
    workflow_id = await world.workflow("a")
    for _ in range(5):
        run_id = await world.orchestrator.run_workflow(workflow_id)
        world.dispatcher.succeed(run_id, A, out=b"")
        await world.messages(run_id)
    parts = world.orchestrator._parts
    assert parts.runs._live == {}
    assert parts.feed._live == {}


async def test_requests_before_the_start_are_refused(world: World) -> None:
    """With the specification's words."""
    await world.orchestrator.close()
    with pytest.raises(OrchestratorNotInitializedError, match="Orchestrator not initialized"):
        await world.orchestrator.create_workflow()
