"""What operators see of runs: counted, and written as spans, from what the machine told its subscribers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, cast

from lattice.ids import RunId
from lattice.ports.environment import Telemetry
from lattice.ports.tracing import Traces
from lattice.workflow.commands import Command, Finish, Publish
from lattice.workflow.graph import Graph
from lattice.workflow.messages import Message, MessageType

_log = logging.getLogger(__name__)

_ENDS = frozenset((MessageType.FINISH_TASK, MessageType.TASK_EXCEPTION, MessageType.TASK_RETRY))


class Observer:
    """Looks at what was told of runs. What goes wrong here is logged, and no trouble of the run."""

    def __init__(self, telemetry: Telemetry, traces: Traces | None) -> None:
        self._telemetry = telemetry
        self._traces = traces

    def look(
        self,
        run_id: RunId,
        graph: Graph,
        created: float,
        trace: str | None,
        commands: Iterable[Command],
        now: float,
    ) -> None:
        """Counts what `commands` tell of a run that was requested at `created`, in the context `trace`."""
        try:
            for command in commands:
                match command:
                    case Publish(message) if message.task_id is not None:
                        self._message(run_id, graph, trace, message, now)
                    case Finish(status):
                        self._telemetry.run_finished(status, now - created)
                        if self._traces is not None and trace is not None:
                            self._traces.run_ended(
                                trace, run_id, graph.workflow_id, created, now, status
                            )
        except Exception:
            _log.exception("what happened to a run could not be counted")

    def _message(
        self, run_id: RunId, graph: Graph, trace: str | None, message: Message, now: float
    ) -> None:
        data = cast("Mapping[str, Any]", message.data)
        if message.type is MessageType.START_TASK and "batch_size" in data:
            self._telemetry.call_began(data["batch_size"])
        if message.type not in _ENDS or message.task_id is None:
            return
        name = graph.tasks[message.task_id].name
        self._telemetry.attempt_ended(name, data.get("reason", "succeeded"), data["timing"])
        if self._traces is not None and trace is not None:
            # How long it took, waits included; the task itself may have begun its next attempt.
            began = now - sum(data["timing"].values())
            self._traces.attempt_ended(
                trace,
                run_id,
                message.task_id,
                name,
                data["attempt"],
                began,
                now,
                data.get("error"),
            )
