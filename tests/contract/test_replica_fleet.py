"""Applications of replicas: they come with work, give way to other work, and are taken over by the next dispatcher."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve

from deployments.replicas.identity import Bounds
from lattice.ids import RunId
from lattice.ports.execution import Job
from lattice.workflow.events import TaskFailed, TaskSucceeded
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import LONG, Bench, given
from tests.contract.replicas import (
    SMALL,
    Params,
    batch_jobs,
    new_bench,
    running_bench,
    until_applications,
    until_replicas,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
async def bench(engine: None, tmp_path: Path) -> AsyncIterator[Bench]:
    """A started dispatcher; when it is closed, its applications are gone."""
    async with running_bench(tmp_path) as bench:
        yield bench


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
