"""The run machine: events in, commands out, and a log that replays to the same run."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lattice.errors import InvalidTransitionError
from lattice.ids import Digest, NodeId, RunId, TaskId, WorkflowId
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
    Result,
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
from lattice.workflow.following import following
from lattice.workflow.graph import Graph
from lattice.workflow.messages import Message, MessageType
from lattice.workflow.retry import RetryPolicy
from lattice.workflow.run import LOST_ATTEMPTS, Run
from lattice.workflow.states import TRANSITIONS, RunStatus, TaskState
from lattice.workflow.task import Code, CodeForm, Task

A, B, C, D = (TaskId(name) for name in "abcd")
HERE = Placement(NodeId("node"), "127.0.0.1", 10.0)
ERROR = ErrorInfo("ValueError", "no", "Traceback ...")
CODE = Code(Digest("d"), CodeForm.SOURCE, "f")


def graph(
    edges: list[tuple[TaskId, TaskId]],
    *ids: TaskId,
    retry: RetryPolicy | None = None,
    timeout: float | None = None,
) -> Graph:
    tasks = [
        Task(task_id, task_id, code=CODE, retry=retry or RetryPolicy(), timeout=timeout)
        for task_id in ids
    ]
    return Graph.build(WorkflowId("w"), tasks, edges)


DIAMOND = graph([(A, B), (A, C), (B, D), (C, D)], A, B, C, D)


class Driver:
    """Feeds a run, keeps its log, and checks after every step that the log replays to the run."""

    def __init__(self, made: Graph, deadline: float | None = None) -> None:
        self.run = Run(RunId("r"), made, deadline)
        self.log: list[Message] = []

    def feed(self, event: Event) -> list[Command]:
        commands = self.run.handle(event)
        self.log += [command.message for command in commands if isinstance(command, Publish)]
        self.check()
        return commands

    def check(self) -> None:
        assert [message.seq for message in self.log] == list(range(1, len(self.log) + 1))
        assert all(message.type is not MessageType.FINISH_WORKFLOW for message in self.log[:-1])
        stored = [
            Message.from_document(json.loads(json.dumps(message.document())), message.values)
            for message in self.log
        ]
        again = Run.replay(self.run.run_id, self.run.graph, stored)
        assert again.status == self.run.status
        assert again.last_seq == self.run.last_seq
        assert again.values == self.run.values
        for task_id, progress in self.run.tasks.items():
            replayed = again.tasks[task_id]
            if (
                progress.state is TaskState.CANCELLED
            ):  # perhaps while it was queued, which is not told
                assert replayed.state is TaskState.CANCELLED
            elif progress.state is not TaskState.QUEUED:
                assert replayed == progress
        unfinished = [
            each
            for each in self.run.tasks.values()
            if each.state
            not in (
                TaskState.SUCCEEDED,
                TaskState.FAILED,
                TaskState.SKIPPED,
                TaskState.CANCELLED,
            )
        ]
        assert self.run.ended == (not unfinished)

    def told(self) -> list[str]:
        return [f"{message.type.value} {message.task_id or ''}".strip() for message in self.log]


def succeeded(task_id: TaskId, attempt: int = 1) -> TaskSucceeded:
    values = {"out": Value(3, b"abc")}
    return TaskSucceeded(task_id, attempt, 11.0, HERE, {"out": 1}, values)


def executed(commands: list[Command]) -> list[tuple[TaskId, int]]:
    return [(each.task_id, each.attempt) for each in commands if isinstance(each, Execute)]


def test_a_diamond_runs_in_order() -> None:
    """Tasks start when all upstream ones have succeeded; values live as long as somebody needs them."""
    driver = Driver(DIAMOND)
    assert executed(driver.feed(RunRequested(1.0))) == [(A, 1)]
    driver.feed(TaskStarted(A, 1, HERE))
    assert executed(driver.feed(succeeded(A))) == [(B, 1), (C, 1)]
    assert executed(driver.feed(succeeded(B))) == []
    assert set(driver.run.values) == {A, B}
    assert executed(driver.feed(succeeded(C))) == [(D, 1)]
    commands = driver.feed(succeeded(D))
    assert {each.task_id for each in commands if isinstance(each, Release)} == {B, C, D}
    assert commands[-1] == Finish("succeeded")
    assert driver.run.values == {}
    assert driver.told() == [
        "start_task a",
        "finish_task a",
        "start_task b",
        "finish_task b",
        "start_task c",
        "finish_task c",
        "start_task d",
        "finish_task d",
        "finish_workflow",
    ]


def test_messages_carry_what_the_specification_shows() -> None:
    """Ids, placement and result, with run id, number and time beside."""
    driver = Driver(graph([], A))
    driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    start, finish, end = (message.data for message in driver.log)
    assert start == {
        "workflow_id": "w",
        "run_id": "r",
        "task_id": "a",
        "attempt": 1,
        "node_ip": "127.0.0.1",
        "node_id": "node",
        "waited": {"queued": 9.0, "starting": 0.0, "batching": 0.0},
        "seq": 1,
        "time": "1970-01-01T00:00:10.000000Z",
    }
    assert finish["result"] == {"out": 1}
    assert finish["timing"] == {"queued": 9.0, "starting": 0.0, "batching": 0.0, "running": 1.0}
    assert end["status"] == "succeeded"


def test_the_wait_is_told_by_what_it_was_for() -> None:
    """From the hand-over of the attempt: of a later task, when the one upstream had finished."""
    driver = Driver(graph([(A, B)], A, B))
    driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    there = replace(HERE, at=16.12345, replica="x", batch_size=2, starting=3.0, batching=0.5)
    driver.feed(TaskStarted(B, 1, there))
    waited = {"queued": 1.623, "starting": 3.0, "batching": 0.5}
    assert driver.log[-1].data["waited"] == driver.run.tasks[B].timing == waited
    driver.feed(TaskFailed(B, 1, 18.5, ERROR, there))
    timing = waited | {"running": 2.377}
    assert driver.log[-2].data["timing"] == driver.run.tasks[B].timing == timing


def test_no_time_is_negative() -> None:
    """Clocks of machines differ; and a wait that is told apart may be longer than the whole."""
    driver = Driver(graph([], A))
    driver.feed(RunRequested(20.0))
    driver.feed(TaskStarted(A, 1, replace(HERE, starting=5.0)))
    driver.feed(TaskFailed(A, 1, 8.0, ERROR))
    timing = {"queued": 0.0, "starting": 5.0, "batching": 0.0, "running": 0.0}
    assert driver.log[1].data["timing"] == timing


def test_each_attempt_has_a_timing_of_its_own() -> None:
    """One that never began was queued all the time; after a restart the wait counts from then on."""
    driver = Driver(graph([], A, retry=RetryPolicy(max_attempts=3, backoff=1.0)))
    driver.feed(RunRequested(1.0))
    driver.feed(TaskFailed(A, 1, 12.0, ERROR, HERE))
    driver.feed(TimerFired(A, 1, TimerKind.RETRY, 13.0))
    driver.feed(TaskStarted(A, 2, replace(HERE, at=13.5)))
    assert driver.log[-1].data["waited"] == {"queued": 0.5, "starting": 0.0, "batching": 0.0}
    driver.run = Run.replay(RunId("r"), driver.run.graph, driver.log)
    driver.feed(Recovered(20.0))
    driver.feed(TaskStarted(A, 3, replace(HERE, at=20.25)))
    assert driver.log[-1].data["waited"] == {"queued": 0.25, "starting": 0.0, "batching": 0.0}
    driver.feed(TaskFailed(A, 3, 21.0, ERROR))
    driver.feed(TimerFired(A, 3, TimerKind.RETRY, 23.0))
    driver.feed(TaskFailed(A, 4, 27.0, ERROR))
    timing = {"queued": 4.0, "starting": 0.0, "batching": 0.0, "running": 0.0}
    assert driver.log[-2].data["timing"] == driver.run.tasks[A].timing == timing


def test_a_log_without_timings_replays() -> None:
    """As older versions wrote them."""
    driver = Driver(graph([], A))
    driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    log = [
        replace(each, data={k: v for k, v in each.data.items() if k not in ("waited", "timing")})
        for each in driver.log
    ]
    assert Run.replay(RunId("r"), driver.run.graph, log).tasks[A].timing is None


def test_a_failure_skips_what_depends_on_it_and_nothing_else() -> None:
    """The other branch still finishes, and the run ends as failed."""
    driver = Driver(graph([(A, B), (C, D)], A, B, C, D))
    driver.feed(RunRequested(1.0))
    driver.feed(TaskFailed(A, 1, 2.0, ERROR, HERE))
    assert driver.run.tasks[B].state is TaskState.SKIPPED
    assert not driver.run.ended
    driver.feed(succeeded(C))
    driver.feed(succeeded(D))
    assert driver.run.status is RunStatus.FAILED
    told = driver.log[1].data
    assert (told["result"], told["error"]) == (
        "no",
        {"type": "ValueError", "message": "no", "traceback": "Traceback ..."},
    )


def test_a_result_counts_once() -> None:
    """Duplicates, late starts and reports of former attempts change nothing."""
    driver = Driver(graph([(A, B)], A, B))
    driver.feed(RunRequested(1.0))
    driver.feed(TaskLost(A, 1, 2.0, ERROR))
    assert driver.feed(succeeded(A, attempt=1)) == []
    driver.feed(succeeded(A, attempt=2))
    for late in (
        TaskStarted(A, 2, HERE),
        succeeded(A, 2),
        TaskFailed(A, 2, 3.0, ERROR, HERE),
        TaskLost(A, 1, 3.0, ERROR),
    ):
        assert driver.feed(late) == []
    driver.feed(succeeded(B))
    assert driver.feed(succeeded(B)) == []


@pytest.mark.parametrize(
    "event",
    [
        succeeded(B),
        TaskStarted(A, 2, HERE),
        TaskLost(TaskId("nobody"), 1, 1.0, ERROR),
    ],
)
def test_an_impossible_event_is_refused_and_changes_nothing(event: Event) -> None:
    """A report of an attempt that never began is a defect, told with the task's story."""
    driver = Driver(graph([(A, B)], A, B))
    driver.feed(RunRequested(1.0))
    with pytest.raises(InvalidTransitionError, match="before:"):
        driver.run.handle(event)
    driver.check()
    assert driver.feed(succeeded(A)) != []


