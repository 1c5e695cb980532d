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
from collections.abc import AsyncIterator, Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import ray

from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.errors import UserCodeError
from lattice.ids import RunId, TaskId
from lattice.ports.execution import Dispatcher
from lattice.workflow.events import TaskLost, TaskStarted, TaskSucceeded
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import Bench, event_loop_tasks, given, new_tasks, output_of
from tests.contract.replicas import new_routing

pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

Params = dict[str, Any]


def replica_dispatcher(storage_url: str) -> RoutingDispatcher:
    """Everything on replicas, of which there are at most two for each definition."""
    return new_routing(storage_url, everything=True, bounds=Bounds(2, 1.0))


@pytest.fixture(params=["tasks", "replicas"])
async def bench(
    request: pytest.FixtureRequest, engine: None, storage_url: str
) -> AsyncIterator[Bench]:
    """A started dispatcher, which leaves no task of the event loop behind."""
    before = event_loop_tasks()
    new = new_tasks if request.param == "tasks" else replica_dispatcher
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


# -- pauses ------------------------------------------------------------------------------------


async def test_nothing_begins_while_it_is_paused(bench: Bench, tmp_path: Path) -> None:
    """What runs goes on; what was submitted meanwhile begins afterwards."""

    def run(params: Params) -> Params:
        while not Path(params["path"]).exists():
            time.sleep(0.02)
        return {}

    argument = given("path", str(tmp_path / "go"))
    runs, waits = bench.job(run, "runs", (argument,)), bench.job(run, "waits", (argument,))
    bench.dispatcher.submit(runs)
    await bench.started(runs)
    bench.dispatcher.pause(True)
    bench.dispatcher.submit(waits)
    (tmp_path / "go").touch()
    assert isinstance(await bench.end(runs), TaskSucceeded)
    await asyncio.sleep(1)
    assert bench.reports[waits.run_id, waits.task_id] == []
    bench.dispatcher.pause(False)
    assert isinstance(await bench.end(waits), TaskSucceeded)


@pytest.mark.parametrize("new", [new_tasks, replica_dispatcher])
async def test_one_that_was_not_started_can_be_closed(
    new: Callable[[str], Dispatcher], storage_url: str
) -> None:
    """As where the database has gone before it."""
    await new(storage_url).close()


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
        # A print is several writes, and what is told between two of them is an entry.
        by_stream = groupby(await bench.printed(job), lambda entry: entry.stream)
        printed = [(stream, "".join(each.text for each in group)) for stream, group in by_stream]
        assert printed == expected
        reports = bench.reports[job.run_id, job.task_id]
        (final,) = (each for each in bench.logs(job) if each.final)
        assert reports.index(final) < reports.index(bench.ends(job)[0])
    silent = bench.job(lambda p: {}, "silent")
    bench.dispatcher.submit(silent)
    await bench.end(silent)
    assert bench.logs(silent) == []


async def test_what_is_printed_is_told_while_it_runs(bench: Bench, tmp_path: Path) -> None:
    """Also of an attempt that is then killed: what was told stays told."""
    gate = tmp_path / "gate"

    def speak(params: Params) -> None:
        print("last words\n", end="")  # at once, as what was written is told at any moment
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


# -- cancelling --------------------------------------------------------------------------------


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
