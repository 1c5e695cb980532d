"""Processes of a real service killed with SIGKILL in the middle of a run: nothing acknowledged is lost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import websockets.exceptions
import websockets.sync.client

from tests.running import INGRESS, ORCHESTRATOR, Service, running_service, wait_for
from tests.service.rest import Rest, inputs, outputs

#: Each task leaves a line for every time that it is run, and takes a moment.
STEP = """
import os, time

def step(params):
    with open(params["marks"], "a") as marks:
        marks.write(f"begin {params['n']}\\n")
    time.sleep(0.2)
    with open(params["marks"], "a") as marks:
        marks.write(f"end {params['n']}\\n")
    return {"out": params["n"], "large": bytes(200_000)}
"""
TASKS = 50


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    """A service of its own, as its processes are killed."""
    with running_service() as service:
        yield service


@pytest.fixture
def rest(service: Service) -> Iterator[Rest]:
    with Rest(service.url) as rest:
        yield rest


def workflow_of_50(rest: Rest, marks: Path) -> str:
    """Ten chains of five tasks; each task but the first of a chain takes a large value from the last."""
    workflow_id = rest.workflow()
    for chain in range(10):
        before = None
        for link in range(5):
            given: dict[str, Any] = {"n": chain * 5 + link, "marks": str(marks)}
            if before is not None:
                given["large"] = f"@{before}.large"
            before = rest.task(
                workflow_id,
                "step",
                STEP,
                task_input=inputs(**given),
                task_output=outputs("out", "large"),
                resources={"cpu": 0.5},
            )
    return workflow_id


class Subscriber:
    """Follows a run on the WebSocket and, when the connection breaks, goes on after the last message."""

    def __init__(self, rest: Rest, workflow_id: str, run_id: str) -> None:
        self.address = (
            f"{rest.url.replace('http', 'ws')}/get_workflow_res/{workflow_id}/{run_id}?after="
        )
        self.messages: list[dict[str, Any]] = []
        self.reconnects = -1

    def follow(self, at_message: Callable[[int], None]) -> None:
        """Until the last message; `at_message` is called with the number of messages seen."""

        def attempt() -> bool:
            self.reconnects += 1
            try:
                with websockets.sync.client.connect(
                    self.address + str(len(self.messages)), open_timeout=5
                ) as socket:
                    for text in socket:
                        self.messages.append(json.loads(text))
                        at_message(len(self.messages))
            except (OSError, websockets.exceptions.WebSocketException):
                return False
            return bool(self.messages) and self.messages[-1]["type"] == "finish_workflow"

        wait_for("the run's last message", attempt)


def check(
    subscriber: Subscriber, rest: Rest, run_id: str, marks: Path, *, untold_retries: int
) -> None:
    """What was seen live is what is stored; every task finished once; every rerun has its reason.

    `untold_retries` bounds the tasks that ran again without a message, as an orchestrator that died
    may not have stored that they had begun.
    """
    seqs = [message["data"]["seq"] for message in subscriber.messages]
    assert seqs == list(range(1, len(seqs) + 1))
    assert subscriber.messages[-1]["data"]["status"] == "succeeded"
    finished = Counter(
        message["data"]["result"]["out"]
        for message in subscriber.messages
        if message["type"] == "finish_task"
    )
    assert finished == Counter(range(TASKS))
    workflow_id = str(subscriber.messages[0]["data"]["workflow_id"])
    assert rest.messages(workflow_id, run_id) == subscriber.messages
    seen = rest.get(f"/runs/{run_id}")["run"]
    assert seen["last_seq"] == len(seqs)
    # A task may have begun more often than once, where its process died; but what a subscriber has
    # seen finish never begins again.
    begun = Counter(line for line in marks.read_text().split("\n") if line.startswith("begin"))
    retried = Counter(
        message["data"]["task_id"]
        for message in subscriber.messages
        if message["type"] == "task_retry"
    )
    assert all(begun[f"begin {n}"] >= 1 for n in range(TASKS))
    assert sum(begun.values()) - TASKS <= sum(retried.values()) + untold_retries


def finished_when(rest: Rest, run_id: str) -> set[str]:
    """The tasks that the service says have finished."""
    tasks = rest.get(f"/runs/{run_id}")["run"]["tasks"]
    return {task["task_id"] for task in tasks if task["state"] == "succeeded"}


def answers(rest: Rest) -> bool:
    try:
        rest.http.get("/healthz")
    except httpx.HTTPError:
        return False
    return True


def begun(marks: Path) -> Counter[str]:
    lines = marks.read_text().splitlines() if marks.exists() else []
    return Counter(line for line in lines if line.startswith("begin"))


def test_the_orchestrator_is_killed_in_the_middle_of_a_run(
    service: Service, rest: Rest, tmp_path: Path
) -> None:
    """The run finishes; no finished task runs twice; the subscriber sees every message once."""
    marks = tmp_path / "marks"
    workflow_id = workflow_of_50(rest, marks)
    run_id = rest.run(workflow_id)
    subscriber = Subscriber(rest, workflow_id, run_id)
    numbers: dict[str, int] = {}
    before: dict[int, int] = {}

    def kill_after_forty(seen: int) -> None:
        message = subscriber.messages[-1]
        if message["type"] == "finish_task":
            numbers[message["data"]["task_id"]] = message["data"]["result"]["out"]
        if seen == 40:
            service.kill(ORCHESTRATOR)
            counts = begun(marks)
            before.update({n: counts[f"begin {n}"] for n in numbers.values()})

    subscriber.follow(kill_after_forty)
    # What the two CPUs ran, at half a CPU a task, and what had just ended.
    check(subscriber, rest, run_id, marks, untold_retries=10)
    assert len(before) > 10
    after = begun(marks)
    assert {n: after[f"begin {n}"] for n in before} == before


def test_the_ingress_is_killed_in_the_middle_of_a_run(
    service: Service, rest: Rest, tmp_path: Path
) -> None:
    """Only connections break; nothing is run again."""
    marks = tmp_path / "marks"
    workflow_id = workflow_of_50(rest, marks)
    run_id = rest.run(workflow_id)
    subscriber = Subscriber(rest, workflow_id, run_id)
    subscriber.follow(lambda seen: service.kill(INGRESS) if seen == 10 else None)
    assert subscriber.reconnects >= 1
    check(subscriber, rest, run_id, marks, untold_retries=0)
    assert sum(begun(marks).values()) == TASKS


def test_workers_are_killed_in_the_middle_of_a_run(
    service: Service, rest: Rest, tmp_path: Path
) -> None:
    """What ran in them is told and run again."""
    marks = tmp_path / "marks"
    workflow_id = workflow_of_50(rest, marks)
    run_id = rest.run(workflow_id)
    subscriber = Subscriber(rest, workflow_id, run_id)

    killed = 0

    def kill_a_worker(seen: int) -> None:
        nonlocal killed
        # Whatever the number of messages, until two have been caught in the middle of a task.
        if seen >= 20 and killed < 2:
            for process in service.processes("ray::run_attempt"):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
                killed += 1
                break

    subscriber.follow(kill_a_worker)
    check(subscriber, rest, run_id, marks, untold_retries=0)
    assert killed == 2
    assert any(message["type"] == "task_retry" for message in subscriber.messages)


def test_the_whole_service_is_killed_and_started_again(
    service: Service, rest: Rest, tmp_path: Path
) -> None:
    """Workflows, finished runs and the run under way are all there, and that run goes on."""
    marks = tmp_path / "marks"
    workflow_id = workflow_of_50(rest, marks)
    done = rest.run(workflow_id)
    seen = rest.messages(workflow_id, done)
    run_id = rest.run(workflow_id)
    wait_for("a third of the run", lambda: len(finished_when(rest, run_id)) >= 16)
    finished = finished_when(rest, run_id)
    for process in [*service.processes(), psutil.Process(service.process.pid)]:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    service.process.wait()
    # Nothing is left that would answer in the service's name.
    wait_for("the port to be free", lambda: not answers(rest))
    service.start()
    assert len(rest.get(f"/get_workflow_tasks/{workflow_id}")["tasks"]) == TASKS
    assert rest.messages(workflow_id, done) == seen
    messages = rest.messages(workflow_id, run_id)
    assert messages[-1]["data"]["status"] == "succeeded"
    attempts = Counter(
        message["data"]["task_id"] for message in messages if message["type"] == "start_task"
    )
    assert all(attempts[task_id] == 1 for task_id in finished)
