"""A campaign: a service under load whose processes are killed, and the verdict in the end."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from lattice import Event, LatticeClient
from tests.faults.campaign import marks, store
from tests.faults.campaign.checker import Verdict, check
from tests.faults.campaign.load import PATIENCE, Client
from tests.faults.campaign.node import Node
from tests.faults.campaign.notes import Notes, RunNotes
from tests.faults.campaign.victims import NODE, SERVICE, UNTOLD, Step, Victims, plan
from tests.running import Service, running_service, wait_for

#: Clients at work; each has one run under way at a time.
CLIENTS = 6


@dataclass(slots=True)
class Kill:
    """A kill at `at`. Recovery is in seconds from there; None where nobody waited for it.

    Attributes:
        in_flight: runs that had been accepted and had not ended, as clients knew.
        answered: until a request that creates something, sent after the kill, was answered.
        goes_on: until each of those runs had told something that happened after the kill.
        took_along: the orchestrator died of it too.
    """

    kind: str
    at: float
    in_flight: int
    answered: float | None = None
    goes_on: float | None = None
    took_along: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a campaign: `runs` that were accepted, `messages` seen, `calls` of tasks, `seconds` it took."""

    kills: Sequence[Kill]
    verdict: Verdict
    runs: int
    messages: int
    calls: int
    seconds: float


class Campaign:
    """One campaign on a service that is ready."""

    def __init__(self, service: Service, seed: int, say: Callable[[str], None]) -> None:
        self._service = service
        self._seed = seed
        self._say = say
        self._folder = service.config.parent
        self._notes = Notes()
        self._node = Node(service, self._notes)
        self._victims = Victims(service, self._node, seed)
        self._http = httpx.Client(base_url=service.url, timeout=2)
        self._kills: list[Kill] = []
        self._orchestrators: set[int] = set()
        # The load and other kills go on while a node joins.
        self._joining = ThreadPoolExecutor(1, "joining")
        self._joined = self._joining.submit(self._node.join)

    def run(self, kills: int) -> Result:
        """Kills as planned, waits until every run has ended, and checks."""
        began = time.monotonic()
        stop = threading.Event()
        file = self._folder / "marks"
        clients = [
            Client(self._service.url, file, self._notes, f"{self._seed}-{number}", stop)
            for number in range(CLIENTS)
        ]
        try:
            for client in clients:
                client.start()
            wait_for("a first run", lambda: any(run.ended for run in self._notes.runs))
            for step in plan(kills, self._seed):
                if self._victims.there(step.kind):
                    self._strike(step)
            stop.set()
            end = time.monotonic() + PATIENCE
            for client in clients:
                client.join(max(0.0, end - time.monotonic()))
            self._joined.result()
            self._look_for_orchestrators()
            verdict = check(
                self._notes,
                store.read(self._folder / "data" / "lattice.db"),
                marks.read(file),
                self._read_again(),
                [kill.at for kill in self._kills if kill.kind in UNTOLD or kill.took_along],
            )
        finally:
            stop.set()
            self._joining.shutdown(cancel_futures=True)
            self._node.kill()
            self._http.close()
        return Result(
            self._kills,
            verdict,
            len(self._notes.runs),
            sum(len(run.seen) for run in self._notes.runs),
            sum(mark.moment == "begin" for mark in marks.read(file)),
            time.monotonic() - began,
        )

    def _strike(self, step: Step) -> None:
        if step.kind in (NODE, SERVICE):
            self._joined.result()
        time.sleep(step.pause)
        self._look_for_orchestrators()
        flying = self._notes.in_flight()
        kill = Kill(step.kind, self._victims.kill(step.kind), len(flying))
        self._kills.append(kill)
        if step.kind == SERVICE:
            self._restart()
        if step.waits:
            self._recover(kill, flying)
        if step.kind in (NODE, SERVICE):
            self._joined = self._joining.submit(self._node.join)
        self._say(str(kill))

    def _restart(self) -> None:
        """As a supervisor does: on a busy machine the engine may need more than one try."""
        for tries_left in (2, 1, 0):
            try:
                self._service.start()
                return
            except AssertionError as error:
                if not tries_left:
                    raise
                self._say(f"the service does not start: {error}"[:500])
                self._victims.kill(SERVICE)

    def _look_for_orchestrators(self) -> None:
        """Notes on the last kill that an orchestrator has died since, of which it was not the victim."""
        before, self._orchestrators = self._orchestrators, self._victims.orchestrators()
        if before - self._orchestrators and self._kills and self._kills[-1].kind not in UNTOLD:
            self._kills[-1].took_along = True

    def _recover(self, kill: Kill, flying: Sequence[RunNotes]) -> None:
        end = time.monotonic() + PATIENCE
        # Not by the SDK, whose pauses between tries would be measured too.
        key = {"idempotency-key": str(uuid.uuid4())}
        while kill.answered is None and time.monotonic() < end:
            try:
                answer = self._http.post("/create_workflow", headers=key)
                if answer.status_code == 200:
                    kill.answered = time.time() - kill.at
                    self._notes.workflows.append(answer.json()["workflow_id"])
            except httpx.HTTPError:
                time.sleep(0.02)
        while not all(run.goes_on_since(kill.at) for run in flying):
            if time.monotonic() >= end:
                silent = [run.run_id for run in flying if not run.goes_on_since(kill.at)]
                self._notes.errors.append(f"no message of {silent} since {kill}")
                return
            time.sleep(0.02)
        if flying:
            kill.goes_on = max(run.went_on(kill.at) - kill.at for run in flying)

    def _read_again(self) -> dict[str, list[Event]]:
        """The messages of every run, as somebody gets them who comes when all is over."""
        with LatticeClient(self._service.url, timeout=PATIENCE) as client:
            return {
                run.run_id: list(client.run(run.run_id).events(timeout=PATIENCE))
                for run in self._notes.runs
                if run.ended is not None and not run.deleted
            }


def run(kills: int, seed: int, say: Callable[[str], None] = lambda text: None) -> Result:
    """A campaign on a service of its own."""
    with running_service() as service:
        return Campaign(service, seed, say).run(kills)
