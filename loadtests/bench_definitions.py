"""What registering batched definitions costs beyond registering tasks that are not batched.

`python -m loadtests.bench_definitions` takes a minute. A definition is code of its own, added and saved over
the REST API of the real service. Warm-up is off: saving must not make Serve do anything.
"""

from __future__ import annotations

import time

from loadtests.bench import Figure, show
from loadtests.service import service
from tests.service.rest import Rest

NUMBER = 100
ROUNDS = 7
BATCH = {"enabled": True, "batch_size": 32, "batch_timeout": 0.01}


def register(rest: Rest, name: str, fields: dict[str, object]) -> float:
    """Milliseconds for a task, over a workflow of `NUMBER` with code of their own."""
    workflow_id = rest.workflow()
    begun = time.perf_counter()
    for number in range(NUMBER):
        source = f"def work(given):\n    return given\n# {name} {number}\n"
        rest.task(workflow_id, "work", source, **fields)
    return (time.perf_counter() - begun) * 1_000 / NUMBER


def figures() -> list[Figure]:
    """Starts a service and measures."""
    single: list[float] = []
    batched: list[float] = []
    with service(replica_warm_up=False) as running, Rest(running.url) as rest:
        register(rest, "warm-up", {})
        register(rest, "warm-up, batched", {"batch_config": BATCH})
        for number in range(ROUNDS):
            single.append(register(rest, f"single {number}", {}))
            batched.append(register(rest, f"batched {number}", {"batch_config": BATCH}))
    beyond = [own - floor for own, floor in zip(batched, single, strict=True)]
    return [
        Figure("a task that is not batched, ms", single, 1),
        Figure("a batched task, ms", batched, 1),
        Figure("  beyond one that is not, ms", beyond, 1, at_most=20),
    ]


if __name__ == "__main__":
    show(figures())
