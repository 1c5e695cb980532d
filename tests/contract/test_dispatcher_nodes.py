"""What every dispatcher does on a cluster of several nodes: where it places jobs, and what it survives."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
from ray import serve
from ray._common.utils import get_default_ray_temp_dir
from ray.cluster_utils import Cluster

from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ports.execution import CallResult, Job
from lattice.workflow.events import TaskLost, TaskSucceeded
from lattice.workflow.task import Resources
from tests.contract.dispatching import LONG, Bench, given, output_of, short_folder
from tests.contract.replicas import new_routing

pytestmark = pytest.mark.anyio

Params = dict[str, Any]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A cluster whose head, where the dispatcher is, has two CPUs; it soon sees that a node is dead."""
    # Where Ray notes the newest cluster, whatever folder that has; it does not make the folder here.
    Path(get_default_ray_temp_dir()).mkdir(exist_ok=True)
    with short_folder() as folder:
        cluster = Cluster(
            initialize_head=True,
            connect=True,
            shutdown_at_exit=False,
            head_node_args={
                "num_cpus": 2,
                "include_dashboard": False,
                # Any port: Ray leaves a socket open when it finds its usual one taken.
                "dashboard_port": 0,
                "temp_dir": folder,
                "_system_config": {
                    "health_check_period_ms": 200,
                    "health_check_failure_threshold": 3,
                },
            },
        )
        serve.start(proxy_location="Disabled")
        yield cluster
        serve.shutdown()
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]  # Ray's own gap


async def test_excluded_nodes_get_nothing_and_a_dead_node_loses_little(
    cluster: Cluster, tmp_path: Path
) -> None:
    """What ran on the node is lost, what it held is read from storage, and the rest goes on."""
    bench = Bench(RayTaskDispatcher((tmp_path / "values").as_uri(), inline_value_bytes=1024))
    await bench.start()
    (head,) = await bench.dispatcher.nodes()
    worker = cluster.add_node(num_cpus=2)
    only_head, only_worker = frozenset({worker.node_id}), frozenset({head.node_id})
    assert {node.node_id for node in await bench.dispatcher.nodes()} == only_head | only_worker

    def where(params: Params) -> Params:
        time.sleep(0.05)
        return {}

    for excluded, allowed in ((only_head, head.node_id), (only_worker, worker.node_id)):
        jobs = [bench.job(where, f"{allowed} {number}", excluded=excluded) for number in range(6)]
        for job in jobs:
            bench.dispatcher.submit(job)
        for job in jobs:
            end = await bench.end(job)
            assert isinstance(end, TaskSucceeded), end
            assert end.placement.node_id == allowed

    made = await bench.succeed(lambda p: {"x": b"a" * 1_000_000}, "make", excluded=only_worker)

    def sleep(params: Params) -> Params:
        time.sleep(1000)
        return {}

    running = bench.job(sleep, "running", excluded=only_worker)
    bench.dispatcher.submit(running)
    await bench.started(running)
    cluster.remove_node(worker, allow_graceful=False)
    lost = await bench.end(running)
    assert isinstance(lost, TaskLost), lost
    assert "died" in lost.error.message

    arguments = (output_of("make", "x", made.values["x"]),)
    used = await bench.succeed(
        lambda p: {"n": len(p["x"])}, "use", arguments, resources=Resources(cpu=2)
    )
    assert used.result == {"n": 1_000_000}
    await bench.dispatcher.close()


def held(params: Params) -> Params:
    """Says that it has begun, and goes on until it may end."""
    folder = Path(params["folder"])
    (folder / f"began-{params['n']}").touch()
    while not (folder / "go").exists():
        time.sleep(0.02)
    return {}


def begun(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("began-*"))


