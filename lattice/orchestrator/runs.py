"""The live runs: what happens goes into a run's machine, what it wants done is done.

Each step appends what the machine told to the journal, and hands what is to run to the dispatcher
without waiting for the commit: the log of a run is ordered, so a crash in between repeats work
that nobody has seen finish, and nothing else. A run leaves memory when its last message is durable.

When nothing more can be made durable, nothing more is run: the next orchestrator goes on with every
run from its log, and whatever this one would still begin would be done twice. While the database is
away, what the engine has goes on, and what would begin waits: else a crash meanwhile would repeat ever more work.
"""

from __future__ import annotations

import functools
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lattice.errors import (
    InvalidTransitionError,
    OverloadedError,
    TooLargeError,
    UnavailableError,
)
from lattice.ids import NodeId, RunId, TaskId, Tenant
from lattice.orchestrator.feed import Feed
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.logs import TaskLogs
from lattice.orchestrator.nodes import NodeRegistry
from lattice.orchestrator.observer import Observer
from lattice.orchestrator.policies import Limits
from lattice.orchestrator.quotas import Quotas
from lattice.ports.environment import Clock
from lattice.ports.execution import Argument, Dispatcher, Job, Report, TaskLogged
from lattice.ports.store import AppendMessage, FinishRun, Write
from lattice.ports.tracing import attempt_context
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
    RunRequested,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    TimerFired,
)
from lattice.workflow.following import following
from lattice.workflow.graph import Binding
from lattice.workflow.messages import Message, MessageType
from lattice.workflow.run import Run
from lattice.workflow.states import TaskState
from lattice.workflow.task import Resources

_log = logging.getLogger(__name__)


# Made once: `json.dumps` with separators makes an encoder at each call.
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(slots=True)
class _Live:
    """A run, when and in which trace it was requested, and what prevents the timer that each task waits for.

    `deadline` prevents the run's own. `needs` is what its tasks ask for, once somebody has wanted to
    know; `places` where those run that do.
    """

    run: Run
    created: float
    trace: str | None
    deadline: Callable[[], None] | None = None
    timers: dict[TaskId, Callable[[], None]] = field(default_factory=dict)
    needs: frozenset[Resources] | None = None
    places: dict[TaskId, NodeId] = field(default_factory=dict)

    def note(self, message: Message) -> None:
        """Where the task of a message runs from now on, or that it does no more."""
        if message.task_id is None:
            self.places.clear()
        elif message.type is MessageType.START_TASK:
            self.places[message.task_id] = NodeId(str(message.data["node_id"]))
        else:
            self.places.pop(message.task_id, None)

    def disarm(self, task_id: TaskId | None) -> None:
        """Prevents the timer of a task; of all tasks for None."""
        for each in [*self.timers] if task_id is None else [task_id]:
            if each in self.timers:
                self.timers.pop(each)()
        if task_id is None and self.deadline is not None:
            self.deadline()


