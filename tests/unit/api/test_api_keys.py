"""Requests and WebSockets with API keys and without, and what each may do."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.types import Receive, Scope, Send
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from lattice.api import access
from lattice.api.access import KeyMiddleware
from lattice.api.server import create_app
from lattice.errors import TooManyRequestsError
from lattice.ids import Tenant
from lattice.keys import ApiKey, hash_of, new_key, parse_keys
from lattice.ports.service import Caller
from lattice.settings import LatticeSettings
from tests.unit.api.scripted import ScriptedRun, ScriptedService, message
from tests.unit.api.served import served

pytestmark = pytest.mark.anyio

ALICE, BOB, ADMIN, OLD = (new_key() for _ in range(4))
KEYS = parse_keys(
    [
        {"name": "alice", "sha256": hash_of(ALICE)},
        {"name": "bob", "sha256": hash_of(BOB)},
        {"name": "ops", "sha256": hash_of(ADMIN), "admin": True},
        {"name": "bob", "sha256": hash_of(OLD), "expires": "2020-01-01T00:00:00+00:00"},
    ]
)
WS = "/get_workflow_res/w1/r1"


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def app_with(service: ScriptedService, **settings: Any) -> FastAPI:
    return create_app(
        orchestrator=service, settings=LatticeSettings(**{"api_keys": KEYS, **settings})
    )


@asynccontextmanager
async def client_of(app: FastAPI, host: str = "localhost") -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=f"http://{host}") as client:
        yield client


@pytest.fixture
async def guarded(service: ScriptedService) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app_with(service)) as client:
        yield client


async def test_every_endpoint_but_health_needs_a_key(
    service: ScriptedService, guarded: httpx.AsyncClient
) -> None:
    """Also those that nobody remembers to guard: all that the app has, and paths that it has not."""
    described = app_with(service).openapi()["paths"]
    asked = {(method.upper(), path) for path, methods in described.items() for method in methods}
    asked |= {("GET", path) for path in ("/docs", "/redoc", "/openapi.json", "/nope", "/healthz/x")}
    assert ("POST", "/run_workflow") in asked
    for method, path in sorted(asked):
        answer = await guarded.request(method, path)
        if path in ("/healthz", "/readyz"):
            assert answer.status_code in (200, 405), path
            continue
        assert answer.status_code == 401, (method, path)
        assert answer.headers["www-authenticate"] == 'Bearer realm="lattice"'
        assert "Authorization: Bearer KEY" in answer.json()["detail"]
        assert "lattice key NAME" in answer.json()["detail"]
    assert [call for call in service.calls if call[0] not in ("ready", "for_caller")] == []


async def test_the_description_says_so(
    guarded: httpx.AsyncClient, client: httpx.AsyncClient
) -> None:
    """What reads OpenAPI knows where a key is needed; without keys there is nothing to say."""
    described = (await guarded.get("/openapi.json", headers=bearer(ALICE))).json()
    scheme = {"type": "http", "scheme": "bearer"}
    assert described["components"]["securitySchemes"] == {"api_key": scheme}
    assert described["security"] == [{"api_key": []}]
    assert described["paths"]["/healthz"]["get"]["security"] == []
    assert "security" not in (await client.get("/openapi.json")).json()


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
async def test_a_key_opens_what_is_its_tenants(
    service: ScriptedService, guarded: httpx.AsyncClient, scheme: str
) -> None:
    for key, tenant in ((ALICE, "alice"), (BOB, "bob")):
        answer = await guarded.get("/runs", headers={"authorization": f"{scheme} {key}"})
        assert answer.status_code == 200
        assert service.calls[-2] == ("for_caller", Caller(Tenant(tenant), admin=False))


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": f"Bearer {ALICE[:-1]}"},
        {"authorization": f"Bearer {hash_of(ALICE)}"},
        {"authorization": f"Bearer {ALICE} {ALICE}"},
        {"authorization": f"Bearer {OLD}"},
    ],
)
async def test_a_wrong_key_is_told_apart_from_none(
    guarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    answer = await guarded.get("/runs", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == 'Bearer realm="lattice", error="invalid_token"'
    assert ALICE not in answer.text


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": ""}, {"authorization": "Bearer"}, {"authorization": f"Basic {ALICE}"}],
)
async def test_what_brings_no_key_is_told_how(
    guarded: httpx.AsyncClient, headers: dict[str, str]
) -> None:
    """A key in the address is not one: addresses get into logs."""
    for path in ("/runs", f"/runs?api_key={ALICE}", f"/runs?access_token={ALICE}"):
        answer = await guarded.get(path, headers=headers)
        assert (answer.status_code, "Bearer KEY" in answer.text) == (401, True)


async def test_operators_endpoints_need_an_admin_key(
    service: ScriptedService, guarded: httpx.AsyncClient
) -> None:
    node = {"node_id": "n", "node_ip": "127.0.0.1", "resources": {}}
    requests: list[tuple[str, str, object]] = [
        ("GET", "/metrics", None),
        ("GET", "/workers", None),
        ("POST", "/connect_worker", node),
        ("POST", "/disconnect_worker", {"node_id": "n"}),
        ("POST", "/get_head_ray_port", None),
    ]
    for method, path, body in requests:
        refused = await guarded.request(method, path, json=body, headers=bearer(ALICE))
        assert refused.status_code == 403, path
        assert "admin: true" in refused.json()["detail"]
        assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
        allowed = await guarded.request(method, path, json=body, headers=bearer(ADMIN))
        assert allowed.status_code == 200, path


async def test_a_preflight_needs_no_key_and_a_refusal_can_be_read(
    guarded: httpx.AsyncClient,
) -> None:
    """A browser sends no key with a preflight, and shows its page no answer without these headers."""
    origin = {"origin": "https://app.example"}
    preflight = {
        "access-control-request-method": "GET",
        "access-control-request-headers": "authorization",
    }
    answer = await guarded.options("/runs", headers=origin | preflight)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-headers"] == "authorization"
    assert "access-control-allow-origin" in (await guarded.get("/runs", headers=origin)).headers


async def test_with_a_key_any_name_and_page_will_do_unless_hosts_are_named(
    service: ScriptedService,
) -> None:
    """No page of another site has a key; `allowed_hosts` still counts where somebody has set it."""
    foreign = {**bearer(ALICE), "origin": "https://app.example"}
    async with client_of(app_with(service), "lattice.example") as client:
        assert (await client.get("/runs", headers=foreign)).status_code == 200
        assert (await client.get("/runs", headers={"origin": "null"})).status_code == 401
    async with client_of(
        app_with(service, allowed_hosts=("localhost",)), "lattice.example"
    ) as client:
        assert (await client.get("/runs", headers=foreign)).status_code == 403


async def test_a_rate_is_allowed_to_its_edge() -> None:
    """Three a second: three at once, the fourth after a third of one; the next tenant is not concerned."""
    now = 100.0
    answered: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    keys = [
        ApiKey(name=name, sha256=hash_of(key), requests_per_second=3)
        for name, key in (("alice", ALICE), ("bob", BOB), ("alice", ADMIN))
    ]
    middleware = KeyMiddleware(app, keys, monotonic=lambda: now)
    async with client_of(middleware) as client:  # type: ignore[arg-type]  # any ASGI app will do

        async def ask(key: str) -> httpx.Response:
            return await client.get("/runs", headers=bearer(key))

        answered = [(await ask(key)).status_code for key in (ALICE, ADMIN, ALICE)]
        assert answered == [200, 200, 200]
        refused = await ask(ALICE)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "requests_per_second" in refused.json()["detail"]
        assert (await ask(BOB)).status_code == 200
        now += 0.34
        assert [(await ask(ALICE)).status_code for _ in range(2)] == [200, 429]


async def test_each_process_allows_its_share(
    service: ScriptedService, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing flows back meanwhile.
    rate = access._Rate
    monkeypatch.setattr(access, "_Rate", lambda *args: rate(*args[:-1], lambda: 100.0))
    keys = [ApiKey(name="alice", sha256=hash_of(ALICE), requests_per_second=4)]
    async with client_of(app_with(service, api_keys=keys, ingress_replicas=2)) as client:
        codes = [(await client.get("/runs", headers=bearer(ALICE))).status_code for _ in range(9)]
    assert codes.count(200) == 2
    assert TooManyRequestsError("alice", 4, 0.5).retry_after == 0.5


# -- WebSocket ---------------------------------------------------------------------------------


@pytest.fixture
async def run(service: ScriptedService) -> ScriptedRun:
    run = service.runs["r1"] = ScriptedRun()
    await run.say(1, last=True)
    return run


async def test_a_websocket_takes_the_key_as_a_header_or_as_a_subprotocol(
    service: ScriptedService, run: ScriptedRun
) -> None:
    """What is agreed on is the name without the key."""
    offered = [Subprotocol("lattice"), Subprotocol(f"lattice.bearer.{ALICE}")]
    async with served(app_with(service)) as address:
        url = f"ws://{address}{WS}"
        async with connect(url, additional_headers=bearer(ALICE)) as socket:
            assert (await socket.recv(), socket.subprotocol) == (message(1), None)
        async with connect(url, subprotocols=offered) as socket:
            assert (await socket.recv(), socket.subprotocol) == (message(1), "lattice")
    assert ("for_caller", Caller(Tenant("alice"), admin=False)) in service.calls


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": bearer(OLD)},
        {"subprotocols": ["lattice"]},
        {"subprotocols": ["lattice", f"lattice.bearer.{new_key()}"]},
    ],
    ids=["no key", "an old key", "no key offered", "nobody's key offered"],
)
async def test_a_websocket_without_a_key_is_not_opened(
    service: ScriptedService, run: ScriptedRun, options: dict[str, Any]
) -> None:
    async with served(app_with(service)) as address:
        for url in (f"ws://{address}{WS}", f"ws://{address}{WS}?api_key={ALICE}"):
            with pytest.raises(InvalidStatus) as refused:
                await connect(url, **options)
            assert refused.value.response.status_code == 401
            assert refused.value.response.headers["www-authenticate"].startswith("Bearer ")
    assert run.opened_after == []


async def test_without_keys_all_is_as_before(
    app: FastAPI, service: ScriptedService, run: ScriptedRun
) -> None:
    """Also for programs that bring a key along, which is not looked at."""
    async with served(app) as address:
        for key in (None, ALICE, "nonsense"):
            headers = {} if key is None else bearer(key)
            async with httpx.AsyncClient() as client:
                for path in ("/runs", "/workers", "/metrics"):
                    answer = await client.get(f"http://{address}{path}", headers=headers)
                    assert answer.status_code == 200
            async with connect(f"ws://{address}{WS}", additional_headers=headers) as socket:
                assert await socket.recv() == message(1)
        offered = [Subprotocol("lattice"), Subprotocol(f"lattice.bearer.{ALICE}")]
        async with connect(f"ws://{address}{WS}", subprotocols=offered) as socket:
            assert socket.subprotocol == "lattice"
    assert "for_caller" not in {call[0] for call in service.calls}


# -- keys stay where they are --------------------------------------------------------------------


async def test_no_key_gets_into_a_log_or_behind_the_middleware(
    service: ScriptedService, run: ScriptedRun, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever is logged of a request, and whoever fails with it in hand."""
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []

    async def note(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(repr({name: scope[name] for name in ("headers", "query_string")}))
        seen.append(repr(scope.get("subprotocols")))
        raise RuntimeError("a defect with all of the request in hand")

    middleware = KeyMiddleware(note, KEYS)
    scope = {
        "type": "websocket",
        "path": "/x",
        "query_string": b"",
        "headers": [
            (b"authorization", f"Bearer {ALICE}".encode()),
            (b"sec-websocket-protocol", f"lattice, lattice.bearer.{ALICE}".encode()),
        ],
        "subprotocols": ["lattice", f"lattice.bearer.{ALICE}"],
    }
    with pytest.raises(RuntimeError):
        await middleware(scope, None, None)  # type: ignore[arg-type]  # nothing is received or sent
    assert seen == ["{'headers': [], 'query_string': b''}", "['lattice']"]

    service.fails = KeyError("a defect")
    async with served(app_with(service)) as address, httpx.AsyncClient() as client:
        assert (
            await client.get(f"http://{address}/runs", headers=bearer(ALICE))
        ).status_code == 500
        assert (await client.get(f"http://{address}/runs", headers=bearer(OLD))).status_code == 401
        service.fails = None
        offered = [Subprotocol("lattice"), Subprotocol(f"lattice.bearer.{BOB}")]
        async with (
            asyncio.timeout(10),
            connect(f"ws://{address}{WS}", subprotocols=offered) as socket,
        ):
            await socket.recv()
    # The client of the test logs what it sends itself.
    logged = [
        each for each in caplog.records if each.name.partition(".")[0] in ("lattice", "uvicorn")
    ]
    assert any("failed" in each.getMessage() for each in logged)
    text = "\n".join(logging.Formatter().format(each) for each in logged)
    assert not {key for key in (ALICE, BOB, OLD) if key in text}


def test_expiry_is_looked_at_with_each_request() -> None:
    """A service that runs for long lets nobody in whose time has passed."""
    now = datetime(2030, 1, 1, tzinfo=UTC)
    keys = [ApiKey(name="a", sha256=hash_of(ALICE), expires=datetime(2030, 1, 2, tzinfo=UTC))]
    states: list[int] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask() -> None:
        nonlocal now
        async with client_of(KeyMiddleware(app, keys, now=lambda: now)) as client:  # type: ignore[arg-type]
            for day in (1, 2):
                now = now.replace(day=day)
                states.append((await client.get("/runs", headers=bearer(ALICE))).status_code)

    asyncio.run(ask())
    assert states == [200, 401]
