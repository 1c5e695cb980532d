"""What is true of plain Ray tasks only: their mailbox, their turns, their references, and single calls.

The functions in here are pickled by value and run in worker processes.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import cloudpickle
import pytest
import ray

from lattice.errors import InvalidRequestError, TooLargeError, UserCodeError
from lattice.execution import ray_calls
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.execution.storage import FsspecStorage
from lattice.ids import RunId, Tenant
from lattice.workflow.events import TaskStarted, TaskSucceeded, Value
from lattice.workflow.task import Resources
from tests.contract.dispatching import (
    IN_FLIGHT,
    LONG,
    Bench,
    event_loop_tasks,
    given,
    new_tasks,
    output_of,
)

pytest.importorskip("numpy")
pytestmark = pytest.mark.anyio

Params = dict[str, Any]


@pytest.fixture
async def bench(engine: None, storage_url: str) -> AsyncIterator[Bench]:
    """A started dispatcher, which leaves no task of the event loop behind."""
    before = event_loop_tasks()
    bench = Bench(new_tasks(storage_url))
    await bench.start()
    yield bench
    await bench.dispatcher.close()
    assert event_loop_tasks() == before


# -- code and values -------------------------------------------------------------------------


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

    second = Bench(new_tasks(storage_url))
    await second.start()
    missing = await second.fail(lambda p: {"n": len(p["x"])}, "use", arguments)
    assert "is not in the storage" in missing.error.message
    file.write_bytes(data)
    assert FsspecStorage(storage_url).read(str(value.location)) == data
    used = await second.succeed(lambda p: {"n": len(p["x"])}, "use again", arguments)
    assert used.result == {"n": 100_000}
    await second.dispatcher.close()


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


# -- what is heard ---------------------------------------------------------------------------


@pytest.mark.parametrize("for_good", [False, True])
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


@pytest.mark.parametrize("timed", [False, True])
async def test_a_start_that_was_not_heard_is_told_again(
    bench: Bench, tmp_path: Path, timed: bool
) -> None:
    """Its time-out would else never end a task that hangs."""

    def last(params: Params) -> Params:
        while not Path(params["path"]).exists():
            time.sleep(0.02)
        return {}

    listeners = bench.dispatcher.starts._listeners  # type: ignore[attr-defined]
    heard, lost = [*listeners], asyncio.Event()
    listeners[:] = [lambda note: lost.set()]
    job = bench.job(last, "t", (given("path", str(tmp_path / "go")),), timed=timed)
    bench.dispatcher.submit(job)
    await asyncio.wait_for(lost.wait(), LONG)
    listeners[:] = heard
    await bench.started(job)
    (tmp_path / "go").touch()
    assert isinstance(await bench.end(job), TaskSucceeded)


async def test_an_interrupted_attempt_tells_its_last_words(bench: Bench) -> None:
    """At once, as nobody reads the report of its end. Threads of replicas cannot be interrupted."""

    def speak(params: Params) -> None:
        print("begun\n", end="")
        try:
            # One long call would not be interrupted.
            while True:
                time.sleep(0.02)
        finally:
            print("last words\n", end="")

    job = bench.job(speak)
    bench.dispatcher.submit(job)
    await bench.until(lambda: bool(bench.logs(job)))
    # However slow the machine is, its process is not ended before it has said them.
    bench.dispatcher._endings._grace = LONG  # type: ignore[attr-defined]
    bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    await bench.until(lambda: len(bench.logs(job)) == 2)
    texts = [entry.text for logged in bench.logs(job) for entry in logged.entries]
    assert texts == ["begun\n", "last words\n"]
    assert bench.ends(job) == []


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
            "2 asked, 0 of" not in (waiting := await bench.waiting(wide, light, *holding))["wide"]
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


# -- ending ----------------------------------------------------------------------------------


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


async def test_code_that_never_lets_go_is_ended(bench: Bench, tmp_path: Path) -> None:
    """It holds the interpreter in one call of C code, so that its process cannot even be asked: a task, and a call."""
    begun = [tmp_path / "task", tmp_path / "call"]
    for each in begun:
        os.mkfifo(each)

    def backtracks(path: Path) -> None:
        path.write_text("begun")
        re.match("(a+)+$", "a" * 60 + "b")

    job = bench.job(lambda params: backtracks(begun[0]), "task")
    bench.dispatcher.submit(job)
    calling = asyncio.ensure_future(bench.dispatcher.call(bench.call(lambda: backtracks(begun[1]))))
    async with asyncio.timeout(LONG):
        for each in begun:
            await asyncio.to_thread(each.read_text)
    bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    calling.cancel()
    # Both CPUs are free again.
    await bench.succeed(lambda p: {}, "after", resources=Resources(cpu=2))
    assert bench.ends(job) == []


async def test_closing_ends_what_runs(bench: Bench, storage_url: str) -> None:
    """Nothing is reported afterwards, and the engine is free."""
    second = Bench(new_tasks(storage_url))
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


# -- turns -----------------------------------------------------------------------------------


async def test_a_large_run_does_not_starve_a_small_one(bench: Bench, tmp_path: Path) -> None:
    """The engine has only so many at a time, and runs take turns for these places."""
    most = 0
    dispatcher = bench.dispatcher
    assert isinstance(dispatcher, RayTaskDispatcher)

    def meet(params: Params) -> Params:
        (tmp_path / str(os.getpid())).touch()
        while len(list(tmp_path.iterdir())) < 2:
            time.sleep(0.01)
        return {}

    # A worker process that is still starting could have one of the small run's tasks, and the other all the rest.
    both = [bench.job(meet, f"t{number}", run="first") for number in range(2)]
    for job in both:
        dispatcher.submit(job)
    for job in both:
        assert isinstance(await bench.end(job), TaskSucceeded)
    bench.order.clear()
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
    assert max(places) < 1_000  # without turns, the last
    assert len(set(bench.order)) == 2_003
    assert not dispatcher._attempts
    assert not dispatcher._in_flight
    assert not dispatcher._queue._lanes
    assert not dispatcher.held._held


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


async def test_what_waits_for_a_resource_does_not_hold_up_the_rest(bench: Bench) -> None:
    """More jobs that no node can run than may be with the engine at a time."""
    for number in range(IN_FLIGHT + 50):
        bench.dispatcher.submit(bench.job(lambda p: {}, f"waits {number}", gpus=8.0))
    assert (await bench.succeed(lambda p: {"x": 1}, "free")).result == {"x": 1}


# -- calls and rendering ---------------------------------------------------------------------


async def test_a_call_returns_json_and_the_object(bench: Bench) -> None:
    """Any signature; many calls run at once."""

    async def function(a: int, *, b: int) -> dict[str, object]:
        return {"sum": a + b, "pair": (a, b)}

    calls = [bench.dispatcher.call(bench.call(function, a, b=1)) for a in range(10)]
    for a, result in enumerate(await asyncio.gather(*calls)):
        assert result.json == {"sum": a + 1, "pair": [a, 1]}
        assert pickle.loads(result.pickled) == {"sum": a + 1, "pair": (a, 1)}


async def test_a_call_that_fails_says_why(bench: Bench) -> None:
    """The user's error, a dead process, a result over the limit."""

    def raises() -> None:
        raise LookupError("nothing here")

    with pytest.raises(UserCodeError) as caught:
        await bench.dispatcher.call(bench.call(raises))
    assert (caught.value.error_type, caught.value.message) == ("LookupError", "nothing here")
    assert "in raises" in caught.value.traceback
    with pytest.raises(UserCodeError, match="the process that ran the task died"):
        await bench.dispatcher.call(bench.call(lambda: os._exit(1)))
    around = len((await bench.dispatcher.call(bench.call(lambda: "x" * 90_000))).pickled) - 90_000
    longest = 100_000 - around
    at = await bench.dispatcher.call(bench.call(lambda: "x" * longest))
    assert len(at.pickled) == 100_000
    with pytest.raises(TooLargeError, match="max_result_bytes: found 100001 bytes"):
        await bench.dispatcher.call(bench.call(lambda: "x" * (longest + 1)))


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


