"""Each endpoint of the specification over HTTP: its success, and each of its errors."""

from __future__ import annotations

import base64
import uuid
from typing import Any

import pytest

from tests.service.rest import Rest, inputs, outputs, pickled

GOOD = "def task(p):\n    return {'out': 1}\n"
NONE = str(uuid.uuid4())


def saved(workflow_id: str, task_id: str, **fields: object) -> dict[str, Any]:
    """The body of a good save, changed by `fields`."""
    return {
        "workflow_id": workflow_id,
        "task_id": task_id,
        "task_name": "task",
        "code_str": GOOD,
        "task_input": inputs(),
        "task_output": outputs("out"),
        "resources": {"cpu": 1},
        "batch_config": {"enabled": False},
        **fields,
    }


def test_create_workflow(rest: Rest) -> None:
    """A new id each time, with and without a body."""
    first, second = rest.post("/create_workflow"), rest.post("/create_workflow", {})
    assert first["workflow_id"] != second["workflow_id"]
    assert uuid.UUID(first["workflow_id"])


def test_add_task(rest: Rest) -> None:
    """Only type `code`; other types and unknown workflows are refused."""
    workflow_id = rest.workflow()
    body = {"workflow_id": workflow_id, "task_type": "code", "task_name": "t"}
    assert uuid.UUID(rest.post("/add_task", body)["task_id"])
    status, detail = rest.refused("/add_task", body | {"task_type": "shell"})
    assert status == 400
    assert "'shell'" in detail
    assert "'code' is allowed" in detail
    assert rest.refused("/add_task", body | {"task_type": "langgraph"})[0] == 400
    status, detail = rest.refused("/add_task", body | {"workflow_id": NONE})
    assert (status, detail) == (404, f"Workflow {NONE} not found")
    status, detail = rest.refused("/add_task", {"workflow_id": workflow_id})
    assert status == 422
    assert "task_type" in detail
    assert "task_name" in detail


@pytest.mark.parametrize("endpoint", ["/save_task", "/save_task_and_add_edge"])
class TestSaving:
    """Both ways to save a task."""

    def test_success(self, rest: Rest, endpoint: str) -> None:
        """All fields of the specification, also in their other spellings."""
        workflow_id = rest.workflow()
        task_id = rest.task(workflow_id, "old", GOOD)
        rest.post(endpoint, saved(workflow_id, task_id, task_name="new"))
        tasks = rest.get(f"/get_workflow_tasks/{workflow_id}")["tasks"]
        assert tasks == [{"id": task_id, "name": "new", "type": "code", "saved": "true"}]
        code = {"code_str": None, "serialized_code": pickled(dict)}
        rest.post(endpoint, saved(workflow_id, task_id, **code))

    @pytest.mark.parametrize(
        ("change", "status", "words"),
        [
            ({"workflow_id": NONE}, 404, [NONE]),
            ({"task_id": NONE}, 404, [NONE, "not found in workflow"]),
            ({"task_id": None}, 422, ["task_id"]),
            ({"task_input": None}, 422, ["task_input"]),
            ({"task_input": {"input_params": {"x": {}}}}, 400, ["input_params", "'x'"]),
            (
                {"task_input": inputs(a=f"@{NONE}.out")},
                400,
                ["parameter 'a'", NONE],
            ),
            ({"task_input": inputs(a="@nodot")}, 400, ["task_id.output_key"]),
            ({"task_output": {"outputs": {}}}, 400, ["task_output.outputs", "output_params"]),
            ({"code_ser": "not base64!"}, 400, ["code_ser"]),
            ({"code_ser": ""}, 400, ["code_ser"]),
            ({"code_str": ""}, 400, ["code_str"]),
            ({"resources": {"cpus": 2}}, 400, ["resources.cpus", "cpu_mem"]),
            ({"resources": {"gpu": -1}}, 400, ["resources.gpu", "-1"]),
            ({"resources": {"gpu": 1.5}}, 400, ["resources.gpu", "whole"]),
            ({"resources": []}, 422, ["resources"]),
            ({"batch_config": {"batch_size": 0}}, 400, ["batch_config.batch_size", "0"]),
            ({"batch_config": {"size": 1}}, 400, ["batch_config.size", "batch_timeout"]),
            ({"retry": {"max_attempts": 0}}, 400, ["retry.max_attempts"]),
            ({"timeout": -1}, 400, ["timeout"]),
            ({"runtime_env": {"conda": "x"}}, 400, ["runtime_env.conda"]),
            ({"autoscaling": {"min_replicas": 1}}, 400, ["autoscaling"]),
        ],
    )
    def test_errors_change_nothing(
        self, rest: Rest, endpoint: str, change: dict[str, Any], status: int, words: list[str]
    ) -> None:
        """The refusal names the field, and the task is as it was."""
        workflow_id = rest.workflow()
        task_id = rest.task(workflow_id, "task", GOOD)
        found, detail = rest.refused(
            endpoint, saved(workflow_id, task_id, task_name="changed") | change
        )
        assert found == status
        for word in words:
            assert word in detail
        tasks = rest.get(f"/get_workflow_tasks/{workflow_id}")["tasks"]
        assert tasks[0]["name"] == "task"
        messages = rest.messages(workflow_id, rest.run(workflow_id))
        assert messages[-1]["data"]["status"] == "succeeded"


