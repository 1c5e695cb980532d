"""Batches through the whole service: calls of many runs on one replica, and a crash in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.running import ORCHESTRATOR, Service, running_service, wait_for
from tests.service.rest import Rest, inputs

BATCHED = """
import time

def work(batch):
    time.sleep(0.2)
    return [{"out": params["x"] * 2} for params in batch]
"""
RUNS = 24


@pytest.fixture(scope="module")
def own_service() -> Iterator[Service]:
    """A service of its own, as its orchestrator is killed."""
    with running_service() as service:
        yield service


def start_runs(rest: Rest, number: int) -> list[tuple[str, str, int]]:
    """Runs of workflows of their own, each with one call of the same batched task."""
    started = []
    for x in range(number):
        workflow_id = rest.workflow()
        rest.task(
            workflow_id,
            "work",
            BATCHED,
            task_input=inputs(x=x),
            batch_config={"enabled": True, "batch_size": 8, "batch_timeout": 0.05},
            resources={"cpu": 0.1},
        )
        started.append((workflow_id, x))
    return [(workflow_id, rest.run(workflow_id), x) for workflow_id, x in started]


def starts(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [message["data"] for message in messages if message["type"] == "start_task"]


def test_calls_of_many_runs_share_batches_also_across_a_crash(own_service: Service) -> None:
    """Each run ends once with its own result; the replica says who it is and how large the batch was."""
    with Rest(own_service.url) as rest:
        for crash in (False, True):
            runs = start_runs(rest, RUNS)
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