class Runs:
    """Drives every run that has not ended."""

    def __init__(
        self,
        journal: Journal,
        feed: Feed,
        logs: TaskLogs,
        dispatcher: Dispatcher,
        nodes: NodeRegistry,
        clock: Clock,
        observer: Observer,
        limits: Limits,
        quotas: Quotas,
    ) -> None:
        self._limits = limits
        self._quotas = quotas
        #: Tasks that have not ended, of live runs and of reserved ones, and how many runs are reserved.
        self._unfinished = 0
        self._reserved = 0
        #: How many runs each tenant has that have not ended, reserved ones included.
        self._of_tenant: Counter[Tenant | None] = Counter()
        self._journal = journal
        self._feed = feed
        self._logs = logs
        self._dispatcher = dispatcher
        self._nodes = nodes
        self._clock = clock
        self._observer = observer
        self._live: dict[RunId, _Live] = {}
        self._stopped = False

    @property
    def active(self) -> tuple[int, int]:
        """How many runs and how many of their tasks have not ended."""
        return len(self._live), self._unfinished

    def live(self, run_id: RunId) -> Run | None:
        """A run that has not ended, or whose end is not durable yet."""
        found = self._live.get(run_id)
        return None if found is None else found.run

    def reserve(self, run: Run) -> None:
        """Makes room for a new run, which `begin` then starts as soon as it is durable.

        Raises:
            OverloadedError: too much is under way.
            TooLargeError: the run alone is too large.
        """
        limits = self._limits
        if run.unfinished > limits.max_unfinished_tasks:
            raise TooLargeError(
                "max_unfinished_tasks", run.unfinished, limits.max_unfinished_tasks, "tasks"
            )
        runs = len(self._live) + self._reserved + 1
        if runs > limits.max_live_runs:
            raise OverloadedError("max_live_runs", runs, limits.max_live_runs, "runs")
        tenant, most = run.graph.tenant, limits.max_live_runs_per_tenant
        if most is not None and self._of_tenant[tenant] >= most:
            raise OverloadedError(
                "max_live_runs_per_tenant", self._of_tenant[tenant] + 1, most, "runs"
            )
        tasks = self._unfinished + run.unfinished
        if tasks > limits.max_unfinished_tasks:
            raise OverloadedError(
                "max_unfinished_tasks", tasks, limits.max_unfinished_tasks, "tasks"
            )
        self._reserved += 1
        self._unfinished += run.unfinished
        self._of_tenant[tenant] += 1

    def begin(self, run: Run, created: float, trace: str | None) -> None:
        """Starts a new run that was reserved, and is durable with its graph and its code."""
        self._reserved -= 1
        _log.info("run %s started, %d tasks", run.run_id, run.unfinished, extra=_about(run.run_id))
        self._admit(run, created, trace)
        self._step(run.run_id, RunRequested(self._clock.now()))

    def resume(self, run: Run, created: float, trace: str | None) -> None:
        """Goes on with a run that was replayed from its log, whatever the bounds are now."""
        self._unfinished += run.unfinished
        self._of_tenant[run.graph.tenant] += 1
        _log.info("run %s goes on", run.run_id, extra=_about(run.run_id))
        self._admit(run, created, trace)
        self._step(run.run_id, Recovered(self._clock.now()))

    def cancel(self, run_id: RunId) -> None:
        """Ends a live run. Nothing happens to one that has ended.

        Raises:
            UnavailableError: this orchestrator has stopped; its successor can do it.
        """
        if self._stopped:
            raise UnavailableError("the orchestrator has stopped")
        self._step(run_id, CancelRequested(self._clock.now()))

    def report(self, run_id: RunId, report: Report) -> None:
        """The dispatcher's word on an attempt. Words on runs that have ended are late and ignored."""
        if isinstance(report, TaskLogged):
            self._logs.take(run_id, report, running=self._is_running(run_id, report))
            return
        if run_id in self._live and not isinstance(report, TaskStarted):
            self._logs.end(run_id, report.task_id, report.attempt)
            self._leave(self._live[run_id].run, report.task_id, report.attempt)
            if isinstance(report, TaskLost):
                # What the error says may be the user's.
                _log.warning(
                    "attempt %d of task %s of run %s was lost: %s",
                    report.attempt,
                    report.task_id,
                    run_id,
                    report.error.type,
                    extra=_about(run_id, report.task_id),
                )
        self._step(run_id, self._renamed(report))

    def _is_running(self, run_id: RunId, logged: TaskLogged) -> bool:
        live = self._live.get(run_id)
        progress = None if live is None else live.run.tasks.get(logged.task_id)
        return (
            progress is not None
            and progress.attempt == logged.attempt
            and progress.state in (TaskState.QUEUED, TaskState.RUNNING)
        )

    def running(self) -> Counter[NodeId]:
        """How many tasks run on each node, by the id under which users know it."""
        return Counter(node for live in self._live.values() for node in live.places.values())

    def needs(self) -> set[Resources]:
        """What the tasks of live runs ask for."""
        found: set[Resources] = set()
        for live in self._live.values():
            if live.needs is None:
                live.needs = frozenset(task.resources for task in live.run.graph.tasks.values())
            found |= live.needs
        return found

    def fail_queued(self, errors: Mapping[Resources, str]) -> None:
        """Fails what has been handed over, has not begun, and asks for resources that nobody has."""
        for run_id, live in [*self._live.items()]:
            if live.needs is None or live.needs.isdisjoint(errors):
                continue
            for task_id, progress in live.run.tasks.items():
                error = errors.get(live.run.graph.tasks[task_id].resources)
                if error is not None and progress.state is TaskState.QUEUED:
                    self._dispatcher.cancel(run_id, task_id, progress.attempt)
                    self._leave(live.run, task_id, progress.attempt)
                    info = ErrorInfo("NoNodeError", error)
                    now = self._clock.now()
                    self._step(run_id, TaskFailed(task_id, progress.attempt, now, info))

    def ahead(self, run_id: RunId, task_ids: Sequence[TaskId]) -> Iterator[Job]:
        """The jobs that follow when tasks of a run succeed; see `lattice.ports.execution.Ahead`.

        None while the database is away, as what would begin has to wait then, and none of a tenant whose tasks
        are counted.
        """
        live = self._live.get(run_id)
        if live is None or self._journal.outage is not None:
            return
        if self._quotas.bounds(live.run.graph.tenant):
            return
        for task_id, after in following(live.run, task_ids):
            yield self._job(live, task_id, live.run.tasks[task_id].attempt + 1, after)

    def stop(self) -> None:
        """Ends what runs, for the next orchestrator to run it again. Later events change nothing."""
        self._stopped = True
        for run_id, live in self._live.items():
            live.disarm(None)
            for task_id, progress in live.run.tasks.items():
                if progress.state in (TaskState.QUEUED, TaskState.RUNNING):
                    self._dispatcher.cancel(run_id, task_id, progress.attempt)
        self._live.clear()
        self._logs.stop()

    def _admit(self, run: Run, created: float, trace: str | None) -> None:
        if self._stopped:
            return
        self._live[run.run_id] = _Live(run, created, trace)
        self._feed.open(run.run_id, run.last_seq)

    def _renamed(
        self, report: TaskStarted | TaskSucceeded | TaskFailed | TaskLost
    ) -> TaskStarted | TaskSucceeded | TaskFailed | TaskLost:
        """The report with the node under the id by which users know it."""
        if isinstance(report, TaskLost) or report.placement is None:
            return report
        placement: Placement = report.placement
        name = self._nodes.name(placement.node_id)
        if name == placement.node_id:
            return report
        return replace(report, placement=replace(placement, node_id=name))

    def _step(self, run_id: RunId, event: Event) -> None:
        live = self._live.get(run_id)
        if live is None:
            return
        run = live.run
        unfinished = run.unfinished
        try:
            commands = run.handle(event)
        except InvalidTransitionError:
            # A defect of ours in one report must not end the other runs; the run is as it was.
            _log.exception("refused an impossible event")
            return
        self._unfinished -= unfinished - run.unfinished
        # The log first, so that it has no hole even if something that is done next should raise.
        self._tell(live, commands)
        for command in commands:
            match command:
                case Publish(message):
                    live.disarm(message.task_id)
                    live.note(message)
                case Execute():
                    self._enter(live, command)
                case Cancel(task_id, attempt):
                    self._dispatcher.cancel(run_id, task_id, attempt)
                    self._leave(run, task_id, attempt)
                    self._logs.cancelled(run_id, task_id, attempt)
                case ArmTimer():
                    self._arm(live, command)
                case ArmDeadline(delay):
                    self._arm_deadline(live, delay)
                case Release(task_id):
                    self._dispatcher.release(run_id, task_id)
        self._observer.look(
            run_id, run.graph, live.created, live.trace, commands, self._clock.now()
        )

    def _enter(self, live: _Live, command: Execute) -> None:
        """Hands over an attempt as soon as its tenant may have one more."""
        run = live.run
        holder = run.run_id, command.task_id, command.attempt
        begin = functools.partial(self._submit, live, command)
        self._quotas.enter(run.graph.tenant, run.run_id, holder, begin)

    def _submit(self, live: _Live, command: Execute) -> None:
        """Hands over an attempt that is still wanted, as soon as the database is there."""
        # It may have waited, for its tenant or for the database. Whoever does not want it any more has it leave.
        if not self._is_wanted(live, command):
            return
        if self._journal.outage is None:
            self._dispatcher.submit(self._job(live, command.task_id, command.attempt))
        else:
            self._journal.append((), functools.partial(self._submit, live, command))

    def _is_wanted(self, live: _Live, command: Execute) -> bool:
        progress = live.run.tasks[command.task_id]
        waits = progress.state is TaskState.QUEUED and progress.attempt == command.attempt
        return waits and self._live.get(live.run.run_id) is live

    def _leave(self, run: Run, task_id: TaskId, attempt: int) -> None:
        """An attempt has ended: another of its tenant may begin."""
        self._quotas.leave(run.graph.tenant, run.run_id, (run.run_id, task_id, attempt))

    def _tell(self, live: _Live, commands: Sequence[Command]) -> None:
        """Appends what is to be told to the journal, and publishes it once it is durable."""
        run_id = live.run.run_id
        writes: list[Write] = []
        texts: list[str] = []
        ended: tuple[str, float] | None = None
        for command in commands:
            match command:
                case Publish(message):
                    write = append_message(run_id, message)
                    texts.append(write.document)
                    writes.append(write)
                case Finish(status):
                    now = self._clock.now()
                    ended = status, now - live.created
                    writes.append(FinishRun(run_id, status, now))

        if writes:

            def durable() -> None:
                self._feed.publish(run_id, texts)
                if ended is not None:
                    self._feed.close(run_id)
                    if self._live.pop(run_id, None) is not None:
                        self._of_tenant[live.run.graph.tenant] -= 1
                    _log.info("run %s ended %s after %.3f s", run_id, *ended, extra=_about(run_id))

            self._journal.append(writes, durable)

    def _arm(self, live: _Live, timer: ArmTimer) -> None:
        def fire() -> None:
            del live.timers[timer.task_id]
            event = TimerFired(timer.task_id, timer.attempt, timer.kind, self._clock.now())
            self._step(live.run.run_id, event)

        live.timers[timer.task_id] = self._clock.call_later(timer.delay, fire)

    def _arm_deadline(self, live: _Live, delay: float) -> None:
        def fire() -> None:
            live.deadline = None
            self._step(live.run.run_id, DeadlineReached(self._clock.now()))

        live.deadline = self._clock.call_later(delay, fire)

    def _job(
        self, live: _Live, task_id: TaskId, attempt: int, after: tuple[TaskId, ...] = ()
    ) -> Job:
        run = live.run
        task = run.graph.tasks[task_id]
        return Job(
            run_id=run.run_id,
            task_id=task.task_id,
            attempt=attempt,
            name=task.name,
            definition=self._nodes.define(task, run.graph.tenant),
            arguments=tuple(
                _argument(run, binding) for binding in run.graph.bindings(task.task_id)
            ),
            output_keys=task.output_keys,
            timed=task.timeout is not None,
            trace=live.trace and attempt_context(live.trace, run.run_id, task.task_id, attempt),
            after=after,
        )


def _about(run_id: RunId, task_id: TaskId | None = None) -> dict[str, object]:
    """What a log line is about."""
    about = {"run_id": run_id} if task_id is None else {"run_id": run_id, "task_id": task_id}
    return {"about": about}


def append_message(run_id: RunId, message: Message) -> AppendMessage:
    """The write that logs a message."""
    text = _encode(message.document())
    return AppendMessage(run_id, message.seq, text, message.task_id, message.values)


def _argument(run: Run, binding: Binding) -> Argument:
    if binding.upstream is None:
        return Argument(binding.key, json.dumps(binding.value))
    source = binding.upstream
    # Of a job that is told ahead of its time, not all inputs are there.
    value = run.values.get(source.task_id, {}).get(source.key)
    return Argument(binding.key, None, (source.task_id, source.key), value)
