"""Retries, deadlines, bounds and removal as users see them, on a service with small bounds that is killed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lattice import (
    DeadlineError,
    LangGraphClient,
    LatticeClient,
    RunFailedError,
    ServiceError,
    task,
)
from tests.files import files
from tests.running import ORCHESTRATOR, Service, running_service, wait_for
from tests.service.rest import Rest, inputs

#: Each begin of a task leaves a line; the task waits as long as a file is there.
WAITS = """
import os, time

def waits(params):
    with open(params["marks"], "a") as marks:
        marks.write("begin\\n")
    while os.path.exists(params["gate"]):
        time.sleep(0.05)
    return {"out": 1}
"""


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service of its own, as it is killed and has small bounds."""
    with running_service(
        max_live_runs=3, call_timeout=4.0, housekeeping_seconds=0.5, inline_value_bytes=1000
    ) as service:
        yield service


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    with Rest(service.url) as rest:
        yield rest


@pytest.fixture
def client(service: Service) -> Iterator[LatticeClient]:
    with LatticeClient(service.url, timeout=60) as client:
        yield client


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that tasks wait for to be gone; none waits any more after the test."""
    gate = tmp_path / "gate"
    gate.touch()
    yield gate
    gate.unlink(missing_ok=True)


def begun(marks: Path) -> int:
    return len(marks.read_text().splitlines()) if marks.exists() else 0


def waiting(rest: Rest, marks: Path, gate: Path, **fields: object) -> str:
    """A workflow of one task that waits for the gate."""
    workflow_id = rest.workflow()
    given = inputs(marks=str(marks), gate=str(gate))
    rest.task(workflow_id, "waits", WAITS, task_input=given, **fields)
    return workflow_id


def ended(rest: Rest, run_id: str) -> dict[str, Any]:
    """A run's description once it has ended."""
    found: dict[str, Any] = wait_for(
        "the end of the run",
        lambda: (run := rest.get(f"/runs/{run_id}")["run"])["status"] != "running" and run,
    )
    return found


def stored_files(service: Service) -> list[Path]:
    return files(service.config.parent / "data/values")


# -- retries of tasks --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("on", "tries"), [(["OSError"], 3), (["lookups.MissingError"], 1), (None, 3)]
)
def test_only_named_exceptions_are_tried_again(
    rest: Rest, on: list[str] | None, tries: int
) -> None:
    """By a base class that only the worker knows."""
    code = (
        "class LostError(ConnectionResetError):\n    pass\n\n"
        "def task(p):\n    raise LostError('gone')\n"
    )
    retry = {"max_attempts": 3, "backoff": 0.02} | ({} if on is None else {"on": on})
    failed = rest.outcome(code, retry=retry)
    assert failed["type"] == "task_exception"
    assert failed["data"]["attempt"] == tries
    assert set(failed["data"]["error"]) == {"type", "message", "traceback"}


def test_a_timeout_is_tried_again_by_its_name(rest: Rest, tmp_path: Path, gate: Path) -> None:
    marks = tmp_path / "marks"
    retry = {"max_attempts": 2, "backoff": 0.02, "on": ["TaskTimeoutError"]}
    run_id = rest.run(waiting(rest, marks, gate, timeout=4.0, retry=retry))
    assert ended(rest, run_id)["tasks"][0]["error"]["type"] == "TaskTimeoutError"
    assert begun(marks) == 2


# -- deadlines ---------------------------------------------------------------------------------


