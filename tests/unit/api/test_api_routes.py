"""Each endpoint asks the orchestrator for one thing and answers in the specified form."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from lattice.api import dependencies
from lattice.errors import UnavailableError
from lattice.ports.service import TaskUpload
from tests.unit.api.scripted import ScriptedService

pytestmark = pytest.mark.anyio

OK = {"status": "success"}
EDGE = {"workflow_id": "w", "source_task_id": "a", "target_task_id": "b"}
WORKER = {"node_ip": "10.0.0.1", "node_id": "n", "resources": {"cpu": 1}}


@pytest.mark.parametrize(
    ("path", "body", "call", "answer"),
    [
        ("/create_workflow", None, ("create_workflow", None), OK | {"workflow_id": "w1"}),
        (
            "/add_task",
            {"workflow_id": "w", "task_type": "code", "task_name": "n"},
            ("add_task", "w", "code", "n", None),
            OK | {"task_id": "t1"},
        ),
        ("/add_edge", EDGE, ("add_edge", "w", "a", "b"), OK),
        ("/del_edge", EDGE, ("del_edge", "w", "a", "b"), OK),
        ("/del_task", {"workflow_id": "w", "task_id": "t"}, ("del_task", "w", "t"), OK),
        (
            "/run_workflow",
            {"workflow_id": "w"},
            ("run_workflow", "w", None, None),
            OK | {"run_id": "r1"},
        ),
        (
            "/run_workflow",
            {"workflow_id": "w", "deadline": 1.5},
            ("run_workflow", "w", 1.5, None),
            OK | {"run_id": "r1"},
        ),
        ("/runs/r/retry", None, ("retry_run", "r", None), OK | {"run_id": "r2"}),
        ("/runs/r/cancel", None, ("cancel_run", "r"), OK | {"run_status": "cancelled"}),
        ("/connect_worker", WORKER, ("connect_worker", "n", "10.0.0.1", {"cpu": 1}), OK),
        ("/disconnect_worker", {"node_id": "n"}, ("disconnect_worker", "n", False), OK),
        (
            "/disconnect_worker",
            {"node_id": "n", "leaving": True},
            ("disconnect_worker", "n", True),
            OK,
        ),
        ("/get_head_ray_port", None, ("head_port",), OK | {"port": 6379}),
    ],
)
async def test_posts(
    client: httpx.AsyncClient,
    service: ScriptedService,
    path: str,
    body: Any,
    call: tuple[object, ...],
    answer: dict[str, object],
) -> None:
    assert (await client.post(path, json=body)).json() == answer
    assert service.calls == [call]


@pytest.mark.parametrize(
    ("path", "call", "answer"),
    [
        ("/runs/r", ("delete_run", "r"), OK),
        ("/workflows/w", ("delete_workflow", "w"), OK),
        ("/workflows/w/runs", ("delete_runs", "w", 1000), OK | {"deleted": 3}),
        ("/workflows/w/runs?limit=5", ("delete_runs", "w", 5), OK | {"deleted": 3}),
    ],
)
async def test_deletes(
    client: httpx.AsyncClient,
    service: ScriptedService,
    path: str,
    call: tuple[object, ...],
    answer: dict[str, object],
) -> None:
    assert (await client.delete(path)).json() == answer
    assert service.calls == [call]


@pytest.mark.parametrize(
    ("path", "call", "answer"),
    [
        (
            "/get_workflow_tasks/w",
            ("workflow_tasks", "w"),
            OK | {"tasks": [{"id": "t1", "name": "one"}]},
        ),
        ("/runs", ("list_runs", 100, None, None, None), OK | {"runs": [{"run_id": "r1"}]}),
        (
            "/runs?limit=7&workflow_id=w&status=failed&before=r0",
            ("list_runs", 7, "w", "failed", "r0"),
            OK | {"runs": [{"run_id": "r1"}]},
        ),
        (
            "/runs/r",
            ("describe_run", "r"),
            OK | {"run": {"run_id": "r", "error": {"answer": 42}}},
        ),
        (
            "/runs/r/tasks/t/result",
            ("task_result", "r", "t"),
            OK | {"result": {"out": {"answer": 42}}},
        ),
        ("/runs/r/tasks/t/result/out", ("value_json", "r", "t", "out"), {"a": 1}),
        ("/runs/r/tasks/t/result/a%2Fb%20%3F", ("value_json", "r", "t", "a/b ?"), {"a": 1}),
        ("/runs/r/tasks/t/result/result", ("value_json", "r", "t", "result"), {"a": 1}),
        ("/workers", ("workers",), OK | {"workers": [{"node_id": "n1"}]}),
        ("/readyz", ("ready",), {"status": "ready"}),
    ],
)
async def test_gets(
    client: httpx.AsyncClient,
    service: ScriptedService,
    path: str,
    call: tuple[object, ...],
    answer: dict[str, object],
) -> None:
    assert (await client.get(path)).json() == answer
    assert service.calls == [call]


async def test_a_whole_workflow(client: httpx.AsyncClient, service: ScriptedService) -> None:
    task = {"task_name": "n", "task_input": {}, "task_output": {}}
    body = {"tasks": [task | {"task_id": "a"}, task | {"task_id": "b"}], "edges": [["a", "b"]]}
    answer = await client.post("/submit_workflow", json=body)
    assert answer.json() == OK | {"workflow_id": "w1", "run_id": "r1"}
    definition: dict[str, object] = {"task_input": {}, "task_output": {}}
    uploads = [TaskUpload(name, "n", definition, None) for name in "ab"]  # type: ignore[arg-type]
    assert service.calls == [("submit_workflow", uploads, [("a", "b")], None, None)]


async def test_a_value_as_a_pickle_is_opaque_bytes(client: httpx.AsyncClient) -> None:
    answer = await client.get("/runs/r/tasks/t/result/out?format=pickle")
    assert answer.content == b"\x80pickled"
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_langgraph_task(client: httpx.AsyncClient, service: ScriptedService) -> None:
    body = {"workflow_id": "w", "task_type": "langgraph", "task_name": "n"}
    ids = set()
    for name in ("code_ser", "serialized_code"):
        added = await client.post("/add_langgraph_task", json=body | {name: "AAAA"})
        ids.add(added.json()["task_id"])
    assert len(ids) == 2
    needs = {"resources": {"cpu": 1}, "secrets": ["KEY"], "sandbox": True}
    await client.post("/add_langgraph_task", json=body | {"code_ser": "AAAA"} | needs)
    definitions = [call[2].definition for call in service.calls]
    assert definitions == [{}, {}, needs]
    answer = await client.post(
        "/add_langgraph_task", json=body | {"code_ser": "AAAA", "task_type": "code"}
    )
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("task_type: found 'code'")


async def test_a_langgraph_call(client: httpx.AsyncClient, service: ScriptedService) -> None:
    body = {"workflow_id": "w", "task_id": "t", "args": "AAAA", "kwargs": "AAAB"}
    answer = await client.post("/run_langgraph_task", json=body)
    assert answer.json() == OK | {"result": {"answer": 42}}
    assert service.calls == [("run_langgraph_task", "w", "t", b"\0\0\0", b"\0\0\1")]
    answer = await client.post("/run_langgraph_task", json=body | {"result_format": "pickle"})
    assert answer.json() == OK | {"result": "gHBpY2tsZWQ="}
    for field in ("args", "kwargs"):
        answer = await client.post("/run_langgraph_task", json=body | {field: "*"})
        assert answer.status_code == 400
        assert answer.json()["detail"].startswith(f"{field}: found '*'")


async def test_results_may_hold_any_text(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    service.result = "\udcff \U0001f388 \0 <script>"
    body = {"workflow_id": "w", "task_id": "t", "args": "AAAA", "kwargs": "AAAA"}
    answer = await client.post("/run_langgraph_task", json=body)
    assert answer.json()["result"] == service.result
    assert (await client.get("/runs/r")).json()["run"]["error"] == service.result


async def test_no_id_with_a_nul_reaches_the_orchestrator(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    await client.get("/runs/%00/tasks/%00/result")
    await client.get("/runs?workflow_id=%00&before=%00")
    await client.get("/get_workflow_tasks/%00")
    assert service.calls[0] == ("task_result", "�", "�")
    assert "\0" not in repr(service.calls)
    answer = await client.post("/disconnect_worker", json={"node_id": "\0"})
    assert answer.status_code == 422


async def test_health_does_not_need_the_orchestrator(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    service.fails = UnavailableError("away")
    health = (await client.get("/healthz")).json()
    assert set(health) == {"status", "version", "protocol", "python", "cloudpickle"}
    assert health["status"] == "ok"
    answer = await client.get("/readyz")
    assert (answer.status_code, answer.json()) == (503, {"detail": "away"})


async def test_readiness_does_not_wait_for_ever(
    client: httpx.AsyncClient, service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "ready", asyncio.Event().wait)
    monkeypatch.setattr(dependencies, "_READY_WITHIN", 0.01)
    answer = await client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json()["detail"].startswith("the orchestrator has not answered")
