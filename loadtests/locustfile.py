"""What users of a service do, for Locust: each kind starts runs and follows them, or follows those of others.

`make loadtest` (`loadtests.load`) runs it against a service of its own and checks the limits; against another,
`locust -f loadtests/locustfile.py --host http://127.0.0.1:8000`. Beside HTTP requests it records `run` for each
kind of run, from its request to its last message, and `listen` for followers of other users' runs. One that
misses a message, gets one twice or out of order, or sees a run fail, is a failure. With `--ledger FILE` each run
that was accepted, and each that was followed to its end, becomes a line there.
"""

from __future__ import annotations

import json
import random
import socket
import time
import uuid
from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import count, cycle, islice
from typing import Any, TextIO

import gevent
from locust import HttpUser, User, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.stats import CSV_STATS_INTERVAL_SEC
from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.protocol import State
from websockets.uri import parse_uri

import lattice
from lattice.client.subscription import socket_url
from tests.service.rest import inputs, outputs

#: Seconds after which a run that does not end counts as lost: far more than any takes.
PATIENCE = 180.0
DEEP, WIDE, BATCHED = 50, 200, 10

STEP = "def step(params):\n    return {'out': params.get('x', 0)}\n"
BATCH = "def infer(batch):\n    return [{'out': params['x'] * 2} for params in batch]\n"

# -- runs --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Accepted:
    """A run that the service has accepted, of so many tasks."""

    workflow_id: str
    run_id: str
    tasks: int


class Ledger:
    """The runs that were accepted: those under way, and the latest of those that were followed to the end."""

    def __init__(self) -> None:
        self.live: dict[str, Accepted] = {}
        self.ended: deque[Accepted] = deque(maxlen=1_000)
        self._file: TextIO | None = None

    def open(self, path: str) -> None:
        """Writes what comes to that file, too."""
        self._file = open(path, "w", buffering=1)  # noqa: SIM115  # as long as the process

    def accept(self, run: Accepted) -> None:
        """The service has accepted a run."""
        self.live[run.run_id] = run
        self._write("accepted", run)

    def end(self, run: Accepted) -> None:
        """Who started it has seen its end."""
        self.ended.append(self.live.pop(run.run_id))
        self._write("ended", run)

    def _write(self, what: str, run: Accepted) -> None:
        if self._file is not None:
            self._file.write(f"{what} {run.run_id}\n")


LEDGER = Ledger()


@events.init_command_line_parser.add_listener
def _add_arguments(parser: LocustArgumentParser) -> None:
    parser.add_argument("--ledger", default="", help="file for the ids of accepted and ended runs")


@events.init.add_listener
def _open_ledger(environment: Environment, **_: object) -> None:
    if environment.parsed_options is not None and environment.parsed_options.ledger:
        LEDGER.open(environment.parsed_options.ledger)


@events.quitting.add_listener
def _finish_files(**_: object) -> None:
    # Locust writes its CSV files once a second, and not once more at the end.
    gevent.sleep(2 * CSV_STATS_INTERVAL_SEC)


# -- following ---------------------------------------------------------------------------------


class Told:
    """What a follower of a run has been told; raises where that is not each message once and in order."""

    def __init__(self, run: Accepted) -> None:
        self.seq = 0
        self._run = run
        self._finished: Counter[str] = Counter()
        self._status: str | None = None

    def take(self, kind: str, data: Mapping[str, Any]) -> None:
        """The next message."""
        where = f"run {self._run.run_id}: message {data['seq']}, {kind}, came"
        if self._status is not None:
            raise AssertionError(f"{where} after finish_workflow")
        if data["seq"] != self.seq + 1:
            raise AssertionError(f"{where} after message {self.seq}")
        self.seq += 1
        if kind == "finish_task":
            self._finished[data["task_id"]] += 1
        elif kind == "finish_workflow":
            self._status = data["status"]

    def take_all(self, frames: Iterable[str | bytes]) -> None:
        """Messages as JSON, until the service ends the stream."""
        for text in frames:
            message = json.loads(text)
            self.take(message["type"], message["data"])

    def check_end(self) -> None:
        """There is nothing more: the run has succeeded, and each task has told its end once."""
        where = f"run {self._run.run_id}: after message {self.seq}"
        if self._status != "succeeded":
            raise AssertionError(f"{where} it ended as {self._status}")
        if len(self._finished) != self._run.tasks or set(self._finished.values()) != {1}:
            raise AssertionError(
                f"{where} {self._finished.total()} of {self._run.tasks} tasks had ended"
            )


