"""The service's own log lines: where they go, and their form as JSON.

A line is what the module's loggers say, and where the caller knows it, of which run, task and trace: the
ids come as `extra={"about": {"run_id": ..., "task_id": ...}}`, the trace is that of the current span. What
users print is not among them; it is kept with their runs.
"""

from __future__ import annotations

import json
import logging
import logging.handlers
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Literal

from opentelemetry import trace

LogFormat = Literal["text", "json"]

#: The loggers of the service's own modules.
_OURS = ("lattice", "deployments")

_encode = json.JSONEncoder(separators=(",", ":"), default=str).encode


class JsonFormatter(logging.Formatter):
    """One line of JSON for each record: `time`, `level`, `logger`, `message`, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, object] = {
            "time": moment.isoformat(timespec="microseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        about = getattr(record, "about", None)
        if isinstance(about, Mapping):
            line.update(about)
        trace_id = getattr(record, "trace_id", None)
        if trace_id is not None:
            line["trace_id"] = trace_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return _encode(line)


def note_trace(record: logging.LogRecord) -> bool:
    """A filter that lets everything through and notes the trace under way, as handlers may write later."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
    return True


def use_handlers(handlers: Sequence[logging.Handler], log_format: LogFormat) -> None:
    """Gives the service's loggers `handlers`, and the handlers the format; `text` leaves them theirs."""
    for handler in handlers:
        if note_trace not in handler.filters:
            handler.filters.insert(0, note_trace)
        if log_format == "json":
            handler.setFormatter(JsonFormatter())
            # What only gathers records for another has no format of its own.
            if isinstance(handler, logging.handlers.MemoryHandler) and handler.target is not None:
                handler.target.setFormatter(JsonFormatter())
    for name in _OURS:
        logger = logging.getLogger(name)
        logger.handlers = [*handlers]
        logger.propagate = False
        logger.setLevel(logging.INFO)


def use_stderr(log_format: LogFormat) -> None:
    """Writes JSON lines to standard error; text is the business of whoever runs this process."""
    if log_format == "json":
        use_handlers([logging.StreamHandler()], log_format)
