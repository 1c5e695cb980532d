"""The application: how it is put together, started and stopped.

Under plain uvicorn (`uvicorn --factory lattice.api.server:create_app`) the app owns its orchestrator:
`create_app` makes it, the lifespan starts and closes it. In Ray Serve the orchestrator lives in a
deployment of its own and is handed in; the app then starts and stops nothing but its metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import ClassVar, Protocol

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from lattice.api import errors
from lattice.api.access import KeyMiddleware, describe
from lattice.api.dependencies import Holder, use_holder
from lattice.api.exposition import Exposition, publishing
from lattice.api.exposure import LocalOnlyMiddleware, may_be_anywhere
from lattice.api.guard import GuardMiddleware
from lattice.api.limits import BodyLimitMiddleware, OpenStreams
from lattice.api.routes import health, langgraph, runs, worker, workflow
from lattice.api.signals import SignalHandlers
from lattice.api.versions import VersionMiddleware
from lattice.errors import OrchestratorNotInitializedError
from lattice.observability.logs import use_stderr
from lattice.observability.metrics import Metrics, MetricsMiddleware, shutdown_metrics
from lattice.observability.telemetry import MeterTelemetry, NoTelemetry
from lattice.observability.traces import TracingMiddleware, tracer_of
from lattice.ports.environment import Telemetry
from lattice.ports.service import OrchestratorService
from lattice.ports.tracing import Traces
from lattice.settings import LatticeSettings

__all__ = ["OrchestratorManager", "create_app", "shutdown_metrics"]

_DEFAULT_EXPORTER = "prometheus"


class OwnedOrchestrator(OrchestratorService, Protocol):
    """An orchestrator that lives in this process."""

    def initialize(self) -> None:
        """Gets ready for `start_monitor`, without blocking for long."""

    async def start_monitor(self) -> None:
        """Starts the engine and takes up unfinished runs."""

    async def close(self) -> None:
        """Stops everything."""

    def cleanup(self) -> None:
        """Stops everything, without an event loop; nothing if it is stopped already."""


def _build(
    settings: LatticeSettings | None,
    ray_head_port: int,
    telemetry: Telemetry | None,
    traces: Traces | None,
) -> OwnedOrchestrator:
    # Imported only where the orchestrator runs in this process: it brings the engine along.
    from lattice.assembly import build_orchestrator

    return build_orchestrator(
        settings or LatticeSettings(),
        ray_head_port=ray_head_port,
        telemetry=telemetry,
        traces=traces,
    )


class OrchestratorManager:
    """The one orchestrator of this process."""

    _instance: ClassVar[OwnedOrchestrator | None] = None

    @classmethod
    def initialize(
        cls,
        ray_head_port: int = 6379,
        *,
        settings: LatticeSettings | None = None,
        telemetry: Telemetry | None = None,
        traces: Traces | None = None,
    ) -> OwnedOrchestrator:
        """The orchestrator, made and initialised now if there is none."""
        if cls._instance is None:
            orchestrator = _build(settings, ray_head_port, telemetry, traces)
            orchestrator.initialize()
            cls._instance = orchestrator
        return cls._instance

    @classmethod
    def get(cls) -> OwnedOrchestrator:
        """The orchestrator. Raises OrchestratorNotInitializedError (a RuntimeError) if there is none."""
        if cls._instance is None:
            raise OrchestratorNotInitializedError
        return cls._instance

    @classmethod
    def cleanup(cls) -> None:
        """Stops the orchestrator and forgets it; nothing if there is none."""
        if cls._instance is not None:
            orchestrator, cls._instance = cls._instance, None
            orchestrator.cleanup()


def create_app(
    ray_head_port: int = 6379,
    metrics_enabled: bool = True,
    metrics_exporter: str = _DEFAULT_EXPORTER,
    metrics_endpoint: str | None = None,
    *,
    orchestrator: OrchestratorService | None = None,
    settings: LatticeSettings | None = None,
    exposition: Exposition | None = None,
    process: str = "lattice",
) -> FastAPI:
    """Makes and configures the app.

    Args:
        ray_head_port: port of the Ray head node.
        metrics_enabled: whether metrics are collected.
        metrics_exporter: `prometheus`, `otlp`, `otlp_http` or `console`.
        metrics_endpoint: URL for OTLP.
        orchestrator: who answers; None makes one in this process.
        settings: None makes them from the environment. They decide wherever one of the arguments above
            is left at its default.
        exposition: brings the metrics of other processes along.
        process: tells the metrics of this process from theirs.

    Raises:
        InvalidRequestError: an unknown exporter or an endpoint that is not a URL.
    """
    settings = settings or LatticeSettings()
    holder = Holder(
        orchestrator=orchestrator,
        exposition=exposition,
        open_streams=OpenStreams(settings.max_open_streams),
    )
    if metrics_enabled and settings.metrics_enabled:
        holder.metrics = Metrics(
            metrics_exporter
            if metrics_exporter != _DEFAULT_EXPORTER
            else settings.metrics_exporter,
            metrics_endpoint or settings.metrics_endpoint,
            process,
        )
    tracer = tracer_of(
        settings.traces_exporter,
        settings.traces_endpoint,
        process,
        settings.traces_sample_ratio,
    )
    owner = None
    if orchestrator is None:
        use_stderr(settings.log_format)
        made = OrchestratorManager.initialize(
            ray_head_port,
            settings=settings,
            telemetry=_telemetry(holder.metrics),
            traces=tracer,
        )
        holder.orchestrator = made
        owner = _Owner(made, holder)
        owner.signals.install()
    use_holder(holder)

    async def startup_event() -> None:
        if owner is not None:
            await owner.start()

    async def shutdown_event() -> None:
        try:
            if owner is not None:
                await owner.stop()
        finally:
            if holder.metrics is not None:
                # A last export may wait for the network.
                await asyncio.to_thread(holder.metrics.shutdown)
            if tracer is not None:
                await asyncio.to_thread(tracer.shutdown)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await startup_event()
            async with publishing(holder.metrics, holder.exposition):
                yield
        finally:
            await shutdown_event()

    app = FastAPI(
        title="Lattice API",
        description="Task-level distributed framework for LLM agents",
        version="2.0.0",
        lifespan=lifespan,
        responses=errors.refusals(400, 401, 403, 413, 422, 429, 500, 503),
    )
    app.state.holder = holder
    errors.install(app)
    for routes in (workflow, langgraph, worker, runs, health):
        app.include_router(routes.router)
    # The last one added is the first to see a request.
    app.add_middleware(BodyLimitMiddleware, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        KeyMiddleware,
        keys=settings.api_keys,
        processes=settings.ingress_replicas if owner is None else 1,
    )
    if settings.api_keys:
        describe(app)
    if not settings.api_keys or "allowed_hosts" in settings.model_fields_set:
        # No page of another site has a key, and a key lets a service be used under any name.
        app.add_middleware(GuardMiddleware, allowed_hosts=settings.allowed_hosts)
    if owner is not None and not may_be_anywhere(settings):
        app.add_middleware(LocalOnlyMiddleware)
    app.add_middleware(VersionMiddleware)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_credentials=True,
        allow_methods=["*"],
        allow_headers=["*"],
    )
    if holder.metrics is not None:
        app.add_middleware(MetricsMiddleware, meter=holder.metrics.meter)
    if tracer is not None:
        app.add_middleware(TracingMiddleware, tracer=tracer)
    return app


def _telemetry(metrics: Metrics | None) -> Telemetry:
    return NoTelemetry() if metrics is None else MeterTelemetry(metrics.meter)


class _Owner:
    """Starts and stops the orchestrator that an app made for itself, and listens for signals."""

    def __init__(self, orchestrator: OwnedOrchestrator, holder: Holder) -> None:
        self._orchestrator = orchestrator
        self._holder = holder
        self._loop: asyncio.AbstractEventLoop | None = None
        self._on_top = False
        self.signals = SignalHandlers(self._on_signal)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_top = self.signals.install()
        await self._orchestrator.start_monitor()

    async def stop(self) -> None:
        self._loop = None
        if self._on_top:
            self._on_top = False
            self.signals.remove()
        self._holder.orchestrator = None
        try:
            await self._orchestrator.close()
        finally:
            OrchestratorManager.cleanup()

    def _on_signal(self) -> None:
        if self._loop is None:
            # Nobody serves the app, so no lifespan will end.
            OrchestratorManager.cleanup()
            shutdown_metrics()
        else:
            # The server stops next and ends the lifespan, which cleans up. It first waits for open
            # responses, and a stream of events would keep it waiting as long as its run goes on.
            self._loop.call_soon_threadsafe(self._holder.stopping.set)
