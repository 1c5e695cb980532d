"""Metrics of one app: where they go, and how its HTTP requests are counted.

Each app has a meter provider and, for Prometheus, a registry of its own, so that apps in one process
do not mix and none is left behind when it is shut down.
"""

from __future__ import annotations

import asyncio
import sys
import time
import weakref
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import (
    ConsoleMetricExporter,
    MetricExporter,
    MetricReader,
    PeriodicExportingMetricReader,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, generate_latest

from lattice.errors import InvalidRequestError
from lattice.observability.endpoints import endpoint_of

#: The media type of `Metrics.render`.
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

_EXPORTERS = ("prometheus", "otlp", "otlp_http", "console")
#: Longest wait, in seconds, for a last export when metrics are shut down.
_LAST_EXPORT = 5.0

_live: weakref.WeakSet[Metrics] = weakref.WeakSet()


class Metrics:
    """A meter and where its numbers go.

    Args:
        exporter: `prometheus` (they wait to be rendered), `otlp` (gRPC), `otlp_http` or `console`.
        endpoint: URL for the two OTLP exporters; None for what OpenTelemetry's own environment
            variables say, else this machine. For `otlp_http`, a URL without a path gets `/v1/metrics`.
        process: tells these metrics from those of the service's other processes.

    Raises:
        InvalidRequestError: an unknown exporter, or an endpoint that is not a URL.
    """

    def __init__(
        self,
        exporter: str = "prometheus",
        endpoint: str | None = None,
        process: str = "lattice",
    ) -> None:
        self.process = process
        self._registry: CollectorRegistry | None = None
        self._provider = MeterProvider(
            metric_readers=[self._reader(exporter, endpoint)],
            resource=Resource.create({"service.name": "lattice", "service.instance.id": process}),
            shutdown_on_exit=False,
        )
        self.meter: Meter = self._provider.get_meter("lattice")
        # Runs once: when asked to, else when nobody has these metrics any more or the process ends.
        self._stop = weakref.finalize(self, self._provider.shutdown, _LAST_EXPORT * 1000)
        _live.add(self)

    def render(self) -> bytes | None:
        """All numbers in Prometheus' text format; None with another exporter."""
        return None if self._registry is None else generate_latest(self._registry)

    def shutdown(self) -> None:
        """Exports what is left and stops. Blocks for some seconds at most; doing it twice is doing it once."""
        self._stop()

    def _reader(self, exporter: str, endpoint: str | None) -> MetricReader:
        if exporter not in _EXPORTERS:
            raise InvalidRequestError(
                "metrics_exporter", repr(exporter), f"allowed are {', '.join(_EXPORTERS)}"
            )
        if exporter == "prometheus":
            self._registry = CollectorRegistry()
            return PrometheusMetricReader(scope_info_enabled=False, registry=self._registry)
        if exporter == "console":
            return PeriodicExportingMetricReader(ConsoleMetricExporter(out=sys.stdout))
        return PeriodicExportingMetricReader(_otlp_exporter(exporter, endpoint))


def shutdown_metrics() -> None:
    """Shuts down all metrics of this process."""
    for metrics in list(_live):
        metrics.shutdown()


def _otlp_exporter(exporter: str, endpoint: str | None) -> MetricExporter:
    """One of the OTLP exporters. They are imported only where used: the first brings gRPC along."""
    url = endpoint_of("metrics_endpoint", endpoint, exporter, "/v1/metrics")
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=url)
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import (
        OTLPMetricExporter as HttpExporter,
    )

    return HttpExporter(endpoint=url)


# -- HTTP --------------------------------------------------------------------------------------

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
#: Proxies' number for a request whose caller did not wait for the answer.
_CALLER_LEFT = 499
_REQUEST_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60)


class MetricsMiddleware:
    """ASGI middleware: requests and their duration by method, route template and status.

    The names are those of OpenTelemetry's conventions for HTTP servers. A stream of server-sent events
    lasts as long as its reader stays; open WebSockets are counted as they come and go.
    """

    def __init__(self, app: App, meter: Meter) -> None:
        self._app = app
        self._durations = meter.create_histogram(
            "http.server.request.duration",
            unit="s",
            description="HTTP requests, by method, route and status.",
            explicit_bucket_boundaries_advisory=_REQUEST_BOUNDS,
        )
        self._websockets = meter.create_up_down_counter(
            "lattice.websockets.open", description="Open WebSockets."
        )
        # One that has counted nothing would not be there to be looked at.
        self._websockets.add(0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._measure(scope, receive, send)
        elif scope["type"] == "websocket":
            self._websockets.add(1)
            try:
                await self._app(scope, receive, send)
            finally:
                self._websockets.add(-1)
        else:
            await self._app(scope, receive, send)

    async def _measure(self, scope: Scope, receive: Receive, send: Send) -> None:
        # What a request ends with that is never answered.
        status = 500
        answered = False

        async def noting_send(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status, answered = message["status"], True
            await send(message)

        begun = time.perf_counter()
        try:
            await self._app(scope, receive, noting_send)
            # One that sees by itself that its caller has left just returns.
            status = status if answered else _CALLER_LEFT
        except asyncio.CancelledError:
            # Its caller has left: nobody was answered 500.
            status = status if answered else _CALLER_LEFT
            raise
        finally:
            method = scope["method"]
            self._durations.record(
                time.perf_counter() - begun,
                {
                    "http.request.method": method if method in _METHODS else "_OTHER",
                    # The template, not the path: paths are without number.
                    "http.route": getattr(scope.get("route"), "path", "unmatched"),
                    "http.response.status_code": status,
                },
            )
