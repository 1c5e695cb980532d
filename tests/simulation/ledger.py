"""What may never happen, looked at whenever something is stored, submitted, answered or delivered.

The ledger keeps its own books beside the database and never asks the code under test what is right.
The rules of a run's log are in `rules`; here are those between the log and the world: who may write, what
may be run, what must have been stored before somebody learns of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lattice.ids import Digest, RunId, TaskId, Tenant
from lattice.ports.execution import Job
from lattice.ports.store import (
    AppendMessage,
    FinishRun,
    PutBlob,
    PutLog,
    PutReply,
    PutRun,
    PutWorkflow,
    Write,
)
from lattice.workflow.events import TaskFailed, TaskLost, TaskSucceeded
from tests.simulation.loop import EPOCH
from tests.simulation.rules import Attempt, Log, Plan, Violation

__all__ = ["Account", "Attempt", "Ledger"]

_Key = tuple[RunId, TaskId, int]

#: Whose tasks are counted, in worlds with a bound.
TENANT = Tenant("bounded")


@dataclass(slots=True)
class Account:
    """What one process was asked to run and what became of it.

    `held` are tasks whose values it has in memory; `cannot_store` says whether its orchestrator knows
    that it can store nothing any more.
    """

    number: int
    cannot_store: Callable[[], bool]
    attempts: dict[_Key, Attempt] = field(default_factory=dict)
    #: The current attempt of each task.
    latest: dict[tuple[RunId, TaskId], Attempt] = field(default_factory=dict)
    held: dict[tuple[RunId, TaskId], None] = field(default_factory=dict)
    #: The jobs that were told ahead of their time.
    ahead: dict[_Key, Job] = field(default_factory=dict)

    def active(self) -> list[_Key]:
        """The attempts that go on."""
        return [key for key, attempt in self.attempts.items() if not attempt.over]


class Ledger:
    """The books of one world. The first violation is kept in `violation`, and ends the world."""

    def __init__(self, now: Callable[[], float], bound: int | None = None) -> None:
        self.now = now
        self._bound = bound
        #: The runs of the tenant.
        self._bounded: dict[RunId, None] = {}
        self.trace: list[str] = []
        self.violation: Violation | None = None
        self.logs: dict[RunId, Log] = {}
        self._graphs: dict[Digest, bytes] = {}
        #: Ids of workflows and runs, and idempotency keys, that are stored.
        self.stored: dict[str, None] = {}
        self._in_charge: Account | None = None

    def note(self, text: str) -> None:
        """Adds a line to the trace."""
        self.trace.append(f"{self.now() - EPOCH:.6f} {text}")

    def fail(self, text: str) -> None:
        """Notes that a promise is broken. Only the first counts, as others may follow from it."""
        if self.violation is None:
            self.note(f"VIOLATION: {text}")
            self.violation = Violation(text)

    # -- the store ---------------------------------------------------------------------------

    def took_charge(self, account: Account) -> None:
        """A process took the lease: whatever others write from now on is wrong."""
        self.note(f"process {account.number} takes charge")
        self._in_charge = account

    def committed(self, account: Account, writes: Sequence[Write]) -> None:
        """A group of writes became durable."""
        names = " ".join(type(write).__name__ for write in writes)
        self.note(f"process {account.number} commits {names}")
        if account is not self._in_charge and writes:
            self.fail(f"process {account.number} wrote while another was in charge")
        try:
            for write in writes:
                self._apply(account, write)
            for write in writes:
                if isinstance(write, AppendMessage | FinishRun):
                    self.logs[write.run_id].check_end()
        except Violation as violation:
            self.fail(str(violation))

    def _apply(self, account: Account, write: Write) -> None:
        match write:
            case PutBlob():
                self._graphs[write.digest] = write.data
            case PutWorkflow():
                self.stored[write.workflow_id] = None
            case PutRun():
                self.stored[write.run_id] = None
                plan = Plan.read(json.loads(self._graphs[write.graph]))
                self.logs[write.run_id] = Log(write.run_id, plan)
                if write.tenant == TENANT:
                    self._bounded[write.run_id] = None
            case PutReply():
                self.stored[write.key] = None
            case PutLog():
                self.logs[write.run_id].put_log(write)
            case AppendMessage():
                self.logs[write.run_id].append(write, account.attempts)
            case FinishRun():
                self.logs[write.run_id].finish(write.status)

    # -- the engine --------------------------------------------------------------------------

    def submitted(self, account: Account, job: Job) -> Attempt:
        """An attempt is to begin: it must be due, and have the arguments that were stored for it."""
        run_id, task_id = job.run_id, job.task_id
        name = f"{run_id}/{task_id}#{job.attempt}"
        self.note(f"process {account.number} submits {name}")
        before = account.latest.get((run_id, task_id))
        attempt = account.latest[run_id, task_id] = Attempt(job)
        account.attempts[run_id, task_id, job.attempt] = attempt
        if account.cannot_store():
            self.fail(f"{name} was submitted by a process that can store nothing")
        if self._bound is not None and run_id in self._bounded:
            running = [key for key in account.active() if key[0] in self._bounded]
            if len(running) > self._bound:
                self.fail(f"{name} was submitted beside {len(running) - 1} others of its tenant")
        if before is not None and not before.over:
            self.fail(f"{name} was submitted while an attempt goes on")
        if before is not None and before.job.attempt >= job.attempt:
            self.fail(f"{name} was submitted after attempt {before.job.attempt}")
        if before is not None and before.counts_as_success:
            self.fail(f"{name} was submitted after the task had succeeded")
        log = self.logs.get(run_id)
        if log is None:
            self.fail(f"{name} was submitted before its run was durable")
            return attempt
        if account is self._in_charge:
            # One that was deposed and does not know it yet sees an older state.
            if log.status is not None:
                self.fail(f"{name} was submitted after its run had ended")
            if task_id in log.finished or task_id in log.given_up:
                self.fail(f"{name} was submitted after the task had ended")
            if self.now() < log.not_before.get((task_id, job.attempt), 0.0) - 1e-6:
                self.fail(f"{name} was submitted before its back-off was over")
        for source in log.plan.upstream[task_id]:
            told = account.latest.get((run_id, source))
            if source not in log.finished and not (told and told.counts_as_success):
                self.fail(f"{name} was submitted before {source} had succeeded")
        self._check_arguments(account, log, job, name)
        told_ahead = account.ahead.get((run_id, task_id, job.attempt), job)
        same = replace(
            told_ahead, arguments=job.arguments, after=job.after, definition=job.definition
        )
        if same != job or job.after:
            self.fail(f"{name} is another job than was told ahead")
        return attempt

    def told_ahead(self, account: Account, asked: Job, jobs: Sequence[Job]) -> None:
        """What would follow a job that goes on: each must lack only that job, and what was told before it."""
        expected = {asked.task_id}
        for job in jobs:
            name = f"{job.run_id}/{job.task_id}#{job.attempt}"
            log = self.logs[job.run_id]
            done = {
                source
                for source in log.plan.upstream[job.task_id]
                if source in log.finished
                or ((told := account.latest.get((job.run_id, source))) and told.counts_as_success)
            }
            lacking, after = set(log.plan.upstream[job.task_id]) - done, set(job.after)
            # One that was deposed and does not know it yet sees an older state.
            if lacking != after if account is self._in_charge else not lacking <= after:
                self.fail(f"{name} was told ahead as if it lacked {job.after}")
            if not job.after or not expected.issuperset(job.after):
                self.fail(f"{name} was told ahead, and does not follow {sorted(expected)}")
            if (job.run_id, job.task_id) in account.latest:
                self.fail(f"{name} was told ahead after it was submitted")
            if account.cannot_store():
                self.fail(f"{name} was told ahead by a process that can store nothing")
            for argument in job.arguments:
                if argument.source is None:
                    continue
                if (argument.source[0] in job.after) == (argument.value is not None):
                    self.fail(f"{name} was told ahead with a wrong {argument.key}")
            expected.add(job.task_id)
            account.ahead[job.run_id, job.task_id, job.attempt] = job

    def _check_arguments(self, account: Account, log: Log, job: Job, name: str) -> None:
        given = {
            argument.key: (argument.source, argument.value and argument.value.inline)
            for argument in job.arguments
            if argument.source is not None
        }
        expected = {}
        for key, (source, output) in log.plan.references[job.task_id].items():
            told = account.latest.get((job.run_id, source))
            values = told.values if told is not None else None
            if values is None:
                values = log.finished.get(source, {})
            expected[key] = (source, output), values.get(output)
        if given != expected:
            self.fail(f"{name} got the arguments {given}, and not {expected}")

    def ended(
        self, account: Account, attempt: Attempt, report: TaskSucceeded | TaskFailed | TaskLost
    ) -> None:
        """An attempt that went on has ended, and its process is about to be told."""
        attempt.outcome = report
        if isinstance(report, TaskSucceeded):
            account.held[attempt.job.run_id, attempt.job.task_id] = None

    # -- people ------------------------------------------------------------------------------

    def acknowledged(self, *names: str) -> None:
        """Somebody was told that these are stored: they must be, from now on."""
        for name in names:
            self.note(f"{name} is acknowledged")
            if name not in self.stored:
                self.fail(f"{name} was acknowledged before it was stored")

    def delivered(self, run_id: RunId, after: int, texts: Sequence[str]) -> None:
        """A subscriber that had `after` messages gets the next."""
        log = self.logs.get(run_id)
        stored = [] if log is None else log.texts
        if [*texts] != stored[after : after + len(texts)] or not texts:
            came = [json.loads(text)["data"]["seq"] for text in texts]
            self.fail(f"after message {after} of {run_id} came {came}, {len(stored)} are stored")
