"""What batching on replicas costs and gains, against floors measured in the same run.

`python -m loadtests.bench_batching` starts a Ray of its own. A batch takes 20 ms whatever its size, at most
32 calls share one, 500 are in flight, and there is one replica: 1,600 items/s is what it can do. The floors
are a hand-written `@serve.batch` deployment that is called once per item, and the same task unbatched.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Awaitable, Callable

import ray
from ray import serve

from deployments.replicas.dispatcher import ReplicaDispatcher
from deployments.replicas.fleet import Fleet
from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.ids import Digest, RunId, TaskId
from lattice.ports import Argument, Definition, Dispatcher, Job, Report
from lattice.workflow.events import TaskStarted, TaskSucceeded
from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy, Code, CodeForm, Resources

SECONDS, SIZE, IN_FLIGHT = 0.02, 32, 500
LIMIT = SIZE / SECONDS
ONE = f"import time\ndef run(p):\n    time.sleep({SECONDS})\n    return {{'y': p['x']}}\n"
MANY = f"import time\ndef run(b):\n    time.sleep({SECONDS})\n    return [{{'y': p['x']}} for p in b]\n"


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.1})
class ByHand:
    """What one would write without Lattice."""

    @serve.batch(max_batch_size=SIZE, batch_wait_timeout_s=0.01)
    async def run(self, batch: list[int]) -> list[int]:
        await asyncio.to_thread(time.sleep, SECONDS)
        return batch

    async def __call__(self, x: int) -> int:
        return await self.run(x)


async def rate(call: Callable[[int], Awaitable[object]], number: int) -> float:
    """Calls per second, with `IN_FLIGHT` of them at a time."""
    numbers = iter(range(number))

    async def caller() -> None:
        for x in numbers:
            await call(x)

    begun = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    return number / (time.perf_counter() - begun)


class Caller:
    """Calls a task through a dispatcher."""

    def __init__(self, dispatcher: Dispatcher, source: str, *, batched: bool) -> None:
        data = source.encode()
        self.dispatcher = dispatcher
        self.definition = Definition(
            code=Code(Digest(hashlib.sha256(data).hexdigest()), CodeForm.SOURCE, "run"),
            resources=Resources(cpu=0.1),
            gpus=0.0,
            batch=BatchPolicy(batched, SIZE, 0.01),
            scaling=Scaling(max_replicas=1),
            runtime_env={},
            excluded=frozenset(),
        )
        self.batched = batched
        self.sizes: list[int] = []
        self.waiting: dict[TaskId, asyncio.Future[None]] = {}
        self.calls = 0

    def report(self, _: RunId, report: Report) -> None:
        """An end wakes its caller."""
        if isinstance(report, TaskStarted):
            return
        assert isinstance(report, TaskSucceeded), report
        self.sizes.append(report.placement.batch_size or 1)
        self.waiting.pop(report.task_id).set_result(None)

    async def __call__(self, x: int) -> None:
        self.calls += 1
        task_id = TaskId(f"t{self.batched}{self.calls}")
        done = self.waiting[task_id] = asyncio.get_running_loop().create_future()
        self.dispatcher.submit(
            Job(
                run_id=RunId(f"r{x % 50}"),
                task_id=task_id,
                attempt=1,
                name="run",
                definition=self.definition,
                arguments=(Argument("x", str(x)),),
                output_keys=("y",),
                timed=False,
            )
        )
        await done


async def measure(folder: str) -> None:
    """Prints the figures."""
    options = {"name": "by-hand", "route_prefix": None}
    handle = await asyncio.to_thread(lambda: serve.run(ByHand.bind(), **options))

    async def by_hand(x: int) -> None:
        await handle.remote(x)

    await rate(by_hand, 500)
    floor = await rate(by_hand, 3_000)
    url = f"file://{folder}"
    fleet = Fleet(
        url,
        scope=folder,
        owner=None,
        bounds=Bounds(1, 30.0),
        max_applications=10,
        idle_seconds=300.0,
        grace=2.0,
    )
    tasks = RayTaskDispatcher(url, 65536)
    replicas = ReplicaDispatcher(fleet, url, 65536, held=tasks.held)
    dispatcher = RoutingDispatcher(tasks, replicas, everything=True)
    sources = {hashlib.sha256(each.encode()).hexdigest(): each.encode() for each in (ONE, MANY)}
    batched, single = Caller(dispatcher, MANY, batched=True), Caller(dispatcher, ONE, batched=False)

    def report(run_id: RunId, each: Report) -> None:
        (batched if each.task_id.startswith("tTrue") else single).report(run_id, each)

    await dispatcher.start(report, lambda digest: sources[digest])
    await rate(batched, 1_000)
    batched.sizes.clear()
    reached = await rate(batched, 15_000)
    await single(0)
    alone = await rate(single, 600)
    await dispatcher.close()
    mean = sum(batched.sizes) / len(batched.sizes)
    print(f"by hand, one call per item   {floor:7.0f} items/s")
    print(f"replica, unbatched           {alone:7.0f} items/s")
    print(f"replica, batched             {reached:7.0f} items/s, mean batch {mean:.1f} of {SIZE}")
    print(f"  of the limit of {LIMIT:.0f}/s      {reached / LIMIT:7.2f}")
    print(f"  times by hand              {reached / floor:7.2f}")
    print(f"  times unbatched            {reached / alone:7.1f}")


def main() -> None:
    """Starts an engine and measures."""
    with tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, _temp_dir=folder)
        serve.start(proxy_location="Disabled")
        try:
            asyncio.run(measure(folder))
        finally:
            serve.shutdown()
            ray.shutdown()


if __name__ == "__main__":
    main()
