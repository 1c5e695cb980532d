"""Spans of user code, in the process that runs it; the user's own spans become their children.

Nothing of OpenTelemetry is loaded in a process that never runs anything that is traced.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from lattice.ports.tracing import SpanExport
from lattice.workflow.events import ErrorInfo

if TYPE_CHECKING:
    from opentelemetry.trace import Span

    from lattice.execution.assignment import Assignment
    from lattice.observability.traces import Tracer

_logger = logging.getLogger(__name__)

#: Takes, for each call in its order, the error that it ended with or None.
Note = Callable[[Sequence[ErrorInfo | None]], None]


@contextmanager
def of_calls(assignments: Sequence[Assignment]) -> Iterator[Note]:
    """Inside, user code runs for these assignments, which are one call, or several that share a batch.

    Each call's span is a child of its attempt's. A batch has one more, in the trace of its first call, which is
    current while the code runs; it has links to those of its calls, and they have one to it.
    """
    traced = [(place, each) for place, each in enumerate(assignments) if _sampled(each)]
    tracer = _tracer(traced[0][1].span_export) if traced else None
    if tracer is None:
        yield lambda errors: None
        return
    with ExitStack() as stack:
        spans: dict[int, Span] = {}
        if len(assignments) > 1:
            contexts = tuple(each.trace for _, each in traced if each.trace is not None)
            attributes = {"lattice.batch_size": len(assignments)}
            name = assignments[0].name
            batch = tracer.context_of(
                stack.enter_context(tracer.span(f"batch {name}", contexts[0], contexts, attributes))
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
    # The last bit of the flags, as W3C Trace Context has it; other bits say other things.
    return trace is not None and bool(int(trace[-2:], 16) & 1)


@functools.lru_cache(maxsize=1)
def _tracer(export: SpanExport | None) -> Tracer | None:
    """Where spans go; None if they cannot, which must not be the user's trouble."""
    if export is None:
        return None
    from opentelemetry import trace

    from lattice.observability.traces import Tracer

    try:
        # Of what the user's code does outside of what is traced, nothing is sampled.
        tracer = Tracer(export.exporter, export.endpoint, f"worker-{os.getpid()}", ratio=0.0)
    except Exception:
        _logger.exception("spans of user code cannot be written")
        return None
    atexit.register(tracer.shutdown)
    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        # Where spans go that user code makes, unless it has said so itself.
        trace.set_tracer_provider(tracer.provider)
    return tracer
