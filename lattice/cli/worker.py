"""`lattice worker`: makes this machine a worker of a service until it is told to stop.

It asks the service for the cluster's port, joins, and registers with what the machine has. Every few seconds it
looks whether the service still has it: a service that has lost it gets it anew, a node that was lost joins anew.
On Ctrl-C or SIGTERM it leaves: nothing new is placed here, what runs ends, then the node stops. A second one
does not wait for what runs: tasks of runs are run again elsewhere, calls of LangGraph nodes fail.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from lattice.cli.gpus import gpu_memories
from lattice.cli.options import Commands, add_url, client_of
from lattice.cli.ray_node import Asked, Joined, JoinError, RayNode
from lattice.client.errors import ConnectionFailedError, DeadlineError, ServiceError
from lattice.client.service import Service

#: Seconds between two looks at the service, and until a node that was lost joins again.
_HEARTBEAT = 5.0
_PAUSE = 5.0
#: Seconds after which all that was placed here has begun.
_SETTLE = 3.0
#: Seconds that the engine has to move what does nothing here.
_MOVE = 30.0
#: Seconds between looks whether anything runs.
_LOOK = 0.5

#: What the service says, or does not, while it is away for a while.
_AWAY = (ConnectionFailedError, DeadlineError, ServiceError)
#: What the service says of a worker that it does not have.
_UNKNOWN = 404


def add(commands: Commands[argparse.ArgumentParser]) -> None:
    """Says what the command takes."""
    parser = commands.add_parser(
        "worker",
        help="makes this machine a worker of a service, until Ctrl-C",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_url(parser, "--head")
    parser.add_argument("--num-cpus", type=float, help="CPUs to offer; by default all")
    parser.add_argument("--num-gpus", type=float, help="GPUs to offer; by default all")
    parser.add_argument(
        "--memory", type=float, help="MiB to offer; by default most of what is free"
    )
    parser.add_argument(
        "--node-ip-address", metavar="IP", help="this machine's own, if it has several"
    )
    parser.add_argument(
        "--grace",
        type=float,
        default=3600.0,
        metavar="SECONDS",
        help="how long running tasks may take to end when the worker leaves (default %(default)g)",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Works until a signal says to leave; 0 if it left in order."""
    asked = Asked(args.num_cpus, args.num_gpus, args.memory, args.node_ip_address)
    with client_of(args) as client, Leave() as leave:
        return Worker(client.service, asked, args.grace, leave).work()


class Leave:
    """How often this process was told to leave, by Ctrl-C or SIGTERM, inside a `with` block."""

    def __init__(self) -> None:
        self._asked = threading.Event()
        self._urgent = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Leave:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._hear)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        (self._urgent if self._asked.is_set() else self._asked).set()

    def asked(self, seconds: float = 0.0) -> bool:
        """Whether it was told so, within that many seconds from now."""
        return self._asked.wait(seconds)

    def urgently(self, seconds: float = 0.0) -> bool:
        """The same of the second time."""
        return self._urgent.wait(seconds)


