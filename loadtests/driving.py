"""Runs of the service as a client has them: what is submitted, and waiting for their last message.

Bodies are made before the clock starts, and messages are not parsed but for the last, so that the client
costs the two sides of a comparison the same little. Tasks ask for a whole CPU, as by default: Ray starts a
process for each that fits beside others, so that of smaller ones what would be measured is 20 Pythons that start.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import websockets

from lattice.client.subscription import socket_url
from tests.service.rest import inputs, outputs

#: What does nothing but hand on its input.
NOTHING = "def work(given):\n    return {'out': given['x']}\n"


def task(name: str, source: str = NOTHING, *, cpu: float = 1, **given: object) -> dict[str, Any]:
    """A task of a document for `/submit_workflow`; an input that begins with `@` is a reference."""
    return {
        "task_id": name,
        "task_name": "work",
        "code_str": source,
        "task_input": inputs(**given),
        "task_output": outputs("out"),
        "resources": {"cpu": cpu},
    }


def document(tasks: Sequence[dict[str, Any]]) -> bytes:
    """The body that submits a workflow of `tasks`."""
    return json.dumps({"tasks": tasks, "edges": []}).encode()


def fan_out(number: int) -> bytes:
    """Tasks that do not depend on each other."""
    return document([task(f"t{x}", x=x) for x in range(number)])


def chain(number: int) -> bytes:
    """Tasks of which each takes the output of the one before."""
    first = task("t0", x=0)
    return document([first, *(task(f"t{x}", x=f"@t{x - 1}.out") for x in range(1, number))])


class Driver:
    """A client of one service."""

    def __init__(self, url: str, http: httpx.AsyncClient) -> None:
        self.url = url
        self.http = http

    async def submit(self, body: bytes) -> tuple[str, str]:
        """Starts a run of a new workflow; the ids of both."""
        headers = {"content-type": "application/json"}
        answer = await self.http.post("/submit_workflow", content=body, headers=headers)
        assert answer.status_code == 200, answer.text
        found = answer.json()
        return found["workflow_id"], found["run_id"]

    async def follow(self, workflow_id: str, run_id: str) -> int:
        """Reads the messages of a run that succeeds; how many they were."""
        address = socket_url(self.url, f"/get_workflow_res/{workflow_id}/{run_id}")
        number, last = 0, ""
        async with websockets.connect(address, compression=None, open_timeout=120) as socket:
            async for message in socket:
                number, last = number + 1, str(message)
        end = json.loads(last)
        assert end["type"] == "finish_workflow", end
        assert end["data"]["status"] == "succeeded", end
        return number

    async def run(self, workflow_id: str) -> str:
        """Starts a run of a workflow; its id."""
        answer = await self.http.post("/run_workflow", json={"workflow_id": workflow_id})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["run_id"])

    async def finish(self, body: bytes) -> float:
        """Seconds from the request of a new workflow's run to its last message."""
        begun = time.perf_counter()
        await self.follow(*await self.submit(body))
        return time.perf_counter() - begun

    async def again(self, workflow_id: str) -> float:
        """Seconds from the request of one more run of a workflow to its last message."""
        begun = time.perf_counter()
        await self.follow(workflow_id, await self.run(workflow_id))
        return time.perf_counter() - begun

    async def floor(self, path: str) -> float:
        """Seconds that the bare application beside the service says."""
        answer = await self.http.get(f"/bare/{path}")
        assert answer.status_code == 200, answer.text
        return float(answer.json())


@asynccontextmanager
async def driver(url: str) -> AsyncIterator[Driver]:
    """A client with a connection of its own."""
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        yield Driver(url, http)
