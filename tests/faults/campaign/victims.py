"""The kinds of processes that are killed, how each is found, and in which order."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from tests.faults.campaign.node import Node
from tests.running import INGRESS, ORCHESTRATOR, Service, wait_for

#: Kinds of single processes: what is found in the command line, and how often it is killed in a round.
PROCESSES = {
    "orchestrator replica": (ORCHESTRATOR, 4),
    "ingress replica": (INGRESS, 3),
    "task replica": ("ray::ServeReplica:lattice-task", 3),
    "worker that runs a task": ("ray::run_attempt", 4),
    "mailbox of starts": ("ray::Mailbox", 1),
    "Serve controller": ("ray::ServeController", 2),
    "HAProxy": ("/lattice-haproxy -db ", 2),
    "HAProxy's manager": ("ray::HAProxyManager", 1),
    "Serve proxy": ("ray::ProxyActor", 1),
}
NODE = "second node, whole"
SERVICE = "whole service, every process"
#: Nothing is killed, to see what the measurement of a recovery says then.
NOTHING = "(nothing, for comparison)"

#: What may make a task begin again without a message: its start, or its end, was not stored yet; or a replica
#: died before it could say what had begun. Deaths of workers are always told.
UNTOLD = frozenset(("orchestrator replica", "task replica", NODE, SERVICE))

_ROUND = [
    *(kind for kind, (_, times) in PROCESSES.items() for _ in range(times)),
    NODE,
    NODE,
    SERVICE,
    NOTHING,
]
#: Seconds until a process of the kind must have been found.
_PATIENCE = 180.0


@dataclass(frozen=True, slots=True)
class Step:
    """A kill, `pause` seconds after the last one is over; unless `waits`, it is over at once.

    So some kills meet a service that has not recovered from the last.
    """

    kind: str
    pause: float
    waits: bool


def plan(kills: int, seed: int) -> Iterator[Step]:
    """So many kills, and looks without one: every kind in each round, in an order drawn from `seed`."""
    chance = random.Random(seed)
    done = 0
    while True:
        for kind in chance.sample(_ROUND, len(_ROUND)):
            yield Step(kind, chance.uniform(0.0, 2.0), kind == NOTHING or chance.random() > 0.2)
            done += kind != NOTHING
            if done == kills:
                return


class Victims:
    """Finds and kills processes of a service and of its second node."""

    def __init__(self, service: Service, node: Node, seed: int) -> None:
        self._service = service
        self._node = node
        self._chance = random.Random(seed)
        self._haproxy = bool(self._find("HAProxy"))

    def there(self, kind: str) -> bool:
        """Whether such processes belong to this service: HAProxy is not everywhere."""
        return self._haproxy or not kind.startswith("HAProxy")

    def kill(self, kind: str) -> float:
        """Kills one process of the kind, or all of what it stands for; when that was."""
        at = time.time()
        if kind == NODE:
            self._node.kill()
        elif kind == SERVICE:
            self._node.kill()
            self._kill_service()
        elif kind != NOTHING:
            at = self._kill_one(kind)
        return at

    def orchestrators(self) -> set[int]:
        """The process ids of orchestrator replicas."""
        return {process.pid for process in self._find("orchestrator replica")}

    def _kill_one(self, kind: str) -> float:
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            found = self._find(kind)
            if found:
                at = time.time()
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._chance.choice(found).kill()
                    return at
            time.sleep(0.02)
        raise AssertionError(f"there was no {kind} to kill within {_PATIENCE:g} s")

    def _find(self, kind: str) -> list[psutil.Process]:
        text, _ = PROCESSES[kind]
        found = []
        for process in [*self._service.processes(), *self._node.processes()]:
            with contextlib.suppress(psutil.NoSuchProcess):
                if text in " ".join(process.cmdline()):
                    found.append(process)
        return found

    def _kill_service(self) -> None:
        """Kills all processes, also what they start meanwhile: a new service would take one for a live cluster."""
        for process in [*self._service.processes(), psutil.Process(self._service.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self._service.process.wait()
        wait_for("the last process of the service", lambda: not self._kill_rest())

    def _kill_rest(self) -> bool:
        """Kills what still names the service's folder; whether there was anything."""
        folder, found = str(self._service.config.parent), False
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if folder in " ".join(process.cmdline()):
                    process.kill()
                    found = True
        return found
