"""How long a message takes from the end of a task, in its worker, to a client's WebSocket: with 200 open.

`python -m loadtests.bench_latency` takes two minutes. Every message in between is committed to SQLite. First 200
sockets follow 200 runs that wait, and one more the run that is measured: a chain of tasks of 10 ms. The floor is a bare
Serve application that does as much by hand: raw Ray tasks, a row in SQLite for each, and its time on a socket. Then all
200 follow the run, and a round's figures are those of all of them. The clocks are the same machine's.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from contextlib import AsyncExitStack
from datetime import datetime

import websockets

from lattice.client.subscription import socket_url
from loadtests.bare import BARE
from loadtests.bench import Figure, ratios, show
from loadtests.driving import Driver, document, driver, task
from loadtests.gate import Gate, gate
from loadtests.service import service

ROUNDS = int(os.environ.get("ROUNDS", "7"))
SOCKETS, TASKS = 200, 100
SECONDS = 0.01
SLEEPS = (
    f"import time\ndef work(given):\n    time.sleep({SECONDS})\n    return {{'out': given['x']}}\n"
)


def chain() -> bytes:
    """The run that is measured."""
    # As much as the one that waits at the gate leaves.
    first = task("t0", SLEEPS, cpu=0.1, x=0)
    others = (task(f"t{x}", SLEEPS, cpu=0.1, x=f"@t{x - 1}.out") for x in range(1, TASKS))
    return document([first, *others])


def address(client: Driver, workflow_id: str, run_id: str) -> str:
    """Where a run's messages are."""
    return socket_url(client.url, f"/get_workflow_res/{workflow_id}/{run_id}")


async def latencies(where: str) -> list[float]:
    """Milliseconds of each task's last message."""
    received: list[tuple[float, str]] = []
    async with websockets.connect(where, compression=None) as socket:
        async for text in socket:
            received.append((time.time(), str(text)))
    found = []
    for at, text in received:
        message = json.loads(text)
        if message["type"] == "finish_task":
            ended = datetime.fromisoformat(message["data"]["time"]).timestamp()
            found.append((at - ended) * 1_000)
    assert len(found) == TASKS
    return found


async def latencies_by_hand(where: str) -> list[float]:
    """The same of the bare application's tasks."""
    async with websockets.connect(where, compression=None) as socket:
        found = [(time.time() - float(text)) * 1_000 async for text in socket]
    assert len(found) == TASKS
    return found


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of `values` are at most."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


class Rounds:
    """The percentiles of each round."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.p50: list[float] = []
        self._p99: list[float] = []

    async def measure(self, client: Driver, workflow_id: str, sockets: int) -> None:
        """Adds those of a run that so many follow from its first message."""
        where = address(client, workflow_id, await client.run(workflow_id))
        found = await asyncio.gather(*(latencies(where) for _ in range(sockets)))
        self.add([each for one in found for each in one])

    def add(self, found: list[float]) -> None:
        """Adds a round with these latencies."""
        self.p50.append(percentile(found, 0.5))
        self._p99.append(percentile(found, 0.99))

    def figures(self, *targets: float | None) -> list[Figure]:
        """The lines of the table."""
        p50, p99 = targets
        return [
            Figure(f"{self._name}: p50, ms", self.p50, 1, at_most=p50),
            Figure(f"{self._name}: p99, ms", self._p99, 1, at_most=p99),
        ]


async def measure(url: str, shut: Gate) -> list[Figure]:
    """The figures."""
    apart, together = Rounds("200 follow other runs"), Rounds("200 follow this run")
    by_hand = Rounds("the same by hand")
    bare = socket_url(url, f"/bare/ends/{TASKS}/{SECONDS}")
    async with driver(url) as client, AsyncExitStack() as stack:
        workflow_id, run_id = await client.submit(chain())
        await client.follow(workflow_id, run_id)
        waiting, _ = await client.submit(document([shut.task("wait", 0)]))
        for _ in range(SOCKETS):
            where = address(client, waiting, await client.run(waiting))
            await stack.enter_async_context(websockets.connect(where, compression=None))
        await latencies_by_hand(bare)
        for _ in range(ROUNDS):
            by_hand.add(await latencies_by_hand(bare))
            await apart.measure(client, workflow_id, 1)
    async with driver(url) as client:
        for _ in range(ROUNDS):
            await together.measure(client, workflow_id, SOCKETS)
    return [
        *apart.figures(5, 50),
        *by_hand.figures(None, None),
        Figure("p50, times by hand", ratios(apart.p50, by_hand.p50)),
        *together.figures(None, None),
    ]


def figures() -> list[Figure]:
    """Starts a service and measures."""
    with gate() as shut, service(beside=[BARE]) as running:
        return asyncio.run(measure(running.url, shut))


if __name__ == "__main__":
    show(figures())
