"""Dispatchers over replicas, as the suites of dispatchers want them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from deployments.replicas.dispatcher import ReplicaDispatcher
from deployments.replicas.fleet import Fleet
from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ports.execution import Job
from lattice.workflow.task import BatchPolicy, Resources
from tests.contract.dispatching import LONG, Bench, given, short_folder

Params = dict[str, Any]
SMALL = Resources(cpu=0.1)


@contextmanager
def running_engine() -> Iterator[Path]:
    """A Ray of two CPUs and a GPU that is none, with Serve; the folder that it writes to."""
    with short_folder() as folder:
        ray.init(
            num_cpus=2,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        serve.start(proxy_location="Disabled")
        try:
            yield Path(folder)
        finally:
            serve.shutdown()
            ray.shutdown()


def new_routing(
    url: str, *, cancel_grace: float = 0.5, everything: bool = False, **changes: Any
) -> RoutingDispatcher:
    """A dispatcher that is not started; `url` is its storage and its scope."""
    options: dict[str, Any] = {
        "scope": url,
        "owner": None,
        "bounds": Bounds(4, 1.0),
        "max_applications": 100,
        "idle_seconds": 300.0,
        "grace": cancel_grace,
    }
    fleet = Fleet(url, **(options | changes))
    secrets = changes.get("secrets")
    tasks = RayTaskDispatcher(url, 1024, cancel_grace=cancel_grace, secrets=secrets)
    replicas = ReplicaDispatcher(fleet, url, 1024, held=tasks.held, cancel_grace=cancel_grace)
    return RoutingDispatcher(tasks, replicas, everything=everything)


def new_bench(folder: Path, **changes: Any) -> Bench:
    """A dispatcher that is not started; its scope is the folder."""
    return Bench(new_routing((folder / "values").as_uri(), **changes))


@asynccontextmanager
async def running_bench(folder: Path) -> AsyncIterator[Bench]:
    """A started dispatcher; when it is closed, its applications are gone."""
    bench = new_bench(folder)
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
