"""Traces: of requests, of runs and their attempts, and of user code; where spans go.

Who is told of a request's trace writes the spans of the run that it starts into the same one, in whatever process
and however much later (`lattice.ports.tracing`).
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry import context as contexts
from opentelemetry import trace as tracing
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SimpleSpanProcessor,
    SpanExporter,
)
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from lattice.errors import InvalidRequestError
from lattice.ids import RunId, TaskId, WorkflowId
from lattice.observability.endpoints import endpoint_of
from lattice.observability.metrics import App, Message, Receive, Scope, Send
from lattice.ports.tracing import attempt_context, run_context

_EXPORTERS = ("none", "otlp", "otlp_http", "console")

#: Seconds between two exports of a process: short, as the processes of tasks may be ended at any time.
_EXPORT_PERIOD = 1.0
#: Longest wait, in seconds, for a last export when tracing is shut down.
_LAST_EXPORT = 5.0
#: Requests that nobody wants to see spans of.
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
#: Close codes of a WebSocket that stand for a status of 500 and more: a defect, and not now.
_OUR_FAULT = frozenset({1011, 1013})

_format = TraceContextTextMapPropagator()
_next_span: ContextVar[int | None] = ContextVar("lattice_next_span", default=None)


class _Ids(RandomIdGenerator):
    """Random ids, unless it is said what the next span's is."""

    def generate_span_id(self) -> int:
        found = _next_span.get()
        return super().generate_span_id() if found is None else found


class Tracer:
    """Writes spans, and implements `lattice.ports.tracing.Traces`.

    Args:
        exporter: `otlp` (gRPC), `otlp_http` or `console`.
        endpoint: URL for the two OTLP exporters; None for what OpenTelemetry's own environment variables
            say, else this machine. For `otlp_http`, a URL without a path gets `/v1/traces`.
        process: tells the spans of this process from those of the service's others.
        ratio: which part of the requests that come without a trace is traced, from 0 to 1.

    Raises:
        InvalidRequestError: an unknown exporter, or an endpoint that is not a URL.
    """

    def __init__(self, exporter: str, endpoint: str | None, process: str, ratio: float) -> None:
        self.provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "lattice", "service.instance.id": process}),
            shutdown_on_exit=False,
            id_generator=_Ids(),
        )
        self.provider.add_span_processor(_processor(exporter, endpoint))
        self._tracer = self.provider.get_tracer("lattice")
        # Runs once: when asked to, else when nobody has it any more or the process ends.
        self._stop = weakref.finalize(self, self.provider.shutdown)

    def shutdown(self) -> None:
        """Exports what is left and stops. Blocks for some seconds at most."""
        if self._stop.alive:
            self.provider.force_flush(int(_LAST_EXPORT * 1000))
        self._stop()

    @contextmanager
    def span(
        self,
        name: str,
        parent: str | None,
        links: tuple[str, ...] = (),
        attributes: Mapping[str, str | int] | None = None,
    ) -> Iterator[tracing.Span]:
        """A span that is current inside, a child of the context `parent`."""
        with self._tracer.start_as_current_span(
            name,
            context=_context(parent),
            kind=SpanKind.INTERNAL,
            links=[Link(_span_context(each)) for each in links],
            attributes=attributes,
        ) as span:
            yield span

    def begin(self, name: str, parent: str | None, links: tuple[str, ...]) -> tracing.Span:
        """A span that is not current; who has it ends it."""
        return self._tracer.start_span(
            name,
            context=_context(parent),
            links=[Link(_span_context(each)) for each in links],
        )

    def context_of(self, span: tracing.Span) -> str:
        """The context of what happens in a span."""
        carrier: dict[str, str] = {}
        _format.inject(carrier, tracing.set_span_in_context(span))
        return carrier["traceparent"]

    def fail(self, span: tracing.Span, kind: str, message: str, traceback: str) -> None:
        """Notes that what the span is of has failed, as OpenTelemetry's conventions for exceptions have it."""
        span.add_event(
            "exception",
            {
                "exception.type": kind,
                "exception.message": message,
                "exception.stacktrace": traceback,
            },
        )
        span.set_status(Status(StatusCode.ERROR, f"{kind}: {message}"))

    def current(self) -> str | None:
        """The context of what is done just now."""
        return current()

    def run_ended(
        self,
        trace: str,
        run_id: RunId,
        workflow_id: WorkflowId,
        began: float,
        ended: float,
        status: str,
    ) -> None:
        """Writes the span of a run."""
        span = self._past("run", trace, run_context(trace, run_id), began)
        span.set_attributes({"lattice.run_id": run_id, "lattice.workflow_id": workflow_id})
        span.set_attribute("lattice.status", status)
        if status != "succeeded":
            span.set_status(Status(StatusCode.ERROR, status))
        span.end(_nanoseconds(ended))

    def attempt_ended(
        self,
        trace: str,
        run_id: RunId,
        task_id: TaskId,
        task: str,
        attempt: int,
        began: float,
        ended: float,
        error: Mapping[str, str] | None,
    ) -> None:
        """Writes the span of an attempt."""
        own = attempt_context(trace, run_id, task_id, attempt)
        span = self._past(f"task {task}", run_context(trace, run_id), own, began)
        span.set_attributes(
            {"lattice.run_id": run_id, "lattice.task_id": task_id, "lattice.attempt": attempt}
        )
        if error is not None:
            self.fail(span, error["type"], error["message"], error["traceback"])
        span.end(_nanoseconds(ended))

    def _past(self, name: str, parent: str, own: str, began: float) -> tracing.Span:
        """A span that has begun already, and whose id is known to others."""
        token = _next_span.set(_span_context(own).span_id)
        try:
            return self._tracer.start_span(
                name, context=_context(parent), start_time=_nanoseconds(began)
            )
        finally:
            _next_span.reset(token)


