"""What every dispatcher does, against a real engine: jobs in, reports out, values from task to task.

The functions in here are pickled by value and run in worker processes.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.errors import InvalidRequestError, TooLargeError, UnavailableError, UserCodeError
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.execution.storage import FsspecStorage
from lattice.ids import RunId, TaskId
from lattice.workflow.events import TaskLost, TaskStarted, TaskSucceeded, Value
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import LONG, Bench, given, output_of
from tests.contract.replicas import new_routing, running_engine

pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

Params = dict[str, Any]
IN_FLIGHT = 100


@pytest.fixture(scope="module")
def engine() -> Iterator[None]:
    """The engine of all tests here."""
    with running_engine():
        yield


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    return (tmp_path / "values").as_uri()


def new_dispatcher(storage_url: str) -> RayTaskDispatcher:
    return RayTaskDispatcher(
        storage_url,
        inline_value_bytes=1024,
        max_result_bytes=100_000,
        max_in_flight=IN_FLIGHT,
        cancel_grace=0.5,
    )


def replica_dispatcher(storage_url: str) -> RoutingDispatcher:
    """Everything on replicas, of which there are at most two for each definition."""
    return new_routing(storage_url, everything=True, bounds=Bounds(2, 1.0))


#: What is true of Ray tasks only: their mailbox, their pacing, their references, one CPU for every task.
tasks_only = pytest.mark.parametrize("bench", ["tasks"], indirect=True)


def event_loop_tasks() -> set[asyncio.Task[Any]]:
    """The tasks of the loop but those with which anyio's plugin drives the test."""
    return {
        task
        for task in asyncio.all_tasks()
        if not getattr(task.get_coro(), "__qualname__", "").startswith("TestRunner.")
    }


@pytest.fixture(params=["tasks", "replicas"])
async def bench(
    request: pytest.FixtureRequest, engine: None, storage_url: str
) -> AsyncIterator[Bench]:
    """A started dispatcher, which leaves no task of the event loop behind."""
    before = event_loop_tasks()
    new = new_dispatcher if request.param == "tasks" else replica_dispatcher
    bench = Bench(new(storage_url))
    await bench.start()
    yield bench
    await bench.dispatcher.close()
    assert event_loop_tasks() == before


# -- success and values ------------------------------------------------------------------------


async def test_a_job_reports_its_result_and_where_it_ran(bench: Bench) -> None:
    """The end is enough to make up for a start that was not reported."""
    end = await bench.succeed(lambda p: {"y": p["x"] + 1}, "t", (given("x", 1),), outputs=("y",))
    (node,) = await bench.dispatcher.nodes()
    assert end.result == {"y": 2}
    assert end.placement.node_id == node.node_id
    assert end.placement.node_ip == node.node_ip
    assert end.placement.at <= end.at
    assert pickle.loads(end.values["y"].inline or b"") == 2


async def test_source_and_coroutines_run(bench: Bench) -> None:
    """Whole-module source with a class and an async method."""
    source = """
import asyncio

class Model:
    async def __call__(self, params):
        await asyncio.sleep(0)
        return {"y": params["x"] * 2}
"""
    assert (await bench.succeed(source, "t", (given("x", 4),))).result == {"y": 8}


@tasks_only
async def test_code_is_loaded_once(bench: Bench) -> None:
    """By the dispatcher once per definition, by a worker once per process."""
    source = "import os\nloads = []\nloads.append(1)\n" + "# padding\n" * 2_000
    source += "def run(p):\n    loads.append(1)\n    return {'pid': os.getpid(), 'n': len(loads)}\n"
    jobs = [bench.job(source, f"t{number}") for number in range(20)]
    for job in jobs:
        bench.dispatcher.submit(job)
    calls: dict[object, list[object]] = {}
    for job in jobs:
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        calls.setdefault(end.result["pid"], []).append(end.result["n"])
    assert len(bench.loads) == 1
    for numbers in calls.values():
        assert sorted(map(int, map(str, numbers))) == list(range(2, len(numbers) + 2))


