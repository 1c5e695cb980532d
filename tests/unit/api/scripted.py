"""A service whose runs say what a test lets them say, and fail when it says so."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lattice.errors import RunNotFoundError, UnavailableError
from lattice.ids import NodeId, RunId, TaskId, WorkflowId
from lattice.ports.execution import CallResult
from lattice.ports.service import (
    VALUE_PART_BYTES,
    Caller,
    LogMessages,
    Once,
    OrchestratorService,
    TaskUpload,
)


def message(seq: int) -> str:
    return json.dumps({"type": "start_task", "data": {"seq": seq}})


@dataclass
class ScriptedRun:
    """A run's log, and the state of the way to it."""

    log: list[str] = field(default_factory=list)
    #: What a stream with logs begins with.
    printed: list[LogMessages] = field(default_factory=list)
    ended: bool = False
    reachable: bool = True
    #: What the streams that are open raise next.
    failure: Exception | None = None
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)
    open_streams: int = 0
    opened_after: list[int] = field(default_factory=list)

    async def say(self, count: int = 1, *, last: bool = False) -> None:
        """Adds messages to the log."""
        async with self.changed:
            for _ in range(count):
                self.log.append(message(len(self.log) + 1))
            self.ended = self.ended or last
            self.changed.notify_all()

    async def fail(self, error: Exception, *, reachable: bool = True) -> None:
        """Breaks the streams that are open; later ones open only if `reachable`."""
        async with self.changed:
            self.failure, self.reachable = error, reachable
            self.changed.notify_all()

    async def until(self, condition: Callable[[ScriptedRun], bool]) -> None:
        """Returns when `condition` holds."""
        async with self.changed, asyncio.timeout(10):
            await self.changed.wait_for(lambda: condition(self))

    async def follow(self, after: int) -> AsyncIterator[list[str]]:
        async with self.changed:
            self.opened_after.append(after)
            self.changed.notify_all()
            if not self.reachable:
                raise UnavailableError("the orchestrator is away")
            self.failure = None
            self.open_streams += 1
        try:
            while True:
                async with self.changed:
                    while not (len(self.log) > after or self.ended or self.failure is not None):
                        await self.changed.wait()
                    if self.failure is not None:
                        raise self.failure
                    group = self.log[after:]
                if not group:
                    return
                after += len(group)
                yield group
        finally:
            self.open_streams -= 1