def tracer_of(exporter: str, endpoint: str | None, process: str, ratio: float) -> Tracer | None:
    """The tracer that settings ask for. Raises InvalidRequestError."""
    if exporter not in _EXPORTERS:
        raise InvalidRequestError(
            "traces_exporter", repr(exporter), f"allowed are {', '.join(_EXPORTERS)}"
        )
    return None if exporter == "none" else Tracer(exporter, endpoint, process, ratio)


def current() -> str | None:
    """The context of what is done just now, which need not be sampled; None where there is none."""
    carrier: dict[str, str] = {}
    _format.inject(carrier)
    return carrier.get("traceparent")


@contextmanager
def within(trace: str | None) -> Iterator[None]:
    """What is done inside belongs to the context `trace`."""
    if trace is None:
        yield
        return
    token = contexts.attach(_format.extract({"traceparent": trace}, contexts.Context()))
    try:
        yield
    finally:
        contexts.detach(token)


def _context(trace: str | None) -> contexts.Context | None:
    return None if trace is None else _format.extract({"traceparent": trace}, contexts.Context())


def _span_context(trace: str) -> tracing.SpanContext:
    return tracing.get_current_span(_context(trace)).get_span_context()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)


def _processor(exporter: str, endpoint: str | None) -> SpanProcessor:
    if exporter == "console":
        # The process's own, as user code has its standard output recorded.
        return SimpleSpanProcessor(ConsoleSpanExporter(out=sys.__stdout__ or sys.stderr))
    return BatchSpanProcessor(
        _otlp_exporter(exporter, endpoint), schedule_delay_millis=_EXPORT_PERIOD * 1000
    )


def _otlp_exporter(exporter: str, endpoint: str | None) -> SpanExporter:
    """One of the OTLP exporters. They are imported only where used: the first brings gRPC along."""
    url = endpoint_of("traces_endpoint", endpoint, exporter, "/v1/traces")
    if exporter == "otlp":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter(endpoint=url)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
        OTLPSpanExporter as HttpExporter,
    )

    return HttpExporter(endpoint=url)


class TracingMiddleware:
    """ASGI middleware: a span for each request, in the trace that its `traceparent` names, else a new one.

    That of a WebSocket lasts until it is closed, and has the close code and its reason.
    """

    def __init__(self, app: App, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer.provider.get_tracer("lattice")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in _QUIET:
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        # A WebSocket begins as a GET, which says nothing of what it is.
        method = scope.get("method", "GET")
        name = method if scope["type"] == "http" else "WebSocket"
        with self._tracer.start_as_current_span(
            name,
            context=_format.extract(headers, contexts.Context()),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method},
        ) as span:
            notes = _Notes(span)

            async def noting_send(message: Message) -> None:
                notes.sent(message)
                await send(message)

            async def noting_receive() -> Message:
                message = await receive()
                notes.received(message)
                return message

            try:
                await self._app(scope, noting_receive, noting_send)
            finally:
                # The template, not the path: paths are without number.
                route = getattr(scope.get("route"), "path", "unmatched")
                span.set_attribute("http.route", route)
                span.update_name(f"{name} {route}")
                # Tells whose stream it was, as the span is not in the trace of the run.
                run_id = scope.get("path_params", {}).get("run_id")
                if run_id is not None and scope["type"] == "websocket":
                    span.set_attribute("lattice.run_id", run_id)


class _Notes:
    """Notes on its span how a request was answered, and how a WebSocket was closed, by whoever did so first."""

    def __init__(self, span: tracing.Span) -> None:
        self._span = span
        self._accepted = False
        self._closed = False

    def sent(self, message: Message) -> None:
        """Takes note of what goes to the client."""
        match message["type"]:
            case "http.response.start" | "websocket.http.response.start":
                self._answered(message["status"])
            case "websocket.accept":
                self._accepted = True
                self._answered(101)
            case "websocket.close" if self._accepted:
                self._close(message.get("code", 1000), message.get("reason"))
            case "websocket.close":
                self._answered(403)

    def received(self, message: Message) -> None:
        """Takes note of what comes from the client."""
        if message["type"] == "websocket.disconnect":
            self._close(message.get("code", 1005), message.get("reason"))

    def _answered(self, status: int) -> None:
        self._span.set_attribute("http.response.status_code", status)
        if status >= 500:
            self._span.set_status(Status(StatusCode.ERROR))

    def _close(self, code: int, reason: str | None) -> None:
        if self._closed:
            return
        self._closed = True
        self._span.set_attribute("lattice.close_code", code)
        if reason:
            self._span.set_attribute("lattice.close_reason", reason)
        if code in _OUR_FAULT:
            self._span.set_status(Status(StatusCode.ERROR, reason))
