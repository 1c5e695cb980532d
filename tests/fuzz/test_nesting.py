"""Ten thousand deep: documents, chains of tasks, and what tasks return."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.fuzz.hostile import Raw, json_text, nested
from tests.service.rest import Rest, inputs, outputs

DEPTHS = (10_000, 100_000)
TASKS = 10_000

GOOD = "def good(p):\n    return {'out': 1}\n"

#: Every field that takes JSON of any form, in a body that is good otherwise.
FIELDS = (
    "task_input",
    "task_input.input_params",
    "task_input.input_params.1",
    "task_input.input_params.1.value",
    "task_output",
    "task_output.output_params.1.data_type",
    "resources",
    "resources.cpu",
    "batch_config",
    "retry",
    "retry.on",
    "runtime_env",
    "runtime_env.env_vars",
    "autoscaling",
    "sandbox",
    "timeout",
    "unknown",
)


def _body(**ids: str) -> dict[str, Any]:
    value = {"key": "a", "input_schema": "from_user", "data_type": "Any", "value": 1}
    return {
        **ids,
        "task_name": "good",
        "code_str": GOOD,
        "task_input": {"input_params": {"1": value}},
        "task_output": outputs("out"),
        "resources": {},
        "retry": {},
        "runtime_env": {},
    }


def _with(body: dict[str, Any], field: str, value: object) -> bytes:
    """`body` with `value` at the dotted path `field`."""
    copy = json.loads(json.dumps(body))
    at = copy
    *path, last = field.split(".")
    for key in path:
        at = at[key]
    at[last] = value
    return json_text(copy).encode()


@pytest.mark.parametrize("kind", ["array", "object"])
@pytest.mark.parametrize("depth", DEPTHS)
def test_deep_documents_are_refused(rest: Rest, depth: int, kind: str) -> None:
    """In every field and as a whole, with words that say why; the task is as it was."""
    workflow_id = rest.workflow()
    task_id = rest.task(workflow_id, "good", GOOD)
    deep = nested(depth, kind)
    save = _body(workflow_id=workflow_id, task_id=task_id)
    submitted = _body(task_id="a")
    requests = [("/save_task", _with(save, field, deep)) for field in FIELDS]
    requests += [
        (
            "/submit_workflow",
            json_text({"tasks": [Raw(_with(submitted, field, deep).decode())]}).encode(),
        )
        for field in FIELDS
    ]
    connect = {"node_id": "a", "node_ip": "10.0.0.1", "resources": deep}
    requests.append(("/connect_worker", json_text(connect).encode()))
    requests += [(path, str(deep).encode()) for path in ("/save_task", "/run_workflow")]
    for path, body in requests:
        answer = rest.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422, (path, body[:300], answer.text)
        assert "deeper nesting" in answer.json()["detail"]
    messages = rest.messages(workflow_id, rest.run(workflow_id))
    assert messages[-1]["data"]["status"] == "succeeded"


def _chain(first: str, *, by_reference: bool) -> dict[str, Any]:
    """A workflow of `TASKS` tasks, each after the one before."""
    tasks = []
    for number in range(TASKS):
        given = inputs(a=f"@t{number - 1}.out") if by_reference and number else inputs()
        tasks.append(
            {
                "task_id": f"t{number}",
                "task_name": "good",
                "code_str": GOOD if number else first,
                "task_input": given,
                "task_output": outputs("out"),
            }
        )
    edges = [] if by_reference else [[f"t{n}", f"t{n + 1}"] for n in range(TASKS - 1)]
    return {"tasks": tasks, "edges": edges}


@pytest.mark.parametrize("by_reference", [True, False], ids=["references", "edges"])
def test_a_long_chain_ends_with_its_first_task(rest: Rest, by_reference: bool) -> None:
    """The failure of the first goes through all the others, of which each is told once."""
    document = _chain("def good(p):\n    raise ValueError('first')\n", by_reference=by_reference)
    run_id = rest.post("/submit_workflow", document)["run_id"]
    for _ in rest.stream(rest.get(f"/runs/{run_id}")["run"]["workflow_id"], run_id):
        pass
    run = rest.get(f"/runs/{run_id}")["run"]
    assert run["status"] == "failed"
    states = [task["state"] for task in run["tasks"]]
    assert states == ["failed", *["skipped"] * (TASKS - 1)]


def test_a_long_chain_is_cancelled_on_its_way(rest: Rest) -> None:
    """However much of it is still to come."""
    document = _chain(GOOD, by_reference=True)
    started = rest.post("/submit_workflow", document)
    for message in rest.stream(started["workflow_id"], started["run_id"]):
        if message["data"].get("task_id") == "t5":
            break
    cancelled = rest.post(f"/runs/{started['run_id']}/cancel")
    assert cancelled["run_status"] == "cancelled"
    messages = rest.messages(started["workflow_id"], started["run_id"])
    assert messages[-1]["data"]["status"] == "cancelled"


def test_a_long_cycle_is_refused_in_few_words(rest: Rest) -> None:
    """A refusal names the cycle, but not ten thousand tasks."""
    document = _chain(GOOD, by_reference=False)
    document["edges"].append([f"t{TASKS - 1}", "t0"])
    status, detail = rest.refused("/submit_workflow", document)
    assert status == 400
    assert "cycle" in detail
    assert len(detail) < 10_000


DEEP = """
def deep(p):
    value = []
    for _ in range({depth}):
        value = {make}
    return {{'out': value}}
"""
CALLABLE = """
import sys
class Deep:
    def __reduce__(self):
        value = []
        for _ in range({depth}):
            value = [value]
        return Deep, (value,)
def deep(p):
    sys.setrecursionlimit(50_000)
    return {{'out': Deep()}}
"""


@pytest.mark.parametrize("depth", [900, *DEPTHS])
@pytest.mark.parametrize("make", ["[value]", "{'a': value}", "(value,)"])
def test_a_deep_result_is_described_or_fails_its_own_run(rest: Rest, depth: int, make: str) -> None:
    """What a task returns is of no consequence for anybody else."""
    message = rest.outcome(DEEP.format(depth=depth, make=make))
    if message["type"] == "finish_task":
        assert message["data"]["result"]["out"]["type"] in ("list", "dict", "tuple")
    else:
        assert message["type"] == "task_exception"
        assert "pickled" in message["data"]["result"]


def test_a_deep_result_that_takes_more_stack_fails_its_own_run(rest: Rest) -> None:
    """Also where the code asks for a stack that the process may not have."""
    message = rest.outcome(CALLABLE.format(depth=20_000))
    assert message["type"] in ("task_exception", "finish_task")
