"""Spans of user code, in the process that runs it; the user's own spans become their children.

Nothing of OpenTelemetry is loaded in a process that never runs anything that is traced.
"""

from __future__ import annotations

import atexit
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lattice.ports.tracing import SpanExport
from lattice.workflow.events import ErrorInfo

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from lattice.execution.attempt import Assignment
    from lattice.observability.traces import Tracer

#: Takes, for each call in its order, the error that it ended with or None.
Note = Callable[[Sequence[ErrorInfo | None]], None]


@contextmanager
def of_calls(assignments: Sequence[Assignment]) -> Iterator[Note]:
    """Inside, user code runs for these assignments, which are one call, or several that share a batch.

    Each call's span is a child of its attempt's. A batch has one more, in a trace of its own, which is current
    while the code runs; it has links to those of its calls, and they have one to it.
    """
    traced = [(place, each) for place, each in enumerate(assignments) if _sampled(each)]
    if not traced:
        yield lambda errors: None
        return
    assert traced[0][1].span_export is not None
    tracer = _tracer(traced[0][1].span_export)
    with ExitStack() as stack:
        spans: dict[int, Span] = {}
        if len(assignments) > 1:
            contexts = tuple(each.trace for _, each in traced if each.trace is not None)
            attributes = {"lattice.batch_size": len(assignments)}
            name = assignments[0].name
            batch = tracer.context_of(
                stack.enter_context(tracer.span(f"batch {name}", None, contexts, attributes))
            )
            for place, each in traced:
                spans[place] = tracer.begin(f"run {each.name}", each.trace, (batch,))
                stack.callback(spans[place].end)
        else:
            place, only = traced[0]
            spans[place] = stack.enter_context(tracer.span(f"run {only.name}", only.trace))

        def note(errors: Sequence[ErrorInfo | None]) -> None:
            for place, span in spans.items():
                error = errors[place]
                if error is not None:
                    tracer.fail(span, error.type, error.message, error.traceback)

        yield note


def _sampled(assignment: Assignment) -> bool:
    trace = assignment.trace
    return trace is not None and assignment.span_export is not None and trace.endswith("01")


@functools.lru_cache(maxsize=1)
def _tracer(export: SpanExport) -> Tracer:
    from opentelemetry import trace

    from lattice.observability.traces import Tracer

    tracer = Tracer(export.exporter, export.endpoint, f"worker-{os.getpid()}")
    atexit.register(tracer.shutdown)
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # Where spans go that user code makes, unless it has said so itself.
        trace.set_tracer_provider(tracer.provider)
    return tracer