def frames(host: str, run: Accepted, after: int = 0) -> Generator[bytes, None, None]:
    """The messages of a run over a WebSocket, until the service closes it as complete.

    Without the thread of the library's own client: closed from one greenlet while another waits on it, a socket
    brings gevent's event loop down.
    """
    address = socket_url(host, f"/get_workflow_res/{run.workflow_id}/{run.run_id}")
    protocol = ClientProtocol(parse_uri(f"{address}?after={after}"), max_size=None)
    text = b""
    with closing(socket.create_connection((protocol.uri.host, protocol.uri.port), 60)) as carrier:
        carrier.settimeout(PATIENCE)
        protocol.send_request(protocol.connect())
        while protocol.state is not State.CLOSED:
            for data in protocol.data_to_send():
                if data:
                    carrier.sendall(data)
            received = carrier.recv(65_536)
            if received:
                protocol.receive_data(received)
            else:
                protocol.receive_eof()
            for event in protocol.events_received():
                if isinstance(event, Frame) and event.opcode in (Opcode.TEXT, Opcode.CONT):
                    text += event.data
                    if event.fin:
                        yield text
                        text = b""
    if protocol.handshake_exc is not None:
        raise protocol.handshake_exc
    if protocol.close_code != 1000:
        raise ConnectionError(f"closed with {protocol.close_code}: {protocol.close_reason}")


@contextmanager
def recorded(environment: Environment, kind: str, name: str) -> Iterator[None]:
    """Tells Locust how long something took and whether it failed; the user goes on in any case."""
    begun = time.perf_counter()
    failure: Exception | None = None
    try:
        with gevent.Timeout(PATIENCE, TimeoutError(f"no end within {PATIENCE:g} s")):
            yield
    except Exception as error:
        failure = error
    environment.events.request.fire(
        request_type=kind,
        name=name,
        response_time=(time.perf_counter() - begun) * 1_000,
        response_length=0,
        exception=failure,
        context={},
    )


# -- users who start runs ----------------------------------------------------------------------


def step(number: int, code: str = STEP, *, after: int | None = None, **fields: object) -> Any:
    """A task for `/submit_workflow`, which takes the output of the task number `after`."""
    return {
        "task_id": f"t{number}",
        "task_name": code.split("(")[0].removeprefix("def "),
        "code_str": code,
        "task_input": inputs(x=number if after is None else f"@t{after}.out"),
        "task_output": outputs("out"),
        "resources": {"cpu": 0.5},
        **fields,
    }


class Runner(HttpUser):
    """Runs one graph again and again: as a workflow that is kept, or a new one each time."""

    abstract = True
    wait_time = between(0.1, 1.0)
    kind = ""
    graph: Sequence[Any] = ()
    is_kept = True

    def on_start(self) -> None:
        self._workflow_id: str | None = None

    @task
    def one_run(self) -> None:
        """One run, to its last message."""
        with recorded(self.environment, "run", self.kind):
            run = self._begin()
            LEDGER.accept(run)
            told = Told(run)
            told.take_all(self.follow(run))
            told.check_end()
            LEDGER.end(run)

    def _begin(self) -> Accepted:
        if self._workflow_id is None:
            document = self._post("/submit_workflow", {"tasks": self.graph})
            workflow_id = document["workflow_id"]
            self._workflow_id = workflow_id if self.is_kept else None
        else:
            workflow_id = self._workflow_id
            document = self._post("/run_workflow", {"workflow_id": workflow_id})
        return Accepted(workflow_id, document["run_id"], len(self.graph))

    def _post(self, path: str, body: object) -> Any:
        headers = {"Idempotency-Key": str(uuid.uuid4())}
        answer = self.client.post(path, json=body, headers=headers, timeout=PATIENCE)
        answer.raise_for_status()
        return answer.json()

    def follow(self, run: Accepted) -> Iterator[str | bytes]:
        """The run's messages."""
        return frames(str(self.environment.host), run)


