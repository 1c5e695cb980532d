"""What travels with a run, so that all processes that work on it write to one trace.

A trace context is text as W3C Trace Context has it: version, trace id, span id, flags. The ids of the spans of
runs and attempts are made from what they are of, so that each process knows them without asking, also before
the span has ended, and after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from lattice.ids import RunId, TaskId, WorkflowId


def run_context(trace: str, run_id: RunId) -> str:
    """The context of what belongs to a run, in the trace of its request."""
    return _child(trace, run_id)


def attempt_context(trace: str, run_id: RunId, task_id: TaskId, attempt: int) -> str:
    """The context of what happens in an attempt."""
    return _child(trace, run_id, task_id, str(attempt))


def trace_id(trace: str) -> str:
    """The id of the trace, as 32 hexadecimal digits."""
    return trace.split("-")[1]


def _child(trace: str, *names: str) -> str:
    version, trace_id, _, flags = trace.split("-")
    # A run that is retried has a trace of its own, but may have the trace of the same request.
    span = hashlib.sha256("\n".join((trace_id, *names)).encode(errors="surrogatepass"))
    return f"{version}-{trace_id}-{span.hexdigest()[:16]}-{flags}"


@dataclass(frozen=True, slots=True)
class SpanExport:
    """Where processes that run user code send their spans: `otlp`, `otlp_http` or `console`."""

    exporter: str
    endpoint: str | None


class Traces(Protocol):
    """Writes spans of what has happened. Times are in seconds since the epoch."""

    def current(self) -> str | None:
        """The context of the request that is answered just now; None where there is none."""

    def run_ended(
        self,
        trace: str,
        run_id: RunId,
        workflow_id: WorkflowId,
        began: float,
        ended: float,
        status: str,
    ) -> None:
        """A run that was requested in the context `trace` has ended."""

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
        """An attempt of a task of such a run has ended; `began` is when it could have begun.

        `error`: its `type`, `message` and `traceback`.
        """
