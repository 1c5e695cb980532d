"""What is told of runs: lists, how far one is, results and values.

All of it is read from the store behind a `barrier`, so that it is durable, and the word of the one in charge.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from itertools import islice

from lattice.errors import (
    InvalidRequestError,
    ResultNotFoundError,
    RunNotFoundError,
    TaskNotFoundError,
)
from lattice.ids import RunId, TaskId, Tenant, WorkflowId
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.logs import Part, TaskLogs, described, messages, stored
from lattice.orchestrator.quotas import Quotas
from lattice.orchestrator.recovery import load_graph, rebuild
from lattice.orchestrator.runs import Runs
from lattice.ports.environment import Clock
from lattice.ports.execution import Dispatcher
from lattice.ports.service import VALUE_PART_BYTES, LogMessages
from lattice.ports.store import LogRecord, RunRecord, Store, ValueStorage
from lattice.ports.tracing import trace_id
from lattice.workflow import checks
from lattice.workflow.events import Value
from lattice.workflow.messages import iso_time
from lattice.workflow.run import Run
from lattice.workflow.states import RunStatus, TaskState

#: Tasks upstream that are named to people; of the others there is a number.
_NAMED = 3
#: Most parts of logs that are read at once; each is 64 KiB of text at most.
_LOG_PAGE = 50


class Reading:
    """Reads runs. `max_result_bytes` bounds the JSON text of a value."""

    def __init__(
        self,
        store: Store,
        storage: ValueStorage,
        dispatcher: Dispatcher,
        journal: Journal,
        runs: Runs,
        logs: TaskLogs,
        clock: Clock,
        max_result_bytes: int,
        quotas: Quotas,
    ) -> None:
        self._store = store
        self._storage = storage
        self._dispatcher = dispatcher
        self._journal = journal
        self._runs = runs
        self._logs = logs
        self._clock = clock
        self._max_result_bytes = max_result_bytes
        self._quotas = quotas

    async def list_runs(
        self,
        limit: int,
        workflow_id: WorkflowId | None,
        status: str | None,
        before: RunId | None,
        tenant: Tenant | None,
    ) -> list[dict[str, object]]:
        """Runs, newest first; `before` continues a list after its last run; with `tenant`, only its own."""
        await self._journal.barrier()
        if before is not None:
            await self.record(before)
        records = await asyncio.to_thread(
            self._store.list_runs,
            limit,
            workflow_id=workflow_id,
            status=status,
            before=before,
            tenant=tenant,
        )
        return [_summary(record) for record in records]

    async def describe_run(self, run_id: RunId) -> dict[str, object]:
        """A run, how far each of its tasks is and what it waits for. Raises RunNotFoundError."""
        progress = await self._live_progress(run_id)
        # What a live run has told may not be durable yet.
        await self._journal.barrier()
        record = await self.record(run_id)
        if progress is None or record.finished is not None:
            run = await asyncio.to_thread(rebuild, self._store, record, with_values=False)
            progress = _progress(run, {}, self._clock.now())
        return _summary(record) | progress

    async def _live_progress(self, run_id: RunId) -> dict[str, object] | None:
        """How far a live run is; None if it is not live. The engine is asked only if a task is queued."""
        run = self._runs.live(run_id)
        if run is None:
            return None
        waiting: dict[TaskId, str] = {}
        queued = {
            task_id: progress.attempt
            for task_id, progress in run.tasks.items()
            if progress.state is TaskState.QUEUED
        }
        if queued:
            waiting = {
                task_id: reason
                for task_id, attempt in queued.items()
                if (
                    reason := self._quotas.waiting_for(run.graph.tenant, (run_id, task_id, attempt))
                )
            }
            waiting |= await self._dispatcher.waiting(run_id, queued)
        return _progress(run, waiting, self._clock.now())

    async def task_result(self, run_id: RunId, task_id: TaskId) -> dict[str, object]:
        """The summary of a finished task's outputs. Raises ResultNotFoundError."""
        await self._journal.barrier()
        await self.record(run_id)
        text = await asyncio.to_thread(self._store.load_task_result, run_id, task_id)
        if text is None:
            raise ResultNotFoundError(run_id, task_id, "it has not finished, or is not in this run")
        result: dict[str, object] = json.loads(text)["data"]["result"]
        return result

    async def value_json(self, run_id: RunId, task_id: TaskId, key: str) -> bytes:
        """The JSON text of one output. Raises ResultNotFoundError, or InvalidRequestError if it is none."""
        value, tenant = await self._value(run_id, task_id, key)
        return await self._dispatcher.render(value, self._max_result_bytes, tenant)

    async def value_pickle(self, run_id: RunId, task_id: TaskId, key: str, start: int = 0) -> bytes:
        """A part of the pickle of one output, as opaque bytes. Raises ResultNotFoundError."""
        value, _ = await self._value(run_id, task_id, key)
        if value.inline is not None:
            return value.inline[start : start + VALUE_PART_BYTES]
        assert value.location is not None
        try:
            return await asyncio.to_thread(
                self._storage.read, value.location, start, VALUE_PART_BYTES
            )
        except FileNotFoundError:
            raise ResultNotFoundError(
                run_id, task_id, f"output {key!r} is no longer in storage"
            ) from None

    async def _value(self, run_id: RunId, task_id: TaskId, key: str) -> tuple[Value, Tenant | None]:
        """An output, and whose it is."""
        await self._journal.barrier()
        record = await self.record(run_id)
        values = await asyncio.to_thread(self._store.load_task_values, run_id, task_id)
        if key not in values:
            found = ", ".join(values) or "nothing (yet)"
            raise ResultNotFoundError(run_id, task_id, f"no output {key!r}; it returned {found}")
        return values[key], record.tenant

    async def task_logs(
        self, run_id: RunId, task_id: TaskId, attempt: int | None, after: str | None
    ) -> dict[str, object]:
        """A page of what a task has printed, and how to ask for the next.

        Raises:
            RunNotFoundError, TaskNotFoundError: there is no such run, or no such task in it.
            InvalidRequestError: `after` is not what an answer had as `next`.
        """
        start, printed = _log_place(after)
        # Before the store is read: what is stored meanwhile is then found twice, and not missed.
        held = [
            each
            for each in self._logs.held(run_id, task_id)
            if each[1] >= start[0] and attempt in (None, each[1])
        ]
        await self._journal.barrier()
        record = await self.record(run_id)
        found = await asyncio.to_thread(
            self._store.load_logs,
            run_id,
            _LOG_PAGE,
            task_id=task_id,
            attempt=attempt,
            after=(task_id, *start),
        )
        last = found[-1] if len(found) == _LOG_PAGE else None
        if last is not None:
            held = []
        elif not found and not held and after is None:
            await self._check_task(record, task_id)
        logs, printed = await asyncio.to_thread(_described_logs, found, held, start[0], printed)
        return {
            "logs": logs,
            "next": None if last is None else f"{last.attempt}.{last.position}.{printed}",
        }

    async def _check_task(self, record: RunRecord, task_id: TaskId) -> None:
        """Raises TaskNotFoundError if a run has no such task."""
        run = self._runs.live(record.run_id)
        graph = (
            run.graph
            if run is not None
            else await asyncio.to_thread(load_graph, self._store, record.graph)
        )
        if task_id not in graph.tasks:
            raise TaskNotFoundError(task_id, record.workflow_id)

    async def logs_so_far(self, run_id: RunId) -> AsyncIterator[LogMessages]:
        """All that is kept of what the tasks of a run have printed."""
        held = self._logs.held(run_id)
        await self._journal.barrier()
        after: tuple[TaskId, int, int] | None = None
        ends: dict[tuple[TaskId, int], int] = {}
        while True:
            found = await asyncio.to_thread(self._store.load_logs, run_id, _LOG_PAGE, after=after)
            last = len(found) < _LOG_PAGE
            for printed in await asyncio.to_thread(
                _messages, run_id, found, held if last else (), ends
            ):
                yield printed
            if last:
                return
            after = found[-1].task_id, found[-1].attempt, found[-1].position

    async def record(self, run_id: RunId, tenant: Tenant | None = None) -> RunRecord:
        """A run as it is stored. Raises RunNotFoundError, with `tenant` also for what is another's."""
        record = await asyncio.to_thread(self._store.load_run, run_id)
        if record is None or tenant not in (None, record.tenant):
            raise RunNotFoundError(run_id)
        return record


