"""What `/docs` says is whole and true: every reference leads somewhere, every example works."""

from __future__ import annotations

import base64
import json
import operator
import pickle
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from jsonschema import Draft202012Validator

from lattice.api.models import examples
from lattice.api.server import create_app
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from tests.unit.orchestrator.world import make

pytestmark = pytest.mark.anyio

PATHS = {
    "/create_workflow",
    "/add_task",
    "/save_task",
    "/save_task_and_add_edge",
    "/add_edge",
    "/del_edge",
    "/del_task",
    "/get_workflow_tasks/{workflow_id}",
    "/run_workflow",
    "/submit_workflow",
    "/add_langgraph_task",
    "/run_langgraph_task",
    "/connect_worker",
    "/disconnect_worker",
    "/get_head_ray_port",
    "/workers",
    "/runs",
    "/runs/{run_id}",
    "/runs/{run_id}/events",
    "/runs/{run_id}/cancel",
    "/runs/{run_id}/retry",
    "/workflows/{workflow_id}",
    "/workflows/{workflow_id}/runs",
    "/runs/{run_id}/tasks/{task_id}/logs",
    "/runs/{run_id}/tasks/{task_id}/result",
    "/runs/{run_id}/tasks/{task_id}/result/{key}",
    "/healthz",
    "/readyz",
    "/metrics",
}


@pytest.fixture
def document(app: FastAPI) -> dict[str, Any]:
    return app.openapi()


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation_ in methods.items():
            yield f"{method} {path}", operation_


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        for child in value.values():
            yield from nodes(child)
    elif isinstance(value, list):
        for child in value:
            yield from nodes(child)


def test_every_endpoint_is_there(document: dict[str, Any]) -> None:
    assert set(document["paths"]) == PATHS


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = {node["$ref"] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    assert references == {f"#/components/schemas/{name}" for name in schemas}
    for schema in schemas.values():
        Draft202012Validator.check_schema(schema)


def test_every_operation_is_described_and_refuses_in_one_form(document: dict[str, Any]) -> None:
    for name, operation_ in operations(document):
        assert operation_["description"], name
        for status, response in operation_["responses"].items():
            if int(status) >= 400:
                schema = response["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/ErrorResponse"}, (name, status)
        assert {"403", "422", "500", "503"} <= set(operation_["responses"]), name
        assert set(
            operation_.get("requestBody", {"content": {"application/json": 0}})["content"]
        ) == {"application/json"}, name


def test_every_request_has_an_example_that_fits_its_schema(document: dict[str, Any]) -> None:
    checked = 0
    for name, operation_ in operations(document):
        if "requestBody" not in operation_:
            continue
        reference = operation_["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        schema = document["components"]["schemas"][reference.rsplit("/", 1)[1]]
        found = schema.get("examples") or [
            {key: field["examples"][0] for key, field in schema["properties"].items()}
        ]
        for example in found:
            Draft202012Validator(schema | {"components": document["components"]}).validate(example)
            checked += 1
        assert found, name
    assert checked >= 12


async def test_the_examples_work_as_one_story() -> None:
    """Pasted in their order, with the ids that were answered, into an app on a real orchestrator."""
    clock = FakeClock()
    service = make(MemoryStore(), clock, HeldDispatcher(clock), CountedIds())
    app = create_app(orchestrator=service)
    await service.start_monitor()
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://localhost"
    ) as client:
        ids: dict[str, str] = {}

        async def paste(path: str, example: dict[str, Any] | None = None) -> dict[str, Any]:
            text = json.dumps(example)
            for shown, answered in ids.items():
                text = text.replace(shown, answered)
            answer = await client.post(path, json=None if example is None else json.loads(text))
            assert answer.status_code == 200, (path, answer.text)
            return answer.json()  # type: ignore[no-any-return]

        ids[examples.WORKFLOW["workflow_id"]] = (await paste("/create_workflow"))["workflow_id"]
        for example in (examples.SAVE_SPLIT, examples.SAVE_COUNT):
            added = examples.ADD_TASK | {"task_name": example["task_name"]}
            ids[example["task_id"]] = (await paste("/add_task", added))["task_id"]
            await paste("/save_task_and_add_edge", example)
            await paste("/save_task", example)
        await paste("/add_edge", examples.EDGE)
        await paste("/run_workflow", examples.WORKFLOW)
        await paste("/run_workflow", examples.RUN_WITHIN)
        await paste("/del_edge", examples.EDGE)
        await paste("/del_task", examples.TASK)
        await paste("/submit_workflow", examples.SUBMIT)
        await paste("/add_langgraph_task", examples.ADD_LANGGRAPH)
    await service.close()


def test_the_code_of_the_examples_runs() -> None:
    functions: dict[str, Any] = {}
    for example in (examples.SAVE_SPLIT, examples.SAVE_COUNT):
        exec(example["code_str"], functions)
    words = functions["split_words"]({"text": "to be or not to be"})
    assert functions["count_words"](words) == {"counts": {"to": 2, "be": 2, "or": 1, "not": 1}}

    def loaded(text: str) -> Any:
        return pickle.loads(base64.b64decode(text))

    function = loaded(examples.ADD_LANGGRAPH["code_ser"])
    assert function is operator.add
    call = examples.RUN_LANGGRAPH
    assert function(*loaded(call["args"]), **loaded(call["kwargs"])) == 5


async def test_docs_and_schema_are_served(client: httpx.AsyncClient) -> None:
    assert "Lattice API" in (await client.get("/docs")).text
    assert (await client.get("/openapi.json")).json()["info"] == {
        "title": "Lattice API",
        "description": "Task-level distributed framework for LLM agents",
        "version": "2.0.0",
    }