@pytest.mark.parametrize("everything", [False, True], ids=["tasks", "replicas"])
async def test_what_waits_in_the_engine_is_taken_back(
    cluster: Cluster, tmp_path: Path, everything: bool
) -> None:
    """A node that is excluded finishes what it runs and begins nothing that waits; it does once it may again."""
    bench = Bench(new_routing((tmp_path / "values").as_uri(), everything=everything))
    worker = cluster.add_node(num_cpus=4)
    await bench.start()
    jobs = [
        bench.job(
            held,
            f"t{n}",
            (given("n", n), given("folder", str(tmp_path))),
            resources=Resources(cpu=3),
        )
        for n in range(3)
    ]
    bench.dispatcher.submit(jobs[0])
    await bench.started(jobs[0])
    for job in jobs[1:]:
        bench.dispatcher.submit(job)
    # On the head, and long enough for the others to get where they are to wait.
    await bench.succeed(lambda p: {}, "probe 1")
    bench.dispatcher.exclude(frozenset({worker.node_id}))
    for job in jobs[1:]:
        await until_waiting(bench, job, "a larger node: CPU: 3 asked, 2 there")
    (tmp_path / "go").touch()
    first = await bench.end(jobs[0])
    assert isinstance(first, TaskSucceeded), first
    for number in range(2, 6):
        await bench.succeed(lambda p: time.sleep(0.2) or {}, f"probe {number}")
    assert begun(tmp_path) == ["began-0"]
    words = await bench.waiting(*jobs[1:])
    assert {*words} == {job.task_id for job in jobs[1:]}
    bench.dispatcher.exclude(frozenset())
    for job in jobs[1:]:
        end = await bench.end(job)
        assert isinstance(end, TaskSucceeded), end
        assert end.placement.node_id == worker.node_id
        assert end.attempt == 1
    await bench.dispatcher.close()
    cluster.remove_node(worker)


async def test_calls_are_counted_where_they_run(cluster: Cluster, tmp_path: Path) -> None:
    """One that waits counts on an excluded node where it may begin: not one that is too large, or comes later."""
    bench = Bench(new_routing((tmp_path / "values").as_uri()))
    worker = cluster.add_node(num_cpus=4)
    await bench.start()

    def calling(n: int, cpu: float = 3) -> asyncio.Future[CallResult]:
        call = bench.call(held, {"n": n, "folder": str(tmp_path)})
        needs = replace(call.definition, resources=Resources(cpu=cpu))
        return asyncio.ensure_future(bench.dispatcher.call(replace(call, definition=needs)))

    async def until(found: dict[str, int]) -> None:
        async with asyncio.timeout(LONG):
            while bench.dispatcher.load().calls != found:  # noqa: ASYNC110  # nobody tells of it
                await asyncio.sleep(0.05)

    here = worker.node_id
    calls = [calling(0)]
    await until({here: 1})
    calls.append(calling(1))
    too_large = calling(3, cpu=5)
    # Long enough for them to get where they are to wait.
    await bench.succeed(lambda p: {}, "probe")
    await until({here: 1})
    bench.dispatcher.exclude(frozenset({here}))
    await until({here: 2})
    late = calling(2)
    await bench.succeed(lambda p: {}, "another probe")
    await until({here: 2})
    (tmp_path / "go").touch()
    await asyncio.gather(*calls)
    assert begun(tmp_path) == ["began-0", "began-1"]
    await until({})
    late.cancel()
    too_large.cancel()
    await asyncio.wait([late, too_large])
    await bench.dispatcher.close()
    cluster.remove_node(worker)


@pytest.mark.parametrize("everything", [False, True], ids=["tasks", "replicas"])
async def test_a_job_that_comes_while_all_nodes_are_excluded_runs_when_one_is_back(
    cluster: Cluster, tmp_path: Path, everything: bool
) -> None:
    """It says meanwhile what it waits for."""
    bench = Bench(new_routing((tmp_path / "values").as_uri(), everything=everything))
    await bench.start()
    every = frozenset(node.node_id for node in await bench.dispatcher.nodes())
    bench.dispatcher.exclude(every)
    job = bench.job(lambda p: {}, "t", excluded=every)
    bench.dispatcher.submit(job)
    await until_waiting(bench, job, "a node that is connected")
    bench.dispatcher.exclude(frozenset())
    end = await bench.end(job)
    assert isinstance(end, TaskSucceeded), end
    await bench.dispatcher.close()


async def until_waiting(bench: Bench, job: Job, words: str) -> None:
    """Waits until the job says that it waits for that."""
    async with asyncio.timeout(LONG):
        while (await bench.waiting(job)).get(job.task_id) != words:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
