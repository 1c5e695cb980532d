"""`Idempotency-Key`: the orchestrator gets the key and what it was sent with."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from lattice.ports import Once
from tests.unit.api.scripted import ScriptedService

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