async def test_values_that_do_not_load_keep_no_other_tenant_waiting(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are given up."""
    monkeypatch.setattr(ray_calls, "_RENDERERS", 1)

    class Sleeps:
        def __reduce__(self) -> tuple[Any, ...]:
            return time.sleep, (1000,)

    data = pickle.dumps([1])
    slow, quick = pickled_by_value(Sleeps()), Value(len(data), inline=data)
    render = bench.dispatcher.render
    await render(quick, 100, Tenant("alice"))
    hangs = asyncio.ensure_future(render(slow, 100, Tenant("bob")))
    await asyncio.sleep(0)
    waits = asyncio.ensure_future(render(quick, 100, Tenant("bob")))
    assert await render(quick, 100, Tenant("alice")) == b"[1]"
    assert not hangs.done()
    assert not waits.done()
    with pytest.raises(InvalidRequestError, match=r"not loaded within 20 s; fetch it as a pickle"):
        await hangs
    assert await waits == b"[1]"


def pickled_by_value(value: object) -> Value:
    data = cloudpickle.dumps(value)
    return Value(len(data), inline=data)


async def test_the_engine_is_described(bench: Bench) -> None:
    """Its nodes and the port of its head."""
    (node,) = await bench.dispatcher.nodes()
    assert (node.cpu, node.gpu) == (2.0, 1.0)
    assert node.memory > 100
    assert await bench.dispatcher.head_port() > 0
