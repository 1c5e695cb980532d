"""`Idempotency-Key`: the orchestrator gets the key and what it was sent with, and does it once."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from lattice.api.server import create_app
from lattice.ports.service import Once
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from tests.unit.api.scripted import ScriptedService
from tests.unit.orchestrator.world import World, make

pytestmark = pytest.mark.anyio

TASK = {"task_id": "t", "task_name": "n", "task_input": {}, "task_output": {}}
POSTS: dict[str, Any] = {
    "/create_workflow": None,
    "/add_task": {"workflow_id": "w", "task_type": "code", "task_name": "n"},
    "/run_workflow": {"workflow_id": "w"},
    "/submit_workflow": {"tasks": [TASK]},
    "/runs/r/retry": None,
    "/add_langgraph_task": {"workflow_id": "w", "task_name": "n", "code_ser": "AAAA"},
}


@pytest.mark.parametrize("path", POSTS)
async def test_what_creates_or_runs_takes_a_key(
    client: httpx.AsyncClient, service: ScriptedService, path: str
) -> None:
    for headers in ({}, {"Idempotency-Key": "k"}, {"idempotency-key": "k"}):
        answer = await client.post(path, json=POSTS[path], headers=headers)
        assert answer.status_code == 200
    without, first, second = [call[-1] for call in service.calls]
    assert without is None
    assert isinstance(first, Once)
    assert first.key == "k"
    assert first == second


async def test_other_requests_have_other_fingerprints(
    client: httpx.AsyncClient, service: ScriptedService
) -> None:
    headers = {"Idempotency-Key": "k"}
    for path, body in POSTS.items():
        await client.post(path, json=body, headers=headers)
    for name in ("a", "b"):
        await client.post(
            "/add_task", json=POSTS["/add_task"] | {"task_name": name}, headers=headers
        )
    fingerprints = [once.fingerprint for *_, once in service.calls]  # type: ignore[attr-defined]
    assert len(set(fingerprints)) == len(POSTS) + 2


@pytest.mark.parametrize("key", [b"x" * 255, b"~ !", b"a,b"])
async def test_printable_ascii_is_a_key(
    client: httpx.AsyncClient, service: ScriptedService, key: bytes
) -> None:
    answer = await client.post("/create_workflow", headers={b"Idempotency-Key": key})
    assert answer.status_code == 200
    assert service.calls[0][1].key == key.decode()  # type: ignore[attr-defined]


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"\xe9", b"a\tb", b"\x7f"])
async def test_anything_else_is_400(
    client: httpx.AsyncClient, service: ScriptedService, key: bytes
) -> None:
    answer = await client.post("/create_workflow", headers={b"Idempotency-Key": key})
    assert answer.status_code == 400
    assert answer.json()["detail"].startswith("Idempotency-Key: found ")
    assert service.calls == []


#: What is the same when it is done twice, and so needs no key; and calls, whose results are not kept.
WITHOUT_KEY = {
    "/save_task",
    "/save_task_and_add_edge",
    "/add_edge",
    "/del_edge",
    "/del_task",
    "/runs/{run_id}/cancel",
    "/connect_worker",
    "/disconnect_worker",
    "/get_head_ray_port",
    "/run_langgraph_task",
}


def test_every_post_is_known_to_take_a_key_or_to_need_none(app: FastAPI) -> None:
    """A new one has to be put into one of the two lists."""
    posts = {path for path, methods in app.openapi()["paths"].items() if "post" in methods}
    assert posts == WITHOUT_KEY | {path.replace("/r/", "/{run_id}/") for path in POSTS}


@pytest.mark.parametrize("path", POSTS)
async def test_a_request_is_done_once_for_its_key(path: str) -> None:
    """On a real orchestrator: the same answer again, also after a restart; another request is refused."""
    store, clock, ids = MemoryStore(), FakeClock(), CountedIds()
    dispatcher = HeldDispatcher(clock)
    world = World(store, clock, dispatcher, make(store, clock, dispatcher, ids), ids)
    await world.orchestrator.start_monitor()
    workflow_id = await world.workflow("a")
    (run,) = await world.orchestrator.list_runs(1)
    path = path.replace("/r/", f"/{run['run_id']}/")
    body = POSTS.get(path)
    if body is not None:
        body = body | {"workflow_id": workflow_id}
    if path == "/submit_workflow":
        body = {"tasks": [TASK | {"code_str": "def n(params): ..."}]}

    async def post(target: str, content: Any, key: str = "k") -> httpx.Response:
        app = create_app(orchestrator=world.orchestrator)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app), base_url="http://localhost"
        ) as client:
            return await client.post(target, json=content, headers={"Idempotency-Key": key})

    first = await post(path, body)
    assert first.status_code == 200, first.text
    count = len(await world.orchestrator.list_runs(100))
    assert (await post(path, body)).json() == first.json()
    await world.restart()
    assert (await post(path, body)).json() == first.json()
    changed = await post(path, (body or {}) | {"more": 1})
    elsewhere = await post(
        "/add_task" if path != "/add_task" else "/create_workflow", POSTS["/add_task"]
    )
    for answer in (changed, elsewhere):
        assert answer.status_code == 409
        assert "was used for a different request" in answer.json()["detail"]
    assert len(await world.orchestrator.list_runs(100)) == count
    other = await post(path, body, key="other")
    assert other.status_code == 200
    assert other.json() != first.json()
    await world.orchestrator.close()