class ShortRun(Runner):
    """A new workflow of three tasks each time, followed by server-sent events."""

    weight = 3
    kind = "short"
    graph = (step(0), step(1, after=0), step(2, after=1))
    is_kept = False

    def follow(self, run: Accepted) -> Iterator[str | bytes]:
        path = f"/runs/{run.run_id}/events"
        with closing(
            self.client.get(path, name="/runs/ID/events", stream=True, timeout=PATIENCE)
        ) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith(b"event: error"):
                    raise AssertionError(f"run {run.run_id}: the stream of events broke off")
                if line.startswith(b"data: "):
                    yield line.removeprefix(b"data: ")


class DeepDag(Runner):
    """A chain."""

    weight = 1
    kind = "deep"
    graph = tuple(step(n, after=n - 1 if n else None) for n in range(DEEP))


class WideDag(Runner):
    """One task, and many that take its output."""

    weight = 1
    kind = "wide"
    graph = (step(0), *(step(n, after=0) for n in range(1, WIDE + 1)))


class BatchedInference(Runner):
    """Calls of one batched task, which those of all such users share batches with."""

    weight = 2
    kind = "batched"
    graph = tuple(
        step(
            n,
            BATCH,
            resources={"cpu": 0.1},
            batch_config={"enabled": True, "batch_size": 32, "batch_timeout": 0.01},
        )
        for n in range(BATCHED)
    )


@lattice.task(
    resources={"cpu": 0.5},
    # So many attempts that they never all fail.
    retry={"max_attempts": 50, "backoff": 0.01, "max_backoff": 0.1, "on": ["OSError"]},
)
def unreliable(x: int) -> int:
    """Fails once in five times."""
    if random.random() < 0.2:
        raise OSError("try again")
    return x


@lattice.task(resources={"cpu": 0.5})
def doubled(x: int) -> int:
    """Twice that."""
    return 2 * x


class SdkUser(User):
    """A program that uses the SDK: runs with tasks that are tried again, and results that are fetched."""

    weight = 1
    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        self._client = lattice.LatticeClient(str(self.environment.host), timeout=PATIENCE)

    def on_stop(self) -> None:
        self._client.close()

    @task
    def one_run(self) -> None:
        """One run, its events and its result."""
        with recorded(self.environment, "run", "SDK"):
            x = random.randrange(1_000)
            workflow = self._client.create_workflow()
            first = workflow.add_task(unreliable, inputs={"x": x})
            second = workflow.add_task(doubled, inputs={"x": first.outputs["result"]})
            started = workflow.run()
            run = Accepted(started.workflow_id, started.run_id, 2)
            LEDGER.accept(run)
            told = Told(run)
            for event in started.events():
                told.take(KINDS.get(type(event), "other"), event.data)
            told.check_end()
            found = started.output(second)
            assert found == {"result": 2 * x}, found
            LEDGER.end(run)


#: Types of messages, by the SDK's name.
KINDS: Mapping[type, str] = {
    lattice.FinishTask: "finish_task",
    lattice.FinishWorkflow: "finish_workflow",
}

# -- users who listen --------------------------------------------------------------------------


class Listener(User):
    """Follows runs of others over WebSockets: while they go on, after their end, and with an interruption."""

    weight = 2
    wait_time = between(0.05, 0.5)

    _listeners = count()

    def on_start(self) -> None:
        # In turn, beginning with another each, so that each has its share however short the test is.
        kinds = ("early", "resumed", "late")
        first = next(Listener._listeners) % len(kinds)
        self._turns = cycle(kinds[first:] + kinds[:first])

    @task
    def listen(self) -> None:
        """One run, to its last message."""
        name = next(self._turns)
        runs = LEDGER.ended if name == "late" else LEDGER.live.values()
        while not runs:
            gevent.sleep(0.05)
        run = random.choice([*runs])
        told = Told(run)
        host = str(self.environment.host)
        with recorded(self.environment, "listen", name):
            if name == "resumed":
                with closing(frames(host, run)) as first:
                    told.take_all(islice(first, random.randint(1, run.tasks)))
            told.take_all(frames(host, run, told.seq))
            told.check_end()
