"""The rules of a run's log, read off the log itself and off what the engine really did."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from lattice.ids import RunId, TaskId
from lattice.ports.execution import Job, LogEntry, Report
from lattice.ports.store import AppendMessage, PutLog
from lattice.workflow.events import TaskFailed, TaskLost, TaskSucceeded
from lattice.workflow.run import LOST_ATTEMPTS

_TIMEOUT = "TaskTimeoutError"


class Violation(Exception):  # noqa: N818  # what it is, not what went wrong in a program
    """A promise of the service is broken."""


@dataclass(slots=True, eq=False)
class Attempt:
    """An attempt as the engine knows it. `began` is set by the first report of a start.

    `printed` is what it prints, of which all was told before its end if `told_all`.
    """

    job: Job
    printed: tuple[LogEntry, ...] = ()
    told_all: bool = False
    began: float | None = None
    outcome: Report | None = None
    cancelled: bool = False

    @property
    def over(self) -> bool:
        """Whether it occupies nothing any more."""
        return self.cancelled or self.outcome is not None

    @property
    def counts_as_success(self) -> bool:
        """Whether it returned while it was wanted."""
        return isinstance(self.outcome, TaskSucceeded) and not self.cancelled

    @property
    def values(self) -> dict[str, bytes | None] | None:
        """What it returned, by output key; None if it did not."""
        if not isinstance(self.outcome, TaskSucceeded) or self.cancelled:
            return None
        return {key: value.inline for key, value in self.outcome.values.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run's stored graph asks for.

    `references` are the inputs of each task that come from others: key to task and output.
    """

    upstream: Mapping[TaskId, frozenset[TaskId]]
    references: Mapping[TaskId, Mapping[str, tuple[TaskId, str]]]
    max_attempts: Mapping[TaskId, int]
    timeout: Mapping[TaskId, float | None]

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Plan:
        """The plan in a graph's JSON document."""
        tasks: dict[TaskId, Any] = {task["task_id"]: task for task in document["tasks"]}
        upstream: dict[TaskId, set[TaskId]] = {task_id: set() for task_id in tasks}
        for source, target in document["edges"]:
            upstream[target].add(source)
        references: dict[TaskId, dict[str, tuple[TaskId, str]]] = {}
        for task_id, task in tasks.items():
            references[task_id] = {}
            for item in task["task_input"]["input_params"].values():
                if item["input_schema"] == "from_task":
                    source, _, output = item["value"].partition(".")
                    references[task_id][item["key"]] = TaskId(source), output
        return cls(
            {task_id: frozenset(sources) for task_id, sources in upstream.items()},
            references,
            {task_id: task["retry"]["max_attempts"] for task_id, task in tasks.items()},
            {task_id: task["timeout"] for task_id, task in tasks.items()},
        )


