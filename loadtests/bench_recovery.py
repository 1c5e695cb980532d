"""How long the service is away after its orchestrator is killed: with 1,000 unfinished runs, and with none.

`python -m loadtests.bench_recovery` takes five minutes. Measured from SIGKILL to the answer to a
request that commits, which an orchestrator gives only when it goes on with every run, and behind whatever it
told about them: its commits are in order. With the runs, the answer of the newest of them counts too,
that its second task waits for its turn again, which no log tells. That it is so with others, spread over
all of them, is checked afterwards, and at last that every run ends.

Each run is a workflow of its own, a chain of three tasks. The first has ended, the second waits for a file, of
which the engine can run one at a time. The services are up side by side and take turns. The floor is a bare
Serve application, killed likewise: what Serve needs to see the death and to start a process.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from functools import partial
from subprocess import run
from typing import Any

import httpx

from loadtests.bare import BARE
from loadtests.bench import Figure, ratios, show
from loadtests.driving import document, driver, task
from loadtests.gate import Gate, gate
from loadtests.service import service
from tests.running import ORCHESTRATOR, ROOT, Service, wait_for

RUNS = int(os.environ.get("RUNS", "1000"))
ROUNDS = int(os.environ.get("ROUNDS", "7"))
#: Every one of these is looked at, spread over the runs.
LOOKS = 20
#: For requests, in seconds: machines are slow and noisy.
PATIENCE = 300.0


def answered(http: httpx.Client, method: str, path: str, **options: Any) -> Any:
    """The answer to a request, which is repeated until there is one."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            answer = http.request(method, path, **options)
        except httpx.HTTPError:
            answer = None
        if answer is not None and answer.status_code == 200:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"no answer to {method} {path}")


def back(running: Service, http: httpx.Client, key: str) -> float:
    """Seconds from the orchestrator's death until a request is answered and durable."""
    begun = time.perf_counter()
    running.kill(ORCHESTRATOR)
    answered(http, "POST", "/create_workflow", headers={"Idempotency-Key": key})
    return time.perf_counter() - begun


def bare(running: Service, http: httpx.Client) -> float:
    """The same of the bare application."""
    begun = time.perf_counter()
    running.kill("ray::ServeReplica:bare:Behind")
    answered(http, "GET", "/bare/behind")
    return time.perf_counter() - begun


def imports() -> float:
    """Seconds in which a new interpreter imports what the orchestrator is made of."""
    begun = time.perf_counter()
    run([sys.executable, "-c", "import deployments.app"], cwd=ROOT, check=True)
    return time.perf_counter() - begun


class Runs:
    """Unfinished runs on a service, which end when there is a file."""

    def __init__(self, running: Service, http: httpx.Client, shut: Gate) -> None:
        self._running = running
        self._http = http
        self._gate = shut
        self._ids: list[tuple[str, str]] = []

    async def start(self) -> None:
        """Starts them, and waits until the first task of each has ended."""
        second = self._gate.task("b", "@a.out")
        # As much as the one that waits at the gate leaves.
        last = task("c", cpu=0.1, x="@b.out")
        async with driver(self._running.url) as client:
            for x in range(RUNS):
                body = document([task("a", cpu=0.1, x=x), second, last])
                self._ids.append(await client.submit(body))
        for _, run_id in self._ids:
            wait_for(f"the first task of {run_id}", partial(self._is_taken_up, run_id))

    def _is_taken_up(self, run_id: str) -> bool:
        """Whether its second task is with the dispatcher."""
        found = answered(self._http, "GET", f"/runs/{run_id}").json()
        states = {each["task_id"]: each["state"] for each in found["run"]["tasks"]}
        return states["b"] in ("queued", "running")

    def recovery(self, key: str) -> float:
        """Seconds from the orchestrator's death until all runs go on."""
        begun = time.perf_counter()
        back(self._running, self._http, key)
        assert self._is_taken_up(self._ids[-1][1])
        seconds = time.perf_counter() - begun
        for _, run_id in self._ids[:: max(1, RUNS // LOOKS)]:
            assert self._is_taken_up(run_id), run_id
        return seconds

    async def end(self) -> None:
        """Lets all of them end."""
        self._gate.open()
        async with driver(self._running.url) as client:
            for workflow_id, run_id in self._ids:
                await client.follow(workflow_id, run_id)


def figures() -> list[Figure]:
    """Starts the services and measures."""
    floors: list[float] = []
    empties: list[float] = []
    fulls: list[float] = []
    starts: list[float] = []
    with (
        gate() as shut,
        service(beside=[BARE]) as empty,
        service() as full,
        httpx.Client(base_url=empty.url, timeout=60) as to_empty,
        httpx.Client(base_url=full.url, timeout=60) as to_full,
    ):
        runs = Runs(full, to_full, shut)
        asyncio.run(runs.start())
        for number in range(ROUNDS):
            floors.append(bare(empty, to_empty))
            empties.append(back(empty, to_empty, f"empty-{number}"))
            fulls.append(runs.recovery(f"full-{number}"))
            starts.append(imports())
        asyncio.run(runs.end())
    return [
        Figure("bare Serve application, s", floors),
        Figure("imports in a new interpreter, s", starts),
        Figure("service without runs, s", empties),
        Figure("  times bare", ratios(empties, floors)),
        Figure(f"service with {RUNS:,} unfinished runs, s", fulls),
        Figure("  times without", ratios(fulls, empties), at_most=3),
    ]


if __name__ == "__main__":
    show(figures())
