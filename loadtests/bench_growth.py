"""What becomes of the cost of a task as runs grow: time at 10,000 tasks beside 100, and memory.

`python -m loadtests.bench_growth` takes five minutes. Both sizes are fan-outs, from the request of a run to
its last message; a round of the small one is as many runs, one after another, as give it a tenth of the large
one's tasks. Memory is the orchestrator's resident set, by how much it grows while a run with 10,000 finished
tasks is still live, held by one that waits, and by how much more it is after that has ended; the first such run
is not counted, as it makes the room that later ones use again. Then 1,000 runs are in flight at once.
"""

from __future__ import annotations

import asyncio
import os
import time

import websockets

from lattice.client.subscription import socket_url
from loadtests.bench import Figure, ratios, show
from loadtests.driving import Driver, document, driver, fan_out, task
from loadtests.gate import gate
from loadtests.service import service
from tests.running import ORCHESTRATOR, Service

ROUNDS = int(os.environ.get("ROUNDS", "3"))
SMALL, LARGE, FLIGHT = 100, int(os.environ.get("LARGE", "10000")), 1_000
KIB = 1024


def resident(running: Service) -> float:
    """KiB of memory that the orchestrator has."""
    (process,) = running.processes(ORCHESTRATOR)
    return float(process.memory_info().rss) / KIB


async def held(running: Service, client: Driver) -> tuple[float, float]:
    """KiB for each finished task, while the run is live and after its end."""
    with gate() as shut:
        # As much as the one that waits at the gate leaves.
        tasks = [shut.task("wait", 0), *(task(f"t{x}", cpu=0.1, x=x) for x in range(LARGE))]
        body = document(tasks)
        workflow_id, run_id = await client.submit(body)
        base = resident(running)
        where = socket_url(client.url, f"/get_workflow_res/{workflow_id}/{run_id}")
        async with websockets.connect(where, compression=None) as socket:
            finished = 0
            while finished < LARGE:
                finished += '"finish_task"' in str(await socket.recv())
        live = resident(running) - base
        shut.open()
        await client.follow(workflow_id, run_id)
        return live / LARGE, (resident(running) - base) / LARGE


async def a_task(client: Driver, workflow_id: str, size: int, runs: int) -> float:
    """Milliseconds for a task, over runs one after another."""
    begun = time.perf_counter()
    for _ in range(runs):
        await client.again(workflow_id)
    return (time.perf_counter() - begun) * 1_000 / (size * runs)


async def measure(running: Service) -> list[Figure]:
    """The figures."""
    small: list[float] = []
    large: list[float] = []
    live: list[float] = []
    left: list[float] = []
    flown: list[float] = []
    async with driver(running.url) as client:
        of_small, run_id = await client.submit(fan_out(SMALL))
        await client.follow(of_small, run_id)
        of_large, run_id = await client.submit(fan_out(LARGE))
        await client.follow(of_large, run_id)
        single, run_id = await client.submit(fan_out(1))
        await client.follow(single, run_id)
        for _ in range(ROUNDS):
            small.append(await a_task(client, of_small, SMALL, max(1, LARGE // SMALL // 10)))
            large.append(await a_task(client, of_large, LARGE, 1))
            begun = time.perf_counter()
            await asyncio.gather(*(client.again(single) for _ in range(FLIGHT)))
            flown.append(FLIGHT / (time.perf_counter() - begun))
        await held(running, client)
        for _ in range(ROUNDS):
            one, other = await held(running, client)
            live.append(one)
            left.append(other)
    return [
        Figure(f"a task of {SMALL}, ms", small),
        Figure(f"a task of {LARGE:,}, ms", large),
        Figure(f"  times that of {SMALL}", ratios(large, small), at_most=1.2),
        Figure("KiB a finished task, run live", live, at_most=2),
        Figure("KiB a finished task, run ended", left, at_most=0.1),
        Figure(f"{FLIGHT:,} runs at once, runs/s", flown, 1),
    ]


def figures() -> list[Figure]:
    """Starts a service and measures."""
    with service() as running:
        return asyncio.run(measure(running))


if __name__ == "__main__":
    show(figures())
