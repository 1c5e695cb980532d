"""Lattice runs the task graphs of LLM agents on Ray Serve. These are the names that users need.

They are loaded when they are first used: the service's processes import parts of this package too, and
need none of the SDK.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lattice.api.models.schemas import LogEntry
    from lattice.client.client import LatticeClient
    from lattice.client.errors import (
        ConnectionFailedError,
        DeadlineError,
        RemoteError,
        RunCancelledError,
        RunFailedError,
        ServiceError,
        UnpicklableError,
        VersionMismatchError,
    )
    from lattice.client.events import (
        Event,
        FinishTask,
        FinishWorkflow,
        StartTask,
        TaskException,
        TaskLog,
        TaskRetry,
    )
    from lattice.client.handles import TaskHandle
    from lattice.client.langgraph import LangGraphClient
    from lattice.client.runs import Run
    from lattice.client.tasks import task
    from lattice.client.workflow import Workflow
    from lattice.errors import InvalidRequestError, LatticeError

__all__ = [
    "ConnectionFailedError",
    "DeadlineError",
    "Event",
    "FinishTask",
    "FinishWorkflow",
    "InvalidRequestError",
    "LangGraphClient",
    "LatticeClient",
    "LatticeError",
    "LogEntry",
    "RemoteError",
    "Run",
    "RunCancelledError",
    "RunFailedError",
    "ServiceError",
    "StartTask",
    "TaskException",
    "TaskHandle",
    "TaskLog",
    "TaskRetry",
    "UnpicklableError",
    "VersionMismatchError",
    "Workflow",
    "task",
]

_MODULES = {
    "api.models.schemas": ("LogEntry",),
    "client.client": ("LatticeClient",),
    "client.errors": (
        "ConnectionFailedError",
        "DeadlineError",
        "RemoteError",
        "RunCancelledError",
        "RunFailedError",
        "ServiceError",
        "UnpicklableError",
        "VersionMismatchError",
    ),
    "client.events": (
        "Event",
        "FinishTask",
        "FinishWorkflow",
        "StartTask",
        "TaskException",
        "TaskLog",
        "TaskRetry",
    ),
    "client.handles": ("TaskHandle",),
    "client.langgraph": ("LangGraphClient",),
    "client.runs": ("Run",),
    "client.tasks": ("task",),
    "client.workflow": ("Workflow",),
    "errors": ("InvalidRequestError", "LatticeError"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            value = getattr(import_module(f"lattice.{module}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'lattice' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