def test_a_dying_process_is_tried_again_a_few_times() -> None:
    """It is not the code's fault, so it needs no retry policy; but it ends."""
    driver = Driver(graph([], A))
    driver.feed(RunRequested(1.0))
    for attempt in range(1, LOST_ATTEMPTS):
        assert executed(driver.feed(TaskLost(A, attempt, 2.0, ERROR))) == [(A, attempt + 1)]
    driver.feed(TaskLost(A, LOST_ATTEMPTS, 2.0, ERROR))
    assert driver.run.status is RunStatus.FAILED
    assert driver.told() == ["task_retry a", "task_retry a", "task_exception a", "finish_workflow"]


def waits(commands: list[Command]) -> list[float]:
    return [each.delay for each in commands if isinstance(each, ArmTimer)]


def test_user_errors_are_retried_by_policy_after_a_wait() -> None:
    """Each try waits twice as long, less up to half by chance; a stale timer does nothing."""
    driver = Driver(graph([], A, retry=RetryPolicy(max_attempts=3, backoff=2)))
    driver.feed(RunRequested(1.0))
    commands = driver.feed(TaskFailed(A, 1, 5.0, ERROR, HERE))
    (first,) = waits(commands)
    assert 1 <= first <= 2
    assert driver.log[-1].data["delay"] == first
    assert driver.log[-1].data["retry_at"] == 5.0 + first
    assert executed(commands) == []
    assert executed(driver.feed(TimerFired(A, 1, TimerKind.RETRY, 7.0))) == [(A, 2)]
    assert driver.feed(TimerFired(A, 1, TimerKind.RETRY, 7.0)) == []
    (second,) = waits(driver.feed(TaskFailed(A, 2, 8.0, ERROR, HERE)))
    assert 2 <= second <= 4
    driver.feed(TimerFired(A, 2, TimerKind.RETRY, 12.0))
    driver.feed(succeeded(A, 3))
    assert driver.run.status is RunStatus.SUCCEEDED