class Worker:
    """This machine as a worker of `service`; `grace` is in seconds."""

    def __init__(self, service: Service, asked: Asked, grace: float, leave: Leave) -> None:
        self._service = service
        self._asked = asked
        self._grace = grace
        self._leave = leave
        self._status = ""

    def work(self) -> int:
        """Works until it is to leave; the exit status. Raises LatticeError if it cannot even begin."""
        first = True
        while not self._leave.asked():
            try:
                address = self._address()
                node = RayNode(address, self._asked)
                joined = node.join(self._leave.asked)
            except (*_AWAY, JoinError) as error:
                if first:
                    raise
                _say(f"not joined: {error}")
                self._leave.asked(_PAUSE)
                continue
            if joined is None:
                break
            first = False
            try:
                self._register(joined)
                if self._stay(node, joined, address):
                    return self._go(node, joined)
                _say(f"the cluster has lost this node; joining again in {_PAUSE:g} s")
            except _AWAY as error:
                _say(f"not registered: {error}")
            finally:
                node.stop()
            self._leave.asked(_PAUSE)
        return 0

    def _address(self) -> str:
        host = urlsplit(self._service.url).hostname or ""
        if ":" in host:
            host = f"[{host}]"
        return f"{host}:{self._service.head_port()}"

    def _register(self, joined: Joined) -> None:
        has = resources_of(joined)
        self._service.connect_worker(joined.node_id, joined.node_ip, has)
        gpus = ", ".join(f"{each.get('gpu_mem', '?')} MiB" for each in has["gpu_resource"].values())
        _say(
            f"{joined.node_id} at {joined.node_ip} is a worker of {self._service.url}: {joined.cpu:g} CPUs, "
            f"{joined.memory:.0f} MiB, {f'GPUs with {gpus}' if gpus else 'no GPU'}; Ctrl-C leaves"
        )
        self._status = "active"

    def _stay(self, node: RayNode, joined: Joined, address: str) -> bool:
        """Until it is to leave (True), or the cluster has lost the node, or the service has another cluster."""
        while not self._leave.asked(_HEARTBEAT):
            if not node.alive():
                return False
            try:
                self._look(joined)
                if self._status in ("waiting", "lost") and self._address() != address:
                    return False
            except _AWAY as error:
                self._note("unreachable", f"the service does not answer, the node stays: {error}")
        return True

    def _look(self, joined: Joined) -> None:
        """Compares what the service says of this node with what it is."""
        found = [each for each in self._service.workers() if each["node_id"] == joined.node_id]
        if not found or found[0]["status"] == "unregistered":
            # The service has another database than before.
            self._register(joined)
        elif found[0]["status"] == "disconnected":
            self._note("disconnected", "somebody has disconnected it: nothing new is placed here")
        else:
            self._note(found[0]["status"], f"it is {found[0]['status']}")

    def _note(self, status: str, words: str) -> None:
        if status != self._status:
            self._status = status
            _say(words)

    def _go(self, node: RayNode, joined: Joined) -> int:
        """Leaves: first nothing new comes, then what runs ends, or its time is over."""
        _say("leaving: what runs here may end first; once more to leave at once")
        told = self._tell(joined)
        end = time.monotonic() + self._grace
        # What was placed here at that moment begins, and the service hears of it.
        pause = _SETTLE
        while not self._leave.urgently(pause) and time.monotonic() < end and node.alive():
            pause = _LOOK
            if not told:
                told = self._tell(joined)
                pause = _SETTLE
            elif not self._runs_something(joined):
                # Not earlier: the engine may take a node that has work for one that is idle (seen), and ends it.
                self._drain(node)
                _say("left")
                return 0
        _say("left before everything had ended: what ran here is run again elsewhere, calls fail")
        return 1

    def _tell(self, joined: Joined) -> bool:
        """Has nothing new placed here; whether the service knows it now. Until then it goes on giving work."""
        try:
            self._service.disconnect_worker(joined.node_id, leaving=True)
        except _AWAY as error:
            if isinstance(error, ServiceError) and error.status == _UNKNOWN:
                return True
            self._note("untold", f"the service could not be told: {error}")
            return False
        return True

    def _runs_something(self, joined: Joined) -> bool:
        """Whether tasks run here. As long as the service does not say, they may."""
        try:
            found = [each for each in self._service.workers() if each["node_id"] == joined.node_id]
        except _AWAY as error:
            self._note("unreachable", f"the service does not answer, the node stays: {error}")
            return True
        return bool(found and found[0]["running"])

    def _drain(self, node: RayNode) -> None:
        """Gives replicas that have nothing to do the time to start elsewhere."""
        node.drain(_MOVE)
        end = time.monotonic() + _MOVE
        while node.alive() and time.monotonic() < end and not self._leave.urgently(_LOOK):
            pass


def resources_of(joined: Joined) -> dict[str, Any]:
    """What a node has, as `connect_worker` takes it."""
    memories = gpu_memories() if joined.gpu else {}
    # As many as the node offers, which may be fewer than the machine has.
    indexes = [*memories][: int(joined.gpu)] or [str(number) for number in range(int(joined.gpu))]
    gpus: dict[str, dict[str, Any]] = {}
    for index in indexes:
        gpus[index] = {"gpu_id": int(index), "gpu_num": 1}
        if index in memories:
            gpus[index]["gpu_mem"] = memories[index]
    return {"cpu": joined.cpu, "cpu_mem": round(joined.memory), "gpu_resource": gpus}


def _say(words: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {words}", file=sys.stderr, flush=True)
