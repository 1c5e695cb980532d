"""What happens in a run, as its followers are told."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Event:
    """One message of a run.

    Attributes:
        seq: 1, 2, 3 and so on in each run.
        time: when it happened, ISO 8601 in UTC.
        data: the message as it came.
    """

    seq: int
    time: str
    run_id: str
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class TaskEvent(Event):
    """One message about a task. `task` is its name, `attempt` counts from 1.

    It is 0 in a `FinishTask` whose result was taken over from the run that is retried.
    """

    task: str
    task_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class StartTask(TaskEvent):
    """A task has begun, in a process on the node `node_id`.

    `waited`: seconds before that, `queued`, and apart from these those in which a replica was `starting`
    and its batch filled (`batching`). `replica` and `batch_size` are of tasks that run on replicas: which
    one, and how many calls it runs together.
    """

    node_id: str
    node_ip: str
    waited: Mapping[str, float] = field(default_factory=dict)
    replica: str | None = None
    batch_size: int | None = None


@dataclass(frozen=True, slots=True)
class FinishTask(TaskEvent):
    """A task has returned. `result` has each output: its value if it is small JSON, or a description.

    `timing`: seconds of the last attempt, as in `StartTask.waited`, and those in which it was `running`.
    """

    result: Mapping[str, Any]
    timing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskException(TaskEvent):
    """A task has failed for good; `traceback` is the user's own. `timing` is as in `FinishTask`."""

    error_type: str
    message: str
    traceback: str = field(repr=False)
    timing: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TaskRetry(TaskEvent):
    """An attempt has failed or was lost, for `reason`, and the task is tried again."""

    reason: str
    error_type: str
    message: str
    traceback: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class TaskLog(TaskEvent):
    """A task has printed or logged `text`; its `seq` is 0, as it is not numbered among the others.

    `stream` is `stdout`, `stderr`, or `log` with a `level` and a `logger`. `cut`: bytes before it that were not
    kept.
    """

    stream: str
    text: str
    level: str | None = None
    logger: str | None = None
    cut: int = 0


@dataclass(frozen=True, slots=True)
class FinishWorkflow(Event):
    """The run has ended; always the last. `status` is `succeeded`, `failed` or `cancelled`.

    `reason` is why a run failed by itself, such as a deadline that passed; empty if tasks of it failed.
    """

    status: str
    reason: str = ""


def parse(text: str | bytes, names: Mapping[str, str]) -> Event:
    """The event that a message stands for. `names` are those of the tasks, by id.

    A message of a type that is not known here becomes a plain `Event`.
    """
    message = json.loads(text)
    data: dict[str, Any] = message["data"]
    common = {
        "seq": 0 if message["type"] == "task_log" else data["seq"],
        "time": data.get("time", ""),
        "run_id": data.get("run_id", ""),
        "data": data,
    }
    kind = message["type"]
    if kind == "finish_workflow":
        reason = (data.get("error") or {}).get("message", "")
        return FinishWorkflow(**common, status=data["status"], reason=reason)
    if "task_id" not in data:
        return Event(**common)
    common |= {
        "task": names.get(data["task_id"], data["task_id"]),
        "task_id": data["task_id"],
        "attempt": data.get("attempt", 1),
    }
    if kind == "start_task":
        return StartTask(
            **common,
            node_id=data.get("node_id", ""),
            node_ip=data.get("node_ip", ""),
            waited=data.get("waited", {}),
            replica=data.get("replica"),
            batch_size=data.get("batch_size"),
        )
    if kind == "finish_task":
        return FinishTask(**common, result=data["result"], timing=data.get("timing", {}))
    if kind == "task_log":
        return TaskLog(
            **common,
            stream=data["stream"],
            text=data["text"],
            level=data.get("level"),
            logger=data.get("logger"),
            cut=data.get("cut", 0),
        )
    if kind in ("task_exception", "task_retry"):
        error = data.get("error") or {}
        common |= {
            "error_type": error.get("type", ""),
            "message": error.get("message", ""),
            "traceback": error.get("traceback", ""),
        }
        if kind == "task_exception":
            return TaskException(**common, timing=data.get("timing", {}))
        return TaskRetry(**common, reason=data.get("reason", ""))
    return TaskEvent(**common)
