"""What batching on replicas costs and gains, against floors measured in the same rounds.

`python -m loadtests.bench_batching` takes two minutes. A batch takes 20 ms whatever its size, at most 32
calls share one, 500 are in flight, and there is one replica: 1,600 items/s is what it can do. The floors are
the same task unbatched, and a hand-written `@serve.batch` deployment that is called once per item. The
latter does much better if it waits for a batch's calls as long as a batch runs, which one has to know, and
best if it is called with groups of items, which is what the dispatcher does.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from ray import serve

from lattice.workflow.task import BatchPolicy
from loadtests.bench import Figure, engine, rate, ratios, show, tasks_on

SECONDS, SIZE, IN_FLIGHT, WAIT = 0.02, 32, 500, 0.01
LIMIT = SIZE / SECONDS
ROUNDS = 5
GROUP = SIZE // 4
ONE = f"import time\ndef run(p):\n    time.sleep({SECONDS})\n    return {{'y': p['x']}}\n"
MANY = f"import time\ndef run(b):\n    time.sleep({SECONDS})\n    return [{{'y': p['x']}} for p in b]\n"


@serve.deployment(max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 0.1})
class ByHand:
    """What one would write without Lattice."""

    def __init__(self, wait: float) -> None:
        batched: Any = self._run
        batched.set_batch_wait_timeout_s(wait)

    @serve.batch(max_batch_size=SIZE)
    async def _run(self, batch: list[int]) -> list[int]:
        await asyncio.to_thread(time.sleep, SECONDS)
        return batch

    async def __call__(self, x: int) -> int:
        return await self._run(x)

    async def group(self, numbers: list[int]) -> list[int]:
        return await asyncio.gather(*(self._run(x) for x in numbers))


async def measure(folder: str) -> list[Figure]:
    """Prints the figures."""

    def by_hand(name: str, wait: float) -> Any:
        deployment: Any = ByHand
        return serve.run(deployment.bind(wait), name=name, route_prefix=None)

    handle = await asyncio.to_thread(by_hand, "by-hand", WAIT)
    patient = await asyncio.to_thread(by_hand, "patient", SECONDS)

    async def single(x: int) -> None:
        await handle.remote(x)

    async def waiting(x: int) -> None:
        await patient.remote(x)

    async def group(x: int) -> None:
        await patient.group.remote([x] * GROUP)

    floors: list[float] = []
    waited: list[float] = []
    grouped: list[float] = []
    alone: list[float] = []
    reached: list[float] = []
    sizes: list[float] = []
    async with tasks_on(folder) as tasks:
        batched = tasks.task(MANY, BatchPolicy(True, SIZE, WAIT))
        unbatched = tasks.task(ONE)
        await rate(single, 500, IN_FLIGHT)
        await rate(waiting, 500, IN_FLIGHT)
        await rate(batched, 1_000, IN_FLIGHT)
        await unbatched(0)
        for _ in range(ROUNDS):
            floors.append(await rate(single, 2_000, IN_FLIGHT))
            batched.sizes.clear()
            reached.append(await rate(batched, 10_000, IN_FLIGHT))
            sizes.append(statistics.mean(batched.sizes))
            waited.append(await rate(waiting, 2_000, IN_FLIGHT))
            calls = await rate(group, 10_000 // GROUP, IN_FLIGHT // GROUP)
            grouped.append(calls * GROUP)
            alone.append(await rate(unbatched, 100, IN_FLIGHT))
    return [
        Figure("by hand, one call per item, items/s", floors, 0),
        Figure("  the same, waiting 20 ms", waited, 0),
        Figure(f"  the same, groups of {GROUP}", grouped, 0),
        Figure("replica, unbatched, items/s", alone, 0),
        Figure("replica, batched, items/s", reached, 0),
        Figure(f"  mean batch of {SIZE}", sizes, 1, at_least=30),
        Figure(f"  of the limit of {LIMIT:.0f}", [each / LIMIT for each in reached], at_least=0.9),
        Figure("  times by hand", ratios(reached, floors), at_least=3),
        Figure("  times by hand, waiting 20 ms", ratios(reached, waited)),
        Figure("  times by hand, in groups", ratios(reached, grouped)),
        Figure("  times unbatched", ratios(reached, alone), 1, at_least=20),
    ]


def figures() -> list[Figure]:
    """Starts an engine and measures."""
    with engine() as folder:
        return asyncio.run(measure(folder))


if __name__ == "__main__":
    show(figures())
