"""A rolling re-deploy of the service while clients work: they notice nothing."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator

import httpx
import psutil
import pytest

from deployments.ingress import _CALL_SECONDS
from lattice import LatticeClient, task
from lattice.client.events import FinishTask, FinishWorkflow, StartTask
from tests.running import (
    INGRESS,
    ORCHESTRATOR,
    PATIENCE,
    Service,
    redeployed,
    running_service,
    wait_for,
)

CLIENTS = 3
INGRESS_REPLICAS = 2


@task(resources={"cpu": 0.2})
def double(x: int) -> int:
    import time

    time.sleep(0.2)
    return 2 * x


@pytest.fixture
def service() -> Iterator[Service]:
    """A service of its own with several ingress replicas."""
    with running_service(ingress_replicas=INGRESS_REPLICAS) as service:
        yield service


class Load(threading.Thread):
    """Asks things of a service until it is told to stop; counts what it has done, and notes what went wrong."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._stop_asked = stop
        self.done = 0
        self.problems: list[str] = []


class Client(Load):
    """Runs one workflow after the other by the SDK. `problems` are what a user of it would have seen."""

    def run(self) -> None:
        with LatticeClient(self._url, timeout=PATIENCE) as client:
            while not self._stop_asked.is_set():
                try:
                    self._one(client)
                except Exception:
                    self.problems.append(traceback.format_exc())
                    return
                self.done += 1

    def _one(self, client: LatticeClient) -> None:
        workflow = client.create_workflow()
        first = workflow.add_task(double, inputs={"x": self.done}, name="first")
        last = workflow.add_task(double, inputs={"x": first.outputs["result"]}, name="last")
        run = workflow.run()
        events = [*run.events(timeout=2 * PATIENCE)]
        assert [event.seq for event in events] == [*range(1, len(events) + 1)], events
        assert isinstance(events[-1], FinishWorkflow)
        assert events[-1].status == "succeeded", events
        ended = [event.task for event in events if isinstance(event, FinishTask)]
        assert ended == ["first", "last"], events
        # What has finished never begins again.
        begun = [event.task for event in events if isinstance(event, StartTask | FinishTask)]
        assert "first" not in begun[begun.index("last") :], events
        assert run.output(last) == {"result": 4 * self.done}


class Prober(Load):
    """Sends requests one by one, each once: `problems` are those that were not answered as they should be."""

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=PATIENCE) as http:
            while not self._stop_asked.wait(0.05):
                asked = time.monotonic()
                try:
                    answer = http.get("/healthz") if self.done % 2 else http.get("/runs?limit=1")
                except httpx.HTTPError as error:
                    self.problems.append(repr(error))
                else:
                    # Where the next orchestrator takes longer than that to come, which is said, nothing is lost.
                    late = answer.status_code == 503 and time.monotonic() - asked >= _CALL_SECONDS
                    if answer.status_code != 200 and not late:
                        self.problems.append(f"{answer.status_code} {answer.text[:200]}")
                self.done += 1


def pids(service: Service) -> set[int]:
    found: list[psutil.Process] = [*service.processes(ORCHESTRATOR), *service.processes(INGRESS)]
    return {process.pid for process in found}


def test_a_redeploy_under_load_loses_no_request_and_no_run(service: Service) -> None:
    """Every process of the service is replaced, twice; no client gets an error, and every run its results."""
    stop = threading.Event()
    clients = [Client(service.url, stop) for _ in range(CLIENTS)]
    prober = Prober(service.url, stop)
    everyone = [*clients, prober]
    for each in everyone:
        each.start()

    def more(number: int) -> None:
        """Waits until each client has done so many more runs."""
        wanted = [client.done + number for client in clients]
        wait_for(
            "more runs",
            lambda: (
                any(client.problems for client in clients)
                or all(client.done >= least for client, least in zip(clients, wanted, strict=True))
            ),
        )

    more(2)
    for number in (1, 2):
        before = pids(service)
        assert len(before) == 1 + INGRESS_REPLICAS
        with redeployed(service, max_tasks_per_workflow=700 + number):
            wait_for(
                "all processes to be replaced",
                lambda before=before: (
                    not before & (now := pids(service)) and len(now) == 1 + INGRESS_REPLICAS
                ),
                patience=3 * PATIENCE,
            )
            more(3)
    stop.set()
    for each in everyone:
        each.join(2 * PATIENCE)
    assert [problem for client in clients for problem in client.problems] == []
    assert prober.problems == []
    assert prober.done > 50
