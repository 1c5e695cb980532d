"""`create_app`: what it is made of, what it starts and stops, and what belongs to which app."""

from __future__ import annotations

import inspect
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from lattice.api import server
from lattice.api.dependencies import orchestrator
from lattice.api.routes.workflow import get_orchestrator, set_orchestrator
from lattice.api.server import OrchestratorManager, create_app
from lattice.api.signals import SignalHandlers
from lattice.errors import InvalidRequestError, OrchestratorNotInitializedError
from lattice.observability.telemetry import MeterTelemetry, NoTelemetry
from lattice.ports.environment import Telemetry
from lattice.ports.tracing import Traces
from lattice.settings import LatticeSettings
from tests.unit.api.scripted import OwnedScriptedService, ScriptedService

pytestmark = pytest.mark.anyio


class Builder:
    """Stands for the assembly; remembers what it was asked to build."""

    def __init__(self) -> None:
        self.built: list[OwnedScriptedService] = []
        self.ports: list[int] = []
        self.telemetry: list[Telemetry | None] = []

    def __call__(
        self,
        settings: LatticeSettings | None,
        ray_head_port: int,
        telemetry: Telemetry | None,
        traces: Traces | None,
    ) -> OwnedScriptedService:
        self.ports.append(ray_head_port)
        self.telemetry.append(telemetry)
        self.built.append(OwnedScriptedService())
        return self.built[-1]


@pytest.fixture
def builder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Builder]:
    builder = Builder()
    monkeypatch.setattr(server, "_build", builder)
    # Signals are for the process that serves; there is a test of its own.
    monkeypatch.setattr(SignalHandlers, "install", lambda self: False)
    yield builder
    OrchestratorManager.cleanup()


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")


def test_the_app_is_named_as_specified(app: FastAPI) -> None:
    assert (app.title, app.version) == ("Lattice API", "2.0.0")
    assert app.description == "Task-level distributed framework for LLM agents"


def test_the_parameters_are_those_of_the_specification() -> None:
    given = inspect.signature(create_app).parameters
    specified = {
        name: parameter.default
        for name, parameter in given.items()
        if parameter.kind is parameter.POSITIONAL_OR_KEYWORD
    }
    assert specified == {
        "ray_head_port": 6379,
        "metrics_enabled": True,
        "metrics_exporter": "prometheus",
        "metrics_endpoint": None,
    }


async def test_an_app_without_orchestrator_makes_starts_and_closes_one(builder: Builder) -> None:
    app = create_app(ray_head_port=7000)
    (made,) = builder.built
    assert builder.ports == [7000]
    assert OrchestratorManager.get() is made
    assert made.life == ["initialize"]
    async with app.router.lifespan_context(app):
        assert made.life == ["initialize", "start_monitor"]
        async with client_of(app) as client:
            assert (await client.get("/readyz")).status_code == 200
    assert made.life == ["initialize", "start_monitor", "close", "cleanup"]
    with pytest.raises(OrchestratorNotInitializedError):
        OrchestratorManager.get()
    async with client_of(app) as client:
        answer = await client.get("/readyz")
        assert (answer.status_code, answer.json()["detail"]) == (
            503,
            "Orchestrator not initialized",
        )


async def test_an_orchestrator_that_does_not_start_is_closed(builder: Builder) -> None:
    app = create_app()
    builder.built[0].start_failure = OSError("no engine")
    with pytest.raises(OSError, match="no engine"):
        async with app.router.lifespan_context(app):
            pass
    assert builder.built[0].life[-2:] == ["close", "cleanup"]


async def test_a_given_orchestrator_is_neither_started_nor_stopped(builder: Builder) -> None:
    given = OwnedScriptedService()
    app = create_app(orchestrator=given)
    async with app.router.lifespan_context(app):
        pass
    assert (given.life, builder.built) == ([], [])


def test_the_manager_keeps_one_orchestrator(builder: Builder) -> None:
    with pytest.raises(RuntimeError, match="Orchestrator not initialized"):
        OrchestratorManager.get()
    first = OrchestratorManager.initialize(1)
    assert OrchestratorManager.initialize(2) is first is OrchestratorManager.get()
    OrchestratorManager.cleanup()
    OrchestratorManager.cleanup()
    assert builder.built[0].life == ["initialize", "cleanup"]
    assert OrchestratorManager.initialize() is not first
    assert builder.ports == [1, 6379]


async def test_two_apps_do_not_mix() -> None:
    services = [ScriptedService(), ScriptedService()]
    apps = [create_app(orchestrator=service) for service in services]
    for app, path in zip(apps, ("/workers", "/runs"), strict=True):
        async with client_of(app) as client:
            await client.get(path)
    assert [service.calls[0][0] for service in services] == ["workers", "list_runs"]
    for app, path, other in zip(apps, ("/workers", "/runs"), ("/runs", "/workers"), strict=True):
        async with client_of(app) as client:
            metrics = (await client.get("/metrics")).text
        assert f'http_route="{path}"' in metrics
        assert f'http_route="{other}"' not in metrics


def test_the_fronts_are_those_of_the_newest_app() -> None:
    older, newer = ScriptedService(), ScriptedService()
    app = create_app(orchestrator=older)
    create_app(orchestrator=newer)
    assert get_orchestrator() is newer
    set_orchestrator(None)
    with pytest.raises(OrchestratorNotInitializedError):
        get_orchestrator()
    assert app.state.holder.get() is older


async def test_a_test_may_override_the_orchestrator(app: FastAPI, service: ScriptedService) -> None:
    other = ScriptedService()
    app.dependency_overrides[orchestrator] = lambda: other
    async with client_of(app) as client:
        await client.get("/workers")
    assert (service.calls, other.calls) == ([], [("workers",)])


async def test_metrics_can_be_off(builder: Builder) -> None:
    for app in (
        create_app(metrics_enabled=False, orchestrator=ScriptedService()),
        create_app(orchestrator=ScriptedService(), settings=LatticeSettings(metrics_enabled=False)),
        create_app(metrics_exporter="console", orchestrator=ScriptedService()),
    ):
        async with app.router.lifespan_context(app), client_of(app) as client:
            answer = await client.get("/metrics")
        assert answer.status_code == 404
        assert "metrics_exporter" in answer.json()["detail"]
    create_app(metrics_enabled=False)
    assert isinstance(builder.telemetry[-1], NoTelemetry)


def test_the_orchestrator_counts_with_the_apps_meter(builder: Builder) -> None:
    create_app()
    assert isinstance(builder.telemetry[0], MeterTelemetry)


def test_a_bad_exporter_is_refused_before_anything_starts(builder: Builder) -> None:
    with pytest.raises(InvalidRequestError, match="metrics_exporter: found 'odd'"):
        create_app(metrics_exporter="odd")
    settings = LatticeSettings(metrics_exporter="otlp_http", metrics_endpoint="here")
    for wrong in ({"traces_exporter": "odd"}, {"traces_exporter": "otlp", "traces_endpoint": "x"}):
        with pytest.raises(InvalidRequestError, match=r"traces_e\w+: found"):
            create_app(settings=LatticeSettings(**wrong))
    with pytest.raises(InvalidRequestError, match="metrics_endpoint: found 'here'"):
        create_app(settings=settings)
    assert builder.built == []
