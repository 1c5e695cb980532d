"""What replicas add to what every dispatcher does: batches, applications that come and go, GPU shares."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
from ray import serve

from deployments.replicas.identity import Bounds
from lattice.ids import RunId, TaskId
from lattice.ports.execution import Argument, Job
from lattice.workflow.events import TaskFailed, TaskLost, TaskStarted, TaskSucceeded
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import LONG, Bench, given
from tests.contract.replicas import new_routing

pytestmark = pytest.mark.anyio

Params = dict[str, Any]
SMALL = Resources(cpu=0.1)


def new_bench(folder: Path, **changes: Any) -> Bench:
    """A dispatcher that is not started; its scope is the folder."""
    return Bench(new_routing((folder / "values").as_uri(), **changes))


@pytest.fixture
async def bench(engine: None, tmp_path: Path) -> AsyncIterator[Bench]:
    """A started dispatcher; when it is closed, its applications are gone."""
    bench = new_bench(tmp_path)
    await bench.start()
    yield bench
    await bench.dispatcher.close()
    await until_applications(0)


async def until_applications(number: int) -> None:
    """Waits until Serve has so many applications of tasks."""
    async with asyncio.timeout(LONG):
        while len(await asyncio.to_thread(lambda: serve.status().applications)) != number:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


def batch_jobs(bench: Bench, function: object, number: int, **changes: Any) -> list[Job]:
    """Submitted jobs of one batched definition, each in a run of its own; `x` counts them."""
    timeout, size = changes.pop("batch_timeout", 0.0), changes.pop("batch_size", 8)
    options: dict[str, Any] = {"batch": BatchPolicy(True, size, timeout), "resources": SMALL}
    jobs = [
        bench.job(function, "t", (given("x", x),), run=f"r{x}", **(options | changes))
        for x in range(number)
    ]
    for job in jobs:
        bench.dispatcher.submit(job)
    return jobs


async def test_batches_form_across_runs(bench: Bench) -> None:
    """Each run gets its own result; while a batch runs, the next fills."""

    def work(batch: list[Params]) -> list[Params]:
        time.sleep(0.1)
        return [{"y": params["x"] * 2} for params in batch]

    jobs = batch_jobs(bench, work, 160, scaling=Scaling(max_replicas=1))
    sizes = []
    for x, job in enumerate(jobs):
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        assert end.result == {"y": 2 * x}
        assert end.placement.replica
        assert end.placement.batch_size is not None
        sizes.append(end.placement.batch_size)
        # A batch may end before its start is told, which takes a moment.
        started = TaskStarted(job.task_id, job.attempt, end.placement)
        assert bench.reports[job.run_id, job.task_id] in ([started, end], [end])
    assert sum(sizes) / len(sizes) > 6
    assert max(sizes) <= 8


async def test_a_part_full_batch_does_not_wait_for_ever(bench: Bench) -> None:
    """Neither without a time-out nor with one."""
    for timeout in (0.0, 0.2):
        (job,) = batch_jobs(bench, lambda batch: [{"n": len(batch)}], 1, batch_timeout=timeout)
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        bench.reports.clear()


async def test_only_the_guilty_items_of_a_batch_fail(bench: Bench) -> None:
    """An exception as item, a poison item that makes the call raise, a wrong length."""

    def items(batch: list[Params]) -> list[Any]:
        return [ValueError("three") if p["x"] == 3 else {"y": p["x"]} for p in batch]

    def raises(batch: list[Params]) -> list[Any]:
        if any(p["x"] == 3 for p in batch):
            raise LookupError("poison")
        return [{"y": p["x"]} for p in batch]

    def short(batch: list[Params]) -> list[Any]:
        return [{"y": p["x"]} for p in batch if p["x"] != 3]

    wanted = {items: "ValueError", raises: "LookupError", short: "TypeError"}
    for function, kind in wanted.items():
        jobs = batch_jobs(bench, function, 32, batch_size=32)
        for x, job in enumerate(jobs):
            end = await bench.end(job)
            if x == 3:
                assert isinstance(end, TaskFailed), end
                assert end.error.type == kind
                assert function.__name__ in end.error.traceback or function is items
            else:
                assert isinstance(end, TaskSucceeded), end
                assert end.result == {"y": x}
        bench.reports.clear()


async def test_functions_of_one_name_that_differ_share_no_batch(bench: Bench) -> None:
    """Code is what counts."""
    for answer in (1, 2):
        source = f"def run(batch):\n    return [{{'y': {answer}}} for _ in batch]\n"
        for job in batch_jobs(bench, source, 8):
            end = await bench.end(job)
            assert isinstance(end, TaskSucceeded), end
            assert end.result == {"y": answer}
        bench.reports.clear()


async def test_a_class_is_constructed_once(bench: Bench) -> None:
    """Source that ends in a class goes to replicas."""
    source = """