def test_references_must_name_declared_outputs(rest: Rest) -> None:
    """Found when the task is saved, or when the run is asked for."""
    workflow_id = rest.workflow()
    first = rest.task(workflow_id, "first", GOOD)
    second = rest.task(workflow_id, "second", GOOD)
    status, detail = rest.refused(
        "/save_task", saved(workflow_id, second, task_input=inputs(a=f"@{first}.missing"))
    )
    assert status == 400
    assert "declares out" in detail


def test_edges(rest: Rest) -> None:
    """Added, deleted; cycles are told with their path; unknown ends are not found."""
    workflow_id = rest.workflow()
    a, b, c = (rest.task(workflow_id, name, GOOD) for name in "abc")

    def edge(source: str, target: str) -> dict[str, str]:
        return {
            "workflow_id": workflow_id,
            "source_task_id": source,
            "target_task_id": target,
        }

    rest.post("/add_edge", edge(a, b))
    rest.post("/add_edge", edge(a, b))
    rest.post("/add_edge", edge(b, c))
    status, detail = rest.refused("/add_edge", edge(c, a))
    assert status == 400
    assert f"{c} -> {a} -> {b} -> {c}" in detail
    assert rest.refused("/add_edge", edge(a, a))[0] == 400
    assert rest.refused("/add_edge", edge(a, NONE))[0] == 404
    assert rest.refused("/add_edge", edge(a, b) | {"workflow_id": NONE})[0] == 404
    rest.post("/del_edge", edge(a, b))
    status, detail = rest.refused("/del_edge", edge(a, b))
    assert status == 404
    assert "Edge" in detail
    rest.post("/add_edge", edge(c, a))
    started = [
        message["data"]["task_id"]
        for message in rest.messages(workflow_id, rest.run(workflow_id))
        if message["type"] == "start_task"
    ]
    assert started == [b, c, a]


def test_save_task_and_add_edge_adds_the_edge(rest: Rest) -> None:
    """It can be deleted once; the reference keeps the order all the same."""
    workflow_id = rest.workflow()
    a = rest.task(workflow_id, "a", GOOD)
    code = "def b(p):\n    return {'out': p['x'] + 1}\n"
    b = rest.task(workflow_id, "b", code, task_input=inputs(x=f"@{a}.out"))
    body = {"workflow_id": workflow_id, "source_task_id": a, "target_task_id": b}
    rest.post("/del_edge", body)
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    assert messages[-2]["data"]["result"] == {"out": 2}


def test_del_task(rest: Rest) -> None:
    """It is gone from the list; a second time it is not found."""
    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "a", GOOD)
    body = {"workflow_id": workflow_id, "task_id": task_id}
    rest.post("/del_task", body)
    assert rest.get(f"/get_workflow_tasks/{workflow_id}")["tasks"] == []
    assert rest.refused("/del_task", body)[0] == 404


def test_get_workflow_tasks_of_nothing(rest: Rest) -> None:
    """An unknown workflow is not found."""
    answer = rest.http.get(f"/get_workflow_tasks/{NONE}")
    assert answer.status_code == 404


