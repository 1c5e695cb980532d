"""Classes on replicas of their own, how they are bounded, and where the time of their calls went."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.running import wait_for
from tests.service.rest import Rest, inputs

SOURCE = """
class Model:
    def __init__(self):
        self.calls = 0

    def __call__(self, params):
        self.calls += 1
        return {"out": self.calls}
"""
SLOW = """
import os, time
def slow(params):
    time.sleep(1.5)
    while not os.path.exists(params["gate"]):
        time.sleep(0.05)
    return {"out": 1}
"""


def model() -> type:
    """A class that travels by value."""

    class Model:
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, params: dict[str, Any]) -> dict[str, Any]:
            self.calls += 1
            return {"out": self.calls}

    return Model


def ended(rest: Rest, run_id: str) -> dict[str, Any]:
    def report() -> Any:
        run = rest.get(f"/runs/{run_id}")["run"]
        return run if run["status"] != "running" else None

    found: dict[str, Any] = wait_for("the run's end", report)
    return found


@pytest.mark.parametrize("form", ["source", "pickle"])
def test_a_class_is_constructed_once_on_its_replica(rest: Rest, form: str) -> None:
    """Whose bounds the task gives; the second call finds the instance of the first."""
    workflow_id = rest.workflow()
    code = {"code": SOURCE} if form == "source" else {"code": model(), "code_is_class": True}
    scaling = {"max_replicas": 1, "downscale_delay": 60.0, "warm_up": False}
    rest.task(workflow_id, "Model", **code, resources={"cpu": 0.1}, autoscaling=scaling)
    for calls in (1, 2):
        run_id = rest.run(workflow_id)
        (task,) = ended(rest, run_id)["tasks"]
        start, finish, _ = (each["data"] for each in rest.messages(workflow_id, run_id))
        assert start["replica"]
        assert finish["result"] == {"out": calls}
        assert set(start["waited"]) == {"queued", "starting", "batching"}
        assert finish["timing"] == start["waited"] | {"running": finish["timing"]["running"]}
        assert task["timing"] == finish["timing"]
        assert task["waiting_for"] is None


def test_a_task_may_run_while_it_is_warmed_up(rest: Rest) -> None:
    """Its first call waits for the replica beside the call that has it started."""
    workflow_id = rest.workflow()
    batch = "def batch(items):\n    return [{'out': 1} for _ in items]\n"
    config = {"enabled": True, "batch_size": 2}
    rest.task(workflow_id, "batch", batch, batch_config=config, autoscaling={"warm_up": True})
    assert ended(rest, rest.run(workflow_id))["status"] == "succeeded"


def test_what_a_task_waits_for_is_shown(rest: Rest, tmp_path: Path) -> None:
    """The tasks upstream; and afterwards, how long each ran."""
    workflow_id = rest.workflow()
    gate = tmp_path / "gate"
    slow = rest.task(workflow_id, "slow", SLOW, task_input=inputs(gate=str(gate)))
    given = inputs(gate=str(gate), x=f"@{slow}.out")
    after = rest.task(workflow_id, "after", SLOW, task_input=given)
    run_id = rest.run(workflow_id)
    tasks = {task["task_id"]: task for task in rest.get(f"/runs/{run_id}")["run"]["tasks"]}
    assert tasks[after]["waiting_for"] == "tasks upstream: slow"
    gate.touch()
    tasks = {task["task_id"]: task for task in ended(rest, run_id)["tasks"]}
    assert tasks[slow]["timing"]["running"] >= 1.5