def test_a_deadline_ends_the_work_even_over_a_kill(
    service: Service, rest: Rest, tmp_path: Path, gate: Path
) -> None:
    """It is counted from the request; what runs is ended, and its resources are free again."""
    marks = tmp_path / "marks"
    workflow_id = waiting(rest, marks, gate, resources={"cpu": 2})
    began = time.time()
    body = {"workflow_id": workflow_id, "deadline": 40}
    run_id = rest.post("/run_workflow", body)["run_id"]
    wait_for("the task to begin", lambda: begun(marks))
    service.kill(ORCHESTRATOR)
    service.wait_until_ready()
    run = ended(rest, run_id)
    assert run["status"] == "failed"
    assert time.time() - began >= 40
    last = rest.messages(workflow_id, run_id)[-1]
    assert last["type"] == "finish_workflow"
    assert last["data"]["error"]["type"] == "DeadlineExceededError"
    # All CPUs that the machine may have: only where the ended task has let them go is there room.
    code = "def task(p):\n    return {'out': 1}\n"
    assert rest.outcome(code, resources={"cpu": 2})["type"] == "finish_task"


def test_the_sdk_says_that_a_deadline_passed(client: LatticeClient, gate: Path) -> None:
    path = str(gate)

    def wait() -> None:
        import os
        import time

        while os.path.exists(path):
            time.sleep(0.05)

    workflow = client.create_workflow()
    workflow.add_task(wait)
    with pytest.raises(RunFailedError, match="did not end by its deadline") as caught:
        workflow.run(deadline=2).result(timeout=60)
    assert caught.value.failures == ()


# -- retries and removal of runs ---------------------------------------------------------------


def test_a_failed_run_is_retried_and_the_first_deleted(
    service: Service, rest: Rest, client: LatticeClient, tmp_path: Path
) -> None:
    """Nothing that finished runs again; its large value outlives its run, and goes with the last."""
    marks, broken = tmp_path / "marks", tmp_path / "broken"
    broken.touch()
    where, flag = str(marks), str(broken)

    @task(outputs=["data"])
    def make() -> dict[str, bytes]:
        with open(where, "a") as file:
            file.write("begin\n")
        return {"data": bytes(100_000)}

    @task
    def use(data: bytes) -> int:
        import os

        if os.path.exists(flag):
            raise ValueError("broken")
        return len(data)

    before = set(stored_files(service))
    workflow = client.create_workflow()
    made = workflow.add_task(make)
    used = workflow.add_task(use, {"data": made})
    first = workflow.run()
    with pytest.raises(RunFailedError, match="broken"):
        first.result(timeout=60)
    broken.unlink()
    second = first.retry()
    assert second.result(timeout=60) == {
        "make": {"data": bytes(100_000)},
        "use": {"result": 100_000},
    }
    assert begun(marks) == 1
    assert second.report().retry_of == first.run_id
    with pytest.raises(ServiceError, match="has succeeded") as caught:
        second.retry()
    assert caught.value.status == 400

    first.delete()
    assert rest.http.get(f"/runs/{first.run_id}").status_code == 404
    third = rest.run(str(workflow.workflow_id))
    assert ended(rest, third)["status"] == "succeeded"
    assert client.run(second.run_id)[made] == {"data": bytes(100_000)}
    assert client.run(second.run_id)[used] == {"result": 100_000}

    assert rest.http.delete(f"/workflows/{workflow.workflow_id}/runs").json()["deleted"] == 2
    wait_for("the files to go", lambda: set(stored_files(service)) == before)


def test_a_running_run_is_neither_deleted_nor_retried(
    rest: Rest, tmp_path: Path, gate: Path
) -> None:
    run_id = rest.run(waiting(rest, tmp_path / "marks", gate))
    status, detail = rest.refused(f"/runs/{run_id}/retry", None)
    assert (status, "which is running" in detail) == (400, True)
    answer = rest.http.delete(f"/runs/{run_id}")
    assert (answer.status_code, "cancel it first" in answer.text) == (400, True)
    assert rest.refused("/runs/none/retry", None)[0] == 404
    assert rest.http.delete("/runs/none").status_code == 404
    for _ in range(2):
        assert rest.post(f"/runs/{run_id}/cancel")["run_status"] == "cancelled"
    assert rest.http.delete(f"/runs/{run_id}").json() == {"status": "success"}


# -- bounds ------------------------------------------------------------------------------------


