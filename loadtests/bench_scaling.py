"""What more replicas bring: the throughput of four beside that of one, in the same rounds.

`python -m loadtests.bench_scaling` takes two minutes. Calls sleep for 100 ms, alone or in batches of up to 8,
so one replica can do 10 or 80 calls/s. Measured when Serve has added the replicas, through the dispatcher.
"""

from __future__ import annotations

import asyncio

from lattice.workflow.scaling import Scaling
from lattice.workflow.task import BatchPolicy
from loadtests.bench import CalledTask, Figure, Tasks, engine, rate, ratios, show, tasks_on

SECONDS, SIZE, MANY = 0.1, 8, 4
ROUNDS = 5
#: Calls of one measurement for each replica, in seconds' worth of them.
LONG = 4.0
ALONE = f"import time\ndef run(p):\n    time.sleep({SECONDS})\n    return {{'y': p['x']}}\n"
BATCHED = f"import time\ndef run(b):\n    time.sleep({SECONDS})\n    return [{{'y': p['x']}} for p in b]\n"


class Scaled:
    """A task whose replicas are all there."""

    def __init__(self, task: CalledTask, replicas: int, size: int) -> None:
        self._task = task
        self._replicas = replicas
        self._limit = replicas * size / SECONDS
        self._in_flight = 4 * replicas * size
        self.rates: list[float] = []

    async def warm(self) -> None:
        """Calls until calls have run on all replicas."""
        while len(self._task.replicas) < self._replicas:
            await rate(self._task, self._in_flight, self._in_flight)

    async def measure(self) -> None:
        """Adds a rate."""
        self.rates.append(await rate(self._task, int(self._limit * LONG), self._in_flight))

    def figure(self, name: str) -> Figure:
        """The rates."""
        return Figure(f"{name}, calls/s (limit {self._limit:.0f})", self.rates, 1)


def scaled(tasks: Tasks, source: str, replicas: int, size: int) -> Scaled:
    """A task of its own with that many replicas."""
    scaling = Scaling(max_replicas=replicas, downscale_delay=600.0)
    batch = BatchPolicy(size > 1, size, 0.02)
    return Scaled(tasks.task(f"{source}# {replicas}\n", batch, scaling), replicas, size)


async def measure(folder: str) -> list[Figure]:
    """Prints the figures."""
    async with tasks_on(folder) as tasks:
        batched = [scaled(tasks, BATCHED, replicas, SIZE) for replicas in (1, MANY)]
        alone = [scaled(tasks, ALONE, replicas, 1) for replicas in (1, MANY)]
        for each in (*batched, *alone):
            await each.warm()
        for _ in range(ROUNDS):
            for each in (*batched, *alone):
                await each.measure()
    return [
        batched[0].figure("batched, 1 replica"),
        batched[1].figure(f"batched, {MANY} replicas"),
        Figure("  times 1 replica", ratios(batched[1].rates, batched[0].rates), at_least=3.4),
        alone[0].figure("unbatched, 1 replica"),
        alone[1].figure(f"unbatched, {MANY} replicas"),
        Figure("  times 1 replica", ratios(alone[1].rates, alone[0].rates), at_least=3.4),
    ]


def figures() -> list[Figure]:
    """Starts an engine and measures."""
    with engine() as folder:
        return asyncio.run(measure(folder))


if __name__ == "__main__":
    show(figures())
