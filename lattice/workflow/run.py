"""The run machine: one run of a graph, as a state machine without I/O, clock or chance.

Rules of this module
--------------------
- A run changes only through `handle` (something happened) and `replay` (remembering what was told).
- Every change of a task's state goes through `TRANSITIONS`; what is not in the table is refused
  loudly and changes nothing.
- The machine knows neither the engine nor the store; what it wants done it returns as commands.

Theory of operation
-------------------
`handle` decides, then tells: each decision that matters becomes a numbered message, and the message is
applied to the state by the same code that replays a log after a restart. So the log that subscribers
read is the log that a run is rebuilt from, and the two cannot disagree. Two changes are not told,
because they follow from the others: a task becomes QUEUED when its last upstream task succeeds, and
SKIPPED when one of them fails or is skipped.

An attempt has a number. Whatever is reported of an attempt that is not the current one, or of a task
that has ended, is late or a duplicate and is ignored: a result counts once. A report of an attempt that
was never begun is a defect.

A failed attempt is tried again while the task's retry policy allows it (`retry.py`). The death of the process or
node is not the fault of the code, so it is counted apart, against `LOST_ATTEMPTS`; the restart of the
orchestrator is counted against nothing.

A run may begin with results that another run of the same graph had. They are told as `finish_task`
messages that say where they were `taken_from`; their tasks have no attempts here.

When a task has failed for good, what does not depend on it still finishes, what does is skipped, and
the run ends as `failed`. A run that has a deadline and reaches it ends as `failed` at once: what runs is
ended, what waits never begins, and the last message has the reason. `finish_workflow` is always the last
message.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from enum import StrEnum

from lattice.errors import InvalidTransitionError
from lattice.ids import RunId, TaskId
from lattice.workflow.commands import (
    ArmDeadline,
    ArmTimer,
    Cancel,
    Command,
    Execute,
    Finish,
    Publish,
    Release,
)
from lattice.workflow.events import (
    CancelRequested,
    DeadlineReached,
    ErrorInfo,
    Event,
    Placement,
    Recovered,
    ResultsTakenOver,
    RunRequested,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    TimerFired,
    TimerKind,
    Value,
)
from lattice.workflow.graph import Graph
from lattice.workflow.messages import Message, MessageType, iso_time
from lattice.workflow.retry import TIMEOUT_ERROR, chance_of
from lattice.workflow.states import TRANSITIONS, Cause, RunStatus, TaskProgress, TaskState

#: How often an attempt may die with its process or node before the task has failed.
LOST_ATTEMPTS = 3


#: What each message about a task does to its state.
_CAUSES = {
    MessageType.START_TASK: Cause.START,
    MessageType.FINISH_TASK: Cause.SUCCEED,
    MessageType.TASK_EXCEPTION: Cause.FAIL,
    MessageType.TASK_RETRY: Cause.RETRY,
}

_ENDED = frozenset((TaskState.SUCCEEDED, TaskState.FAILED, TaskState.SKIPPED, TaskState.CANCELLED))
_ACTIVE = frozenset((TaskState.QUEUED, TaskState.RUNNING))


class _RetryReason(StrEnum):
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    LOST = "lost"
    RESTARTED = "restarted"


class Run:
    """One run of a graph. `deadline` is when it has to have ended, in seconds since the epoch."""

    def __init__(self, run_id: RunId, graph: Graph, deadline: float | None = None) -> None:
        self.run_id = run_id
        self.graph = graph
        self.deadline = deadline
        self.status = RunStatus.RUNNING
        self.last_seq = 0
        self.tasks: dict[TaskId, TaskProgress] = {
            task_id: TaskProgress(len(graph.upstream[task_id]), len(graph.downstream[task_id]))
            for task_id in graph.tasks
        }
        #: Where the outputs are of tasks that have succeeded and have tasks downstream to feed.
        self.values: dict[TaskId, Mapping[str, Value]] = {}
        self._unfinished = len(self.tasks)
        self._commands: list[Command] = []

    @classmethod
    def replay(
        cls,
        run_id: RunId,
        graph: Graph,
        messages: Iterable[Message],
        deadline: float | None = None,
    ) -> Run:
        """The run that told `messages`, as it was then. Feed it `Recovered` to let it go on."""
        run = cls(run_id, graph, deadline)
        for message in messages:
            if message.type is not MessageType.FINISH_WORKFLOW:
                assert message.task_id is not None
                progress = run.tasks[message.task_id]
                begins = progress.state in (TaskState.WAITING, TaskState.BACKING_OFF)
                if begins and "taken_from" not in message.data:
                    run._queue(message.task_id)
            run._apply(message)
        run._commands.clear()
        return run

    @property
    def ended(self) -> bool:
        """Whether the last message has been told."""
        return self.status is not RunStatus.RUNNING

    @property
    def unfinished(self) -> int:
        """How many tasks have not ended."""
        return self._unfinished

    def handle(self, event: Event) -> list[Command]:
        """The one door: what happened goes in, what is to be done comes out.

        Raises:
            InvalidTransitionError: the event is impossible; the run is as it was.
        """
        if self.ended:
            return []
        match event:
            case ResultsTakenOver():
                self._take_over(event)
            case RunRequested():
                self._requested(event.at)
            case TaskStarted():
                if self._is_current(event.task_id, event.attempt, "TaskStarted"):
                    self._started(event.task_id, event.placement)
            case TaskSucceeded():
                if self._is_current(event.task_id, event.attempt, "TaskSucceeded"):
                    self._succeeded(event)
            case TaskFailed():
                if self._is_current(event.task_id, event.attempt, "TaskFailed"):
                    self._started(event.task_id, event.placement)
                    self._failed(event.task_id, event.error, _RetryReason.FAILED, event.at)
            case TaskLost():
                if self._is_current(event.task_id, event.attempt, "TaskLost"):
                    self._failed(event.task_id, event.error, _RetryReason.LOST, event.at)
            case TimerFired():
                self._timer_fired(event)
            case DeadlineReached():
                self._deadline_reached(event.at)
            case CancelRequested():
                self._cancel(event.at)
            case Recovered():
                self._recovered(event.at)
        commands, self._commands = self._commands, []
        return commands

    def counts(self) -> dict[str, int]:
        """How many tasks are in each state that occurs."""
        return dict(Counter(progress.state.value for progress in self.tasks.values()))

    # -- decisions ---------------------------------------------------------------------------

    def _take_over(self, event: ResultsTakenOver) -> None:
        for task_id in event.results:
            progress = self.tasks.get(task_id)
            upstream = self.graph.upstream.get(task_id, ())
            if progress is None or progress.story or not event.results.keys() >= set(upstream):
                raise InvalidTransitionError(
                    self.run_id,
                    task_id,
                    progress.state.value if progress else "unknown task",
                    f"ResultsTakenOver from {event.run_id}",
                    progress.story if progress else (),
                )
        for task_id in self.graph.tasks:
            if task_id in event.results:
                found = event.results[task_id]
                self._tell(
                    MessageType.FINISH_TASK,
                    task_id,
                    event.at,
                    {"result": found.result, "taken_from": event.run_id},
                    found.values,
                )

    def _requested(self, at: float) -> None:
        if self.deadline is not None:
            self._commands.append(ArmDeadline(max(0.0, self.deadline - at)))
        self._execute_ready(at)
        self._finish_if_done(at)

    def _is_current(self, task_id: TaskId, attempt: int, event: str) -> bool:
        """Whether a report is of the attempt that is under way. Raises InvalidTransitionError."""
        progress = self.tasks.get(task_id)
        if progress is None or attempt > progress.attempt:
            raise InvalidTransitionError(
                self.run_id,
                task_id,
                progress.state.value if progress else "unknown task",
                f"{event} of attempt {attempt}",
                progress.story if progress else (),
            )
        return attempt == progress.attempt and progress.state in _ACTIVE

    def _started(self, task_id: TaskId, placement: Placement | None) -> None:
        if placement is None or self.tasks[task_id].state is not TaskState.QUEUED:
            return
        where: dict[str, object] = {"node_ip": placement.node_ip, "node_id": placement.node_id}
        if placement.replica is not None:
            where |= {"replica": placement.replica, "batch_size": placement.batch_size}
        self.tasks[task_id].started_at = placement.at
        where["waited"] = _waited(self.tasks[task_id].queued_at, placement)
        self._tell(MessageType.START_TASK, task_id, placement.at, where)
        timeout = self.graph.tasks[task_id].timeout
        if timeout is not None:
            attempt = self.tasks[task_id].attempt
            self._commands.append(ArmTimer(task_id, attempt, TimerKind.TIMEOUT, timeout))

    def _succeeded(self, event: TaskSucceeded) -> None:
        self._started(event.task_id, event.placement)
        self._tell(
            MessageType.FINISH_TASK,
            event.task_id,
            event.at,
            {"result": event.result, "timing": self._timing(event.task_id, event.at)},
            event.values,
        )
        self._execute_ready(event.at, self.graph.downstream[event.task_id])
        self._finish_if_done(event.at)

    def _failed(self, task_id: TaskId, error: ErrorInfo, reason: _RetryReason, at: float) -> None:
        progress = self.tasks[task_id]
        policy = self.graph.tasks[task_id].retry
        if reason is _RetryReason.LOST:
            again, delay = progress.losses + 1 < LOST_ATTEMPTS, 0.0
        else:
            again = progress.failures + 1 < policy.max_attempts and policy.covers(error)
            chance = chance_of(self.run_id, task_id, progress.attempt)
            delay = policy.wait(progress.failures + 1, chance)
        if again:
            self._retry(task_id, error, reason, delay, at)
        else:
            self._tell(
                MessageType.TASK_EXCEPTION,
                task_id,
                at,
                {
                    "result": error.message,
                    "reason": reason.value,
                    "error": _document(error),
                    "timing": self._timing(task_id, at),
                },
            )
            self._finish_if_done(at)

    def _timing(self, task_id: TaskId, at: float) -> dict[str, object]:
        """Where the time of the current attempt went, which ends at `at`."""
        progress = self.tasks[task_id]
        if progress.state is TaskState.QUEUED:  # It never began.
            waited = max(0.0, at - progress.queued_at)
            return {"queued": round(waited, 3), "starting": 0.0, "batching": 0.0, "running": 0.0}
        ran = max(0.0, at - progress.started_at)
        return {**(progress.timing or {}), "running": round(ran, 3)}

    def _retry(
        self, task_id: TaskId, error: ErrorInfo, reason: _RetryReason, delay: float, at: float
    ) -> None:
        self._tell(
            MessageType.TASK_RETRY,
            task_id,
            at,
            {
                "reason": reason.value,
                "error": _document(error),
                "delay": delay,
                "retry_at": at + delay,
                "timing": self._timing(task_id, at),
            },
        )
        if delay:
            attempt = self.tasks[task_id].attempt
            self._commands.append(ArmTimer(task_id, attempt, TimerKind.RETRY, delay))
        else:
            self._execute(task_id, at)

    def _timer_fired(self, event: TimerFired) -> None:
        progress = self.tasks[event.task_id]
        if event.attempt != progress.attempt:
            return
        if event.kind is TimerKind.RETRY and progress.state is TaskState.BACKING_OFF:
            self._execute(event.task_id, event.at)
        elif event.kind is TimerKind.TIMEOUT and progress.state is TaskState.RUNNING:
            timeout = self.graph.tasks[event.task_id].timeout
            error = ErrorInfo(
                TIMEOUT_ERROR, f"the task ran for longer than its timeout of {timeout:g} s"
            )
            self._commands.append(Cancel(event.task_id, event.attempt))
            self._failed(event.task_id, error, _RetryReason.TIMED_OUT, event.at)

    def _cancel(self, at: float) -> None:
        self._cancel_active()
        self._finish(RunStatus.CANCELLED, at)

    def _deadline_reached(self, at: float) -> None:
        left = ", ".join(f"{number} {state}" for state, number in self.counts().items())
        error = ErrorInfo(
            "DeadlineExceededError", f"the run did not end by its deadline; its tasks were: {left}"
        )
        self._cancel_active()
        self._finish(RunStatus.FAILED, at, error)

    def _cancel_active(self) -> None:
        for task_id, progress in self.tasks.items():
            if progress.state in _ACTIVE:
                self._commands.append(Cancel(task_id, progress.attempt))

    def _recovered(self, at: float) -> None:
        if self.deadline is not None:
            if at >= self.deadline:
                # It passed while the service was down: nothing is begun again for it.
                self._deadline_reached(at)
                return
            self._commands.append(ArmDeadline(self.deadline - at))
        error = ErrorInfo("OrchestratorRestarted", "the service restarted while the task ran")
        for task_id, progress in self.tasks.items():
            if progress.state is TaskState.RUNNING:
                self._retry(task_id, error, _RetryReason.RESTARTED, 0.0, at)
            elif progress.state is TaskState.BACKING_OFF:
                delay = max(0.0, progress.retry_at - at)
                self._commands.append(ArmTimer(task_id, progress.attempt, TimerKind.RETRY, delay))
        self._execute_ready(at)
        self._finish_if_done(at)

    def _execute_ready(self, at: float, candidates: Iterable[TaskId] | None = None) -> None:
        for task_id in self.graph.tasks if candidates is None else candidates:
            progress = self.tasks[task_id]
            if progress.state is TaskState.WAITING and progress.missing == 0:
                self._execute(task_id, at)

    def _execute(self, task_id: TaskId, at: float) -> None:
        self._queue(task_id)
        self.tasks[task_id].queued_at = at
        self._commands.append(Execute(task_id, self.tasks[task_id].attempt))

    def _finish_if_done(self, at: float) -> None:
        if self._unfinished == 0 and not self.ended:
            failed = any(
                progress.state is not TaskState.SUCCEEDED for progress in self.tasks.values()
            )
            self._finish(RunStatus.FAILED if failed else RunStatus.SUCCEEDED, at)

    def _finish(self, status: RunStatus, at: float, error: ErrorInfo | None = None) -> None:
        details: dict[str, object] = {"status": status.value}
        if error is not None:
            details["error"] = _document(error)
        self._tell(MessageType.FINISH_WORKFLOW, None, at, details)
        self._commands.append(Finish(status.value))

    def _tell(
        self,
        kind: MessageType,
        task_id: TaskId | None,
        at: float,
        details: Mapping[str, object],
        values: Mapping[str, Value] | None = None,
    ) -> None:
        data: dict[str, object] = {"workflow_id": self.graph.workflow_id, "run_id": self.run_id}
        if task_id is not None:
            data["task_id"] = task_id
            data["attempt"] = self.tasks[task_id].attempt
        data |= details
        data["seq"] = self.last_seq + 1
        data["time"] = iso_time(at)
        message = Message(self.last_seq + 1, kind, data, task_id, values or {})
        self._apply(message)
        self._commands.append(Publish(message))

    # -- changes of state --------------------------------------------------------------------

    def _apply(self, message: Message) -> None:
        """Changes the state as `message` tells. The only code that does, but for `_queue`."""
        if message.type is MessageType.FINISH_WORKFLOW:
            self.status = RunStatus(str(message.data["status"]))
            for each, progress in self.tasks.items():
                if progress.state not in _ENDED:
                    self._move(each, Cause.CANCEL)
            self.last_seq = message.seq
            return
        task_id = message.task_id
        assert task_id is not None
        data = message.data
        taken = message.type is MessageType.FINISH_TASK and "taken_from" in data
        self._move(task_id, Cause.TAKE_OVER if taken else _CAUSES[message.type])
        self.last_seq = message.seq
        progress = self.tasks[task_id]
        if message.type is MessageType.START_TASK:
            progress.started = str(data["time"])
            progress.timing = _told_timing(data, "waited")
            return
        error = data.get("error")
        progress.error = error if isinstance(error, Mapping) else None
        progress.timing = _told_timing(data, "timing")
        if message.type is MessageType.TASK_RETRY:
            progress.losses += data["reason"] == _RetryReason.LOST
            progress.failures += data["reason"] in (_RetryReason.FAILED, _RetryReason.TIMED_OUT)
            progress.retry_at = float(str(data["retry_at"]))
            return
        progress.finished = str(data["time"])
        if message.type is MessageType.FINISH_TASK:
            if progress.consumers:
                self.values[task_id] = message.values
            for target in self.graph.downstream[task_id]:
                self.tasks[target].missing -= 1
        else:
            self._skip_downstream(task_id)

    def _skip_downstream(self, task_id: TaskId) -> None:
        stack = [*self.graph.downstream[task_id]]
        while stack:
            target = stack.pop()
            if self.tasks[target].state is TaskState.WAITING:
                self._move(target, Cause.SKIP)
                stack.extend(self.graph.downstream[target])

    def _queue(self, task_id: TaskId) -> None:
        self._move(task_id, Cause.EXECUTE)
        self.tasks[task_id].attempt += 1

    def _move(self, task_id: TaskId, cause: Cause) -> None:
        progress = self.tasks[task_id]
        after = TRANSITIONS.get((progress.state, cause))
        if after is None:
            raise InvalidTransitionError(
                self.run_id, task_id, progress.state.value, cause.value, progress.story
            )
        progress.state = after
        progress.story.append(cause.value)
        if after in _ENDED:
            self._unfinished -= 1
            if after is not TaskState.SUCCEEDED or progress.consumers == 0:
                self._commands.append(Release(task_id))
            for source in self.graph.upstream[task_id]:
                feeding = self.tasks[source]
                feeding.consumers -= 1
                if feeding.consumers == 0 and feeding.state is TaskState.SUCCEEDED:
                    self.values.pop(source, None)
                    self._commands.append(Release(source))


def _waited(queued_at: float, placement: Placement) -> dict[str, object]:
    """Seconds from the hand-over of an attempt to its start, by what they were for."""
    starting, batching = placement.starting, placement.batching
    # The clocks of two machines may differ.
    queued = max(0.0, placement.at - queued_at - starting - batching)
    return {
        "queued": round(queued, 3),
        "starting": round(starting, 3),
        "batching": round(batching, 3),
    }


def _told_timing(data: Mapping[str, object], key: str) -> Mapping[str, object] | None:
    told = data.get(key)  # logs of older versions tell none
    return told if isinstance(told, Mapping) else None


def _document(error: ErrorInfo) -> dict[str, object]:
    return {"type": error.type, "message": error.message, "traceback": error.traceback}
