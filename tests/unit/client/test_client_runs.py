"""Runs: events, results, failures and values."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from lattice import (
    DeadlineError,
    Event,
    FinishTask,
    FinishWorkflow,
    InvalidRequestError,
    LatticeClient,
    Run,
    RunCancelledError,
    RunFailedError,
    ServiceError,
    StartTask,
    TaskException,
    TaskRetry,
    Workflow,
)
from lattice.client.events import TaskEvent
from lattice.client.transport import BrokenOffError
from tests.unit.client.fake_service import URL, FakeService, Log

NAMES = {"a1": "load", "b1": "count"}


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


def run_of(fake: FakeService, log: Log, names: dict[str, str] = NAMES) -> Run:
    fake.sockets.scripts = [[*log.messages]]
    return Run(fake.service(), "w", "r1", names, "words")


def result_path(task_id: str, key: str) -> str:
    return f"/runs/r1/tasks/{task_id}/result/{key}"


def test_events_are_typed(fake: FakeService) -> None:
    """Each kind has its class; task names stand beside their ids."""
    error = {"type": "ValueError", "message": "no", "traceback": "T"}
    log = Log().start("a1")
    log.add("task_retry", task_id="a1", attempt=1, reason="failed", error=error)
    log.finish("a1", text="x").fail("b1", "KeyError", "k", "T2")
    log.add("news_task", task_id="zz").add("news").end("failed")
    run = run_of(fake, log)
    start, retry, _, finish, _, exception, news_task, news, end = run.events()
    assert isinstance(start, StartTask)
    assert (start.seq, start.task, start.task_id, start.node_ip) == (1, "load", "a1", "1.2.3.4")
    assert isinstance(retry, TaskRetry)
    assert (retry.reason, retry.error_type, retry.message, retry.traceback) == (
        "failed",
        "ValueError",
        "no",
        "T",
    )
    assert isinstance(finish, FinishTask)
    assert finish.result == {"text": "x"}
    assert isinstance(exception, TaskException)
    assert (exception.task, exception.error_type, exception.traceback) == (
        "count",
        "KeyError",
        "T2",
    )
    assert type(news_task) is TaskEvent
    assert news_task.task == "zz"
    assert type(news) is Event
    assert isinstance(end, FinishWorkflow)
    assert end.status == "failed"
    assert fake.sockets.urls == ["ws://127.0.0.1:8000/get_workflow_res/w/r1?after=0"]
    assert [event.seq for event in run.events(after=7)] == [8, 9]


def test_a_result(fake: FakeService) -> None:
    """JSON comes with the messages; what was only described is fetched, once."""
    described = {"type": "numpy.ndarray", "size": 9, "url": result_path("b1", "array%2Fx")}
    log = Log().finish("a1", text="x", lookalike={"url": "/elsewhere"})
    log.finish("b1", n=1, **{"array/x": described}).end()
    run = run_of(fake, log)
    fake.answers["GET " + result_path("b1", "array%2Fx") + "?format=pickle"] = [
        (200, pickle.dumps({1, 2}))
    ]
    expected = {
        "load": {"text": "x", "lookalike": {"url": "/elsewhere"}},
        "count": {"n": 1, "array/x": {1, 2}},
    }
    assert run.result() == expected
    assert run.result() == expected
    assert len(fake.requests) == 1
    assert len(fake.sockets.urls) == 1
    assert run.status() == "succeeded"


def test_exact_objects(fake: FakeService) -> None:
    """By handle, by output or by name, also while the run goes on."""
    workflow = Workflow(fake.service())
    handle = workflow.add_task(lambda: 1, name="load")
    run = run_of(fake, Log(), {handle.task_id: "load"})
    path = f"/runs/r1/tasks/{handle.task_id}/result"
    fake.answers[f"GET {path}"] = (200, {"result": {"result": [1, 2]}})
    fake.answers[f"GET {path}/result?format=pickle"] = [(200, pickle.dumps((1, 2)))]
    assert run[handle] == {"result": (1, 2)}
    assert run[handle.outputs["result"]] == (1, 2)
    assert run.output("load") == {"result": (1, 2)}
    assert fake.paths() == [path, f"{path}/result?format=pickle"]


def test_tasks_that_a_run_does_not_have(fake: FakeService) -> None:
    """Are refused with those that it has; one that has not finished is told by the service."""
    run = run_of(fake, Log())
    with pytest.raises(InvalidRequestError, match="did you mean 'load'"):
        run["laod"]
    other = Workflow(fake.service()).add_task(lambda: 1, name="other")
    with pytest.raises(InvalidRequestError, match="'other', not in this run"):
        run[other]
    fake.answers["GET /runs/r1"] = (200, report(a1="load"))
    with pytest.raises(ServiceError) as caught:
        run["load"]
    assert caught.value.status == 404


def test_outputs_that_will_never_be(fake: FakeService) -> None:
    """Of a run that has ended without them: its failure says why."""
    run = run_of(fake, Log().fail("a1", "ValueError", "bad", "").end("failed"))
    answer = report(a1="load", b1="count")
    answer["run"]["status"] = "failed"
    fake.answers["GET /runs/r1"] = (200, answer)
    with pytest.raises(RunFailedError, match="ValueError: bad"):
        run["count"]


def test_a_failure(fake: FakeService) -> None:
    """Names the task and has the user's own traceback."""
    text = (
        'Traceback (most recent call last):\n  File "<lattice>", line 1, in call\nValueError: bad'
    )
    log = Log().fail("a1", "ValueError", "bad", text).fail("b1", "KeyError", "", "").end("failed")
    run = run_of(fake, log)
    with pytest.raises(RunFailedError) as caught:
        run.result()
    error = caught.value
    assert (error.task, error.task_id, error.error_type) == ("load", "a1", "ValueError")
    assert error.traceback == "Traceback (most recent call last):\nValueError: bad"
    assert str(error) == (
        "task 'load' failed with ValueError: bad (as did count)\n\n"
        "Traceback (most recent call last):\nValueError: bad"
    )
    assert [str(failure) for failure in error.failures][1] == "task 'count' failed with KeyError"
    with pytest.raises(RunFailedError):
        run.result()
    assert str(RunFailedError("r", [])) == "run r failed"