class ScriptedService(OrchestratorService):
    """Remembers what it was asked; `fails` is what it then raises."""

    def __init__(self) -> None:
        self.runs: dict[str, ScriptedRun] = {}
        self.calls: list[tuple[object, ...]] = []
        self.fails: Exception | None = None
        self.result: object = {"answer": 42}
        self.value = b'{"a":1}'

    def for_caller(self, caller: Caller) -> ScriptedService:
        self.calls.append(("for_caller", caller))
        return self

    def _note(self, *call: object) -> None:
        self.calls.append(call)
        if self.fails is not None:
            raise self.fails

    async def create_workflow(self, once: Once | None = None) -> WorkflowId:
        self._note("create_workflow", once)
        return WorkflowId("w1")

    async def add_task(
        self, workflow_id: WorkflowId, task_type: str, name: str, once: Once | None = None
    ) -> TaskId:
        self._note("add_task", workflow_id, task_type, name, once)
        return TaskId("t1")

    async def save_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, *, add_edges: bool
    ) -> None:
        self._note("save_task", workflow_id, upload, add_edges)

    async def add_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None:
        self._note("add_edge", workflow_id, source, target)

    async def del_edge(self, workflow_id: WorkflowId, source: TaskId, target: TaskId) -> None:
        self._note("del_edge", workflow_id, source, target)

    async def del_task(self, workflow_id: WorkflowId, task_id: TaskId) -> None:
        self._note("del_task", workflow_id, task_id)

    async def delete_workflow(self, workflow_id: WorkflowId) -> None:
        self._note("delete_workflow", workflow_id)

    async def workflow_tasks(self, workflow_id: WorkflowId) -> list[dict[str, str]]:
        self._note("workflow_tasks", workflow_id)
        return [{"id": "t1", "name": "one"}]

    async def run_workflow(
        self,
        workflow_id: WorkflowId,
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> RunId:
        self._note("run_workflow", workflow_id, deadline, once)
        return RunId("r1")

    async def submit_workflow(
        self,
        tasks: Sequence[TaskUpload],
        edges: Sequence[tuple[TaskId, TaskId]],
        once: Once | None = None,
        *,
        deadline: float | None = None,
    ) -> tuple[WorkflowId, RunId]:
        self._note("submit_workflow", tasks, edges, deadline, once)
        return WorkflowId("w1"), RunId("r1")

    async def add_langgraph_task(
        self, workflow_id: WorkflowId, upload: TaskUpload, once: Once | None = None
    ) -> TaskId:
        self._note("add_langgraph_task", workflow_id, upload, once)
        return upload.task_id

    async def run_langgraph_task(
        self, workflow_id: WorkflowId, task_id: TaskId, args: bytes, kwargs: bytes
    ) -> CallResult:
        self._note("run_langgraph_task", workflow_id, task_id, args, kwargs)
        return CallResult(self.result, b"\x80pickled")

    async def list_runs(
        self,
        limit: int,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
    ) -> list[dict[str, object]]:
        self._note("list_runs", limit, workflow_id, status, before)
        return [{"run_id": "r1"}]

    async def describe_run(self, run_id: RunId) -> dict[str, object]:
        self._note("describe_run", run_id)
        return {"run_id": run_id, "error": self.result}

    async def cancel_run(self, run_id: RunId) -> str:
        self._note("cancel_run", run_id)
        return "cancelled"

    async def retry_run(self, run_id: RunId, once: Once | None = None) -> RunId:
        self._note("retry_run", run_id, once)
        return RunId("r2")

    async def delete_run(self, run_id: RunId) -> None:
        self._note("delete_run", run_id)

    async def delete_runs(self, workflow_id: WorkflowId, limit: int) -> int:
        self._note("delete_runs", workflow_id, limit)
        return 3

    def follow(
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int, *, logs: bool = False
    ) -> AsyncIterator[list[str] | LogMessages]:
        self._note("follow", run_id, workflow_id, after)
        return self._follow(run_id, after, logs)

    async def _follow(
        self, run_id: RunId, after: int, logs: bool
    ) -> AsyncIterator[list[str] | LogMessages]:
        if run_id not in self.runs:
            raise RunNotFoundError(run_id)
        run = self.runs[run_id]
        for printed in run.printed if logs else ():
            yield printed
        async for group in run.follow(after):
            yield group

    async def task_logs(
        self, run_id: RunId, task_id: TaskId, attempt: int | None = None, after: str | None = None
    ) -> dict[str, object]:
        self._note("task_logs", run_id, task_id, attempt, after)
        return {"logs": [], "next": None}

    async def task_result(self, run_id: RunId, task_id: TaskId) -> dict[str, object]:
        self._note("task_result", run_id, task_id)
        return {"out": self.result}

    async def value_json(self, run_id: RunId, task_id: TaskId, key: str) -> bytes:
        self._note("value_json", run_id, task_id, key)
        return self.value

    async def value_pickle(self, run_id: RunId, task_id: TaskId, key: str, start: int = 0) -> bytes:
        self._note("value_pickle", run_id, task_id, key)
        return b"\x80pickled"[start : start + VALUE_PART_BYTES]

    async def connect_worker(
        self, node_id: NodeId, node_ip: str, resources: Mapping[str, object]
    ) -> None:
        self._note("connect_worker", node_id, node_ip, resources)

    async def disconnect_worker(self, node_id: NodeId, *, leaving: bool = False) -> None:
        self._note("disconnect_worker", node_id, leaving)

    async def workers(self) -> list[dict[str, object]]:
        self._note("workers")
        return [{"node_id": "n1"}]

    async def head_port(self) -> int:
        self._note("head_port")
        return 6379

    async def ready(self) -> None:
        self._note("ready")


class OwnedScriptedService(ScriptedService):
    """The same with a life of its own, as `create_app` makes it where none is given."""

    def __init__(self) -> None:
        super().__init__()
        self.life: list[str] = []
        self.start_failure: Exception | None = None

    def initialize(self) -> None:
        self.life.append("initialize")

    async def start_monitor(self) -> None:
        self.life.append("start_monitor")
        if self.start_failure is not None:
            raise self.start_failure

    async def close(self) -> None:
        self.life.append("close")

    def cleanup(self) -> None:
        self.life.append("cleanup")
