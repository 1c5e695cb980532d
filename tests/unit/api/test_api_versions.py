"""Clients and services say what they are, and refuse what they cannot understand."""

from __future__ import annotations

import httpx
import pytest
from fastapi import FastAPI

from lattice.api import versions as middleware
from lattice.versions import PROTOCOL, release
from tests.unit.api.scripted import ScriptedService
from tests.unit.api.served import served

pytestmark = pytest.mark.anyio


async def test_every_answer_says_what_the_service_is(client: httpx.AsyncClient) -> None:
    """Refusals too, so that a client need not ask."""
    for path in ("/healthz", "/workers", "/nope"):
        answer = await client.get(path)
        assert answer.headers["lattice-version"] == release()
        assert answer.headers["lattice-protocol"] == str(PROTOCOL)


async def test_clients_of_the_same_protocol_and_those_without_one_are_served(
    client: httpx.AsyncClient,
) -> None:
    """curl says nothing, and knows what it does."""
    for headers in ({}, {"Lattice-Protocol": str(PROTOCOL), "Lattice-Version": "0.0.1"}):
        assert (await client.post("/create_workflow", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    ("protocol", "words"),
    [
        ("3", f"upgrade the service, or use a client of Lattice {release()}"),
        ("1", f"upgrade the client to Lattice {release()}"),
        ("two", "lattice-protocol has to be a number"),
        ("9" * 5000, "upgrade the service"),
    ],
)
async def test_a_client_that_is_not_understood_is_told_which_side_to_upgrade(
    client: httpx.AsyncClient,
    service: ScriptedService,
    monkeypatch: pytest.MonkeyPatch,
    protocol: str,
    words: str,
) -> None:
    """It is refused before anything happens, everywhere but where it can look up what the service is."""
    monkeypatch.setattr(middleware, "PROTOCOL", 2)
    monkeypatch.setattr(middleware, "OLDEST", 2)
    headers = {"Lattice-Protocol": protocol, "Lattice-Version": "7.7"}
    answer = await client.post("/create_workflow", headers=headers)
    assert answer.status_code == 400
    assert "the client (Lattice 7.7) speaks protocol" in answer.json()["detail"]
    assert words in answer.json()["detail"]
    assert service.calls == []
    assert (await client.get("/healthz", headers=headers)).status_code == 200


async def test_a_websocket_is_refused_in_the_same_words(app: FastAPI) -> None:
    """While it is opened, so that the client need not guess what a close code means."""
    headers = {
        "Lattice-Protocol": "99",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }
    async with served(app) as address, httpx.AsyncClient() as http:
        answer = await http.get(f"http://{address}/get_workflow_res/w/r", headers=headers)
    assert answer.status_code == 400
    assert "upgrade the service" in answer.json()["detail"]