def test_tasks_that_fail_together_come_back_apart() -> None:
    """And the same history gives the same waits again."""

    def history() -> list[float]:
        ids = [TaskId(str(number)) for number in range(100)]
        driver = Driver(graph([], *ids, retry=RetryPolicy(max_attempts=2, backoff=10)))
        driver.run.handle(RunRequested(1.0))
        return [
            wait
            for task_id in ids
            for wait in waits(driver.run.handle(TaskFailed(task_id, 1, 5.0, ERROR, HERE)))
        ]

    found = history()
    assert found == history()
    assert len(set(found)) == 100
    assert all(5 <= wait <= 10 for wait in found)
    assert min(found) < 6
    assert max(found) > 9


def test_only_the_errors_that_a_policy_names_are_retried() -> None:
    """By the class or a base of it; a time-out by its own name; lost workers are none of its business."""
    policy = RetryPolicy(max_attempts=9, backoff=0, on=("OSError", "TaskTimeoutError"))
    driver = Driver(graph([], A, B, retry=policy, timeout=5))
    driver.feed(RunRequested(1.0))
    gone = ErrorInfo("ConnectionResetError", "gone", "", ("ConnectionResetError", "OSError"))
    assert executed(driver.feed(TaskFailed(A, 1, 2.0, gone, HERE))) == [(A, 2)]
    driver.feed(TaskStarted(A, 2, HERE))
    assert executed(driver.feed(TimerFired(A, 2, TimerKind.TIMEOUT, 7.0))) == [(A, 3)]
    assert executed(driver.feed(TaskLost(A, 3, 8.0, ERROR))) == [(A, 4)]
    assert executed(driver.feed(TaskFailed(A, 4, 9.0, ERROR, HERE))) == []
    assert driver.run.tasks[A].state is TaskState.FAILED
    only_values = RetryPolicy(max_attempts=9, backoff=0, on=("ValueError",))
    driver = Driver(graph([], A, retry=only_values, timeout=5))
    driver.feed(RunRequested(1.0))
    driver.feed(TaskStarted(A, 1, HERE))
    driver.feed(TimerFired(A, 1, TimerKind.TIMEOUT, 7.0))
    assert driver.run.status is RunStatus.FAILED