def test_run_workflow_refuses_what_cannot_run(rest: Rest) -> None:
    """Unknown, empty, unsaved, dangling, impossible: each at once, in words."""
    assert rest.refused("/run_workflow", {"workflow_id": NONE})[0] == 404
    workflow_id = rest.workflow()
    body = {"workflow_id": workflow_id}
    status, detail = rest.refused("/run_workflow", body)
    assert status == 400
    assert "without a task" in detail
    rest.post("/add_task", body | {"task_type": "code", "task_name": "draft"})
    status, detail = rest.refused("/run_workflow", body)
    assert status == 400
    assert "'draft'" in detail
    assert "code_str or code_ser" in detail
    workflow_id = rest.workflow()
    a = rest.task(workflow_id, "a", GOOD)
    rest.task(workflow_id, "b", GOOD, task_input=inputs(x=f"@{a}.out"))
    rest.post("/del_task", {"workflow_id": workflow_id, "task_id": a})
    assert rest.refused("/run_workflow", {"workflow_id": workflow_id})[0] == 400
    for resources, words in (
        ({"cpu": 10_000}, "cpu 10000 asked"),
        ({"gpu": 3}, "gpu 3 asked"),
        ({"gpu_mem": 8192}, "no connected worker"),
    ):
        workflow_id = rest.workflow()
        rest.task(workflow_id, "a", GOOD, resources=resources)
        status, detail = rest.refused("/run_workflow", {"workflow_id": workflow_id})
        assert (status, words in detail) == (400, True), detail
        whole = submission(submitted("a", resources=resources))
        status, detail = rest.refused("/submit_workflow", whole)
        assert (status, words in detail) == (400, True), detail


def submission(*tasks: dict[str, Any], edges: object = ()) -> dict[str, Any]:
    return {"tasks": [*tasks], "edges": edges}


def submitted(task_id: str, **fields: object) -> dict[str, Any]:
    body = saved("", task_id, **fields)
    del body["workflow_id"]
    return body


def test_submit_workflow(rest: Rest) -> None:
    """A whole graph and its run in one request; tasks may refer to later ones."""
    code = "def task(p):\n    return {'out': p['x'] + 1}\n"
    made = rest.post(
        "/submit_workflow",
        submission(
            submitted("last", code_str=code, task_input=inputs(x="@first.out")),
            submitted("first"),
            submitted("after"),
            edges=[["last", "after"]],
        ),
    )
    messages = rest.messages(made["workflow_id"], made["run_id"])
    finished = [m["data"]["task_id"] for m in messages if m["type"] == "finish_task"]
    assert finished == ["first", "last", "after"]
    again = rest.run(made["workflow_id"])
    assert rest.messages(made["workflow_id"], again)[-1]["data"]["status"] == "succeeded"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"tasks": []}, 422, "tasks"),
        ({}, 422, "tasks"),
        (submission(submitted("a"), submitted("a")), 400, "twice"),
        (submission(submitted("a", code_str=None)), 400, "code"),
        (submission(submitted("a"), edges=[["a", "b"]]), 404, "Task b not found"),
        (submission(submitted("a"), edges=[["a"]]), 422, "edges"),
        (submission(submitted("a", task_input=inputs(x="@a.out"))), 400, "cycle"),
        (submission(submitted("a b")), 422, "task_id"),
    ],
)
def test_submit_workflow_refuses_whole(
    rest: Rest, body: dict[str, Any], status: int, words: str
) -> None:
    """One bad task, and nothing of it is there."""
    before = rest.get("/runs")["runs"]
    found, detail = rest.refused("/submit_workflow", body)
    assert found == status
    assert words in detail
    assert rest.get("/runs")["runs"] == before


def test_limits(rest: Rest) -> None:
    """Bodies and task counts beyond their limits are refused with the limit's name."""
    status, detail = rest.refused(
        "/submit_workflow", submission(*[submitted(f"t{n}") for n in range(2_001)])
    )
    assert status == 413
    assert "max_tasks_per_workflow" in detail
    status, detail = rest.refused("/create_workflow", {"x": "y" * 5_000_000})
    assert status == 413
    assert "max_body_bytes" in detail


