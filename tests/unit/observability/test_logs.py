"""The service's own lines: JSON that says what they are about, or text as the handlers have it."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from lattice.observability import logs

TRACE = 0x1234567890ABCDEF1234567890ABCDEF


@pytest.fixture(autouse=True)
def _loggers() -> Iterator[None]:
    """Leaves the service's loggers as they were."""
    loggers = [logging.getLogger(name) for name in ("lattice", "deployments")]
    before = [(each.handlers, each.propagate, each.level) for each in loggers]
    yield
    for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_lines_say_what_is_known() -> None:
    """Each is one line, whatever is in it."""
    stream = io.StringIO()
    logs.use_handlers([logging.StreamHandler(stream)], "json")
    logger = logging.getLogger("lattice.orchestrator.runs")
    logger.info("run %s\nstarted", "r", extra={"about": {"run_id": "r"}})
    logger.debug("too much")
    span = NonRecordingSpan(SpanContext(TRACE, 1, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        try:
            1 / 0  # noqa: B018  # raises
        except ZeroDivisionError:
            logging.getLogger("deployments.fleet").exception("defect \ud800 %s", object)
    first, second = lines(stream)
    assert first.pop("time").endswith("Z")
    assert first == {
        "level": "INFO",
        "logger": "lattice.orchestrator.runs",
        "message": "run r\nstarted",
        "run_id": "r",
    }
    assert second["trace_id"] == f"{TRACE:032x}"
    assert second["exception"].endswith("ZeroDivisionError: division by zero")
    assert second["level"] == "ERROR"


def test_lines_that_are_gathered_know_the_trace_they_came_in() -> None:
    """Serve's handler may write them later, and has its format in another one."""
    stream = io.StringIO()
    target = logging.StreamHandler(stream)
    gathering = logging.handlers.MemoryHandler(10, target=target)
    logs.use_handlers([gathering], "json")
    span = NonRecordingSpan(SpanContext(TRACE, 1, is_remote=False, trace_flags=TraceFlags(1)))
    with trace.use_span(span):
        logging.getLogger("lattice").warning("inside")
    logging.getLogger("lattice").warning("outside")
    gathering.close()
    assert [line.get("trace_id") for line in lines(stream)] == [f"{TRACE:032x}", None]


def test_text_is_as_the_handlers_have_it() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logs.use_handlers([handler], "text")
    logs.use_handlers([handler], "text")
    logging.getLogger("lattice.x").info("hello", extra={"about": {"run_id": "r"}})
    assert stream.getvalue() == "INFO: hello\n"
    assert len(handler.filters) == 1


def test_without_serve_text_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """JSON goes to standard error."""
    before = logging.getLogger("lattice").handlers
    logs.use_stderr("text")
    assert logging.getLogger("lattice").handlers is before
    logs.use_stderr("json")
    logging.getLogger("lattice").info("hello")
    assert json.loads(capsys.readouterr().err)["message"] == "hello"
