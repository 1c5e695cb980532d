"""What a run costs beyond its tasks: chains, fan-outs and short runs, beside raw Ray tasks on the same cluster.

`python -m loadtests.bench_overhead` takes three minutes. A run is measured at a client, from the request to the
last message on the WebSocket, every step stored in SQLite. The floor is measured inside a Serve replica beside
the orchestrator, with no client in between: the same function as Ray tasks of the same size, each awaited
before the next, or all gathered. Both take turns. At last the SDK builds and submits a graph of 100 tasks.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time

from lattice import LatticeClient, task
from loadtests.bare import BARE
from loadtests.bench import Figure, ratios, show
from loadtests.driving import Driver, chain, driver, fan_out
from loadtests.service import service

ROUNDS = int(os.environ.get("ROUNDS", "7"))
LONG, WIDE, SHORT = 100, 1_000, 3
#: Short runs of one round, one after another.
REPEATED = 30


@task
def hand_on(x: int) -> int:
    """Nothing."""
    return x


def built(client: LatticeClient) -> float:
    """Seconds until a chain of 100 tasks is built, and its run was accepted."""
    begun = time.perf_counter()
    workflow = client.create_workflow()
    last = workflow.add_task(hand_on, inputs={"x": 0})
    for _ in range(LONG - 1):
        last = workflow.add_task(hand_on, inputs={"x": last.outputs["result"]})
    run = workflow.run()
    seconds = time.perf_counter() - begun
    run.result()
    return seconds


class Rounds:
    """What was measured of one kind of run, and of its floor."""

    def __init__(self, client: Driver, body: bytes, floor: str, repeated: int = 1) -> None:
        self._client = client
        self._body = body
        self._floor = floor
        self._repeated = repeated
        self.own: list[float] = []
        self.floors: list[float] = []

    async def start(self) -> None:
        """Makes the workflow, and runs both once, so that workers are there."""
        self._workflow_id, run_id = await self._client.submit(self._body)
        await self._client.follow(self._workflow_id, run_id)
        await self._client.floor(self._floor)

    async def measure(self) -> None:
        """Adds the medians of a round."""
        floors = [await self._client.floor(self._floor) for _ in range(self._repeated)]
        own = [await self._client.again(self._workflow_id) for _ in range(self._repeated)]
        self.floors.append(statistics.median(floors))
        self.own.append(statistics.median(own))

    def figures(self, name: str, at_most: float) -> list[Figure]:
        """The lines of the table, in milliseconds."""
        return [
            Figure(f"{name}: raw Ray tasks, ms", [each * 1_000 for each in self.floors], 1),
            Figure(f"{name}: a run, ms", [each * 1_000 for each in self.own], 1),
            Figure("  times raw", ratios(self.own, self.floors), at_most=at_most),
        ]


async def measure(url: str) -> list[Figure]:
    """The figures of runs."""
    async with driver(url) as client:
        line = Rounds(client, chain(LONG), f"chain/{LONG}")
        fan = Rounds(client, fan_out(WIDE), f"fan_out/{WIDE}")
        short = Rounds(client, chain(SHORT), f"chain/{SHORT}", REPEATED)
        for each in (line, fan, short):
            await each.start()
        for _ in range(ROUNDS):
            for each in (line, fan, short):
                await each.measure()
    return [
        *line.figures(f"chain of {LONG}", 1.2),
        *fan.figures(f"fan-out of {WIDE:,}", 1.2),
        *short.figures(f"{SHORT} tasks, p50", 5),
        Figure("  of a run, ms", [each * 1_000 for each in short.own], 1, at_most=50),
    ]


def figures() -> list[Figure]:
    """Starts a service and measures."""
    with service(beside=[BARE]) as running:
        found = asyncio.run(measure(running.url))
        with LatticeClient(running.url) as client:
            built(client)
            seconds = [built(client) for _ in range(ROUNDS)]
    milliseconds = [each * 1_000 for each in seconds]
    return [
        *found,
        Figure(f"SDK: {LONG} tasks to an accepted run, ms", milliseconds, 1, at_most=100),
    ]


if __name__ == "__main__":
    show(figures())