def test_idempotency_keys(rest: Rest) -> None:
    """The same request once; another one with the key is refused; a bad key too."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first = rest.post("/create_workflow", headers=headers)
    assert rest.post("/create_workflow", headers=headers) == first
    workflow_id = first["workflow_id"]
    body = {"workflow_id": workflow_id, "task_type": "code", "task_name": "t"}
    status, detail = rest.refused("/add_task", body, headers=headers)
    assert status == 409
    assert "Idempotency-Key" in detail
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    assert rest.post("/add_task", body, headers=headers) == rest.post(
        "/add_task", body, headers=headers
    )
    assert len(rest.get(f"/get_workflow_tasks/{workflow_id}")["tasks"]) == 1
    headers = {"Idempotency-Key": "x" * 300}
    assert rest.refused("/create_workflow", None, headers=headers)[0] == 400


def test_runs(rest: Rest) -> None:
    """Listed newest first, in pages, by workflow and status; described; unknown ones not found."""
    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "task", GOOD)
    ids = []
    for _ in range(3):
        run_id = rest.run(workflow_id)
        rest.messages(workflow_id, run_id)
        ids.insert(0, run_id)
    query: dict[str, Any] = {"workflow_id": workflow_id}
    assert [run["run_id"] for run in rest.get("/runs", params=query)["runs"]] == ids
    page = rest.get("/runs", params=query | {"limit": 2})["runs"]
    assert [run["run_id"] for run in page] == ids[:2]
    page = rest.get("/runs", params=query | {"limit": 2, "before": ids[1]})["runs"]
    assert [run["run_id"] for run in page] == ids[2:]
    assert rest.get("/runs", params=query | {"status": "failed"})["runs"] == []
    run = rest.get(f"/runs/{ids[0]}")["run"]
    assert run["status"] == "succeeded"
    assert run["last_seq"] == 3
    (task,) = run["tasks"]
    assert (task["task_id"], task["state"], task["attempt"]) == (task_id, "succeeded", 1)
    for path in (f"/runs/{NONE}", f"/runs/{NONE}/tasks/{task_id}/result"):
        assert rest.http.get(path).status_code == 404
    for params in ({"limit": 0}, {"limit": 10_000}, {"status": "odd"}):
        assert rest.http.get("/runs", params=params).status_code == 422
    assert rest.http.get("/runs", params={"before": NONE}).status_code == 404
    assert rest.http.get(f"/runs/{ids[0]}/tasks/{NONE}/result").status_code == 404
    assert rest.http.get(f"/runs/{ids[0]}/tasks/{task_id}/result/none").status_code == 404
    assert rest.get(f"/runs/{ids[0]}/tasks/{task_id}/result")["result"] == {"out": 1}


def test_cancel(rest: Rest) -> None:
    """Running work ends, queued work never starts, and a second time nothing happens."""
    workflow_id = rest.workflow()
    first = rest.task(workflow_id, "first", "import time\ndef first(p):\n    time.sleep(600)\n")
    rest.task(workflow_id, "second", GOOD, task_input=inputs(x=f"@{first}.out"))
    run_id = rest.run(workflow_id)
    stream = rest.stream(workflow_id, run_id)
    assert next(stream)["type"] == "start_task"
    assert rest.post(f"/runs/{run_id}/cancel")["run_status"] == "cancelled"
    assert rest.post(f"/runs/{run_id}/cancel")["run_status"] == "cancelled"
    (last,) = stream
    assert last["data"]["status"] == "cancelled"
    assert rest.http.post(f"/runs/{NONE}/cancel").status_code == 404
    states = {task["name"]: task["state"] for task in rest.get(f"/runs/{run_id}")["run"]["tasks"]}
    assert states == {"first": "cancelled", "second": "cancelled"}


def test_langgraph(rest: Rest) -> None:
    """Any arguments; JSON, or the exact object; the user's traceback; many at once in parallel."""
    import pickle
    from concurrent.futures import ThreadPoolExecutor

    def node(*args: Any, **kwargs: Any) -> Any:
        import time

        if kwargs.get("fail"):
            raise LookupError("not here")
        time.sleep(kwargs.get("sleep", 0))
        return {"args": args, "kwargs": kwargs}

    node.__module__ = "__main__"
    workflow_id = rest.workflow()
    add = {
        "workflow_id": workflow_id,
        "task_type": "langgraph",
        "task_name": "node",
        "code_ser": pickled(node),
        "resources": {"cpu": 0},
    }
    task_id = rest.post("/add_langgraph_task", add)["task_id"]

    def call(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return {
            "workflow_id": workflow_id,
            "task_id": task_id,
            "args": pickled(args),
            "kwargs": pickled(kwargs),
        }

    done = rest.post("/run_langgraph_task", call(1, (2, 3), x="y"))
    assert done["result"] == {"args": [1, [2, 3]], "kwargs": {"x": "y"}}
    exact = rest.post("/run_langgraph_task", call({1, 2}) | {"result_format": "pickle"})
    assert pickle.loads(base64.b64decode(exact["result"])) == {"args": ({1, 2},), "kwargs": {}}
    described = rest.post("/run_langgraph_task", call({1, 2}))["result"]
    assert described["type"] == "dict"
    status, detail = rest.refused("/run_langgraph_task", call(fail=True))
    assert status == 500
    assert "LookupError: not here" in detail
    assert "in node" in detail
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda n: rest.post("/run_langgraph_task", call(n, sleep=0.2)), range(8))
        )
    assert [answer["result"]["args"] for answer in answers] == [[n] for n in range(8)]
    for body, code in (
        (call() | {"task_id": NONE}, 404),
        (call() | {"workflow_id": NONE}, 404),
        (call() | {"args": "%%%"}, 400),
        (call() | {"kwargs": None}, 422),
        (call() | {"result_format": "xml"}, 422),
        (call() | {"args": base64.b64encode(b"no pickle").decode()}, 500),
    ):
        assert rest.refused("/run_langgraph_task", body)[0] == code
    assert rest.refused("/add_langgraph_task", add | {"task_type": "code"})[0] == 400
    assert rest.refused("/add_langgraph_task", add | {"code_ser": "%"})[0] == 400
    assert rest.refused("/add_langgraph_task", add | {"resources": {"cpu": "x"}})[0] == 400
    assert rest.refused("/run_workflow", {"workflow_id": workflow_id})[0] == 400
    ordinary = rest.task(workflow_id, "ordinary", GOOD)
    assert rest.refused("/run_langgraph_task", call() | {"task_id": ordinary})[0] == 400
    assert rest.refused("/save_task", saved(workflow_id, task_id))[0] == 400


