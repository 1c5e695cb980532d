"""Bodies: what is malformed is 422, what makes no sense 400, and both say which field and why."""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from lattice.api.requests import MAX_CONTAINERS, MAX_DEPTH, parse_body
from lattice.api.server import create_app
from lattice.ports.service import CodeUpload, TaskUpload
from lattice.settings import LatticeSettings
from lattice.workflow.outline import Outline
from lattice.workflow.task import CodeForm
from tests.unit.api.scripted import ScriptedService
from tests.unit.api.served import served

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
PICKLE = base64.b64encode(b"\x80code").decode()


def nested(depth: int) -> str:
    """A body whose `resources` make it `depth` levels deep."""
    inner = depth - 2
    return (
        '{"workflow_id": "w", "task_type": "langgraph", "task_name": "t", "code_ser": "AAAA", '
        '"resources": {"x": ' + "[" * inner + "]" * inner + "}}"
    )


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "body: found nothing"),
        (b"{", "body: found malformed JSON at character 1"),
        (b'{"workflow_id": "w",}', "body: found malformed JSON at character 20"),
        (b"[]", "body: found [] (list)"),
        (b"null", "body: found None"),
        (b'"text"', "body: found 'text' (str)"),
        (b'{"workflow_id": NaN}', "body: found NaN"),
        (b'{"workflow_id": -Infinity}', "body: found -Infinity"),
        (b'{"workflow_id": 1e999}', "body: found the number 1e999"),
        (b'{"workflow_id": ' + b"1" * 5000 + b"}", "body: found a number of too many digits"),
        (b'{"workflow_id": ' + b"1" * 4000 + b"}", "workflow_id: found 1111"),
        (b'{"workflow_id": "\xff"}', "body: found byte 17 that is not UTF-8"),
        (b'{"workflow_id": "\xed\xa0\x80"}', "body: found byte 17 that is not UTF-8"),
        ('{"workflow_id": "w"}'.encode("utf-16"), "body: found byte 0 that is not UTF-8"),
        (rb'{"workflow_id": "\ud800"}', "body: found half of a surrogate pair"),
        (rb'{"a": [{"\uDC00": 1}]}', "body: found half of a surrogate pair"),
        (b"[" * 100_000, "body: found deeper nesting; allowed: up to 100 levels"),
        (nested(MAX_DEPTH + 1).encode(), "body: found deeper nesting"),
        (
            b'{"x": [' + b"[]," * MAX_CONTAINERS + b"1]}",
            f"body: found {MAX_CONTAINERS + 2} lists and objects; allowed: at most {MAX_CONTAINERS}",
        ),
        (b'{"workflow_id": ["' + b"x" * 1000 + b'"]}', "workflow_id: found ['xxx"),
    ],
    ids=range(20),
)
async def test_a_malformed_body_is_422(
    client: httpx.AsyncClient, service: ScriptedService, body: bytes, words: str
) -> None:
    answer = await client.post("/add_langgraph_task", content=body, headers=JSON)
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail.startswith(words)
    assert len(detail) < 1000
    assert service.calls == []


@pytest.mark.parametrize(
    "body", [nested(MAX_DEPTH), nested(3).replace("[]", r'"\ud83c\udf88"', 1)], ids=["deep", "pair"]
)
async def test_what_is_within_the_bounds_is_taken(
    client: httpx.AsyncClient, service: ScriptedService, body: str
) -> None:
    answer = await client.post("/add_langgraph_task", content=body, headers=JSON)
    assert answer.status_code == 200
    upload = service.calls[0][2]
    assert isinstance(upload, TaskUpload)
    assert upload.definition["resources"] == json.loads(body)["resources"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
async def test_a_body_must_say_that_it_is_json(
    client: httpx.AsyncClient, service: ScriptedService, content_type: str
) -> None:
    answer = await client.post(
        "/run_workflow", content=b'{"workflow_id": "w"}', headers={"content-type": content_type}
    )
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("Content-Type: found ")
    assert service.calls == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "limit=1001", "status=odd"])
