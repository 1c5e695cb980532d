"""No input makes an endpoint answer 5xx, but for the user's own errors and a service that cannot answer now.

Requests are made from the OpenAPI document, valid and broken, and sent over real HTTP.
"""

from __future__ import annotations

import json
from typing import Any, cast

import hypothesis
import pytest
import schemathesis

from lattice.api.server import create_app
from lattice.ports.service import OrchestratorService
from tests.running import Service, wait_for
from tests.service.rest import Rest

#: Streams are read elsewhere; here a request has to end by itself.
_ENDLESS = "/runs/{run_id}/events"


#: The description is made here, as it is needed to collect the tests; requests go to the service.
schema = schemathesis.openapi.from_dict(
    create_app(metrics_enabled=False, orchestrator=cast(OrchestratorService, object())).openapi()
).exclude(path=_ENDLESS)


@schema.parametrize()
@hypothesis.settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_no_input_breaks_an_endpoint(case: Any, service: Service) -> None:
    """What the document allows, and what it does not."""
    answer = case.call(base_url=service.url)
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400 and answer.request.method != "OPTIONS":
        assert isinstance(answer.json()["detail"], str)


HOSTILE = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b'{"workflow_id": "\\ud800"}',
    b'{"workflow_id": NaN}',
    b'{"workflow_id": 1e999}',
    b'{"workflow_id": ' + b"9" * 5000 + b"}",
    b"[" * 100_000,
    b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    json.dumps({"workflow_id": {"a": ["b"]}}).encode(),
    json.dumps({"workflow_id": "x" * 100_000}).encode(),
    b'{"workflow_id": "a", "workflow_id": "b"}',
    b"\0" * 100,
]
PATHS = [
    "/create_workflow",
    "/add_task",
    "/save_task",
    "/save_task_and_add_edge",
    "/add_edge",
    "/del_edge",
    "/del_task",
    "/run_workflow",
    "/submit_workflow",
    "/add_langgraph_task",
    "/run_langgraph_task",
    "/connect_worker",
    "/disconnect_worker",
    "/get_head_ray_port",
]


@pytest.mark.parametrize("path", PATHS)
def test_hostile_bodies_are_refused(rest: Rest, path: str) -> None:
    """Broken JSON, wrong types, invalid Unicode, huge numbers, deep nesting."""
    for body in HOSTILE:
        answer = rest.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code < 500, (path, body[:50], answer.text)
        if path not in ("/create_workflow", "/get_head_ray_port"):
            assert answer.status_code in (400, 404, 422), (path, body[:50], answer.text)
            assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize(
    "value",
    [
        "\ud800",
        {"a": float("inf")},
        10**5000,
        ["x"] * 10_000,
        {"\udfff": 1},
    ],
    ids=["surrogate", "infinity", "huge", "long", "key"],
)
def test_odd_values_of_inputs_do_no_harm(rest: Rest, value: object) -> None:
    """Either refused in words, or handed on to the task as they are."""
    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "task", "def task(p):\n    return {'out': len(repr(p))}\n")
    text = json.dumps(
        {
            "workflow_id": workflow_id,
            "task_id": task_id,
            "task_input": {"input_params": {"1": {"key": "v", "value": "VALUE"}}},
            "task_output": {},
        }
    )
    with_value = text.replace('"VALUE"', _dumps(value))
    answer = rest.http.post(
        "/save_task", content=with_value, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in (200, 400, 422), answer.text
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    assert messages[-1]["data"]["status"] == "succeeded", messages


def _dumps(value: object) -> str:
    return "1" + "0" * 5000 if value == 10**5000 else json.dumps(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X-Request-ID", b"\xe9"),
        ("X-Session-ID", b"\xff\xfe"),
        ("serve_multiplexed_model_id", b"\xe9"),
        ("X-Request-Disconnect-Disabled", b"\xe9"),
        ("X-Request-Timeout-Seconds", b"\xe9"),
        ("X-Request-Timeout-Seconds", b"1e-9"),
        ("X-Request-Timeout-Seconds", b"inf"),
        ("X-Request-Timeout-Seconds", b"1e300"),
    ],
)
def test_headers_of_the_engine_do_no_harm(rest: Rest, name: str, value: bytes) -> None:
    """Those that the engine reads before the service does: not UTF-8, or meant to steer it."""
    answer = rest.http.get("/runs/nobody", headers=[(name.encode(), value)])
    assert answer.status_code == 404, answer.text
    assert isinstance(answer.json()["detail"], str)


def test_a_hostile_pickle_runs_only_where_tasks_run(rest: Rest, tmp_path: Any) -> None:
    """As code, as arguments and as a result: the process that unpickled it is never one of ours."""
    import base64
    import os
    import pickle

    class Mark:
        def __init__(self, name: str) -> None:
            self.path = str(tmp_path / name)

        def __reduce__(self) -> Any:
            command = f"open({self.path!r}, 'a').write(open('/proc/self/cmdline').read() + chr(10))"
            return exec, (command,)

    def hostile(name: str) -> str:
        return base64.b64encode(pickle.dumps(Mark(name))).decode()

    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "task", "def task(p): ...", code_ser=hostile("code"))
    rest.messages(workflow_id, rest.run(workflow_id))
    add = {"workflow_id": workflow_id, "task_name": "node", "code_ser": hostile("node")}
    node = rest.post("/add_langgraph_task", add)["task_id"]
    call = {"workflow_id": workflow_id, "task_id": node, "args": hostile("args"), "kwargs": ""}
    rest.http.post("/run_langgraph_task", json=call | {"kwargs": hostile("kwargs")})
    assert task_id
    seen = {name: (tmp_path / name).read_text() for name in os.listdir(tmp_path)}
    assert {"code", "node"} <= seen.keys()
    for marks in seen.values():
        assert "ServeReplica" not in marks


def test_the_service_is_well_after_all_that(rest: Rest) -> None:
    """Nothing crashed and nothing hangs."""
    wait_for("readiness", lambda: rest.http.get("/readyz").status_code == 200)
