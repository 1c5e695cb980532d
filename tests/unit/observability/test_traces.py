"""Where spans go, whatever is at the other end, and which context each has."""

from __future__ import annotations

import io
import json
import socket
import sys

import pytest

from lattice.errors import InvalidRequestError
from lattice.ids import RunId, TaskId, WorkflowId
from lattice.observability.traces import Tracer, current, tracer_of, within
from tests.otlp import receiving

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def a_run(tracer: Tracer) -> None:
    """Spans of a run with one attempt, which failed."""
    run_id, task_id = RunId("r"), TaskId("t")
    error = {"type": "ValueError", "message": "no", "traceback": "Traceback"}
    tracer.attempt_ended(TRACE, run_id, task_id, "embed", 1, 10.0, 11.0, error)
    tracer.run_ended(TRACE, run_id, WorkflowId("w"), 9.0, 12.0, "failed")


@pytest.mark.parametrize("exporter", ["otlp", "otlp_http"])
def test_a_receiver_gets_what_is_left_at_shutdown(exporter: str) -> None:
    """A run's span in the trace that began it, its attempt's in that one, with its error."""
    with receiving() as receiver:
        endpoint = receiver.grpc if exporter == "otlp" else receiver.http
        tracer = Tracer(exporter, endpoint, "test", 1.0)
        a_run(tracer)
        tracer.shutdown()
        tracer.shutdown()
        spans = {span.name: span for span in receiver.spans()}
    assert set(spans) == {"run", "task embed"}
    run, task = spans["run"], spans["task embed"]
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE.split("-")[1]}
    assert run.parent_span_id.hex() == TRACE.split("-")[2]
    assert task.parent_span_id == run.span_id
    assert (task.end_time_unix_nano - task.start_time_unix_nano) == 1_000_000_000
    (event,) = task.events
    assert {each.key: each.value.string_value for each in event.attributes} == {
        "exception.type": "ValueError",
        "exception.message": "no",
        "exception.stacktrace": "Traceback",
    }


def test_console_writes_each_span_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the process's own standard output, as what user code has in its place is recorded."""
    out = io.StringIO()
    monkeypatch.setattr(sys, "__stdout__", out)
    tracer = Tracer("console", None, "test", 1.0)
    a_run(tracer)
    written, decoder, found = out.getvalue(), json.JSONDecoder(), []
    while written.strip():
        span, end = decoder.raw_decode(written.strip())
        found.append(span["name"])
        written = written.strip()[end:]
    assert found == ["task embed", "run"]
    tracer.shutdown()


@pytest.mark.parametrize("exporter", ["otlp", "otlp_http"])
def test_a_receiver_that_is_away_is_no_trouble(exporter: str) -> None:
    """Nothing is raised where spans are written, nor at the end."""
    with socket.socket() as taken:
        # Bound and not listening: nobody else gets the port, and connections are refused.
        taken.bind(("127.0.0.1", 0))
        tracer = Tracer(exporter, f"http://127.0.0.1:{taken.getsockname()[1]}", "test", 1.0)
        a_run(tracer)
        with tracer.span("something", None):
            assert current() is not None
        tracer.shutdown()


def test_a_context_holds_inside_and_is_gone_outside() -> None:
    """Also where there is none."""
    assert current() is None
    with within(TRACE):
        assert current() == TRACE
        with within(None):
            assert current() == TRACE
    assert current() is None


def test_what_settings_may_not_say() -> None:
    """Another exporter, or an endpoint that is no URL."""
    assert tracer_of("none", None, "test", 1.0) is None
    with pytest.raises(InvalidRequestError, match="traces_exporter: found 'odd'"):
        tracer_of("odd", None, "test", 1.0)
    with pytest.raises(InvalidRequestError, match="traces_endpoint: found 'nowhere'"):
        tracer_of("otlp_http", "nowhere", "test", 1.0)