async def test_a_bad_parameter_is_422(client: httpx.AsyncClient, query: str) -> None:
    answer = await client.get(f"/runs?{query}")
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith("query." + query.split("=")[0])


# -- code --------------------------------------------------------------------------------------

CLASS = Outline(last_is_class=True)
SOURCE_CLASS = CodeUpload(
    CodeForm.SOURCE, b"class A: ...", Outline(frozenset({"A"}), last_is_class=True)
)
SAVED: dict[str, Any] = {"workflow_id": "w", "task_id": "t", "task_input": {}, "task_output": {}}


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({}, None),
        ({"code_str": "def f(p): ..."}, CodeUpload(CodeForm.SOURCE, b"def f(p): ...")),
        ({"code_ser": PICKLE}, CodeUpload(CodeForm.PICKLE, b"\x80code")),
        ({"serialized_code": PICKLE}, CodeUpload(CodeForm.PICKLE, b"\x80code")),
        ({"code_ser": PICKLE, "code_str": "x"}, CodeUpload(CodeForm.PICKLE, b"\x80code")),
        ({"serialized_code": PICKLE, "code_str": "x"}, CodeUpload(CodeForm.PICKLE, b"\x80code")),
        ({"code_ser": "AAAA", "serialized_code": PICKLE}, CodeUpload(CodeForm.PICKLE, b"\0\0\0")),
        ({"code_ser": None, "serialized_code": PICKLE}, CodeUpload(CodeForm.PICKLE, b"\x80code")),
        (
            {"code_ser": PICKLE, "code_is_class": True},
            CodeUpload(CodeForm.PICKLE, b"\x80code", CLASS),
        ),
        ({"code_str": "class A: ...", "code_is_class": False}, SOURCE_CLASS),
        (
            {"code_str": "def f(p): ...", "code_is_class": True},
            CodeUpload(CodeForm.SOURCE, b"def f(p): ..."),
        ),
    ],
    ids=range(11),
)
@pytest.mark.parametrize("add_edges", [False, True])
async def test_pickled_code_wins_over_source(
    client: httpx.AsyncClient,
    service: ScriptedService,
    fields: dict[str, str],
    code: CodeUpload | None,
    add_edges: bool,
) -> None:
    path = "/save_task_and_add_edge" if add_edges else "/save_task"
    answer = await client.post(path, json=SAVED | fields)
    assert answer.json() == {"status": "success"}
    expected = TaskUpload("t", None, {"task_input": {}, "task_output": {}}, code)  # type: ignore[arg-type]
    assert service.calls == [("save_task", "w", expected, add_edges)]


async def test_a_definition_is_handed_on_as_it_is(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    definition = {
        "task_input": {"input_params": {}},
        "task_output": {"output_params": {}},
        "resources": {"cpu": 0.5},
        "batch_config": {"enabled": True, "max_concurrent_batches": 2},
        "autoscaling": {"max_replicas": 2, "upscale_delay": 1, "warm_up": False},
        "retry": {"max_attempts": 2},
        "timeout": 1.5,
        "runtime_env": {"pip": []},
        "sandbox": {"memory": 512},
    }
    body = SAVED | definition | {"task_name": "n", "unknown": 1}
    assert (await client.post("/save_task", json=body)).status_code == 200
    upload = service.calls[0][2]
    assert isinstance(upload, TaskUpload)
    assert (upload.name, upload.definition) == ("n", definition)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"code_ser": "string"}, "code_ser: found 'string' (str); base64 is allowed"),
        ({"code_ser": "AA AA"}, "code_ser: found "),
        ({"code_ser": "AAA"}, "code_ser: found "),
        ({"code_ser": "é"}, "code_ser: found "),
        ({"code_ser": ""}, "code_ser: found no code"),
        ({"serialized_code": "?"}, "serialized_code: found '?'"),
        ({"code_str": " \n"}, "code_str: found no code"),
    ],
    ids=range(7),
)
async def test_code_that_makes_no_sense_is_400(
    client: httpx.AsyncClient, service: ScriptedService, fields: dict[str, str], words: str
) -> None:
    answer = await client.post("/save_task", json=SAVED | fields)
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(words)
    task = {"task_id": "t", "task_name": "n", "task_input": {}, "task_output": {}}
    answer = await client.post("/submit_workflow", json={"tasks": [task, task | fields]})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith(f"tasks[1].{words}")
    assert service.calls == []


