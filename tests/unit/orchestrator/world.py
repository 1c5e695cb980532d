"""An orchestrator on the in-memory store, with held jobs and a clock that stands still."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lattice.ids import RunId, TaskId, WorkflowId
from lattice.observability.telemetry import NoTelemetry
from lattice.orchestrator import Defaults, Limits, Orchestrator, Retention, Surroundings, Tenancy
from lattice.ports.secrets import NoSecrets, Secrets
from lattice.ports.service import CodeUpload, TaskUpload
from lattice.store.memory import MemoryStore
from lattice.testing.fakes import CountedIds, FakeClock, HeldDispatcher
from lattice.workflow.task import CodeForm

#: Makes a world whose orchestrator has other limits and defaults.
MakeWorld = Callable[..., Any]


class FakeStorage:
    """Files in memory. A location is `runs/RUN/...`."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.fails = False

    def read(self, location: str, start: int = 0, size: int = -1) -> bytes:
        if location not in self.files:
            raise FileNotFoundError(location)
        return self.files[location][start:][: None if size < 0 else size]

    def owner(self, location: str) -> RunId:
        return RunId(location.split("/")[1])

    def stored_by(self, run_id: RunId) -> list[str]:
        return [location for location in self.files if location.startswith(f"runs/{run_id}/")]

    def delete(self, locations: Sequence[str]) -> None:
        if self.fails:
            raise OSError("the storage is away")
        for location in locations:
            self.files.pop(location, None)


@dataclass
class World:
    """An orchestrator and what is around it; `restart` puts a new one on the same store."""

    store: MemoryStore
    clock: FakeClock
    dispatcher: HeldDispatcher
    orchestrator: Orchestrator
    ids: CountedIds
    storage: FakeStorage = field(default_factory=FakeStorage)
    options: Mapping[str, Any] = field(default_factory=dict)

    async def restart(self) -> None:
        """A new orchestrator takes over, as after a kill: the old one is not told."""
        self.dispatcher = HeldDispatcher(self.clock, self.dispatcher.engine)
        self.orchestrator = make(
            self.store, self.clock, self.dispatcher, self.ids, self.storage, **self.options
        )
        await self.orchestrator.start_monitor()

    async def workflow(self, *names: str, edges: str = "") -> WorkflowId:
        """A workflow of saved tasks whose ids are their names; `edges` as in `a>b b>c`."""
        ends = (edge.split(">") for edge in edges.split())
        pairs = [(TaskId(source), TaskId(target)) for source, target in ends]
        uploads = [upload(name) for name in names]
        workflow_id, run_id = await self.orchestrator.submit_workflow(uploads, pairs)
        await self.orchestrator.cancel_run(run_id)
        self.dispatcher.jobs.clear()
        self.dispatcher.submitted.clear()
        self.dispatcher.cancelled.clear()
        return workflow_id

    async def messages(self, run_id: RunId, after: int = 0) -> list[str]:
        """The types of a run's messages, until its last."""
        found = []
        async for group in self.orchestrator.follow(run_id, None, after):
            found += [text.split('"type":"', 1)[1].split('"', 1)[0] for text in group]
        return found


def upload(name: str, **definition: object) -> TaskUpload:
    """A task with the output `out` and code that never runs."""
    document: dict[str, object] = {
        "task_input": {},
        "task_output": {"output_params": {"1": {"key": "out"}}},
    }
    code = CodeUpload(CodeForm.SOURCE, f"def {name}(params): ...".encode())
    return TaskUpload(TaskId(name), name, document | definition, code)


LIMITS = Limits(max_tasks_per_workflow=50, max_result_bytes=1000, call_timeout=5)


def make(
    store: MemoryStore,
    clock: FakeClock,
    dispatcher: HeldDispatcher,
    ids: CountedIds,
    storage: FakeStorage | None = None,
    *,
    limits: Limits = LIMITS,
    defaults: Defaults | None = None,
    retention: Retention | None = None,
    tenancy: Tenancy | None = None,
    secrets: Secrets | None = None,
    warm_up: bool = False,
) -> Orchestrator:
    around = Surroundings(
        store,
        storage or FakeStorage(),
        dispatcher,
        clock,
        ids,
        NoTelemetry(),
        limits,
        defaults or Defaults(),
        retention,
        tenancy=tenancy or Tenancy(),
        secrets=secrets or NoSecrets(),
    )
    return Orchestrator(around, warm_up=warm_up)
