"""What whole runs of batched tasks reach: every event stored in SQLite and streamed to a follower.

`python -m loadtests.bench_runs` takes a minute. 50 runs at once, each of 100 calls of one batched task and
each followed over a WebSocket of its own, on one replica that takes 20 ms for a batch of up to 32: 1,600
items/s is what it can do. An item is a job, two messages in the database and two frames on a WebSocket.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

import websockets

from lattice.client.subscription import socket_url
from loadtests.bench import Figure, show
from loadtests.service import cpu_seconds, service
from tests.running import Service
from tests.service.rest import Rest, inputs

SECONDS, SIZE = 0.02, 32
LIMIT = SIZE / SECONDS
RUNS, ITEMS = 50, 100
ROUNDS = int(os.environ.get("ROUNDS", "5"))
MANY = f"""
import time

def work(batch):
    time.sleep({SECONDS})
    return [{{"out": params["x"]}} for params in batch]
"""


def new_workflow(rest: Rest) -> str:
    """A workflow of `ITEMS` calls that do not depend on each other; its id."""
    tasks = [
        {
            "task_id": f"t{x}",
            "task_name": "work",
            "code_str": MANY,
            "task_input": inputs(x=x),
            "task_output": {"output_params": {"1": {"key": "out", "data_type": "Any"}}},
            "resources": {"cpu": 0.1},
            "batch_config": {"enabled": True, "batch_size": SIZE, "batch_timeout": 0.01},
        }
        for x in range(ITEMS)
    ]
    document = rest.post("/submit_workflow", {"tasks": tasks, "edges": []})
    rest.messages(document["workflow_id"], document["run_id"])
    return str(document["workflow_id"])


async def follow(url: str, workflow_id: str, run_id: str) -> None:
    """Reads all messages of a run."""
    address = socket_url(url, f"/get_workflow_res/{workflow_id}/{run_id}")
    async with websockets.connect(address, compression=None) as socket:
        messages = [message async for message in socket]
    failed = [message for message in messages if "error" in message]
    assert not failed, failed[0]
    assert len(messages) == 2 * ITEMS + 1, messages[-1]


async def one_round(running: Service, rest: Rest, workflow_id: str) -> float:
    """Items per second, from the first request to the last message of the last run."""
    begun = time.perf_counter()

    async def run() -> None:
        run_id = await asyncio.to_thread(rest.run, workflow_id)
        await follow(running.url, workflow_id, run_id)

    await asyncio.gather(*(run() for _ in range(RUNS)))
    return RUNS * ITEMS / (time.perf_counter() - begun)


def figures() -> list[Figure]:
    """Starts a service and measures."""
    reached: list[float] = []
    costs: dict[str, list[float]] = {}
    settings: dict[str, Any] = {"max_replicas": 1, "replica_downscale_seconds": 300}
    with service(**settings) as running, Rest(running.url) as rest:
        workflow_id = new_workflow(rest)
        asyncio.run(one_round(running, rest, workflow_id))
        for _ in range(ROUNDS):
            before = cpu_seconds(running)
            reached.append(asyncio.run(one_round(running, rest, workflow_id)))
            after = cpu_seconds(running)
            for part, spent in after.items():
                milliseconds = (spent - before[part]) * 1_000 / (RUNS * ITEMS)
                costs.setdefault(part, []).append(milliseconds)
    return [
        Figure("whole runs, items/s", reached, 0),
        Figure(f"  of the limit of {LIMIT:.0f}", [each / LIMIT for each in reached], at_least=0.6),
        *(Figure(f"CPU of {part}, ms an item", spent) for part, spent in costs.items()),
    ]


if __name__ == "__main__":
    show(figures())