def _log_place(after: str | None) -> tuple[tuple[int, int], int]:
    """Attempt and position of the part that `after` names, and where it ended. Raises InvalidRequestError."""
    if after is None:
        return (0, -1), 0
    fields = after.split(".")
    if len(fields) != 3 or not all(
        each.isascii() and each.isdecimal() and len(each) < 18 for each in fields
    ):
        raise InvalidRequestError(
            "after", checks.shown(after), "what the page before had as `next` is allowed"
        )
    attempt, position, end = map(int, fields)
    return (attempt, position), end


def _messages(
    run_id: RunId,
    found: Iterable[LogRecord],
    held: Iterable[Part],
    ends: dict[tuple[TaskId, int], int],
) -> list[LogMessages]:
    """Messages about what is stored and what is held. `ends`: where what was told of each attempt ends."""
    told = []
    for task_id, attempt, entries in (*map(stored, found), *held):
        key = task_id, attempt
        told.append(messages(run_id, task_id, attempt, entries, ends.get(key, 0)))
        ends[key] = entries[-1].end
    return told


def _described_logs(
    found: Iterable[LogRecord], held: Iterable[Part], attempt: int, before: int
) -> tuple[list[dict[str, object]], int]:
    """What is stored and held of a task's logs, for people, and where the last of it ends.

    It comes after what the `attempt` had printed up to `before`.
    """
    shown = []
    parts = sorted((*map(stored, found), *held), key=lambda part: (part[1], part[2][0].offset))
    for _, number, entries in parts:
        if number != attempt:
            attempt, before = number, 0
        for entry in entries:
            # One that was held and then stored may be in two parts.
            if entry.offset >= before:
                shown.append(described(attempt, entry, entry.offset - before))
                before = entry.end
    return shown, before


