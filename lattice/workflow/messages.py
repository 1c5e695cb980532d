"""What subscribers of a run see, which is also the run's log: what is told is what is remembered.

Messages are numbered from 1 in each run. Replaying them through `Run.replay` gives the run's state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from lattice.ids import TaskId
from lattice.workflow.events import Value


class MessageType(StrEnum):
    """The `type` of a message on the wire."""

    START_TASK = "start_task"
    FINISH_TASK = "finish_task"
    TASK_EXCEPTION = "task_exception"
    TASK_RETRY = "task_retry"
    FINISH_WORKFLOW = "finish_workflow"


@dataclass(frozen=True, slots=True)
class Message:
    """One message. `data` is JSON; `values` is kept with the log and is not told.

    Attributes:
        seq: 1, 2, 3 and so on in each run.
        task_id: the task it is about; None for `finish_workflow`.
    """

    seq: int
    type: MessageType
    data: Mapping[str, object]
    task_id: TaskId | None = None
    values: Mapping[str, Value] = field(default_factory=dict)

    def document(self) -> dict[str, object]:
        """The wire form: `{"type", "data"}`."""
        return {"type": self.type.value, "data": dict(self.data)}

    @classmethod
    def from_document(
        cls, document: Mapping[str, object], values: Mapping[str, Value] | None = None
    ) -> Message:
        """The message that the wire form `document` describes."""
        data = document["data"]
        assert isinstance(data, Mapping)
        task_id = data.get("task_id")
        return cls(
            seq=int(data["seq"]),
            type=MessageType(str(document["type"])),
            data=data,
            task_id=None if task_id is None else TaskId(task_id),
            values=values or {},
        )


def iso_time(at: float) -> str:
    """ISO 8601 in UTC, to the microsecond, of seconds since the epoch."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