def test_a_run_that_reaches_its_deadline_ends_as_failed_with_the_reason() -> None:
    """What runs and what is queued is cancelled, what waits never begins, and what ended stays."""
    driver = Driver(DIAMOND, deadline=30.0)
    assert ArmDeadline(29.0) in driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    driver.feed(TaskStarted(B, 1, HERE))
    commands = driver.feed(DeadlineReached(30.0))
    assert {each for each in commands if isinstance(each, Cancel)} == {Cancel(B, 1), Cancel(C, 1)}
    assert commands[-1] == Finish("failed")
    end = driver.log[-1].data
    assert end["status"] == "failed"
    assert end["error"] == {
        "type": "DeadlineExceededError",
        "message": "the run did not end by its deadline; its tasks were: 1 succeeded, 1 running, "
        "1 queued, 1 waiting",
        "traceback": "",
    }
    assert [driver.run.tasks[each].state for each in (A, B, C, D)] == [
        TaskState.SUCCEEDED,
        *[TaskState.CANCELLED] * 3,
    ]
    assert driver.feed(DeadlineReached(31.0)) == []
    assert driver.feed(succeeded(B)) == []


def taken(*ids: TaskId) -> ResultsTakenOver:
    result = Result({"out": 1}, {"out": Value(3, b"abc")})
    return ResultsTakenOver(RunId("old"), 1.0, dict.fromkeys(ids, result))


def test_a_run_begins_with_the_results_of_another() -> None:
    """They are told first, none of their tasks is executed, and their values feed what comes after."""
    driver = Driver(DIAMOND)
    commands = driver.feed(taken(B, A))
    assert executed(commands) == []
    assert driver.told() == ["finish_task a", "finish_task b"]
    assert driver.log[0].data["taken_from"] == "old"
    assert driver.log[0].data["attempt"] == 0
    assert set(driver.run.values) == {A, B}
    assert driver.run.unfinished == 2
    assert executed(driver.feed(RunRequested(1.0))) == [(C, 1)]
    again = Run.replay(RunId("r"), DIAMOND, driver.log)
    assert executed(again.handle(Recovered(2.0))) == [(C, 1)]
    assert executed(driver.feed(succeeded(C))) == [(D, 1)]
    driver.feed(succeeded(D))
    assert driver.run.status is RunStatus.SUCCEEDED
    assert driver.run.values == {}


