"""Replicas in the middle of batches: killed, outliving the service's versions and crashes, stopped with it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.running import INGRESS, ORCHESTRATOR, Service, redeployed, running_service, wait_for
from tests.service.rest import Rest, inputs

REPLICA = "ray::ServeReplica:lattice-task"
#: Begins a batch by a mark and ends it when it may.
BATCHED = """
import pathlib, time

def work(batch):
    folder = pathlib.Path(batch[0]["folder"])
    (folder / f"began-{time.time_ns()}").touch()
    while not (folder / "go").exists():
        time.sleep(0.01)
    return [{"out": params["x"] * 2} for params in batch]
"""
RUNS = 12
#: Of another definition, and its batches end by themselves.
SHARED = """
import time

def work(batch):
    time.sleep(0.2)
    return [{"out": params["x"] * 2} for params in batch]
"""


@pytest.fixture(scope="module")
def own_service() -> Iterator[Service]:
    """A service of its own, as it is ill-treated."""
    with running_service() as service:
        yield service


def began(folder: Path) -> int:
    return len(list(folder.glob("began-*")))


def start(rest: Rest, folder: Path) -> list[tuple[str, str, int]]:
    """Runs with one call each of the same batched task, of which the first batch has begun."""
    runs = []
    for x in range(RUNS):
        workflow_id = rest.workflow()
        rest.task(
            workflow_id,
            "work",
            BATCHED,
            task_input=inputs(x=x, folder=str(folder)),
            batch_config={"enabled": True, "batch_size": 4, "batch_timeout": 0.05},
            resources={"cpu": 0.1},
            autoscaling={"max_replicas": 1, "downscale_delay": 600},
        )
        runs.append((workflow_id, rest.run(workflow_id), x))
    wait_for("the first batch", lambda: began(folder))
    return runs


def check(rest: Rest, runs: list[tuple[str, str, int]]) -> None:
    """Each run has its own result, and nothing failed."""
    for workflow_id, run_id, x in runs:
        messages = rest.messages(workflow_id, run_id)
        assert messages[-1]["data"]["status"] == "succeeded", messages
        (finish,) = (each["data"] for each in messages if each["type"] == "finish_task")
        assert finish["result"] == {"out": 2 * x}
        assert "task_exception" not in {each["type"] for each in messages}


def test_a_killed_replica_costs_a_repetition(own_service: Service, tmp_path: Path) -> None:
    """What ran with it runs again, what waited goes on elsewhere."""
    with Rest(own_service.url) as rest:
        runs = start(rest, tmp_path)
        own_service.kill(REPLICA)
        wait_for("another batch", lambda: began(tmp_path) > 1)
        (tmp_path / "go").touch()
        check(rest, runs)


def test_replicas_outlive_the_service_version_that_made_them(
    own_service: Service, tmp_path: Path
) -> None:
    """A re-deploy replaces the orchestrator; its successor finds the replica, with its model loaded."""
    with Rest(own_service.url) as rest:
        (tmp_path / "go").touch()
        check(rest, start(rest, tmp_path))
        (replica,) = own_service.processes(REPLICA)
        before = [*own_service.processes(ORCHESTRATOR), *own_service.processes(INGRESS)]
        with redeployed(own_service, max_tasks_per_workflow=777):
            wait_for(
                "the end of the old ones", lambda: not any(each.is_running() for each in before)
            )
            wait_for("the next orchestrator", lambda: own_service.processes(ORCHESTRATOR))
            wait_for("the next ingress", lambda: own_service.processes(INGRESS))
            own_service.wait_until_ready()
            check(rest, start(rest, tmp_path))
            assert own_service.processes(REPLICA) == [replica]


def test_a_batch_that_hangs_does_not_outlive_the_orchestrator(
    own_service: Service, tmp_path: Path
) -> None:
    """Which was killed, so that nobody takes its calls back: the next one's calls end it with its replica."""
    hangs = """
import pathlib, time

def hang(batch):
    mark = pathlib.Path(batch[0]["folder"]) / "began"
    if not mark.exists():
        mark.touch()
        time.sleep(1000)
    return [{"out": 1} for _ in batch]
"""
    with Rest(own_service.url) as rest:
        workflow_id = rest.workflow()
        rest.task(
            workflow_id,
            "hang",
            hangs,
            task_input=inputs(folder=str(tmp_path)),
            batch_config={"enabled": True, "batch_size": 4},
            resources={"cpu": 0.1},
            autoscaling={"max_replicas": 1},
        )
        run_id = rest.run(workflow_id)
        wait_for("the batch", (tmp_path / "began").exists)
        own_service.kill(ORCHESTRATOR)
        messages = rest.messages(workflow_id, run_id)
        assert messages[-1]["data"]["status"] == "succeeded", messages


def test_a_stop_in_the_middle_of_a_batch_loses_nothing(
    own_service: Service, tmp_path: Path
) -> None:
    """Ctrl-C ends the batch and leaves no process; the next start of the service runs it again."""
    with Rest(own_service.url) as rest:
        runs = start(rest, tmp_path)
    processes = own_service.processes()
    own_service.stop()
    assert [each for each in processes if each.is_running()] == []
    (tmp_path / "go").touch()
    own_service.start()
    with Rest(own_service.url) as rest:
        check(rest, runs)


def start_shared(rest: Rest, number: int) -> list[tuple[str, str, int]]:
    """Runs of workflows of their own, each with one call of the same batched task."""
    started = []
    for x in range(number):
        workflow_id = rest.workflow()
        rest.task(
            workflow_id,
            "work",
            SHARED,
            task_input=inputs(x=x),
            batch_config={"enabled": True, "batch_size": 8, "batch_timeout": 0.05},
            resources={"cpu": 0.1},
        )
        started.append((workflow_id, x))
    # At the same time, or on a slow machine each call's batch would end before the next one comes.
    with ThreadPoolExecutor(8) as threads:
        runs = threads.map(rest.run, [workflow_id for workflow_id, _ in started])
        return [
            (workflow_id, run_id, x) for (workflow_id, x), run_id in zip(started, runs, strict=True)
        ]


def starts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message["data"] for message in messages if message["type"] == "start_task"]


def test_calls_of_many_runs_share_batches_also_across_a_crash(own_service: Service) -> None:
    """Each run ends once with its own result; the replica says who it is and how large the batch was."""
    with Rest(own_service.url) as rest:
        for crash in (False, True):
            runs = start_shared(rest, 2 * RUNS)
            if crash:
                own_service.kill(ORCHESTRATOR)
                own_service.wait_until_ready()
            sizes = []
            for workflow_id, run_id, x in runs:
                wait_for(
                    "the run's end",
                    lambda run_id=run_id: rest.get(f"/runs/{run_id}")["run"]["status"] != "running",
                )
                messages = rest.messages(workflow_id, run_id)
                assert messages[-1]["data"]["status"] == "succeeded", messages
                (finish,) = (m["data"] for m in messages if m["type"] == "finish_task")
                assert finish["result"] == {"out": 2 * x}
                assert all(start["replica"] for start in starts(messages))
                sizes.append(starts(messages)[-1]["batch_size"])
            assert max(sizes) > 1
