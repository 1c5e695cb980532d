"""What every store does when runs go: little at a time, and nothing that somebody still needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from lattice.ids import Digest, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.removal import (
    DeleteLogs,
    DeleteMessages,
    DeleteReplies,
    DeleteRun,
    DeleteUnusedBlobs,
    DeleteValues,
    DeleteWorkflow,
    DropNote,
    Leftovers,
    PutNote,
    StoredOutput,
)
from lattice.ports.store import (
    AppendMessage,
    DeleteTask,
    FinishRun,
    LogRecord,
    PutBlob,
    PutEdge,
    PutLog,
    PutReply,
    PutRun,
    PutTask,
    PutWorkflow,
    RunRecord,
    Store,
    Write,
)
from lattice.store import open_store
from lattice.workflow.events import Value

FLOW, OTHER = WorkflowId("flow"), WorkflowId("other")
RUN = RunId("run")
GRAPH, CODE, NEW = Digest("c" * 64), Digest("a" * 64), Digest("b" * 64)
A, B = TaskId("a"), TaskId("b")
Commit = Callable[..., None]


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    match request.param:
        case "memory":
            url = "memory:"
        case "sqlite":
            url = f"sqlite:///{tmp_path}/lattice.db"
        case _:
            url = request.getfixturevalue("postgresql_url")
    with closing(open_store(url)) as opened:
        yield opened


@pytest.fixture
def commit(store: Store) -> Commit:
    """Commits its arguments as one group, under the lease."""
    lease = store.acquire_lease()
    return lambda *writes: store.commit(lease, writes)


def ended(name: str, at: float, workflow_id: WorkflowId = FLOW) -> list[Write]:
    return [PutRun(RunId(name), workflow_id, GRAPH, at - 1), FinishRun(RunId(name), "failed", at)]


def test_a_run_keeps_its_deadline_and_what_it_retries(store: Store, commit: Commit) -> None:
    commit(PutRun(RUN, FLOW, GRAPH, 1.0, 9.5, RunId("first")))
    expected = RunRecord(RUN, FLOW, GRAPH, "running", 1.0, None, 9.5, RunId("first"))
    assert store.load_run(RUN) == expected
    assert store.unfinished_runs() == store.list_runs(9) == [expected]


def test_finished_runs_are_found_by_age_number_and_workflow(store: Store, commit: Commit) -> None:
    commit(*ended("third", 30.0), *ended("first", 10.0, OTHER), *ended("second", 20.0))
    commit(PutRun(RUN, FLOW, GRAPH, 0.0))
    assert store.finished_runs(9) == ["first", "second", "third"]
    assert store.finished_runs(9, before=30.0) == ["first", "second"]
    assert store.finished_runs(1, before=30.0) == ["first"]
    assert store.finished_runs(9, keep=1) == ["second", "first"]
    assert store.finished_runs(1, keep=1) == ["second"]
    assert store.finished_runs(9, keep=3) == []
    assert store.finished_runs(9, workflow_id=FLOW) == ["second", "third"]
    assert store.finished_runs(9, workflow_id=WorkflowId("none")) == []


def test_finished_runs_of_a_workflow_are_found_by_tenant(store: Store, commit: Commit) -> None:
    for number, tenant in enumerate((Tenant("alice"), Tenant("bob"), None), 1):
        run_id = RunId(f"of {tenant}")
        commit(
            PutRun(run_id, FLOW, GRAPH, float(number), tenant=tenant),
            FinishRun(run_id, "failed", number + 1.0),
        )
    assert store.finished_runs(9, workflow_id=FLOW, tenant=Tenant("alice")) == ["of alice"]
    assert store.finished_runs(9, workflow_id=FLOW, tenant=Tenant("none")) == []
    assert store.finished_runs(9, workflow_id=OTHER, tenant=Tenant("alice")) == []
    assert len(store.finished_runs(9, workflow_id=FLOW)) == 3


def test_a_run_goes_at_once_and_what_it_left_in_slices(store: Store, commit: Commit) -> None:
    other = RunId("other")
    values = {"x": Value(1, b"1"), "big": Value(9, location="runs/run/a/1/big")}
    for run_id in (RUN, other):
        commit(
            PutRun(run_id, FLOW, GRAPH, 1.0),
            AppendMessage(run_id, 1, "{}", A, values),
            AppendMessage(run_id, 2, "{}", B, {"x": Value(1, b"1")}),
            AppendMessage(run_id, 3, "{}"),
            FinishRun(run_id, "succeeded", 2.0),
        )
    commit(DeleteRun(RUN, 50.0), DeleteRun(RunId("none"), 50.0))
    assert store.load_run(RUN) is None
    assert [run.run_id for run in store.list_runs(9)] == [other]
    assert store.due_notes(49.0, 9) == []
    assert store.due_notes(50.0, 9) == [DropNote(RUN, 50.0)]
    found = store.leftovers(RUN, 2)
    assert found == Leftovers(
        2,
        (StoredOutput(A, "big", "runs/run/a/1/big"), StoredOutput(A, "x", None))
        if found.outputs[0].key == "big"
        else (StoredOutput(A, "x", None), StoredOutput(A, "big", "runs/run/a/1/big")),
    )
    commit(DeleteMessages(RUN, 2), DeleteValues(RUN, ((A, "x"), (A, "big"))))
    assert store.leftovers(RUN, 2) == Leftovers(3, (StoredOutput(B, "x", None),))
    commit(DeleteMessages(RUN, 3), DeleteValues(RUN, ((B, "x"),)), DropNote(RUN, 50.0))
    assert store.leftovers(RUN, 2) == Leftovers(None, ())
    assert store.due_notes(99.0, 9) == []
    assert len(store.load_messages(other, 0, 9)) == 3
    assert store.load_values(other)[A] == values


def test_logs_are_read_in_order_and_in_pages(store: Store, commit: Commit) -> None:
    """By task, attempt and position, whenever they were put; what is put again replaces what was there."""
    places = [(A, 1, 0), (A, 1, 90), (A, 2, 0), (A, 10, 0), (B, 1, 2**40)]
    for at, place in enumerate(reversed(places)):
        commit(PutLog(RUN, *place, f'["{at}"]'))
    commit(PutLog(RunId("other"), A, 1, 5, "[]"), PutLog(RUN, A, 2, 0, '["again \\u0000"]'))
    records = [
        LogRecord(A, 1, 0, '["4"]'),
        LogRecord(A, 1, 90, '["3"]'),
        LogRecord(A, 2, 0, '["again \\u0000"]'),
        LogRecord(A, 10, 0, '["1"]'),
        LogRecord(B, 1, 2**40, '["0"]'),
    ]
    assert store.load_logs(RUN, 9) == records
    assert store.load_logs(RUN, 2) == records[:2]
    assert store.load_logs(RUN, 2, after=(A, 1, 90)) == records[2:4]
    assert store.load_logs(RUN, 9, after=(A, 1, 89)) == records[1:]
    assert store.load_logs(RUN, 9, task_id=A, after=(A, 2, 0)) == records[3:4]
    assert store.load_logs(RUN, 9, task_id=A, attempt=1) == records[:2]
    assert store.load_logs(RunId("none"), 9) == []
    assert store.load_logs(RUN, 9, task_id=TaskId("\0")) == []
    assert store.load_logs(RUN, 9, after=(A, 2**70, 2**70)) in ([], records[4:])


def test_logs_go_in_slices(store: Store, commit: Commit) -> None:
    commit(*ended("run", 2.0), *(PutLog(RUN, A, 1, at, "[]") for at in range(3)))
    commit(PutLog(RunId("other"), A, 1, 0, "[]"), DeleteRun(RUN, 3.0))
    parts = store.leftovers(RUN, 2).logs
    assert parts == ((A, 1, 0), (A, 1, 1))
    commit(DeleteLogs(RUN, parts))
    assert store.leftovers(RUN, 2) == Leftovers(None, (), ((A, 1, 2),))
    commit(DeleteLogs(RUN, ((A, 1, 2),)))
    assert store.leftovers(RUN, 2) == Leftovers(None, ())
    assert len(store.load_logs(RunId("other"), 9)) == 1


def test_a_run_that_runs_does_not_go(store: Store, commit: Commit) -> None:
    commit(PutRun(RUN, FLOW, GRAPH, 1.0), DeleteRun(RUN, 2.0))
    commit(DeleteRun(RUN, 2.0))
    assert store.load_run(RUN) is not None
    assert store.due_notes(9.0, 9) == []


def test_a_note_that_was_put_anew_is_not_dropped(store: Store, commit: Commit) -> None:
    commit(PutNote(RUN, 1.0), PutNote(RunId("early"), 0.5))
    assert store.due_notes(1.0, 9) == [DropNote(RunId("early"), 0.5), DropNote(RUN, 1.0)]
    assert store.due_notes(1.0, 1) == [DropNote(RunId("early"), 0.5)]
    commit(PutNote(RUN, 2.0), DropNote(RUN, 1.0), DropNote(RunId("early"), 0.5))
    assert store.due_notes(9.0, 9) == [DropNote(RUN, 2.0)]
    commit(*ended("run", 3.0))
    commit(DeleteRun(RUN, 4.0))
    assert store.due_notes(9.0, 9) == [DropNote(RUN, 4.0)]


def test_what_any_run_refers_to_is_known(store: Store, commit: Commit) -> None:
    locations = [f"runs/run/{number}" for number in range(1200)]
    outputs = {str(at): Value(1, location=name) for at, name in enumerate(locations[:1100])}
    commit(AppendMessage(RUN, 1, "{}", A, outputs))
    commit(AppendMessage(RunId("again"), 1, "{}", A, {"out": Value(1, location=locations[0])}))
    assert store.referenced(locations) == set(locations[:1100])
    commit(DeleteValues(RUN, (*((A, str(at)) for at in range(1100)),)))
    assert store.referenced(locations) == {locations[0]}
    assert store.referenced([]) == set()


def test_a_blob_goes_when_nobody_refers_to_it(store: Store, commit: Commit) -> None:
    """A code by a task or a graph, a graph by a run, each alone keeps it; a graph takes codes along later."""
    digests = (CODE, NEW, GRAPH)

    def left() -> list[Digest]:
        commit(DeleteUnusedBlobs(digests))
        return store.blobs_after(Digest(""), 9)

    commit(
        PutWorkflow(FLOW, 1.0),
        PutBlob(CODE, b"code"),
        PutTask(FLOW, A, "{}", CODE),
        PutBlob(GRAPH, b"graph", uses=(CODE,)),
        PutRun(RUN, FLOW, GRAPH, 1.0),
    )
    assert left() == [CODE, GRAPH]
    commit(PutBlob(NEW, b"new"), PutTask(FLOW, A, "{}", NEW))
    assert left() == [CODE, NEW, GRAPH]
    commit(FinishRun(RUN, "failed", 2.0))
    commit(DeleteRun(RUN, 3.0))
    assert left() == [CODE, NEW]
    assert left() == [NEW]
    assert store.load_blob(CODE) is None
    # What is put in the same commit counts, in whatever order.
    commit(DeleteUnusedBlobs((NEW,)), DeleteTask(FLOW, A), PutTask(FLOW, B, "{}", NEW))
    assert left() == [NEW]
    commit(DeleteTask(FLOW, B))
    assert left() == []


def test_blobs_are_gone_through_page_by_page(store: Store, commit: Commit) -> None:
    commit(*(PutBlob(Digest(name), b"") for name in ("d1", "d3", "d2")))
    assert store.blobs_after(Digest(""), 2) == ["d1", "d2"]
    assert store.blobs_after(Digest("d2"), 2) == ["d3"]
    assert store.blobs_after(Digest("d3"), 2) == []


def test_old_answers_go(store: Store, commit: Commit) -> None:
    commit(PutReply("b", "f", "{}", 1.0), PutReply("a", "f", "{}", 2.0), PutReply("c", "f", "", 3))
    assert store.replies_before(3.0, 9) == ["b", "a"]
    assert store.replies_before(3.0, 1) == ["b"]
    commit(DeleteReplies(("b", "a", "none")))
    assert store.load_reply("a") is None
    assert store.replies_before(9.0, 9) == ["c"]
    commit(PutReply("a", "other", "{}", 4.0))
    assert store.load_reply("a") is not None


def test_a_name_that_no_column_can_hold_hides_no_other(store: Store, commit: Commit) -> None:
    """User code may give files any names; those that are asked for with one are still found."""
    here = "runs/run/a/1/x"
    commit(
        PutRun(RUN, FLOW, GRAPH, 1.0),
        AppendMessage(RUN, 1, "{}", A, {"x": Value(3, location=here)}),
    )
    assert store.referenced([here, "runs/run/a/1/\udcff", "runs/run/a/1/\0"]) == {here}


def test_a_workflow_goes_with_its_tasks_and_edges(
    store: Store, commit: Callable[..., None]
) -> None:
    """Also where it is put and deleted at once; another's stay, and so do its runs; its code may go."""
    one, other = WorkflowId("one"), WorkflowId("other")
    a, b, code = TaskId("a"), TaskId("b"), Digest("c")
    for flow in (one, other):
        commit(
            PutWorkflow(flow, 1.0),
            PutTask(flow, a, "{}"),
            PutTask(flow, b, "{}"),
            PutEdge(flow, a, b),
        )
    commit(
        PutBlob(code, b"1"),
        PutTask(one, a, "{}", code),
        PutRun(RunId("run"), one, Digest("g"), 1.0),
    )
    commit(PutTask(one, TaskId("late"), "{}"), DeleteWorkflow(one))
    commit(PutWorkflow(WorkflowId("short"), 1.0), DeleteWorkflow(WorkflowId("short")))
    commit(DeleteWorkflow(WorkflowId("none such")))
    assert store.load_workflow(one) is store.load_workflow(WorkflowId("short")) is None
    left = store.load_workflow(other)
    assert left is not None
    assert (len(left.tasks), left.edges) == (2, ((a, b),))
    assert store.load_run(RunId("run")) is not None
    assert store.count_workflows() == {None: 1}
    commit(DeleteUnusedBlobs((code,)))
    assert store.load_blob(code) is None
    # Its tasks do not come back with another of the same id.
    commit(PutWorkflow(one, 2.0))
    again = store.load_workflow(one)
    assert again is not None
    assert (again.tasks, again.edges) == ((), ())
