"""What durability costs: a fan-out of 1,000 small tasks, beside the same service with its state in memory.

`python -m loadtests.bench_durability` takes two minutes. A run is a new workflow, from its request to its
last message on the WebSocket. All services are up at once and take turns, so that they have the same
machine; what an idle one takes from the others is shown. PostgreSQL has its place where its server is
installed. All databases are on the disk of the temporary folder, and commit with fsync.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import ExitStack

from loadtests.bench import Figure, ratios, show
from loadtests.driving import driver, fan_out
from loadtests.service import cpu_seconds, service
from tests.postgresql import binaries, new_database, server
from tests.running import Service

NUMBER = 1_000
ROUNDS = int(os.environ.get("ROUNDS", "9"))
MEMORY, SQLITE, POSTGRESQL = "memory", "SQLite", "PostgreSQL"


class Side:
    """One of the services, with what was measured of it."""

    def __init__(self, name: str, running: Service) -> None:
        self.name = name
        self.running = running
        self.rates: list[float] = []
        self.costs: list[float] = []
        self.body = fan_out(NUMBER)

    def spent(self) -> float:
        """CPU seconds of the service's processes so far."""
        seconds = cpu_seconds(self.running)
        return sum(seconds.values()) - seconds["this client"]

    async def run(self) -> None:
        """One run; adds its rate, and the CPU that it cost the orchestrator."""
        before = cpu_seconds(self.running)["orchestrator"]
        async with driver(self.running.url) as client:
            seconds = await client.finish(self.body)
        self.rates.append(NUMBER / seconds)
        self.costs.append((cpu_seconds(self.running)["orchestrator"] - before) * 1_000 / NUMBER)


def _idle(side: Side, seconds: float) -> float:
    """CPU seconds per second of a service that does nothing."""
    before = side.spent()
    asyncio.run(asyncio.sleep(seconds))
    return (side.spent() - before) / seconds


def figures() -> list[Figure]:
    """Starts the services and measures."""
    with ExitStack() as stack:
        sides = [
            Side(MEMORY, stack.enter_context(service(store_url="memory:"))),
            Side(SQLITE, stack.enter_context(service())),
        ]
        if binaries() is not None:
            url = stack.enter_context(new_database(stack.enter_context(server(fsync=True))))
            sides.append(Side(POSTGRESQL, stack.enter_context(service(store_url=url))))
        for side in sides:
            for _ in range(2):
                asyncio.run(side.run())
            side.rates.clear()
            side.costs.clear()
        idle = [_idle(side, 5.0) for side in sides]
        for number in range(ROUNDS):
            # Each is the first as often as the last.
            for side in sides if number % 2 else reversed(sides):
                asyncio.run(side.run())
    floor = sides[0]
    found = [Figure(f"{each.name}, tasks/s", each.rates, 0) for each in sides]
    found += [
        Figure(
            f"  {each.name}, of the rate in memory",
            ratios(each.rates, floor.rates),
            at_least=0.75 if each.name == SQLITE else None,
        )
        for each in sides[1:]
    ]
    found += [Figure(f"{each.name}: orchestrator, ms a task", each.costs) for each in sides]
    return [*found, Figure("an idle service, cores", idle)]


if __name__ == "__main__":
    show(figures())
