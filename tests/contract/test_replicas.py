"""What replicas add to what every dispatcher does: batches, classes, GPU shares, and what happens to calls."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from lattice.ids import RunId, TaskId
from lattice.ports.execution import Argument
from lattice.workflow.events import TaskFailed, TaskLost, TaskStarted, TaskSucceeded
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import LONG, Bench, given
from tests.contract.replicas import (
    SMALL,
    Params,
    batch_jobs,
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
