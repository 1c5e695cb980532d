"""Pages of other sites cannot use the service through their visitors' browsers."""

from __future__ import annotations

import httpx
import pytest

from lattice.api.server import create_app
from lattice.settings import LatticeSettings
from tests.unit.api.scripted import ScriptedService

pytestmark = pytest.mark.anyio

LOCAL = "localhost:8000"


async def ask(
    service: ScriptedService, path: str, headers: dict[str, str], *hosts: str, method: str = "GET"
) -> httpx.Response:
    settings = LatticeSettings(allowed_hosts=hosts) if hosts else LatticeSettings()
    transport = httpx.ASGITransport(create_app(orchestrator=service, settings=settings))
    async with httpx.AsyncClient(transport=transport, base_url="http://unused") as client:
        return await client.request(method, path, headers=headers)


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "localhost"},
        {"host": LOCAL},
        {"host": "LocalHost:1"},
        {"host": "127.0.0.1:8000"},
        {"host": "[::1]:8000"},
        {"host": "[::1]"},
        {"host": LOCAL, "origin": "http://localhost:3000"},
        {"host": LOCAL, "origin": "http://[::1]:3000"},
        {"host": LOCAL, "sec-fetch-site": "same-origin"},
        {"host": LOCAL, "sec-fetch-site": "none"},
        {"host": LOCAL, "origin": "http://127.0.0.1", "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
async def test_the_services_own_names_pass(
    service: ScriptedService, headers: dict[str, str]
) -> None:
    assert (await ask(service, "/workers", headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"host": ""},
        {"host": "evil.example"},
        {"host": "evil.example:8000"},
        {"host": "localhost.evil.example"},
        {"host": "localhost:8000:1"},
        {"host": "localhost:x"},
        {"host": "[::1"},
        {"host": "[::2]"},
        {"host": "evil@localhost"},
        {"host": LOCAL, "origin": "https://evil.example"},
        {"host": LOCAL, "origin": "https://localhost.evil.example"},
        {"host": LOCAL, "origin": "http://localhost@evil.example"},
        {"host": LOCAL, "origin": "null"},
        {"host": LOCAL, "origin": "file://"},
        {"host": LOCAL, "origin": "http://[localhost"},
        {"host": LOCAL, "sec-fetch-site": "cross-site"},
    ],
    ids=str,
)
async def test_others_are_refused_everywhere_but_for_health(
    service: ScriptedService, headers: dict[str, str]
) -> None:
    for path in ("/workers", "/runs", "/docs", "/openapi.json", "/metrics", "/readyz", "/nope"):
        answer = await ask(service, path, headers)
        assert answer.status_code == 403, path
        assert "allowed_hosts" in answer.json()["detail"]
    assert (await ask(service, "/create_workflow", headers, method="POST")).status_code == 403
    assert service.calls == []
    assert (await ask(service, "/healthz", headers)).status_code == 200


async def test_allowed_hosts_replace_the_default(service: ScriptedService) -> None:
    hosts = ("Lattice.example", "::2")
    assert (await ask(service, "/runs", {"host": "lattice.EXAMPLE:1"}, *hosts)).status_code == 200
    assert (await ask(service, "/runs", {"host": "[::2]:1"}, *hosts)).status_code == 200
    assert (await ask(service, "/runs", {"host": LOCAL}, *hosts)).status_code == 403


async def test_a_star_allows_any(service: ScriptedService) -> None:
    for headers in ({"host": "any"}, {"host": "any", "origin": "null"}, {"host": ""}):
        assert (await ask(service, "/runs", headers, "*")).status_code == 200


async def test_a_preflight_is_answered_as_cors_says(service: ScriptedService) -> None:
    answer = await ask(
        service,
        "/run_workflow",
        {
            "host": LOCAL,
            "origin": "https://evil.example",
            "access-control-request-method": "POST",
            "access-control-request-headers": "content-type",
        },
        method="OPTIONS",
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://evil.example"
    assert answer.headers["access-control-allow-credentials"] == "true"
    assert answer.headers["access-control-allow-headers"] == "content-type"
