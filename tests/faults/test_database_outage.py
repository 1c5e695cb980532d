"""The database of a real service goes away under load and comes back: clear 503s, and nothing is lost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import psycopg
import pytest

from lattice import LatticeClient, task
from tests.postgresql import PostgresqlServer, binaries
from tests.running import ORCHESTRATOR, Service, running_service, wait_for
from tests.service.rest import Rest, inputs

#: Leaves a line when it begins, and waits as long as a file is there.
WAITS = """
import os, time

def waits(params):
    with open(params["marks"], "a") as marks:
        marks.write(params["name"] + "\\n")
    while os.path.exists(params["gate"]):
        time.sleep(0.05)
    return {"out": 1}
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresqlServer]:
    """A server that tests stop and start."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed (initdb, postgres)")
    server = PostgresqlServer(programs)
    try:
        server.start()
        with psycopg.connect(
            f"host={server.folder} user=lattice dbname=postgres", autocommit=True
        ) as connection:
            connection.execute("CREATE DATABASE outage")
        yield server
        server.stop()
    finally:
        server.remove()


@pytest.fixture(scope="module")
def service(server: PostgresqlServer) -> Iterator[Service]:
    with running_service(store_url=server.url("outage")) as service:
        yield service


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    with Rest(service.url) as rest:
        yield rest


def refusal(service: Service) -> httpx.Response | None:
    """The answer to a request that needs the database, if it is that there is none."""
    answer = httpx.post(f"{service.url}/create_workflow", timeout=60)
    return answer if "database" in answer.text else None


def chain(rest: Rest, marks: Path, gate: Path) -> str:
    """A run of two tasks, of which the first waits."""
    workflow_id = rest.workflow()
    given = {"marks": str(marks), "gate": str(gate)}
    first = rest.task(workflow_id, "waits", WAITS, task_input=inputs(name="first", **given))
    second = rest.task(workflow_id, "waits", WAITS, task_input=inputs(name="second", **given))
    edge = {"workflow_id": workflow_id, "source_task_id": first, "target_task_id": second}
    rest.post("/add_edge", edge)
    run_id = rest.run(workflow_id)
    wait_for("the first task", marks.exists)
    return run_id


def test_the_database_goes_and_comes_back(
    service: Service, server: PostgresqlServer, rest: Rest, tmp_path: Path
) -> None:
    """What ran goes on and counts, what would begin waits, whoever asks is told, by the same process."""
    marks, gate = tmp_path / "marks", tmp_path / "gate"
    gate.touch()
    run_id = chain(rest, marks, gate)
    [orchestrator] = service.processes(ORCHESTRATOR)
    server.stop()
    answer = wait_for("a refusal", lambda: refusal(service))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "Idempotency-Key" in answer.json()["detail"]
    assert httpx.get(f"{service.url}/readyz", timeout=60).status_code == 503
    assert httpx.get(f"{service.url}/runs/{run_id}", timeout=60).status_code == 503
    gate.unlink()
    # The SDK asks again until there is an answer.
    found: list[object] = []

    @task
    def one() -> int:
        return 1

    def use() -> None:
        with LatticeClient(service.url, timeout=120) as client:
            workflow = client.create_workflow()
            last = workflow.add_task(one)
            run = workflow.run()
            run.result()
            found.append(run.output(last))

    user = Thread(target=use)
    user.start()
    time.sleep(3)  # The first task ends meanwhile.
    assert marks.read_text().split() == ["first"]
    server.start()
    user.join(120)
    assert found == [{"result": 1}]
    assert wait_for("the run", lambda: ended(service, run_id)) == "succeeded"
    assert Counter(marks.read_text().split()) == {"first": 1, "second": 1}
    assert service.processes(ORCHESTRATOR) == [orchestrator]


def test_the_orchestrator_dies_while_the_database_is_away(
    service: Service, server: PostgresqlServer, rest: Rest, tmp_path: Path
) -> None:
    """The next one says why it cannot help, and goes on with every run when the database is back."""
    marks, gate = tmp_path / "marks", tmp_path / "gate"
    gate.touch()
    run_id = chain(rest, marks, gate)
    server.stop()
    service.kill(ORCHESTRATOR)
    answer = wait_for("a refusal", lambda: refusal(service))
    assert answer.status_code == 503
    server.start()
    gate.unlink()
    assert wait_for("the run", lambda: ended(service, run_id)) == "succeeded"
    assert Counter(marks.read_text().split())["second"] == 1


def ended(service: Service, run_id: str) -> str | None:
    """The status of a run, once it has ended."""
    answer = httpx.get(f"{service.url}/runs/{run_id}", timeout=60)
    status = None if answer.status_code == 503 else str(answer.json()["run"]["status"])
    return None if status == "running" else status