class Model:
    built = 0
    def __init__(self):
        Model.built += 1
    def __call__(self, params):
        return {"built": Model.built}
"""
    jobs = [bench.job(source, f"t{number}", resources=SMALL) for number in range(10)]
    for job in jobs:
        bench.dispatcher.submit(job)
    for job in jobs:
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        assert end.result == {"built": 1}
        assert end.placement.replica


async def test_a_constructor_that_raises_fails_all_that_waits(bench: Bench) -> None:
    """With its traceback; fixed code, and the same code once its reason is gone, work."""
    broken = """
class Model:
    def __init__(self):
        raise LookupError("no model here")
    def __call__(self, batch):
        return [{} for _ in batch]
"""
    for job in batch_jobs(bench, broken, 40):
        end = await bench.end(job)
        assert isinstance(end, TaskFailed), end
        assert end.error.type == "LookupError"
        assert "no model here" in end.error.message
        assert "line 4, in __init__" in end.error.traceback
    bench.reports.clear()
    # Again, for a new application of the same name.
    (job,) = batch_jobs(bench, broken, 1)
    assert isinstance(await bench.end(job), TaskFailed)
    bench.reports.clear()
    fixed = broken.replace('raise LookupError("no model here")', "pass")
    (job,) = batch_jobs(bench, fixed, 1)
    assert isinstance(await bench.end(job), TaskSucceeded)


def running_replicas() -> int:
    """Replicas that Serve says are running, of all applications. Blocks."""
    return sum(
        deployment.replica_states.get("RUNNING", 0)
        for application in serve.status().applications.values()
        for deployment in application.deployments.values()
    )


async def until_replicas(number: int) -> None:
    """Waits until so many replicas are running."""
    async with asyncio.timeout(LONG):
        while await asyncio.to_thread(running_replicas) != number:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_four_quarters_share_a_gpu(bench: Bench, tmp_path: Path) -> None:
    """Four replicas are there at a time; each sees the GPU."""

    def work(params: Params) -> Params:
        while not os.path.exists(params["go"]):
            time.sleep(0.01)
        return {"gpu": os.environ["CUDA_VISIBLE_DEVICES"]}

    go = tmp_path / "go"
    resources = Resources(cpu=0.1, gpu=0.25)
    arguments = (given("go", str(go)),)
    jobs = [
        bench.job(work, f"t{number}", arguments, resources=resources, gpus=0.25)
        for number in range(16)
    ]
    for job in jobs:
        bench.dispatcher.submit(job)
    await until_replicas(4)
    go.touch()
    for job in jobs:
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        assert end.result == {"gpu": "0"}


async def test_cancelled_jobs_leave_the_queue_and_free_the_replica(
    bench: Bench, tmp_path: Path
) -> None:
    """One that runs and does not end takes its replica along; others go on elsewhere."""
    ran = tmp_path / "ran"
    ran.mkdir()

    def work(params: Params) -> Params:
        (ran / str(params["x"])).touch()
        if params["x"] == 0:
            time.sleep(1000)
        return {}

    options: dict[str, Any] = {"resources": Resources(cpu=1, gpu=1), "gpus": 1.0}
    jobs = [bench.job(work, "t", (given("x", x),), run=f"r{x}", **options) for x in range(6)]
    bench.dispatcher.submit(jobs[0])
    await bench.started(jobs[0])
    for job in jobs[1:]:
        bench.dispatcher.submit(job)
    for job in jobs[:5]:
        bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    assert isinstance(await bench.end(jobs[5]), TaskSucceeded)
    assert {path.name for path in ran.iterdir()} == {"0", "5"}
    assert [job for job in jobs[:5] if bench.ends(job)] == []


async def test_a_cancelled_job_ends_whose_mates_end_later(bench: Bench, tmp_path: Path) -> None:
    """It runs in another batch than they, and hangs: nobody is left who would want it."""

    def work(batch: list[Params]) -> list[Params]:
        folder = Path(batch[0]["folder"])
        if batch[0]["x"] == 0:
            (folder / "pid").write_text(str(os.getpid()))
            time.sleep(1000)
        while not (folder / "go").exists():
            time.sleep(0.01)
        return [{} for _ in batch]

    options: dict[str, Any] = {
        # So long that three make a batch, though they come in two groups.
        "batch": BatchPolicy(True, 3, 2.0, max_concurrent_batches=2),
        "scaling": Scaling(max_replicas=1),
        "resources": SMALL,
    }
    jobs = [
        bench.job(work, f"t{x}", (given("x", x), given("folder", str(tmp_path))), **options)
        for x in range(4)
    ]
    # Of two groups of two, the second is in both batches.
    for job in jobs:
        bench.dispatcher.submit(job)
    for job in jobs:
        await bench.started(job)
    for job in jobs[:3]:
        bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    # Longer than what is cancelled has to end.
    await asyncio.sleep(1.5)
    (tmp_path / "go").touch()
    assert isinstance(await bench.end(jobs[3]), TaskSucceeded)
    pid = int((tmp_path / "pid").read_text())
    async with asyncio.timeout(LONG):
        while psutil.pid_exists(pid):  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_a_killed_replica_loses_what_ran_and_nothing_else(bench: Bench) -> None:
    """The jobs of the batch are lost; the rest are moved; the lost ones run again alone."""

    def work(batch: list[Params]) -> list[Params]:
        time.sleep(0.5)
        if any(params["x"] == 0 for params in batch):
            os.kill(os.getpid(), signal.SIGKILL)
        return [{"n": len(batch)} for _ in batch]

    jobs = batch_jobs(bench, work, 24)
    ends = [await bench.end(job) for job in jobs]
    lost = [job for job, end in zip(jobs, ends, strict=True) if isinstance(end, TaskLost)]
    assert 1 <= len(lost) <= 8
    assert jobs[0] in lost
    assert all(
        isinstance(end, TaskSucceeded)
        for job, end in zip(jobs, ends, strict=True)
        if job not in lost
    )
    bench.reports.clear()
    again = batch_jobs(bench, work, 8, attempt=2)
    for job in again:
        end = await bench.end(job)
        if job.run_id == "r0":
            assert isinstance(end, TaskLost), end
        else:
            assert isinstance(end, TaskSucceeded), end


async def test_idle_applications_go_and_their_number_is_bounded(
    engine: None, tmp_path: Path
) -> None:
    """The least recently used makes room; after a while without jobs, all go."""
    bench = new_bench(tmp_path, max_applications=2, idle_seconds=3.0)
    await bench.start()
    for number in range(4):
        source = f"def run(batch):\n    return [{{'y': {number}}} for _ in batch]\n"
        (job,) = batch_jobs(bench, source, 1)
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        assert end.result == {"y": number}
        assert len(serve.status().applications) <= 3
        bench.reports.clear()
    await until_applications(0)
    await bench.dispatcher.close()


async def test_a_replica_that_never_had_a_place_keeps_nobody(engine: None, tmp_path: Path) -> None:
    """Its application is gone as soon as any other."""
    bench = new_bench(tmp_path)
    await bench.start()
    (job,) = batch_jobs(bench, "def run(batch):\n    return batch\n", 1, gpus=8.0)

    def names() -> list[str]:
        return [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]

    async with asyncio.timeout(LONG):
        while not any("#task#" in name for name in names()):  # noqa: ASYNC110  # nobody tells of it
            await asyncio.sleep(0.1)
    bench.dispatcher.cancel(job.run_id, job.task_id, job.attempt)
    await bench.dispatcher.close()
    await until_applications(0)


async def test_idle_replicas_give_way(engine: None, tmp_path: Path) -> None:
    """To work that waits for what they occupy, long before their own time is up."""
    bench = new_bench(tmp_path, bounds=Bounds(1, 300.0))
    await bench.start()
    for number in range(4):
        source = f"def run(batch):\n    return [{{'y': {number}}} for _ in batch]\n"
        (job,) = batch_jobs(bench, source, 1, resources=Resources(cpu=2))
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        bench.reports.clear()
    await bench.dispatcher.close()
    await until_applications(0)


async def test_idle_replicas_stay_that_have_nothing_of_what_is_wanted(
    engine: None, tmp_path: Path
) -> None:
    """Work that waits for a GPU gains nothing by their end."""
    bench = new_bench(tmp_path, bounds=Bounds(1, 300.0))
    await bench.start()

    def hold(params: Params) -> Params:
        while not (tmp_path / "go").exists():
            time.sleep(0.02)
        return {}

    (idle,) = batch_jobs(bench, lambda batch: [{} for _ in batch], 1)
    assert isinstance(await bench.end(idle), TaskSucceeded)
    bench.reports.clear()
    on_gpu: dict[str, Any] = {"resources": Resources(cpu=0.1, gpu=1), "gpus": 1.0}
    holds = bench.job(hold, "holds", **on_gpu)
    waits = bench.job(lambda p: {}, "waits", **on_gpu)
    bench.dispatcher.submit(holds)
    await bench.started(holds)
    bench.dispatcher.submit(waits)
    fleet = bench.dispatcher._replicas._fleet  # type: ignore[attr-defined]
    (application,) = (each for each in fleet._applications.values() if not each.work)
    # Much longer than others have to wait until what is idle gives way.
    await asyncio.sleep(6)
    assert not application.deleting
    assert application.handle is not None
    (tmp_path / "go").touch()
    assert isinstance(await bench.end(waits), TaskSucceeded)
    await bench.dispatcher.close()
    await until_applications(0)


async def test_what_is_only_got_ready_gives_way(engine: None, tmp_path: Path) -> None:
    """To work, also where it never becomes ready."""
    bench = new_bench(tmp_path, max_applications=1)
    await bench.start()
    hangs = "import time\ntime.sleep(1000)\ndef run(batch): ...\n"
    options: dict[str, Any] = {"batch": BatchPolicy(True, 8), "resources": SMALL}
    bench.dispatcher.prepare(bench.definition(hangs, **options))
    fleet = bench.dispatcher._replicas._fleet  # type: ignore[attr-defined]
    (application,) = fleet._applications.values()
    async with asyncio.timeout(LONG):
        while application.handle is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    (job,) = batch_jobs(bench, lambda batch: [{} for _ in batch], 1)
    assert isinstance(await bench.end(job), TaskSucceeded)
    await bench.dispatcher.close()
    await until_applications(0)


async def test_what_a_job_waits_for_is_told(engine: None, tmp_path: Path) -> None:
    """A place, a replica that starts, a batch that fills."""
    bench = new_bench(tmp_path)
    await bench.start()
    source = "def run(batch):\n    return [{} for _ in batch]\n"
    hog = "import time\nclass Hog:\n    def __call__(self, params):\n        time.sleep(1000)\n"
    told: set[str] = set()

    async def until_told(job: Job, text: str) -> None:
        async with asyncio.timeout(LONG):
            while not any(text in each for each in told):
                told.update((await bench.waiting(job)).values())
                await asyncio.sleep(0.02)

    (job,) = batch_jobs(bench, source, 1, batch_timeout=LONG)
    await until_told(job, "replica starting, ")
    await until_told(job, "batch 1 of 8, ")
    busy = bench.job(hog, "hog", resources=Resources(cpu=1.9))
    bench.dispatcher.submit(busy)
    await bench.started(busy)
    waits = bench.job(hog, "waits", run="w", resources=Resources(cpu=1.5), gpus=1.0)
    bench.dispatcher.submit(waits)
    await until_told(waits, "a free CPU: 1.5 asked, ")
    await bench.dispatcher.close()
    await until_applications(0)


async def test_a_definition_is_got_ready_before_there_is_a_job(bench: Bench) -> None:
    """One replica starts, and the first job finds it."""
    built = "class Model:\n    def __call__(self, params):\n        return {}\n"
    options = {"resources": SMALL, "scaling": Scaling(downscale_delay=300.0)}
    bench.dispatcher.prepare(bench.definition("import time\n" + built, **options))
    await until_replicas(1)
    end = await bench.run("import time\n" + built, **options)
    assert isinstance(end, TaskSucceeded), end
    assert end.placement.starting == 0.0


async def test_code_too_large_for_serve_goes_with_its_application(
    engine: None, tmp_path: Path
) -> None:
    """It lies in the storage, until the application is removed, also by the next dispatcher after a crash."""
    files = tmp_path / "values" / "code"
    source = "def run(batch):\n    return [{'y': 1} for _ in batch]\n#" + "x" * 100_000
    for crash in (False, True):
        bench = new_bench(tmp_path)
        await bench.start()
        assert not files.exists() or list(files.iterdir()) == []
        (job,) = batch_jobs(bench, source, 1)
        assert isinstance(await bench.end(job), TaskSucceeded)
        (name,) = serve.status().applications
        assert [each.name for each in files.iterdir()] == [name]
        if crash:
            bench.dispatcher._replicas._fleet._applications.clear()  # type: ignore[attr-defined]
        await bench.dispatcher.close()
        assert (list(files.iterdir()) != []) is crash
        if crash:
            serve.delete(name)
        await until_applications(0)
    assert len(list(files.iterdir())) == 1
    bench = new_bench(tmp_path)
    await bench.start()
    assert list(files.iterdir()) == []
    await bench.dispatcher.close()


async def test_an_application_that_is_going_is_replaced(engine: None, tmp_path: Path) -> None:
    """A dispatcher that starts while Serve still deletes one deploys it anew."""
    first = new_bench(tmp_path)
    await first.start()
    source = """