def test_too_many_runs_are_refused_and_the_sdk_waits_for_room(
    rest: Rest, client: LatticeClient, tmp_path: Path, gate: Path
) -> None:
    """503 with Retry-After, and nothing half-done; the SDK's own request goes through in the end."""
    workflow_id = waiting(rest, tmp_path / "marks", gate, resources={"cpu": 0.1})
    runs = [rest.run(workflow_id) for _ in range(3)]
    answer = rest.http.post("/run_workflow", json={"workflow_id": workflow_id})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert "max_live_runs" in answer.json()["detail"]
    assert len(rest.get(f"/runs?workflow_id={workflow_id}")["runs"]) == 3

    workflow = client.create_workflow()
    workflow.add_task(lambda: 7, name="seven")
    with LatticeClient(rest.url, timeout=3) as hasty:
        impatient = hasty.create_workflow()
        impatient.add_task(lambda: 7)

        def refused() -> str | None:
            try:
                impatient.run()
            except DeadlineError:
                return None  # the answer was slow
            except ServiceError as error:
                return str(error)
            raise AssertionError("it was let in")

        assert "max_live_runs" in wait_for("the refusal", refused)
    threading.Timer(3, gate.unlink).start()
    assert workflow.run().result(timeout=60) == {"seven": {"result": 7}}
    assert all(ended(rest, run_id)["status"] == "succeeded" for run_id in runs)


def test_a_call_that_waits_too_long_for_resources_says_so(
    rest: Rest, service: Service, tmp_path: Path, gate: Path
) -> None:
    """504, not the 500 of a function that failed; the next call is answered."""
    run_id = rest.run(waiting(rest, tmp_path / "marks", gate, resources={"cpu": 2}))
    wait_for("the CPUs to be taken", lambda: begun(tmp_path / "marks"))
    with LangGraphClient(service.url) as graph:
        seven = graph.task(lambda: 7)
        with pytest.raises(ServiceError, match=r"call_timeout, 4 s.*free resources") as caught:
            seven()
        assert caught.value.status == 504
        rest.post(f"/runs/{run_id}/cancel")

        def answered() -> bool:
            try:
                return bool(seven() == 7)
            except ServiceError as error:
                if error.status != 504:
                    raise
                return False  # what was cancelled has not let go yet

        wait_for("the next call", answered)


# -- the SDK while the service is killed -------------------------------------------------------


def test_what_the_sdk_creates_while_the_orchestrator_is_killed_is_there_once(
    service: Service, rest: Rest
) -> None:
    """Every answer is of one workflow and one run; no request has made two."""
    made: list[tuple[str, str]] = []
    errors: list[BaseException] = []
    stop = threading.Event()
    before = {run["run_id"] for run in rest.get("/runs?limit=1000")["runs"]}

    def create() -> None:
        try:
            with LatticeClient(service.url, timeout=90) as client:
                while not stop.is_set():
                    workflow = client.create_workflow()
                    workflow.add_task(lambda: 1, name="one")
                    run = workflow.run()
                    made.append((run.workflow_id, run.run_id))
                    again = workflow.run()
                    made.append((again.workflow_id, again.run_id))
                    assert again.result(timeout=90) == {"one": {"result": 1}}
        except BaseException as error:
            errors.append(error)

    creator = threading.Thread(target=create)
    creator.start()
    for _ in range(3):
        seen = len(made)
        wait_for("requests to be answered", lambda seen=seen: errors or len(made) >= seen + 3)
        service.kill(ORCHESTRATOR)
    seen = len(made)
    wait_for("requests to be answered", lambda: errors or len(made) >= seen + 3)
    stop.set()
    creator.join(120)
    assert errors == []
    found = {run["run_id"]: run for run in rest.get("/runs?limit=1000")["runs"]}
    assert sorted(found.keys() - before) == sorted(run_id for _, run_id in made)
    assert len(set(made)) == len(made)
    assert all(found[run_id]["workflow_id"] == workflow_id for workflow_id, run_id in made)
