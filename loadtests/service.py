"""What the benchmarks of the whole service share: one of its own, and what its processes cost."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from tests.running import INGRESS, ORCHESTRATOR, Service, running_service

#: What a command line begins with, and what its process is called here.
PARTS = {
    ORCHESTRATOR: "orchestrator",
    INGRESS: "ingress",
    "ray::ServeReplica:lattice-task": "replica",
}


@contextmanager
def service(*, beside: Sequence[Mapping[str, object]] = (), **settings: Any) -> Iterator[Service]:
    """The service as `make serve` starts it, in the environment that this process runs in.

    `beside` are further applications on its Serve, for floors on the same engine.
    """
    environment = Path(sys.executable).parent
    command = ("make", "-o", "setup", f"BIN={environment}", "serve")
    with running_service(command, beside, **settings) as running:
        yield running


def cpu_seconds(running: Service) -> dict[str, float]:
    """CPU seconds so far, by part of the service and of this process: the noise of others is not in them."""
    spent = dict.fromkeys([*PARTS.values(), "the rest of Ray"], 0.0)
    for process in running.processes():
        try:
            line = " ".join(process.cmdline())
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        part = next((name for start, name in PARTS.items() if line.startswith(start)), None)
        spent[part or "the rest of Ray"] += times.user + times.system
    own = psutil.Process().cpu_times()
    return {**spent, "this client": own.user + own.system}