async def test_values_go_to_the_next_task(bench: Bench) -> None:
    """Small ones inside the reports, a large array by reference."""

    def make(params: Params) -> Params:
        import numpy

        return {"array": numpy.arange(2_500_000), "small": {1, 2}}

    made = await bench.succeed(make, "make")
    assert made.values["array"].size > 20_000_000
    assert made.values["array"].location is not None
    assert made.result["array"] == {
        "type": "numpy.ndarray",
        "size": made.values["array"].size,
        "shape": [2_500_000],
        "url": "/runs/r/tasks/make/result/array",
    }
    arguments = tuple(output_of("make", key, value) for key, value in made.values.items())

    def use(params: Params) -> Params:
        return {"sum": int(params["array"].sum()), "small": sorted(params["small"])}

    expected = {"sum": 2_500_000 * 2_499_999 // 2, "small": [1, 2]}
    assert (await bench.succeed(use, "use", arguments)).result == expected
    bench.dispatcher.release(RunId("r"), TaskId("make"))
    assert (await bench.succeed(use, "use released", arguments)).result == expected


@tasks_only
async def test_a_reference_is_enough_and_the_storage_is_enough(
    bench: Bench, storage_url: str, tmp_path: Path
) -> None:
    """A held value is not read from storage; a new dispatcher, which holds none, reads it there."""
    made = await bench.succeed(lambda p: {"x": b"a" * 100_000}, "make")
    value = made.values["x"]
    arguments = (output_of("make", "x", value),)
    file = tmp_path / "values" / str(value.location)
    data = file.read_bytes()
    file.unlink()
    used = await bench.succeed(lambda p: {"n": len(p["x"])}, "use", arguments)
    assert used.result == {"n": 100_000}

    second = Bench(new_dispatcher(storage_url))
    await second.start()
    missing = await second.fail(lambda p: {"n": len(p["x"])}, "use", arguments)
    assert "is not in the storage" in missing.error.message
    file.write_bytes(data)
    assert FsspecStorage(storage_url).read(str(value.location)) == data
    used = await second.succeed(lambda p: {"n": len(p["x"])}, "use again", arguments)
    assert used.result == {"n": 100_000}
    await second.dispatcher.close()


async def test_resources_are_what_was_asked_for(bench: Bench) -> None:
    """CPUs, memory, fractions of a GPU; a task that asked for no GPU sees none."""

    def look(params: Params) -> Params:
        context: Any = ray.get_runtime_context()
        assigned = context.get_assigned_resources()
        return {"has": assigned, "gpus": os.environ["CUDA_VISIBLE_DEVICES"]}

    for number in range(2):
        plain = await bench.succeed(
            look, f"plain {number}", resources=Resources(cpu=0.5, cpu_mem=100)
        )
        assert plain.result == {"has": {"CPU": 0.5, "memory": 100 * 1024 * 1024}, "gpus": ""}
        gpu = await bench.succeed(
            look, f"gpu {number}", resources=Resources(cpu=1, gpu=0.5), gpus=0.5
        )
        assert gpu.result == {"has": {"CPU": 1.0, "GPU": 0.5}, "gpus": "0"}


async def test_a_runtime_env_is_applied(bench: Bench) -> None:
    """And one that makes no sense fails the job with the engine's words."""
    env = {"env_vars": {"GREETING": "hello"}}
    end = await bench.succeed(lambda p: {"x": os.environ["GREETING"]}, runtime_env=env)
    assert end.result == {"x": "hello"}
    bad = await bench.fail(lambda p: {}, "bad", runtime_env={"env_vars": {"GREETING": 3}})
    assert "env_vars" in bad.error.message


async def test_a_batched_job_is_a_batch_of_one(bench: Bench) -> None:
    """For now."""
    end = await bench.succeed(lambda items: [{"n": len(items)}], batch=BatchPolicy(True))
    assert end.result == {"n": 1}


async def test_submitting_twice_is_submitting_once(bench: Bench) -> None:
    """Commands may be carried out again."""
    job = bench.job(lambda p: {})
    bench.dispatcher.submit(job)
    bench.dispatcher.submit(job)
    await bench.end(job)
    await bench.succeed(lambda p: {}, "after")
    assert len(bench.ends(job)) == 1


# -- failures ----------------------------------------------------------------------------------


async def test_user_errors_fail_the_task_with_the_users_traceback(bench: Bench) -> None:
    """Raising, sys.exit, no dict, a missing output, what cannot be pickled."""

    def raises(params: Params) -> Params:
        raise LookupError("nothing here")

    end = await bench.fail(raises, "raises")
    assert (end.error.type, end.error.message) == ("LookupError", "nothing here")
    line = raises.__code__.co_firstlineno + 1
    assert f'File "<lattice task run>", line {line}, in raises' in end.error.traceback
    assert "lattice/execution" not in end.error.traceback
    assert end.placement is not None

    exits = await bench.fail(lambda p: sys.exit(3), "exits")
    assert exits.error.message == "called sys.exit(3)"
    no_dict = await bench.fail(lambda p: 3, "no dict")
    assert "returned int" in no_dict.error.message
    missing = await bench.fail(lambda p: {"a": 1}, "missing", outputs=("b",))
    assert "declared output 'b'" in missing.error.message
    locked = await bench.fail(lambda p: {"a": threading.Lock()}, "locked")
    assert "cannot be pickled" in locked.error.message
    syntax = await bench.fail("def run(p:\n", "syntax")
    assert syntax.error.type == "SyntaxError"


async def test_classes_of_the_user_do_not_reach_the_dispatcher(bench: Bench) -> None:
    """An exception that cannot be rebuilt, or printed, is text like any other."""

    def raises(params: Params) -> Params:
        class OddError(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__("odd")

            def __str__(self) -> str:
                raise RuntimeError

            def __reduce__(self) -> Any:
                raise RuntimeError

        raise OddError(1, 2)

    end = await bench.fail(raises)
    assert end.error.type.endswith("OddError")
    assert "cannot be shown" in end.error.message


@pytest.mark.parametrize("how", ["kill", "exit", "child"])
async def test_a_dead_process_loses_the_task_and_nothing_else(bench: Bench, how: str) -> None:
    """Killed, left by os._exit; a forked child that does so harms nobody."""

    def die(params: Params) -> Params:
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "child":
            child = os.fork()
            if child:
                return {"status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}
        os._exit(3)

    other = bench.job(lambda p: {"fine": True}, "other")
    bench.dispatcher.submit(other)
    end = await bench.run(die, "dies")
    if how == "child":
        assert isinstance(end, TaskSucceeded), end
        assert end.result == {"status": 3}
    else:
        assert isinstance(end, TaskLost), end
        assert end.error.message.startswith("the process that ran the task died")
    assert isinstance(await bench.end(other), TaskSucceeded)


async def test_multiprocessing_works(bench: Bench) -> None:
    """Processes forked by a task, which come back with results."""
    source = """
import multiprocessing

def double(x):
    return 2 * x

def run(params):
    with multiprocessing.Pool(2) as pool:
        return {"x": pool.map(double, [1, 2, 3])}
"""
    assert (await bench.succeed(source)).result == {"x": [2, 4, 6]}


async def test_code_that_is_not_to_be_had_loses_the_task(bench: Bench) -> None:
    """The store may come back."""
    job = bench.job(lambda p: {})
    bench._codes.clear()
    bench.dispatcher.submit(job)
    end = await bench.end(job)
    assert isinstance(end, TaskLost)
    assert "no such code" in end.error.message


# -- starts ------------------------------------------------------------------------------------


async def test_the_start_of_a_long_task_is_reported_while_it_runs(
    bench: Bench, tmp_path: Path
) -> None:
    """It runs until it is told to end, after its start was reported."""
    go_on = tmp_path / "go on"

    def wait(params: Params) -> Params:
        while not go_on.exists():
            time.sleep(0.01)
        return {}

    job = bench.job(wait)
    bench.dispatcher.submit(job)
    started = await bench.started(job)
    assert bench.ends(job) == []
    go_on.touch()
    end = await bench.end(job)
    assert isinstance(end, TaskSucceeded), end
    assert started == TaskStarted(job.task_id, job.attempt, end.placement)
    assert bench.reports[job.run_id, job.task_id] == [started, end]


@pytest.mark.parametrize("for_good", [False, True])
@tasks_only
async def test_starts_are_reported_after_the_mailbox_was_killed(
    bench: Bench, for_good: bool
) -> None:
    """Jobs end as ever, and sooner or later starts are heard of again."""

    def last(params: Params) -> Params:
        time.sleep(0.3)
        return {}

    ray.kill(bench.dispatcher.starts._actor, no_restart=for_good)  # type: ignore[attr-defined]
    for number in range(100):
        job = bench.job(last, f"t{number}")
        bench.dispatcher.submit(job)
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        if isinstance(bench.reports[job.run_id, job.task_id][0], TaskStarted):
            break
    else:
        pytest.fail("no start was reported any more")


# -- what user code prints -----------------------------------------------------------------------


async def test_what_is_printed_comes_before_the_end(bench: Bench) -> None:
    """All of it with the end, of failures too; a job that prints nothing has no report of it."""

    def speak(params: Params) -> Params:
        print("one")
        if params["fails"]:
            raise ValueError("no")
        print("two", file=sys.stderr)
        return {}

    for fails, expected in (
        (True, [("stdout", "one\n")]),
        (False, [("stdout", "one\n"), ("stderr", "two\n")]),
    ):
        job = bench.job(speak, f"fails {fails}", (given("fails", fails),))
        bench.dispatcher.submit(job)
        entries = await bench.printed(job)
        assert [(entry.stream, entry.text) for entry in entries] == expected
        reports = bench.reports[job.run_id, job.task_id]
        assert reports.index(bench.logs(job)[-1]) < reports.index(bench.ends(job)[0])
    silent = bench.job(lambda p: {}, "silent")
    bench.dispatcher.submit(silent)
    await bench.end(silent)
    assert bench.logs(silent) == []


async def test_what_is_printed_is_told_while_it_runs(bench: Bench, tmp_path: Path) -> None:
    """Also of an attempt that is then killed: what was told stays told."""
    gate = tmp_path / "gate"

    def speak(params: Params) -> None:
        print("last words")
        while not gate.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGKILL)

    job = bench.job(speak)
    bench.dispatcher.submit(job)
    await bench.until(lambda: bool(bench.logs(job)))
    (logged,) = bench.logs(job)
    assert [entry.text for entry in logged.entries] == ["last words\n"]
    assert not logged.final
    gate.touch()
    assert isinstance(await bench.end(job), TaskLost)


@tasks_only
async def test_an_interrupted_attempt_tells_its_last_words(bench: Bench) -> None:
    """At once, as nobody reads the report of its end. Threads of replicas cannot be interrupted."""

    def speak(params: Params) -> None:
        print("begun")
        try:
            # One long call would not be interrupted.
            while True:
                time.sleep(0.02)
        finally:
            print("last words")

    job = bench.job(speak)
    bench.dispatcher.submit(job)
    await bench.until(lambda: bool(bench.logs(job)))
    bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    await bench.until(lambda: len(bench.logs(job)) == 2)
    texts = [entry.text for logged in bench.logs(job) for entry in logged.entries]
    assert texts == ["begun\n", "last words\n"]
    assert bench.ends(job) == []


# -- cancelling --------------------------------------------------------------------------------


@tasks_only
async def test_a_cancelled_task_is_ended_and_not_reported(bench: Bench) -> None:
    """Also one that blocks in one long call, or that catches what would end it."""

    def sleep(params: Params) -> Params:
        time.sleep(1000)
        return {}

    def stubborn(params: Params) -> Params:
        while True:
            try:
                time.sleep(0.05)
            except KeyboardInterrupt:
                continue

    jobs = [bench.job(sleep, "sleeps"), bench.job(stubborn, "stubborn")]
    queued = [bench.job(lambda p: {}, f"queued {number}") for number in range(2 * IN_FLIGHT)]
    for job in [*jobs, *queued]:
        bench.dispatcher.submit(job)
    for job in jobs:
        await bench.started(job)
    for job in [*queued, *jobs]:
        bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
        bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    # Both CPUs are free again.
    after = await bench.succeed(lambda p: {"x": 1}, "after", resources=Resources(cpu=2))
    assert after.result == {"x": 1}
    assert [job for job in [*jobs, *queued] if bench.ends(job)] == []


async def test_a_new_attempt_may_follow_a_cancelled_one(bench: Bench) -> None:
    """Attempts are told apart."""

    def sleep(params: Params) -> Params:
        time.sleep(params["seconds"])
        return {"seconds": params["seconds"]}

    first = bench.job(sleep, "t", (given("seconds", 1000),), attempt=1)
    bench.dispatcher.submit(first)
    await bench.started(first)
    bench.dispatcher.cancel(first.run_id, first.task_id, first.attempt)
    second = bench.job(sleep, "t", (given("seconds", 0),), attempt=2)
    bench.dispatcher.submit(second)
    end = await bench.end(second)
    assert isinstance(end, TaskSucceeded), end
    assert end.attempt == 2


@tasks_only
async def test_closing_ends_what_runs(bench: Bench, storage_url: str) -> None:
    """Nothing is reported afterwards, and the engine is free."""
    second = Bench(new_dispatcher(storage_url))
    await second.start()

    def sleep(params: Params) -> Params:
        time.sleep(1000)
        return {}

    jobs = [second.job(sleep, f"t{number}") for number in range(4)]
    for job in jobs:
        second.dispatcher.submit(job)
    await second.until(lambda: len(second.reports) >= 2)
    await second.dispatcher.close()
    await second.dispatcher.close()
    second.dispatcher.submit(second.job(sleep, "late"))
    await bench.succeed(lambda p: {}, "after", resources=Resources(cpu=2))
    assert second.order == []


# -- many --------------------------------------------------------------------------------------


@tasks_only
async def test_a_large_run_does_not_starve_a_small_one(bench: Bench) -> None:
    """The engine has only so many at a time, and runs take turns for these places."""
    most = 0
    dispatcher = bench.dispatcher
    assert isinstance(dispatcher, RayTaskDispatcher)
    large = [bench.job(lambda p: {}, f"t{number}", run="large") for number in range(2_000)]
    small = [bench.job(lambda p: {}, f"t{number}", run="small") for number in range(3)]
    for job in [*large, *small]:
        dispatcher.submit(job)

    def finished() -> bool:
        nonlocal most
        most = max(most, len(dispatcher._in_flight))
        return len(bench.order) == 2_003

    await bench.until(finished)
    assert most <= IN_FLIGHT
    places = [place for place, (run, _) in enumerate(bench.order) if run == "small"]
    assert max(places) < 500
    assert len(set(bench.order)) == 2_003
    assert not dispatcher._attempts
    assert not dispatcher._in_flight
    assert not dispatcher._queue._lanes
    assert not dispatcher.held._held


@tasks_only
async def test_a_run_of_long_tasks_lets_others_have_their_turn(bench: Bench) -> None:
    """The longer tasks last, the fewer of them stand before a newcomer."""

    def last(params: Params) -> Params:
        time.sleep(0.15)
        return {}

    large = [bench.job(last, f"t{number}", run="large") for number in range(60)]
    for job in large:
        bench.dispatcher.submit(job)
    await bench.until(lambda: len(bench.order) >= 10)
    small = [bench.job(last, f"t{number}", run="small") for number in range(3)]
    for job in small:
        bench.dispatcher.submit(job)
    await bench.until(lambda: len(bench.order) == 63)
    places = [place for place, (run, _) in enumerate(bench.order) if run == "small"]
    assert max(places) < 45


@tasks_only
async def test_a_cluster_that_grows_gets_more(bench: Bench, tmp_path: Path) -> None:
    """Also while nothing ends: these tasks end when all ten of them run."""
    dispatcher = bench.dispatcher
    assert isinstance(dispatcher, RayTaskDispatcher)
    dispatcher._pacing.set_nodes([])

    def meet(params: Params) -> Params:
        (tmp_path / str(os.getpid())).touch()
        while sum(path.name.isdigit() for path in tmp_path.iterdir()) < 10:
            time.sleep(0.01)
        return {}

    jobs = [bench.job(meet, f"t{number}", resources=Resources(cpu=0.2)) for number in range(10)]
    for job in jobs:
        dispatcher.submit(job)
    for job in jobs:
        assert isinstance(await bench.end(job), TaskSucceeded)


@tasks_only
async def test_what_waits_for_a_resource_does_not_hold_up_the_rest(bench: Bench) -> None:
    """More jobs that no node can run than may be with the engine at a time."""
    for number in range(IN_FLIGHT + 50):
        bench.dispatcher.submit(bench.job(lambda p: {}, f"waits {number}", gpus=8.0))
    assert (await bench.succeed(lambda p: {"x": 1}, "free")).result == {"x": 1}


@tasks_only
async def test_what_tasks_wait_for_is_told(bench: Bench, tmp_path: Path) -> None:
    """A free CPU while all are busy; nothing of tasks that have begun, nor of other runs."""
    gate = tmp_path / "gate"

    def hold(params: Params) -> None:
        while not gate.exists():
            time.sleep(0.02)

    holding = [bench.job(hold, f"hold{number}", timed=True) for number in range(2)]
    for job in holding:
        bench.dispatcher.submit(job)
    for job in holding:
        await bench.started(job)
    wide = bench.job(lambda p: None, "wide", resources=Resources(cpu=2))
    light = bench.job(lambda p: None, "light", resources=Resources(cpu=0, cpu_mem=10**9))
    for job in (wide, light):
        bench.dispatcher.submit(job)
    async with asyncio.timeout(LONG):
        # The engine tells the head a moment later what is in use, and nobody when.
        while (  # noqa: ASYNC110
            "2 asked" not in (waiting := await bench.waiting(wide, light, *holding))["wide"]
        ):
            await asyncio.sleep(0.1)
    assert waiting["wide"] == "a free CPU: 2 asked, 0 of 2 free"
    assert waiting["light"].startswith("a larger node: memory: 1000000000 MiB asked, ")
    assert set(waiting) == {"wide", "light"}
    assert await bench.dispatcher.waiting(RunId("other"), {wide.task_id: 1}) == {}
    bench.dispatcher.cancel(light.run_id, light.task_id, 1)
    gate.touch()
    await bench.end(wide)
    assert await bench.waiting(wide) == {}


@tasks_only
async def test_released_values_leave_memory(bench: Bench) -> None:
    """References are dropped when nobody needs them."""
    dispatcher = bench.dispatcher
    assert isinstance(dispatcher, RayTaskDispatcher)
    job = bench.job(lambda p: {"x": b"a" * 10_000})
    dispatcher.submit(job)
    await bench.end(job)
    assert len(dispatcher.held._held) == 1
    dispatcher.release(job.run_id, job.task_id)
    dispatcher.release(job.run_id, job.task_id)
    assert not dispatcher.held._held


# -- the trust boundary ------------------------------------------------------------------------


async def test_no_user_byte_is_unpickled_in_this_process(bench: Bench, tmp_path: Path) -> None:
    """Code, arguments, results and exceptions that note the process that unpickles them."""
    pids = tmp_path / "pids"
    pids.mkdir()
    note = f"open({str(pids)!r} + '/' + str(__import__('os').getpid()), 'w').close()"

    class Hostile:
        def __init__(self, then: str = "{}") -> None:
            self.then = then

        def __reduce__(self) -> Any:
            return eval, (f"({note}, {self.then})[1]",)

    class HostileError(Exception):
        def __reduce__(self) -> Any:
            return eval, (f"({note}, ValueError())[1]",)

    def returns(params: Params) -> Params:
        return {"x": Hostile(), "large": [Hostile(), "x" * 10_000]}

    def raises(params: Params) -> Params:
        raise HostileError

    made = await bench.succeed(returns, "make")
    arguments = tuple(output_of("make", key, value) for key, value in made.values.items())
    await bench.succeed(lambda p: {"n": len(p)}, "use", arguments)
    await bench.fail(raises, "raises")
    await bench.succeed(Hostile("lambda p: {}"), "code")
    await bench.dispatcher.call(bench.call(lambda *a: Hostile(), Hostile()))
    with pytest.raises(UserCodeError):
        await bench.dispatcher.call(bench.call(raises, {}))
    assert await bench.dispatcher.render(made.values["x"], 100) == b"{}"
    found = {int(path.name) for path in pids.iterdir()}
    assert found
    assert os.getpid() not in found


# -- calls and rendering -----------------------------------------------------------------------


@tasks_only
async def test_a_call_returns_json_and_the_object(bench: Bench) -> None:
    """Any signature; many calls run at once."""

    async def function(a: int, *, b: int) -> dict[str, object]:
        return {"sum": a + b, "pair": (a, b)}

    calls = [bench.dispatcher.call(bench.call(function, a, b=1)) for a in range(10)]
    for a, result in enumerate(await asyncio.gather(*calls)):
        assert result.json == {"sum": a + 1, "pair": [a, 1]}
        assert pickle.loads(result.pickled) == {"sum": a + 1, "pair": (a, 1)}


@tasks_only
async def test_a_call_that_fails_says_why(bench: Bench) -> None:
    """The user's error, a dead process, a result over the limit."""

    def raises() -> None:
        raise LookupError("nothing here")

    with pytest.raises(UserCodeError) as caught:
        await bench.dispatcher.call(bench.call(raises))
    assert (caught.value.error_type, caught.value.message) == ("LookupError", "nothing here")
    assert "in raises" in caught.value.traceback
    with pytest.raises(UnavailableError, match="the process that ran the task died"):
        await bench.dispatcher.call(bench.call(lambda: os._exit(1)))
    around = len((await bench.dispatcher.call(bench.call(lambda: "x" * 90_000))).pickled) - 90_000
    longest = 100_000 - around
    at = await bench.dispatcher.call(bench.call(lambda: "x" * longest))
    assert len(at.pickled) == 100_000
    with pytest.raises(TooLargeError, match="max_result_bytes: found 100001 bytes"):
        await bench.dispatcher.call(bench.call(lambda: "x" * (longest + 1)))


@tasks_only
async def test_a_call_whose_caller_leaves_is_ended(bench: Bench, tmp_path: Path) -> None:
    """Its CPU is free again."""
    begun = tmp_path / "begun"
    os.mkfifo(begun)

    def sleep() -> None:
        begun.write_text("begun")
        time.sleep(1000)

    calling = asyncio.ensure_future(bench.dispatcher.call(bench.call(sleep)))
    async with asyncio.timeout(LONG):
        await asyncio.to_thread(begun.read_text)
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await calling
    await bench.succeed(lambda p: {}, "after", resources=Resources(cpu=2))


@tasks_only
async def test_a_stored_value_is_rendered(bench: Bench) -> None:
    """As JSON of a bounded length, also while all CPUs are taken."""

    def sleep(params: Params) -> Params:
        time.sleep(1000)
        return {}

    made = await bench.succeed(lambda p: {"x": ["ü"] * 1000, "y": {1}}, "make")
    for number in range(2):
        busy = bench.job(sleep, f"busy {number}")
        bench.dispatcher.submit(busy)
        await bench.started(busy)
    text = await bench.dispatcher.render(made.values["x"], 100_000)
    assert text == ("[" + ",".join(['"ü"'] * 1000) + "]").encode()
    assert await bench.dispatcher.render(made.values["x"], len(text)) == text
    with pytest.raises(TooLargeError, match="max_result_bytes: found"):
        await bench.dispatcher.render(made.values["x"], len(text) - 1)
    with pytest.raises(TooLargeError, match="max_result_bytes: found"):
        await bench.dispatcher.render(made.values["x"], 1000)
    with pytest.raises(InvalidRequestError, match="found a set, which is not JSON"):
        await bench.dispatcher.render(made.values["y"], 1000)
    with pytest.raises(InvalidRequestError, match="cannot be loaded"):
        await bench.dispatcher.render(Value(3, inline=b"bad"), 1000)


@tasks_only
async def test_the_engine_is_described(bench: Bench) -> None:
    """Its nodes and the port of its head."""
    (node,) = await bench.dispatcher.nodes()
    assert (node.cpu, node.gpu) == (2.0, 1.0)
    assert node.memory > 100
    assert await bench.dispatcher.head_port() > 0