def test_results_that_cannot_be_taken_over_change_nothing() -> None:
    """Of a task that is not there, without what they were made of, or after the beginning."""
    driver = Driver(DIAMOND)
    for event in (taken(TaskId("x")), taken(B)):
        with pytest.raises(InvalidTransitionError, match="ResultsTakenOver from old"):
            driver.run.handle(event)
        driver.check()
    driver.feed(RunRequested(1.0))
    with pytest.raises(InvalidTransitionError):
        driver.run.handle(taken(A))
    assert driver.run.tasks[A].state is TaskState.QUEUED


def test_a_deadline_goes_on_over_a_restart() -> None:
    """What is left of it is waited for; if it passed meanwhile, nothing is begun again."""
    driver = Driver(DIAMOND, deadline=30.0)
    driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    run = Run.replay(RunId("r"), DIAMOND, driver.log, 30.0)
    assert ArmDeadline(8.0) in run.handle(Recovered(22.0))
    run = Run.replay(RunId("r"), DIAMOND, driver.log, 30.0)
    commands = run.handle(Recovered(30.0))
    assert executed(commands) == []
    assert run.status is RunStatus.FAILED
    assert commands[-1] == Finish("failed")


def test_a_timeout_cancels_the_attempt_and_counts_as_a_failure() -> None:
    """The clock starts when the attempt does."""
    driver = Driver(graph([], A, timeout=5))
    assert not any(isinstance(each, ArmTimer) for each in driver.feed(RunRequested(1.0)))
    assert ArmTimer(A, 1, TimerKind.TIMEOUT, 5) in driver.feed(TaskStarted(A, 1, HERE))
    commands = driver.feed(TimerFired(A, 1, TimerKind.TIMEOUT, 6.0))
    assert Cancel(A, 1) in commands
    assert driver.run.status is RunStatus.FAILED
    assert "timeout of 5 s" in str(driver.log[1].data["result"])


def test_cancelling_ends_what_runs_and_never_starts_the_rest() -> None:
    """`finish_workflow` says cancelled, is last, and cancelling again does nothing."""
    driver = Driver(DIAMOND)
    driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    driver.feed(TaskStarted(B, 1, HERE))
    commands = driver.feed(CancelRequested(3.0))
    assert {each for each in commands if isinstance(each, Cancel)} == {Cancel(B, 1), Cancel(C, 1)}
    assert driver.run.status is RunStatus.CANCELLED
    assert driver.run.tasks[D].state is TaskState.CANCELLED
    assert driver.run.tasks[A].state is TaskState.SUCCEEDED
    assert driver.feed(CancelRequested(3.0)) == []
    assert driver.feed(succeeded(B)) == []


def test_recovery_runs_again_what_ran_and_nothing_that_finished() -> None:
    """A restart is told as a retry, and counts against no budget."""
    driver = Driver(DIAMOND)
    driver.feed(RunRequested(1.0))
    driver.feed(succeeded(A))
    driver.feed(TaskStarted(B, 1, HERE))
    again = Driver(DIAMOND)
    again.log = [*driver.log]
    again.run = Run.replay(RunId("r"), DIAMOND, driver.log)
    assert set(executed(again.feed(Recovered(20.0)))) == {(B, 2), (C, 1)}
    assert again.told()[-1] == "task_retry b"
    for _ in range(LOST_ATTEMPTS - 1):
        attempt = again.run.tasks[B].attempt
        assert executed(again.feed(TaskLost(B, attempt, 2.0, ERROR))) == [(B, attempt + 1)]


