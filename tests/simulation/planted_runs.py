"""Planted faults of the recovery, the live runs and the run machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from lattice.ids import RunId, TaskId, Tenant
from lattice.orchestrator.logs import TaskLogs
from lattice.orchestrator.quotas import Group, Holder, Quotas
from lattice.orchestrator.runs import Runs
from lattice.ports.execution import Job, Report, TaskLogged
from lattice.ports.store import RunRecord
from lattice.store.memory import MemoryStore
from lattice.workflow import run as machine
from lattice.workflow.commands import ArmTimer, Cancel, Command, Execute, Release
from lattice.workflow.events import Event, Recovered, TaskSucceeded
from lattice.workflow.messages import Message, MessageType
from lattice.workflow.run import Run
from lattice.workflow.states import TaskState
from tests.simulation.planted import Faults

FAULTS = Faults()


def _without(patch: pytest.MonkeyPatch, wrong: Callable[[Event, Command], bool]) -> None:
    """Takes commands out of what the run machine wants done."""
    handle = Run.handle

    def broken(self: Run, event: Event) -> list[Command]:
        return [command for command in handle(self, event) if not wrong(event, command)]

    patch.setattr(Run, "handle", broken)


@FAULTS.does("drops the first report after a restart")
def _(patch: pytest.MonkeyPatch) -> None:
    report, dropped = Runs.report, dict[int, RunId]()

    def broken(self: Runs, run_id: RunId, word: Report) -> None:
        run = self.live(run_id)
        if run is not None and run.last_seq and id(self) not in dropped:
            dropped[id(self)] = run_id
        else:
            report(self, run_id, word)

    patch.setattr(Runs, "report", broken)


@FAULTS.does("does not go on with the newest run after a restart")
def _(patch: pytest.MonkeyPatch) -> None:
    unfinished = MemoryStore.unfinished_runs

    def broken(self: MemoryStore) -> list[RunRecord]:
        return unfinished(self)[:-1]

    patch.setattr(MemoryStore, "unfinished_runs", broken)


@FAULTS.does("keeps finished runs in memory")
def _(patch: pytest.MonkeyPatch) -> None:
    class Sticky(dict[RunId, Any]):
        def pop(self, *key: Any) -> Any:
            return self.get(key[0])

    made = Runs.__init__

    def broken(self: Runs, *args: Any) -> None:
        made(self, *args)
        self._live = Sticky()

    patch.setattr(Runs, "__init__", broken)


@FAULTS.does("does not arm timers again after a restart")
def _(patch: pytest.MonkeyPatch) -> None:
    _without(
        patch, lambda event, command: isinstance(event, Recovered) and isinstance(command, ArmTimer)
    )


@FAULTS.does("executes finished tasks again after a restart")
def _(patch: pytest.MonkeyPatch) -> None:
    handle = Run.handle

    def broken(self: Run, event: Event) -> list[Command]:
        commands = handle(self, event)
        if isinstance(event, Recovered):
            commands += [
                Execute(task_id, progress.attempt + 1)
                for task_id, progress in self.tasks.items()
                if progress.state is TaskState.SUCCEEDED
            ]
        return commands

    patch.setattr(Run, "handle", broken)


@FAULTS.does("does not run again what ran when it died")
def _(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Run, at: float) -> None:
        self._execute_ready()
        self._finish_if_done(at)

    patch.setattr(Run, "_recovered", broken)


@FAULTS.does("never releases values")
def _(patch: pytest.MonkeyPatch) -> None:
    _without(patch, lambda event, command: isinstance(command, Release))


@FAULTS.does("sends no cancel")
def _(patch: pytest.MonkeyPatch) -> None:
    _without(patch, lambda event, command: isinstance(command, Cancel))


@FAULTS.does("takes a report of an old attempt for one of the current")
def _(patch: pytest.MonkeyPatch) -> None:
    def broken(self: Run, task_id: TaskId, attempt: int, event: str) -> bool:
        return self.tasks[task_id].state in (TaskState.QUEUED, TaskState.RUNNING)

    patch.setattr(Run, "_is_current", broken)


@FAULTS.does("counts a result that comes twice twice")
def _(patch: pytest.MonkeyPatch) -> None:
    handle = Run.handle

    def broken(self: Run, event: Event) -> list[Command]:
        if isinstance(event, TaskSucceeded) and event.task_id in self.tasks:
            again = self.tasks[event.task_id].state is TaskState.SUCCEEDED
            for target in self.graph.downstream[event.task_id] if again else ():
                self.tasks[target].missing -= 1
        return handle(self, event)

    patch.setattr(Run, "handle", broken)


@FAULTS.does("finishes before the last task has ended")
def _(patch: pytest.MonkeyPatch) -> None:
    finish = Run._finish_if_done

    def broken(self: Run, at: float) -> None:
        if self._unfinished == 1 and len(self.tasks) > 1:
            self._unfinished = 0
        finish(self, at)

    patch.setattr(Run, "_finish_if_done", broken)


@FAULTS.does("tries once more than the policy allows")
def _(patch: pytest.MonkeyPatch) -> None:
    failed = Run._failed

    def broken(self: Run, task_id: TaskId, *args: Any) -> None:
        progress = self.tasks[task_id]
        progress.failures -= 1
        failed(self, task_id, *args)
        progress.failures += 1

    patch.setattr(Run, "_failed", broken)


@FAULTS.does("forgets failures when it restarts")
def _(patch: pytest.MonkeyPatch) -> None:
    recovered = Run._recovered

    def broken(self: Run, at: float) -> None:
        for progress in self.tasks.values():
            progress.failures = 0
        recovered(self, at)

    patch.setattr(Run, "_recovered", broken)


@FAULTS.does("lets a process die once too often")
def _(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(machine, "LOST_ATTEMPTS", machine.LOST_ATTEMPTS + 1)


@FAULTS.does("waits too short a time")
def _(patch: pytest.MonkeyPatch) -> None:
    made: Callable[..., None] = ArmTimer.__init__

    def broken(self: ArmTimer, *args: Any) -> None:
        made(self, *args[:3], args[3] / 2)

    patch.setattr(ArmTimer, "__init__", broken)


@FAULTS.does("hands a task another output than it refers to")
def _(patch: pytest.MonkeyPatch) -> None:
    apply = Run._apply

    def broken(self: Run, message: Message) -> None:
        apply(self, message)
        values = message.values
        if message.type is MessageType.FINISH_TASK and message.task_id in self.values:
            self.values[message.task_id] = dict(zip(values, [*values.values()][::-1], strict=True))

    patch.setattr(Run, "_apply", broken)


@FAULTS.does("starts a task when the first of its upstream tasks is done")
def _(patch: pytest.MonkeyPatch) -> None:
    made = Run.__init__

    def broken(self: Run, *args: Any) -> None:
        made(self, *args)
        for progress in self.tasks.values():
            progress.missing = min(progress.missing, 1)

    patch.setattr(Run, "__init__", broken)


@FAULTS.does("tells ahead what does not follow yet")
def _(patch: pytest.MonkeyPatch) -> None:
    def broken(run: Run, task_ids: Sequence[TaskId]) -> list[tuple[TaskId, tuple[TaskId, ...]]]:
        return [(each, tuple(task_ids)) for each in run.graph.downstream[task_ids[0]]]

    patch.setattr("lattice.orchestrator.runs.following", broken)


@FAULTS.does("tells ahead another job than will be submitted")
def _(patch: pytest.MonkeyPatch) -> None:
    ahead = Runs.ahead

    def broken(self: Runs, run_id: RunId, task_ids: Sequence[TaskId]) -> list[Job]:
        jobs = ahead(self, run_id, task_ids)
        return [replace(job, name=f"{job.name} of another") for job in jobs]

    patch.setattr(Runs, "ahead", broken)


@FAULTS.does("ignores what an attempt has printed when it ends")
def _(patch: pytest.MonkeyPatch) -> None:
    take = TaskLogs.take

    def broken(self: TaskLogs, run_id: RunId, logged: TaskLogged, *, running: bool) -> None:
        if not logged.final:
            take(self, run_id, logged, running=running)

    patch.setattr(TaskLogs, "take", broken)


@FAULTS.does("lets a tenant run one task more than its bound")
def _(patch: pytest.MonkeyPatch) -> None:
    made = Quotas.__init__

    def broken(self: Quotas, allowed: Mapping[Tenant, int]) -> None:
        made(self, {tenant: most + 1 for tenant, most in allowed.items()})

    patch.setattr(Quotas, "__init__", broken)


@FAULTS.does("makes no room for its tenant when it takes back what ran")
def _(patch: pytest.MonkeyPatch) -> None:
    step = Runs._step

    def broken(self: Runs, run_id: RunId, event: Event) -> None:
        with pytest.MonkeyPatch.context() as within:
            within.setattr(Runs, "_leave", lambda *args: None)
            step(self, run_id, event)

    patch.setattr(Runs, "_step", broken)


@FAULTS.does("forgets what waits for its tenant when something else of it ends")
def _(patch: pytest.MonkeyPatch) -> None:
    leave = Quotas.leave

    def broken(self: Quotas, tenant: Tenant | None, group: Group, holder: Holder) -> None:
        for other in [*self._waiting][1:]:
            assert isinstance(other, tuple)
            leave(self, tenant, other[0], other)
        leave(self, tenant, group, holder)

    patch.setattr(Quotas, "leave", broken)