@pytest.mark.parametrize(
    ("autoscaling", "words"),
    [
        ({"max_replicas": "2"}, "autoscaling.max_replicas: "),
        ({"warm_up": 1}, "autoscaling.warm_up: "),
        ([], "autoscaling: "),
    ],
)
async def test_autoscaling_of_a_wrong_form_is_422(
    client: httpx.AsyncClient, service: ScriptedService, autoscaling: object, words: str
) -> None:
    """The field is named."""
    answer = await client.post("/save_task", json=SAVED | {"autoscaling": autoscaling})
    assert answer.status_code == 422
    assert answer.json()["detail"].startswith(words)
    assert service.calls == []


async def test_unknown_keys_of_autoscaling_are_handed_on(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    """The domain refuses them and says which are allowed; here nothing may get lost."""
    await client.post("/save_task", json=SAVED | {"autoscaling": {"replicas": 2}})
    assert service.calls[0][2].definition["autoscaling"] == {"replicas": 2}


async def test_the_outline_of_a_long_source_is_made_in_a_thread(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    """With the same result; and a source that many tasks share is looked at once."""
    text = "x = 1\n" * 5000 + "class A: ...\n"
    task = {"task_name": "n", "task_input": {}, "task_output": {}, "code_str": text}
    body = {"tasks": [task | {"task_id": "a"}, task | {"task_id": "b", "task_name": "x"}]}
    assert (await client.post("/submit_workflow", json=body)).status_code == 200
    uploads = service.calls[0][1]
    assert [upload.code.outline.picks_class(upload.name) for upload in uploads] == [True, False]


# -- the limit ---------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_413(service: ScriptedService) -> None:
    app = create_app(orchestrator=service, settings=LatticeSettings(max_body_bytes=1000))
    body = json.dumps(SAVED | {"code_str": "x" * 1000}).encode()

    async def pieces() -> Any:
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    async with (
        served(app) as address,
        httpx.AsyncClient(base_url=f"http://{address}") as client,
    ):
        over = json.dumps(SAVED).encode().ljust(1001)
        for content in (body, pieces(), b"x" * 10_000_000, over):
            answer = await client.post("/save_task", content=content, headers=JSON)
            assert answer.status_code == 413
            detail = answer.json()["detail"]
            assert detail.startswith("max_body_bytes: found ")
            assert detail.endswith(" bytes; at most 1000 are allowed")
        small = json.dumps(SAVED).encode().ljust(1000)
        assert (await client.post("/save_task", content=small, headers=JSON)).status_code == 200
    assert len(service.calls) == 1


async def test_a_declared_length_is_enough_to_refuse(
    app: FastAPI, service: ScriptedService
) -> None:
    async def receive() -> Any:
        raise AssertionError("the body must not be read")

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-length", b"9" * 5000)]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/save_task",
        "raw_path": b"/save_task",
        "query_string": b"",
        "headers": headers,
        "http_version": "1.1",
        "scheme": "http",
        "server": ("localhost", 80),
    }
    await app(scope, receive, send)
    assert sent[0]["status"] == 413


def test_long_texts_may_have_more_brackets() -> None:
    """As source code has: one for each 16 bytes."""
    text = "[" + 16 * "x"
    assert parse_body(f'["{text * (MAX_CONTAINERS + 2)}"]'.encode())[0].startswith(text)
