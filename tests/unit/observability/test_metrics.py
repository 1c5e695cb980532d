"""Metrics go where they were told to, apps are kept apart, and nothing is left when they are shut down."""

from __future__ import annotations

import asyncio
import gc
import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from prometheus_client import REGISTRY

from lattice.errors import InvalidRequestError
from lattice.observability.metrics import Metrics, MetricsMiddleware, shutdown_metrics


class Receiver:
    """An OTLP receiver over HTTP: what came to which path."""

    def __init__(self) -> None:
        received: list[tuple[str, bytes]] = []

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:  # the base class's name
                length = int(self.headers["content-length"])
                received.append((self.path, self.rfile.read(length)))
                self.send_response(200)
                self.send_header("content-type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                return

        self.received = received
        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def values(self) -> dict[str, int]:
        """The counters of the last export, by name."""
        _, body = self.received[-1]
        if body[:2] == b"\x1f\x8b":
            body = gzip.decompress(body)
        request = ExportMetricsServiceRequest.FromString(body)
        return {
            metric.name: metric.sum.data_points[0].as_int
            for resource in request.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.HasField("sum")
        }


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_prometheus_waits_to_be_rendered() -> None:
    metrics = Metrics()
    metrics.meter.create_counter("lattice.things").add(3)
    assert b"\nlattice_things_total 3.0\n" in (metrics.render() or b"")
    metrics.shutdown()


def test_apps_are_kept_apart_and_out_of_the_global_registry() -> None:
    one, two = Metrics(), Metrics()
    one.meter.create_counter("lattice.one").add(1)
    two.meter.create_counter("lattice.two").add(1)
    assert b"lattice_two" not in (one.render() or b"")
    assert b"lattice_one" not in (two.render() or b"")
    assert not [family for family in REGISTRY.collect() if family.name.startswith("lattice")]
    one.shutdown()
    assert b"lattice_one" not in (one.render() or b"")
    assert b"lattice_two" in (two.render() or b"")
    two.shutdown()


@pytest.mark.parametrize(
    ("suffix", "path"), [("", "/v1/metrics"), ("/", "/v1/metrics"), ("/mine", "/mine")]
)
def test_otlp_over_http_sends_what_is_left_at_shutdown(
    receiver: Receiver, suffix: str, path: str
) -> None:
    metrics = Metrics("otlp_http", receiver.url + suffix)
    metrics.meter.create_counter("lattice.things").add(3)
    assert metrics.render() is None
    metrics.shutdown()
    assert receiver.received[-1][0] == path
    assert receiver.values()["lattice.things"] == 3
    sent = len(receiver.received)
    metrics.shutdown()
    assert len(receiver.received) == sent


def test_otlp_over_grpc_is_received() -> None:
    from concurrent.futures import ThreadPoolExecutor

    import grpc
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceResponse,
    )
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2_grpc import (
        MetricsServiceServicer,
        add_MetricsServiceServicer_to_server,
    )

    names: list[str] = []

    class Service(MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # the base class's name
            names.extend(
                m.name for r in request.resource_metrics for s in r.scope_metrics for m in s.metrics
            )
            return ExportMetricsServiceResponse()

    server = grpc.server(ThreadPoolExecutor(1))
    add_MetricsServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    metrics = Metrics("otlp", f"http://127.0.0.1:{port}")
    metrics.meter.create_counter("lattice.things").add(3)
    metrics.shutdown()
    server.stop(grace=5).wait()
    assert "lattice.things" in names


def test_console_writes_at_shutdown(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics("console")
    metrics.meter.create_counter("lattice.things").add(3)
    metrics.shutdown()
    assert '"lattice.things"' in capsys.readouterr().out


def test_shutdown_metrics_shuts_down_all(receiver: Receiver) -> None:
    live = [Metrics("otlp_http", receiver.url) for _ in range(2)]
    for metrics in live:
        metrics.meter.create_counter("lattice.things").add(1)
    shutdown_metrics()
    assert len(receiver.received) == 2
    shutdown_metrics()
    assert len(receiver.received) == 2


@pytest.mark.parametrize("exporter", ["", "Prometheus", "odd"])
def test_an_unknown_exporter_is_refused(exporter: str) -> None:
    with pytest.raises(InvalidRequestError, match="metrics_exporter: found") as refused:
        Metrics(exporter)
    assert "prometheus, otlp, otlp_http, console" in str(refused.value)


@pytest.mark.parametrize("endpoint", ["here", "localhost:4317", "ftp://here", "http://"])
@pytest.mark.parametrize("exporter", ["otlp", "otlp_http"])
def test_an_endpoint_must_be_a_url(exporter: str, endpoint: str) -> None:
    with pytest.raises(InvalidRequestError, match="metrics_endpoint: found"):
        Metrics(exporter, endpoint)


def test_nothing_is_left_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """Also not of metrics that nobody shut down: they are when nobody has them any more."""
    before = {*threading.enumerate()}
    Metrics("prometheus").shutdown()
    forgotten = Metrics("console")
    forgotten.meter.create_counter("lattice.things").add(1)
    del forgotten
    gc.collect()
    assert {*threading.enumerate()} <= before
    assert '"lattice.things"' in capsys.readouterr().out


# -- requests ------------------------------------------------------------------------------------


class Route:
    path = "/things/{name}"


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"].startswith("/things/"):
        scope["route"] = Route()
    if scope["path"] == "/things/broken":
        raise ValueError
    if scope["path"] == "/things/left":
        raise asyncio.CancelledError
    if scope["path"] == "/things/seen-left":
        return
    await send({"type": "http.response.start", "status": 200 if "route" in scope else 404})
    if scope["path"] == "/things/followed":
        raise asyncio.CancelledError


@pytest.mark.anyio
async def test_requests_are_counted_by_method_route_and_status() -> None:
    metrics = Metrics()
    app = MetricsMiddleware(_app, metrics.meter)

    async def send(message: Any) -> None:
        return

    async def ask(method: str, path: str, kind: str = "http") -> None:
        await app({"type": kind, "method": method, "path": path}, None, send)  # type: ignore[arg-type]

    for number in range(50):
        await ask("GET", f"/things/{number}")
        await ask("GET", f"/scan/{number}")
        await ask(f"ODD{number}", "/things/x")
    with pytest.raises(ValueError):  # noqa: PT011  # any error
        await ask("POST", "/things/broken")
    for path in ("/things/left", "/things/followed"):  # before and after the answer began
        with pytest.raises(asyncio.CancelledError):
            await ask("POST", path)
    # A stream of events sees by itself that its reader has left.
    await ask("POST", "/things/seen-left")
    text = (metrics.render() or b"").decode()
    counts = [line for line in text.splitlines() if "_request_duration_seconds_count{" in line]

    def line(method: str, status: int, route: str, count: int) -> str:
        return (
            f'http_server_request_duration_seconds_count{{http_request_method="{method}",'
            f'http_response_status_code="{status}",http_route="{route}"}} {count}.0'
        )

    assert sorted(counts) == sorted(
        [
            line("GET", 200, "/things/{name}", 50),
            line("GET", 404, "unmatched", 50),
            line("_OTHER", 200, "/things/{name}", 50),
            line("POST", 500, "/things/{name}", 1),
            line("POST", 499, "/things/{name}", 2),
            line("POST", 200, "/things/{name}", 1),
        ]
    )
    metrics.shutdown()


@pytest.mark.anyio
async def test_open_websockets_are_counted() -> None:
    metrics = Metrics()
    seen: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(metrics.render() or b"")

    await MetricsMiddleware(app, metrics.meter)({"type": "websocket"}, None, None)  # type: ignore[arg-type]
    assert b"\nlattice_websockets_open 1.0\n" in seen[0]
    assert b"\nlattice_websockets_open 0.0\n" in (metrics.render() or b"")
    metrics.shutdown()
