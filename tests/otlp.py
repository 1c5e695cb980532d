"""A real receiver of OpenTelemetry's protocol, over gRPC and over HTTP, for metrics and traces."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2 as metrics_messages,
)
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2_grpc as metrics_service,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as trace_messages
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as trace_service
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Receiver:
    """What has come. `grpc` and `http` are the endpoints to send to."""

    def __init__(self) -> None:
        self.grpc = ""
        self.http = ""
        self._metrics: list[metrics_messages.ExportMetricsServiceRequest] = []
        self._traces: list[trace_messages.ExportTraceServiceRequest] = []

    def take_metrics(self, request: metrics_messages.ExportMetricsServiceRequest) -> None:
        """Notes an export."""
        self._metrics.append(request)

    def take_traces(self, request: trace_messages.ExportTraceServiceRequest) -> None:
        """Notes an export."""
        self._traces.append(request)

    def points(self, name: str) -> dict[str, Any]:
        """The newest data points of a metric, by process."""
        found: dict[str, Any] = {}
        for request in [*self._metrics]:
            for resource in request.resource_metrics:
                process = next(
                    each.value.string_value
                    for each in resource.resource.attributes
                    if each.key == "service.instance.id"
                )
                for scope in resource.scope_metrics:
                    for metric in scope.metrics:
                        if metric.name == name:
                            found[process] = getattr(metric, metric.WhichOneof("data")).data_points
        return found

    def spans(self) -> list[Span]:
        """All spans, in the order in which they came."""
        return [
            span
            for request in [*self._traces]
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]


class _Metrics(metrics_service.MetricsServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
        self._receiver.take_metrics(request)
        return metrics_messages.ExportMetricsServiceResponse()


class _Traces(trace_service.TraceServiceServicer):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802  # the protocol's name
        self._receiver.take_traces(request)
        return trace_messages.ExportTraceServiceResponse()


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A receiver on free ports of this machine."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the base class's name
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            if self.path == "/v1/metrics":
                receiver.take_metrics(metrics_messages.ExportMetricsServiceRequest.FromString(body))
            elif self.path == "/v1/traces":
                receiver.take_traces(trace_messages.ExportTraceServiceRequest.FromString(body))
            self.send_response(200 if self.path.startswith("/v1/") else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    server = grpc.server(futures.ThreadPoolExecutor(2))
    metrics_service.add_MetricsServiceServicer_to_server(_Metrics(receiver), server)
    trace_service.add_TraceServiceServicer_to_server(_Traces(receiver), server)
    receiver.grpc = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    receiver.http = f"http://127.0.0.1:{http.server_port}"
    server.start()
    try:
        yield receiver
    finally:
        server.stop(None).wait()
        http.shutdown()
        thread.join()
        http.server_close()