import time
class Model:
    def __call__(self, params):
        time.sleep(params["seconds"])
        return {}
"""
    options: dict[str, Any] = {"resources": SMALL}
    slow = first.job(source, "slow", (given("seconds", 20),), **options)
    first.dispatcher.submit(slow)
    await first.started(slow)
    (name,) = serve.status().applications
    fleet = first.dispatcher._replicas._fleet  # type: ignore[attr-defined]
    fleet._applications.clear()
    serve.delete(name, _blocking=False)
    async with asyncio.timeout(LONG):
        while serve.status().applications[name].status.value != "DELETING":  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    second = new_bench(tmp_path)
    await second.start()
    quick = second.job(source, "quick", (given("seconds", 0),), **options)
    second.dispatcher.submit(quick)
    assert isinstance(await second.end(quick), TaskSucceeded)
    await first.dispatcher.close()
    await second.dispatcher.close()
    await until_applications(0)


async def test_a_task_that_cannot_be_warmed_up_leaves_nothing(bench: Bench) -> None:
    """The application goes, and the next job is told why by a try of its own."""
    broken = "class Model:\n    def __init__(self):\n        raise LookupError('no model')\n"
    broken = "import time\n" + broken
    bench.dispatcher.prepare(bench.definition(broken, resources=SMALL))
    await until_applications(1)
    await until_applications(0)
    end = await bench.run(broken, resources=SMALL)
    assert isinstance(end, TaskFailed), end
    assert end.error.type == "LookupError"


async def test_three_batches_run_at_a_time_where_the_task_says_so(
    bench: Bench, tmp_path: Path
) -> None:
    """Each waits for the others, on one replica."""

    def meet(batch: list[Params]) -> list[Params]:
        folder = Path(batch[0]["folder"])
        (folder / str(batch[0]["x"])).touch()
        while len(list(folder.iterdir())) < 3:
            time.sleep(0.01)
        return [{} for _ in batch]

    folder = tmp_path / "meeting"
    folder.mkdir()
    options: dict[str, Any] = {
        "batch": BatchPolicy(True, 2, max_concurrent_batches=3),
        "scaling": Scaling(max_replicas=1),
        "resources": SMALL,
    }
    jobs = [
        bench.job(meet, f"t{x}", (given("x", x), given("folder", str(folder))), **options)
        for x in range(6)
    ]
    for job in jobs:
        bench.dispatcher.submit(job)
    replicas = set()
    for job in jobs:
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        replicas.add(end.placement.replica)
    assert len(replicas) == 1


async def test_large_values_go_from_process_to_process(bench: Bench, tmp_path: Path) -> None:
    """By reference; when the replica that made one is gone, out of the storage."""

    def double(batch: list[Params]) -> list[Params]:
        return [{"y": params["x"] * 2} for params in batch]

    import numpy as np

    def make(params: Params) -> Params:
        return {"x": np.arange(200_000)}

    def total(params: Params) -> Params:
        return {"sum": int(params["y"].sum())}

    made = await bench.succeed(make, "make", outputs=("x",))
    options: dict[str, Any] = {"batch": BatchPolicy(True, 4), "resources": SMALL}
    argument = Argument("x", None, (TaskId("make"), "x"), made.values["x"])
    doubled = await bench.succeed(double, "double", (argument,), outputs=("y",), **options)
    assert doubled.values["y"].location is not None
    assert doubled.placement.replica
    held = bench.dispatcher._replicas._held  # type: ignore[attr-defined]
    argument = Argument("y", None, (TaskId("double"), "y"), doubled.values["y"])
    references: dict[TaskId, Any] = {}
    held.upstream(RunId("r"), (argument,), references)
    assert len(references) == 1
    for name in ("sum", "again"):
        ended = await bench.succeed(total, name, (argument,), outputs=("sum",))
        assert ended.result == {"sum": 200_000 * 199_999}
        fleet = bench.dispatcher._replicas._fleet  # type: ignore[attr-defined]
        for application in [*fleet._applications.values()]:
            fleet.remove(application)
        await until_applications(0)


async def test_calls_of_a_dispatcher_before_give_way(engine: None, tmp_path: Path) -> None:
    """One that was killed does not leave its calls, and what hangs there would hang for ever."""

    def work(batch: list[Params]) -> list[Params]:
        if batch[0]["x"] == 0:
            time.sleep(1000)
        return [{"x": params["x"]} for params in batch]

    options: dict[str, Any] = {"batch_size": 1, "scaling": Scaling(max_replicas=1)}
    first, second = new_bench(tmp_path), new_bench(tmp_path)
    await first.start()
    hangs, waits = batch_jobs(first, work, 2, **options)
    before = await first.started(hangs)
    await second.start()
    job = replace(waits, run_id=RunId("next"))
    second.code(work)
    second.dispatcher.submit(job)
    try:
        end = await second.end(job)
        assert isinstance(end, TaskSucceeded), end
        assert end.placement.replica != before.placement.replica
    finally:
        await first.dispatcher.close()
        await second.dispatcher.close()
        await until_applications(0)


async def test_the_next_dispatcher_takes_over(engine: None, tmp_path: Path) -> None:
    """After a crash, what was left is used again or removed."""
    first = new_bench(tmp_path)
    await first.start()
    used, unused = (
        f"def run(batch):\n    return [{{'y': {number}}} for _ in batch]\n" for number in (1, 2)
    )
    for source in (used, unused):
        (job,) = batch_jobs(first, source, 1)
        await first.end(job)
        first.reports.clear()
    # As a crash does, it leaves without a word.
    first.dispatcher._replicas._fleet._applications.clear()  # type: ignore[attr-defined]
    first.dispatcher._replicas._fleet._leftovers.clear()  # type: ignore[attr-defined]
    await first.dispatcher.close()
    before = set(serve.status().applications)
    assert len(before) == 2
    second = new_bench(tmp_path, idle_seconds=4.0)
    await second.start()
    (job,) = batch_jobs(second, used, 1)
    assert isinstance(await second.end(job), TaskSucceeded)
    assert set(serve.status().applications) <= before
    await until_applications(0)
    await second.dispatcher.close()
