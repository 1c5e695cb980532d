"""Spans of user code: only of what is sampled, and never the user's trouble."""

from __future__ import annotations

import subprocess
import sys

import pytest

#: In a process of its own, as a tracer is for the life of a process: what an attempt of these flags prints.
PROGRAM = """
import sys
from lattice.execution import spans
from lattice.execution.assignment import Assignment
from lattice.ids import RunId, TaskId
from lattice.ports.tracing import SpanExport
from lattice.workflow.task import Code, CodeForm

def assignment(flags):
    return Assignment(
        RunId("r"), TaskId("t"), 1, "name", None, (), (), (), False, False, False, "", 0, "",
        trace=f"00-{'a' * 32}-{'b' * 16}-{flags}", span_export=SpanExport(exporter, None),
    )

def user():
    from opentelemetry import trace
    with trace.get_tracer("user").start_as_current_span("own work"):
        pass

exporter, *each = sys.argv[1:]
for flags in each:
    with spans.of_calls([assignment(flags)]):
        user()
user()
"""


def run(exporter: str, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, exporter, *flags],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={"PATH": "", "PYTHONPATH": ":".join(sys.path), **environment},
    )


@pytest.mark.parametrize(
    ("flags", "spans"), [(["00"], 0), (["02"], 0), (["01"], 1), (["03"], 1), (["01", "00"], 1)]
)
def test_only_what_is_sampled_leaves_spans(flags: list[str], spans: int) -> None:
    """The other flags say nothing of it; what user code does outside leaves none either."""
    told = run("console", *flags).stdout
    assert told.count('"name": "own work"') == spans
    assert told.count('"name": "run name"') == spans
    assert told.count('"trace_id": "0x' + "a" * 32) == 2 * spans


def test_a_tracer_that_cannot_be_made_harms_nobody() -> None:
    """Here the environment asks for what the exporter refuses; the code runs all the same."""
    told = run("otlp_http", "01", OTEL_BSP_MAX_EXPORT_BATCH_SIZE="10000")
    assert "spans of user code cannot be written" in told.stderr
