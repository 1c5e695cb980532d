"""How long the first result takes from zero replicas, beside a bare Serve application's.

`python -m loadtests.bench_cold_start` takes three minutes. Once with the application deployed and idle at zero,
once from nothing, which is a definition's first job ever. The floor is the same for a deployment of one
function; both are deployed anew in each round, and take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from ray import serve

from lattice.workflow.task import BatchPolicy
from loadtests.bench import Figure, Tasks, engine, ratios, show, tasks_on

ROUNDS = 9
SOURCE = "def run(b):\n    return [{{'y': p['x']}} for p in b]\n# {}\n"


@serve.deployment(
    ray_actor_options={"num_cpus": 0.1},
    autoscaling_config={"min_replicas": 0, "max_replicas": 1, "upscale_delay_s": 0},
)
class Bare:
    """A function on Serve."""

    def __call__(self, x: int) -> int:
        return x


def deploy(name: str) -> Any:
    """A bare application at zero replicas; its handle."""
    bare: Any = Bare
    target = serve.RunTarget(target=bare.bind(), name=name, route_prefix=None)
    (handle,) = serve.run_many([target], wait_for_applications_running=False)
    return handle


async def took(work: Awaitable[object]) -> float:
    """Seconds that something takes."""
    begun = time.perf_counter()
    await work
    return time.perf_counter() - begun


async def bare(name: str) -> tuple[float, float]:
    """Seconds to the first answer of bare applications: from zero replicas, and from nothing."""

    async def from_nothing() -> None:
        handle = await asyncio.to_thread(deploy, f"{name}-nothing")
        await handle.remote(1)

    handle = await asyncio.to_thread(deploy, f"{name}-zero")
    await asyncio.sleep(1)

    async def from_zero() -> None:
        await handle.remote(1)

    found = await took(from_zero()), await took(from_nothing())
    for each in ("zero", "nothing"):
        await asyncio.to_thread(serve.delete, f"{name}-{each}")
    return found


async def ours(tasks: Tasks, name: str) -> tuple[float, float]:
    """The same of tasks on the dispatcher."""
    batch = BatchPolicy(True, 8, 0.0)
    zero, nothing = (tasks.task(SOURCE.format(f"{name} {n}"), batch) for n in ("zero", "nothing"))
    deployed = tasks.fleet.find(zero.definition)
    tasks.fleet.want(deployed)
    assert deployed.creating is not None
    await deployed.creating
    await asyncio.sleep(1)
    found = await took(zero(1)), await took(nothing(1))
    for task in (zero, nothing):
        tasks.fleet.remove(tasks.fleet.find(task.definition))
    # As long as Serve needs to end the replicas, which costs the CPU that the next round is to have.
    await asyncio.sleep(2)
    return found


async def measure(folder: str) -> list[Figure]:
    """Prints the figures."""
    floors: list[tuple[float, float]] = []
    found: list[tuple[float, float]] = []
    async with tasks_on(folder) as tasks:
        await bare("warm-up")
        await ours(tasks, "warm-up")
        for number in range(ROUNDS):
            floors.append(await bare(f"bare-{number}"))
            found.append(await ours(tasks, str(number)))
    figures = []
    for column, name in enumerate(("zero replicas", "nothing")):
        floor = [each[column] for each in floors]
        own = [each[column] for each in found]
        figures += [
            Figure(f"bare application, from {name}, s", floor),
            Figure(f"task, from {name}, s", own),
            Figure("  times bare", ratios(own, floor), at_most=1.3),
        ]
    return figures


def figures() -> list[Figure]:
    """Starts an engine and measures."""
    with engine() as folder:
        return asyncio.run(measure(folder))


if __name__ == "__main__":
    show(figures())
