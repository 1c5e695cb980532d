"""What the service itself logs: in Serve's files and on standard error, here as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.running import Service, wait_for
from tests.service.rest import Rest


def lines(service: Service, part: str) -> list[dict[str, Any]]:
    """The JSON lines in the files of those replicas of Serve whose names have `part`.

    Before its constructor is called, a replica's lines are Serve's own text.
    """
    folder = Path(service.environ["RAY_TMPDIR"]) / "ray" / "session_latest" / "logs" / "serve"
    found: list[dict[str, Any]] = []
    for path in folder.glob(f"replica_*{part}*.log"):
        texts = path.read_text().splitlines()
        start = next((at for at, text in enumerate(texts) if text.startswith("{")), len(texts))
        # The last line may be half written.
        found += [json.loads(text) for text in texts[start:-1]]
        found += [json.loads(text) for text in texts[start:][-1:] if text.endswith("}")]
    return found


def test_an_operator_sees_runs_begin_and_end(rest: Rest, service: Service) -> None:
    """By two lines with ids, status and seconds, whatever the number of tasks, and nothing of the user's."""
    workflow_id = rest.workflow()
    for _ in range(3):
        rest.task(workflow_id, "secret_name", "def task(p):\n    return {'out': 'secret value'}\n")
    run_id = rest.run(workflow_id)
    rest.messages(workflow_id, run_id)

    def about() -> list[dict[str, Any]]:
        return [line for line in lines(service, "orchestrator") if line.get("run_id") == run_id]

    started, ended = wait_for("two lines", lambda: len(found := about()) == 2 and found)
    assert (started["level"], ended["level"]) == ("INFO", "INFO")
    assert started["logger"] == ended["logger"] == "lattice.orchestrator.runs"
    assert started["message"] == f"run {run_id} started, 3 tasks"
    assert ended["message"].startswith(f"run {run_id} ended succeeded after ")
    assert "secret" not in json.dumps([started, ended])
    # Standard error goes to whoever started the service.
    wait_for("standard error", lambda: ended["message"] in service.log.read_text())
    # Serve's own lines are JSON too.
    assert any(line["logger"] == "ray.serve" for line in lines(service, "ingress"))


@pytest.mark.parametrize("batched", [False, True], ids=["ray_task", "replica"])
def test_a_lost_attempt_is_a_warning(rest: Rest, service: Service, batched: bool) -> None:
    code = """
import os, signal
def task(params):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    workflow_id = rest.workflow()
    policy = {"enabled": batched, "batch_size": 1, "batch_timeout": 0}
    task_id = rest.task(workflow_id, "task", code, batch_config=policy)
    run_id = rest.run(workflow_id)
    assert rest.messages(workflow_id, run_id)[-1]["data"]["status"] == "failed"
    found = wait_for(
        "the warning",
        lambda: [line for line in lines(service, "orchestrator") if line.get("task_id") == task_id],
    )
    assert {line["level"] for line in found} == {"WARNING"}
    assert found[0]["run_id"] == run_id
    assert found[0]["message"].startswith(f"attempt 1 of task {task_id} of run {run_id} was lost: ")