def _progress(run: Run, waiting: Mapping[TaskId, str], now: float) -> dict[str, object]:
    return {"last_seq": run.last_seq, "tasks": _tasks(run, waiting, now)}


def _summary(record: RunRecord) -> dict[str, object]:
    return {
        "run_id": record.run_id,
        "workflow_id": record.workflow_id,
        "status": RunStatus(record.status).value,
        "created": iso_time(record.created),
        "finished": None if record.finished is None else iso_time(record.finished),
        "deadline": None if record.deadline is None else iso_time(record.deadline),
        "retry_of": record.retry_of,
        "tenant": record.tenant,
        "trace_id": None if record.trace is None else trace_id(record.trace),
    }


def _tasks(run: Run, waiting: Mapping[TaskId, str], now: float) -> list[dict[str, object]]:
    """How far each task of a run is, for people. `waiting`: what those that are queued wait for."""
    return [
        {
            "task_id": task_id,
            "name": run.graph.tasks[task_id].name,
            "state": progress.state.value,
            "attempt": progress.attempt,
            "started": progress.started,
            "finished": progress.finished,
            "timing": None if progress.state is TaskState.QUEUED else progress.timing,
            "waiting_for": _waiting_for(run, task_id, waiting, now),
            "error": progress.error,
        }
        for task_id, progress in run.tasks.items()
    ]


def _waiting_for(
    run: Run, task_id: TaskId, waiting: Mapping[TaskId, str], now: float
) -> str | None:
    """What a task that may still begin waits for; None where nothing is known."""
    progress = run.tasks[task_id]
    if progress.state is TaskState.WAITING and progress.missing:
        upstream = (
            run.graph.tasks[source].name
            for source in run.graph.upstream[task_id]
            if run.tasks[source].state is not TaskState.SUCCEEDED
        )
        named = [*islice(upstream, _NAMED)]
        more = f" and {progress.missing - _NAMED} more" if progress.missing > _NAMED else ""
        return f"tasks upstream: {', '.join(named)}{more}"
    if progress.state is TaskState.BACKING_OFF:
        return f"its next attempt, in {max(0.0, progress.retry_at - now):.1f} s"
    return waiting.get(task_id) if progress.state is TaskState.QUEUED else None