@dataclass(slots=True)
class Log:
    """The stored log of one run. Every method raises Violation when a rule is broken."""

    run_id: RunId
    plan: Plan
    texts: list[str] = field(default_factory=list)
    #: The stored values of tasks that have succeeded.
    finished: dict[TaskId, dict[str, bytes | None]] = field(default_factory=dict)
    #: Tasks that have failed for good.
    given_up: dict[TaskId, None] = field(default_factory=dict)
    #: When an attempt may begin, after a back-off.
    not_before: dict[tuple[TaskId, int], float] = field(default_factory=dict)
    status: str | None = None
    #: Documents of what attempts have printed, by task, attempt and position.
    logs: dict[tuple[TaskId, int], dict[int, str]] = field(default_factory=dict)
    _told: str | None = None
    _started: dict[tuple[TaskId, int], float] = field(default_factory=dict)
    _failures: Counter[TaskId] = field(default_factory=Counter)
    _losses: Counter[TaskId] = field(default_factory=Counter)

    def append(
        self, write: AppendMessage, attempts: Mapping[tuple[RunId, TaskId, int], Attempt]
    ) -> None:
        """The next message, by a process that was asked to run `attempts`."""
        document = json.loads(write.document)
        kind, data = document["type"], document["data"]
        where = f"{self.run_id}: message {write.seq} ({kind})"
        self._expect(self._told is None, f"{where} after the last")
        self._expect(write.seq == data["seq"] == len(self.texts) + 1, f"{where} out of order")
        self._expect(data["run_id"] == self.run_id, f"{where} is of another run")
        self.texts.append(write.document)
        if kind == "finish_workflow":
            self._told = data["status"]
            self._check_status(where)
            return
        task_id, number = data["task_id"], data["attempt"]
        where = f"{where} of {task_id}#{number}"
        ended = task_id in self.finished or task_id in self.given_up
        self._expect(not ended, f"{where} after the task had ended")
        self._expect(
            self.plan.upstream[task_id] <= self.finished.keys(),
            f"{where} before all tasks upstream had succeeded",
        )
        attempt = attempts.get((self.run_id, task_id, number))
        if kind != "start_task" and attempt is not None:
            self._check_logs(where, attempt)
        match kind:
            case "start_task":
                self._expect(attempt is not None, f"{where} of what was never run")
                self._expect((task_id, number) not in self._started, f"{where} twice")
                self._started[task_id, number] = _seconds(data["time"])
            case "finish_task":
                values = {key: value.inline for key, value in write.values.items()}
                returned = attempt.values if attempt is not None else None
                self._expect((task_id, number) in self._started, f"{where} without a start")
                self._expect(values == returned, f"{where} tells {values}, it was {returned}")
                self.finished[task_id] = values
            case "task_exception":
                self._check_failure(where, task_id, data, attempt, last=True)
                self.given_up[task_id] = None
            case "task_retry":
                self._check_failure(where, task_id, data, attempt, last=False)
                if data["delay"]:
                    self.not_before[task_id, number + 1] = data["retry_at"]
            case _:
                raise Violation(f"{where}: an unknown type")

    def put_log(self, write: PutLog) -> None:
        """A part of what an attempt has printed."""
        self.logs.setdefault((write.task_id, write.attempt), {})[write.position] = write.document

    def _check_logs(self, where: str, attempt: Attempt) -> None:
        """What an attempt has printed and told is stored when its end is told."""
        if not attempt.told_all or attempt.cancelled:
            return
        rows = self.logs.get((attempt.job.task_id, attempt.job.attempt), {})
        stored = [fields for row in rows.values() for fields in json.loads(row)]
        missing = [each for each in attempt.printed if each.fields() not in stored]
        self._expect(not missing, f"{where} before what it has printed: {missing}")

    def finish(self, status: str) -> None:
        """The run's record says that it has ended."""
        self._expect(self.status is None, f"{self.run_id} was finished twice")
        self._expect(status == self._told, f"{self.run_id} is {status}, {self._told} was told")
        self.status = status

    def check_end(self) -> None:
        """Between two commits, the last message and the record of the end are both there or neither."""
        self._expect(self._told == self.status, f"{self.run_id} has ended by halves")

    def _check_status(self, where: str) -> None:
        tasks = self.plan.upstream
        if self._told == "succeeded":
            self._expect(self.finished.keys() == tasks.keys(), f"{where} before all succeeded")
        elif self._told == "failed":
            self._expect(bool(self.given_up), f"{where} without a task that failed")
            blocked = dict(self.given_up)
            while more := [t for t in tasks if t not in blocked and tasks[t] & blocked.keys()]:
                blocked.update(dict.fromkeys(more))
            left = tasks.keys() - blocked.keys() - self.finished.keys()
            self._expect(not left, f"{where} before {sorted(left)} had ended")

    def _check_failure(
        self,
        where: str,
        task_id: TaskId,
        data: Mapping[str, Any],
        attempt: Attempt | None,
        *,
        last: bool,
    ) -> None:
        kind, reason = data["error"]["type"], data.get("reason")
        outcome = attempt.outcome if attempt is not None else None
        if reason == "restarted":
            self._expect(
                (task_id, data["attempt"]) in self._started, f"{where} of what did not run"
            )
            return
        if kind == _TIMEOUT:
            began = self._started.get((task_id, data["attempt"]))
            limit = self.plan.timeout[task_id]
            self._expect(
                began is not None
                and limit is not None
                and _seconds(data["time"]) - began >= limit - 1e-3,
                f"{where} before its time-out",
            )
            self._expect(attempt is not None and attempt.over, f"{where} and it goes on")
        elif kind == "WorkerCrashedError":
            self._expect(isinstance(outcome, TaskLost), f"{where} of what was not lost")
            self._losses[task_id] += 1
            self._expect(
                (self._losses[task_id] >= LOST_ATTEMPTS) == last,
                f"{where} after {self._losses[task_id]} losses",
            )
            return
        else:
            self._expect(isinstance(outcome, TaskFailed), f"{where} of what did not fail")
        self._failures[task_id] += 1
        self._expect(
            (self._failures[task_id] >= self.plan.max_attempts[task_id]) == last,
            f"{where} after {self._failures[task_id]} failures",
        )

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise Violation(otherwise)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