def test_a_cancelled_run(fake: FakeService) -> None:
    """Has no result."""
    run = run_of(fake, Log().start("a1").end("cancelled"))
    fake.answers["POST /runs/r1/cancel"] = (200, {"run_status": "cancelled"})
    assert run.cancel() == "cancelled"
    with pytest.raises(RunCancelledError, match="r1 was cancelled"):
        run.result()


def test_a_run_that_failed_by_itself(fake: FakeService) -> None:
    """Says why, though no task failed for good."""
    error = {"type": "DeadlineExceededError", "message": "too late", "traceback": ""}
    run = run_of(fake, Log().start("a1").add("finish_workflow", status="failed", error=error))
    with pytest.raises(RunFailedError, match="run r1 failed: too late") as caught:
        run.result()
    assert caught.value.reason == "too late"
    assert caught.value.failures == ()
    assert pickle.loads(pickle.dumps(caught.value)).reason == "too late"


def test_a_run_that_is_retried(fake: FakeService) -> None:
    """Is another run of the same tasks; the request has a key, and is repeated under it."""
    run = run_of(fake, Log().fail("a1", "ValueError", "bad", "").end("failed"))
    fake.answers["POST /runs/r1/retry"] = [(503, {"detail": "busy"}), (200, {"run_id": "r2"})]
    again = run.retry()
    assert (again.run_id, again.workflow_id) == ("r2", "w")
    assert repr(again) == "<Run r2 of 'words', 2 tasks>"
    first, second = (request.headers["idempotency-key"] for request in fake.requests)
    assert first == second
    taken = Log("r2").add("finish_task", task_id="a1", attempt=0, result={"x": 1}, taken_from="r1")
    fake.sockets.scripts = [[*taken.finish("b1", n=1).end().messages]]
    assert again.result() == {"load": {"x": 1}, "count": {"n": 1}}


def test_a_run_that_is_deleted(fake: FakeService) -> None:
    """A refusal is told."""
    run = run_of(fake, Log())
    fake.answers["DELETE /runs/r1"] = [(200, {"status": "success"}), (404, {"detail": "Run r1"})]
    run.delete()
    with pytest.raises(ServiceError, match="Run r1"):
        run.delete()


def test_a_deletion_whose_answer_is_lost(fake: FakeService) -> None:
    """Is asked for again, and that the run is gone by then is what was wanted."""
    run = run_of(fake, Log())
    path = "DELETE /runs/r1"
    fake.answers[path] = [BrokenOffError("reset"), (404, {"detail": "Run r1"})]
    run.delete()
    fake.answers[path] = [(502, {}), (404, {"detail": "Run r1"})]
    run.delete()
    fake.answers[path] = [BrokenOffError("reset"), (400, {"detail": "running"})]
    with pytest.raises(ServiceError, match="running"):
        run.delete()


def test_a_run_that_takes_too_long(fake: FakeService) -> None:
    """Goes on, and its result may be asked for again."""
    run = run_of(fake, Log().start("a1"))
    fake.sockets.scripts = [[TimeoutError()]]
    with pytest.raises(DeadlineError):
        run.result(timeout=3)
    fake.sockets.scripts = [[*Log().finish("a1", x=1).end().messages]]
    assert run.result() == {"load": {"x": 1}}


def test_a_bar(fake: FakeService, capsys: pytest.CaptureFixture[str]) -> None:
    """Shows how many tasks have ended and which run; only on request."""
    log = Log().start("b1").finish("a1", x=1).end()
    run_of(fake, log).result()
    assert capsys.readouterr().err == ""
    run_of(fake, log).result(progress=True)
    shown = capsys.readouterr().err
    assert "words" in shown
    assert "1/2" in shown
    assert "succeeded" in shown


def report(**tasks: str) -> dict[str, Any]:
    """What the service says of a run, with the names of its tasks by their ids."""
    return {
        "run": {
            "run_id": "r1",
            "workflow_id": "w",
            "status": "running",
            "created": "t",
            "finished": None,
            "last_seq": 0,
            "tasks": [
                {
                    "task_id": task_id,
                    "name": name,
                    "state": "waiting",
                    "attempt": 1,
                    "started": None,
                    "finished": None,
                    "error": None,
                }
                for task_id, name in tasks.items()
            ],
        }
    }


def test_a_run_that_was_started_elsewhere(fake: FakeService) -> None:
    """Is found by its id; tasks that share a name are told apart by theirs."""
    fake.answers["GET /runs/r1"] = (200, report(a1="load", b1="count", b2="count"))
    run = LatticeClient(URL, transport=fake).run("r1")
    assert repr(run) == "<Run r1, 3 tasks>"
    assert run.status() == "running"
    assert [each.state for each in run.report().tasks] == ["waiting"] * 3
    run = run_of(fake, Log().finish("b1", n=1).finish("b2", n=2).end(), {"b1": "x", "b2": "x"})
    assert run.result() == {"b1": {"n": 1}, "b2": {"n": 2}}
    assert repr(run) == "<Run r1 of 'words', 2 tasks>"