def test_recovery_keeps_the_wait_before_a_retry() -> None:
    """What is left of the wait is waited for."""
    made = graph([], A, retry=RetryPolicy(max_attempts=2, backoff=10))
    driver = Driver(made)
    driver.feed(RunRequested(1.0))
    driver.feed(TaskFailed(A, 1, 100.0, ERROR, HERE))
    run = Run.replay(RunId("r"), made, driver.log)
    retry_at = float(str(driver.log[-1].data["retry_at"]))
    assert 105.0 <= retry_at <= 110.0
    assert run.handle(Recovered(104.0)) == [ArmTimer(A, 1, TimerKind.RETRY, retry_at - 104.0)]


def test_every_state_can_be_reached_and_every_end_is_final() -> None:
    """The table has no state without a way in, and no way out of an end."""
    reached = set(TRANSITIONS.values()) | {TaskState.WAITING}
    assert reached == set(TaskState)
    left = {state for state, _ in TRANSITIONS}
    assert left == {TaskState.WAITING, TaskState.QUEUED, TaskState.RUNNING, TaskState.BACKING_OFF}


@given(seed=st.integers(0, 2**32), size=st.integers(1, 8), density=st.floats(0, 1))
def test_any_history_keeps_the_promises(seed: int, size: int, density: float) -> None:
    """Random graphs and random reports, late and doubled: nothing starts early, nothing runs twice."""
    chance = random.Random(seed)
    ids = [TaskId(str(number)) for number in range(size)]
    edges = [
        (source, target)
        for at, target in enumerate(ids)
        for source in ids[:at]
        if chance.random() < density
    ]
    retry = RetryPolicy(
        max_attempts=chance.randint(1, 3), on=chance.choice([None, ("ValueError",), ("KeyError",)])
    )
    made = graph(edges, *ids, retry=retry, timeout=chance.choice([None, 5.0]))
    driver = Driver(made)
    pending: list[Event] = []
    finished: set[TaskId] = set()

    def absorb(commands: list[Command]) -> None:
        for command in commands:
            match command:
                case Execute(task_id, attempt):
                    assert task_id not in finished
                    assert all(source in finished for source in made.upstream[task_id])
                    pending.append(TaskStarted(task_id, attempt, HERE))
                    pending.append(
                        chance.choice(
                            [
                                succeeded(task_id, attempt),
                                succeeded(task_id, attempt),
                                TaskFailed(task_id, attempt, 11.0, ERROR, HERE),
                                TaskLost(task_id, attempt, 11.0, ERROR),
                            ]
                        )
                    )
                case ArmTimer(task_id, attempt, kind, _):
                    pending.append(TimerFired(task_id, attempt, kind, 12.0))
                case Publish(message) if message.type is MessageType.FINISH_TASK:
                    assert message.task_id is not None
                    assert message.task_id not in finished
                    finished.add(message.task_id)
                case _:
                    pass

    absorb(driver.feed(RunRequested(1.0)))
    while pending:
        event = pending.pop(chance.randrange(len(pending)))
        if chance.random() < 0.2:
            pending.append(event)
        if chance.random() < 0.05:
            driver.run = Run.replay(RunId("r"), made, driver.log)
            pending.clear()
            absorb(driver.feed(Recovered(13.0)))
            continue
        if chance.random() < 0.01:
            event = chance.choice([CancelRequested(14.0), DeadlineReached(14.0)])
        absorb(driver.feed(event))
    assert driver.run.ended
    assert driver.log[-1].type is MessageType.FINISH_WORKFLOW


def test_what_follows_tasks_that_will_succeed() -> None:
    """Each with what it still waits for, after it, and nothing that has begun."""
    driver = Driver(DIAMOND)
    driver.feed(RunRequested(1.0))
    run = driver.run
    assert [*following(run, [A])] == [(B, (A,)), (C, (A,)), (D, (B, C))]
    assert next(following(run, [A])) == (B, (A,))
    driver.feed(TaskSucceeded(A, 1, 2.0, HERE, {}, {}))
    assert [*following(run, [B])] == []
    assert [*following(run, [B, C])] == [(D, (B, C))]
    driver.feed(TaskSucceeded(B, 1, 3.0, HERE, {}, {}))
    assert [*following(run, [C])] == [(D, (C,))]
    # One that has succeeded is missing no more.
    assert [*following(run, [B])] == []
    driver.feed(TaskFailed(C, 1, 4.0, ERROR, HERE))
    assert [*following(run, [C])] == []