def test_workers(rest: Rest) -> None:
    """Registered, waiting or active, disconnected; the head's port is the real one."""
    import socket

    port = rest.post("/get_head_ray_port")["port"]
    with socket.create_connection(("127.0.0.1", port), 5):
        pass
    gpus = {"0": {"gpu_id": 0, "gpu_mem": 8192, "gpu_num": 1}}
    body = {
        "node_ip": "192.0.2.1",
        "node_id": "far",
        "resources": {"cpu": 8, "cpu_mem": 16384, "gpu_resource": gpus},
    }
    rest.post("/connect_worker", body)

    def status(node_id: str) -> str:
        return next(
            str(worker["status"])
            for worker in rest.get("/workers")["workers"]
            if worker["node_id"] == node_id
        )

    assert status("far") == "waiting"
    rest.post("/disconnect_worker", {"node_id": "far"})
    assert status("far") == "disconnected"
    assert rest.refused("/disconnect_worker", {"node_id": "nobody"})[0] == 404
    assert rest.refused("/connect_worker", body | {"resources": {"cpus": 1}})[0] == 400
    assert rest.refused("/connect_worker", {"node_id": "x"})[0] == 422

    (own,) = (w for w in rest.get("/workers")["workers"] if w["status"] == "unregistered")
    own_body = {"node_ip": own["node_ip"], "node_id": "own", "resources": {"cpu": 2}}
    rest.post("/connect_worker", own_body)
    assert status("own") == "active"
    workflow_id = rest.workflow()
    rest.task(workflow_id, "task", GOOD)
    start = rest.messages(workflow_id, rest.run(workflow_id))[0]
    assert start["data"]["node_id"] == "own"
    assert start["data"]["node_ip"] == own["node_ip"]
    rest.post("/disconnect_worker", {"node_id": "own"})
    code, detail = rest.refused("/run_workflow", {"workflow_id": workflow_id})
    assert code == 400
    assert "no node" in detail
    rest.post("/connect_worker", own_body)
    assert rest.messages(workflow_id, rest.run(workflow_id))[-1]["data"]["status"] == "succeeded"


def test_health_and_documentation(rest: Rest) -> None:
    """Probes, metrics, the OpenAPI document with title and version, CORS as specified."""
    assert rest.get("/healthz")["status"] == "ok"
    assert rest.http.get("/readyz").status_code == 200
    assert "http" in rest.http.get("/metrics").text
    document = rest.get("/openapi.json")
    assert document["info"]["title"] == "Lattice API"
    assert document["info"]["version"] == "2.0.0"
    assert rest.http.get("/docs").status_code == 200
    preflight = rest.http.options(
        "/create_workflow",
        headers={"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"},
    )
    assert preflight.status_code == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Host": "rebound.example:8000"},
    ],
)
def test_pages_of_other_sites_are_refused(rest: Rest, headers: dict[str, str]) -> None:
    """A web page must not be able to run code on a developer's machine."""
    status, detail = rest.refused("/create_workflow", None, headers=headers)
    assert status == 403
    assert "allowed_hosts" in detail
    assert rest.http.get("/runs", headers=headers).status_code == 403
