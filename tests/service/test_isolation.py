"""Sandboxes and secrets as users of the service meet them."""

from __future__ import annotations

import platform
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lattice import LatticeClient, task
from tests.files import contents
from tests.running import Service
from tests.service.rest import Rest, inputs, outputs, pickled


@pytest.mark.skipif(platform.system() != "Linux", reason="sandboxes are Linux's")
def test_hostile_source_reaches_nothing_of_the_service(rest: Rest, service: Service) -> None:
    """Without a sandbox it reads the database and speaks to the service; inside, it can do neither."""
    code = """
import os, socket
def task(p):
    found = {}
    try:
        found["files"] = len(os.listdir(p["folder"]))
    except OSError as error:
        found["files"] = type(error).__name__
    try:
        found["connected"] = bool(socket.create_connection(("127.0.0.1", p["port"]), 10))
    except OSError as error:
        found["connected"] = type(error).__name__
    return {"out": found}
"""
    given = inputs(folder=str(service.config.parent / "data"), port=urlsplit(service.url).port)
    outside = rest.outcome(code, task_input=given)["data"]["result"]["out"]
    assert outside["files"] > 0
    assert outside["connected"] is True
    inside = rest.outcome(code, task_input=given, sandbox=True)["data"]["result"]["out"]
    assert inside == {"files": "FileNotFoundError", "connected": "OSError"}
    bomb = rest.outcome(
        "import os\ndef task(p):\n    while True: os.fork()\n", sandbox={"processes": 16}
    )
    assert bomb["type"] == "task_exception"
    assert bomb["data"]["error"]["type"] == "BlockingIOError"


def refused_save(rest: Rest, **fields: object) -> tuple[int, str]:
    """The status and the reason with which a task of these fields is refused."""
    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "task", "def task(p):\n    return {'out': 1}\n")
    whole = {"workflow_id": workflow_id, "task_id": task_id, "task_input": inputs()}
    return rest.refused("/save_task", whole | {"task_output": outputs("out")} | fields)


def test_a_sandbox_of_replicas_and_langgraph_nodes_is_refused(rest: Rest) -> None:
    """Where there is none, nothing runs as if there were."""
    status, detail = refused_save(rest, batch_config={"batch_size": 2}, sandbox=True)
    assert status == 400
    assert detail.startswith("sandbox: ")
    assert "replicas" in detail
    status, detail = rest.refused(
        "/add_langgraph_task",
        {
            "workflow_id": rest.workflow(),
            "task_type": "langgraph",
            "task_name": "node",
            "code_ser": pickled(len),
            "sandbox": True,
        },
    )
    assert status == 400
    assert detail.startswith("sandbox: ")
    assert "LangGraph" in detail


def test_secrets_are_used_and_told_nowhere(rest: Rest, service: Service, secrets: Path) -> None:
    """Not in messages, answers, the database, nor any log."""
    secret = (secrets / "API_KEY").read_text()

    @task(secrets=["API_KEY"], outputs=["length"])
    def use() -> dict[str, int]:
        import os

        print(os.environ["API_KEY"])
        return {"length": len(os.environ["API_KEY"])}

    @task(secrets=["API_KEY"])
    def fail(length: int) -> None:
        import os

        raise ValueError(os.environ["API_KEY"])

    workflow = LatticeClient(service.url).create_workflow()
    used = workflow.add_task(use)
    workflow.add_task(fail, inputs={"length": used.outputs["length"]})
    run = workflow.run()
    messages = [*run.events(logs=True)]
    assert "***" in str(messages)
    assert secret not in str(messages)
    document = rest.get(f"/runs/{run.run_id}")
    assert document["run"]["status"] == "failed"
    assert secret not in str(document)
    written = contents(service.config.parent)
    assert any(path.name == "lattice.db" for path in written)
    assert [path for path, data in written.items() if secret.encode() in data] == []


def test_secrets_that_nobody_has_are_refused(rest: Rest) -> None:
    """When a task is saved, with the name."""
    status, detail = refused_save(rest, secrets=["NO_SUCH"])
    assert status == 400
    assert "NO_SUCH" in detail
    assert "secrets_dir" in detail
