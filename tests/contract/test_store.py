"""What every store does: one suite for the store in memory, SQLite and PostgreSQL."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lattice.errors import InvalidRequestError, LeaseLostError, StoreRefusedError
from lattice.ids import Digest, NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.store import (
    AppendMessage,
    DeleteEdge,
    DeleteNode,
    DeleteTask,
    FinishRun,
    PutBlob,
    PutEdge,
    PutNode,
    PutReply,
    PutRun,
    PutTask,
    PutWorkflow,
    ReplyRecord,
    RunRecord,
    Store,
    WorkflowRecord,
    Write,
)
from lattice.store import MemoryStore, open_store
from lattice.workflow.checks import MAX_OUTPUT_KEY, is_output_key
from lattice.workflow.events import Value

FLOW = WorkflowId("flow")
RUN = RunId("run")
GRAPH = Digest("d" * 64)
A, B, C = TaskId("a"), TaskId("b"), TaskId("c")

#: A time that needs all digits of a double.
NOW = 1_764_000_000.123456


ALICE, BOB = Tenant("alice"), Tenant("bob")


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    match request.param:
        case "memory":
            return "memory:"
        case "sqlite":
            return f"sqlite:///{tmp_path}/lattice.db"
        case _:
            found: str = request.getfixturevalue("postgresql_url")
            return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(open_store(url)) as opened:
        yield opened


@pytest.fixture
def commit(store: Store) -> Callable[..., None]:
    """Commits its arguments as one group, under the lease."""
    lease = store.acquire_lease()
    return lambda *writes: store.commit(lease, writes)


def message(seq: int, kind: str = "start_task", run_id: RunId = RUN) -> AppendMessage:
    return AppendMessage(run_id, seq, json.dumps({"type": kind, "data": {"seq": seq}}))


def finish(seq: int, task_id: TaskId, **values: Value) -> AppendMessage:
    document = json.dumps({"type": "finish_task", "data": {"seq": seq}})
    return AppendMessage(RUN, seq, document, task_id, values)


def run_ids(runs: list[RunRecord]) -> list[str]:
    return [run.run_id for run in runs]


# -- the lease ---------------------------------------------------------------------------------


def test_each_lease_is_larger_than_all_before_it(store: Store) -> None:
    first, second, third = (store.acquire_lease() for _ in range(3))
    assert 0 < first < second < third


@pytest.mark.parametrize("number", [None, 1, 2])
def test_a_commit_under_an_older_lease_is_refused_and_writes_nothing(
    store: Store, number: int | None
) -> None:
    """Also one whose number the older lease has used, which must not be taken for done."""
    old = store.acquire_lease()
    store.commit(old, [PutWorkflow(FLOW, NOW)], 1)
    new = store.acquire_lease()
    with pytest.raises(LeaseLostError) as caught:
        store.commit(old, [PutRun(RUN, FLOW, GRAPH, NOW), message(1)], number)
    assert (caught.value.held, caught.value.current) == (old, new)
    assert store.load_run(RUN) is None
    assert store.load_messages(RUN, 0, 10) == []
    store.commit(new, [PutRun(RUN, FLOW, GRAPH, NOW)])
    assert store.load_run(RUN) is not None


@pytest.mark.parametrize("number", [None, 1])
@pytest.mark.parametrize("lease", [0, 1])
def test_nobody_commits_before_a_lease_was_acquired(
    store: Store, lease: int, number: int | None
) -> None:
    with pytest.raises(LeaseLostError):
        store.commit(lease, [PutWorkflow(FLOW, NOW)], number)
    assert store.load_workflow(FLOW) is None


def test_a_numbered_commit_is_done_once(store: Store) -> None:
    """Asked for again, it does nothing; the numbers of another lease are others."""
    lease = store.acquire_lease()
    puts = [PutWorkflow(WorkflowId(name), NOW) for name in "abc"]
    store.commit(lease, puts[:1], 1)
    store.commit(lease, puts[:1], 1)
    store.commit(lease, puts[1:2], 1)
    assert store.load_workflow(WorkflowId("b")) is None
    with pytest.raises(StoreRefusedError):
        store.commit(lease, puts[:1], 2)
    store.commit(lease, puts[1:2], 2)
    store.commit(store.acquire_lease(), puts[2:], 1)
    assert all(store.load_workflow(WorkflowId(name)) for name in "abc")


@pytest.mark.parametrize("number", [None, 1])
def test_a_commit_of_nothing_still_checks_the_lease(store: Store, number: int | None) -> None:
    old = store.acquire_lease()
    store.commit(old, [], number)
    store.acquire_lease()
    with pytest.raises(LeaseLostError):
        store.commit(old, [], number)


# -- each read after each write ----------------------------------------------------------------


def test_what_was_never_written_is_not_found(store: Store) -> None:
    assert store.load_workflow(FLOW) is None
    assert store.load_blob(GRAPH) is None
    assert store.load_run(RUN) is None
    assert store.list_runs(10) == []
    assert store.unfinished_runs() == []
    assert store.load_messages(RUN, 0, 10) == []
    assert store.load_values(RUN) == {}
    assert store.load_task_values(RUN, A) == {}
    assert store.load_task_result(RUN, A) is None
    assert store.load_nodes() == []
    assert store.load_reply("key") is None


def test_a_workflow_has_its_tasks_in_the_order_in_which_they_were_first_put(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(PutWorkflow(FLOW, NOW), PutTask(FLOW, B, '"b"'), PutTask(FLOW, A, '"a"'))
    commit(PutTask(FLOW, C, '"c"'), PutTask(FLOW, B, '"changed"'))
    commit(PutWorkflow(WorkflowId("other"), NOW), PutTask(WorkflowId("other"), A, '"other"'))
    assert store.load_workflow(FLOW) == WorkflowRecord(
        FLOW, NOW, ('"changed"', '"a"', '"c"'), edges=()
    )


def test_a_task_that_is_deleted_and_put_again_comes_last(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(PutWorkflow(FLOW, NOW), PutTask(FLOW, A, '"a"'), PutTask(FLOW, B, '"b"'))
    commit(DeleteTask(FLOW, A), PutTask(FLOW, A, '"again"'))
    record = store.load_workflow(FLOW)
    assert record is not None
    assert record.tasks == ('"b"', '"again"')


def test_edges_are_put_once_and_deleted(store: Store, commit: Callable[..., None]) -> None:
    commit(PutWorkflow(FLOW, NOW), PutEdge(FLOW, B, C), PutEdge(FLOW, A, B), PutEdge(FLOW, B, C))
    commit(PutEdge(FLOW, A, B), PutEdge(FLOW, A, C))
    commit(DeleteEdge(FLOW, A, C), DeleteEdge(FLOW, C, A))
    record = store.load_workflow(FLOW)
    assert record is not None
    assert record.edges == ((B, C), (A, B))


def test_a_deleted_task_takes_its_edges_along_in_its_own_workflow(
    store: Store, commit: Callable[..., None]
) -> None:
    other = WorkflowId("other")
    commit(PutWorkflow(FLOW, NOW), PutWorkflow(other, NOW))
    commit(*(PutEdge(flow, *edge) for flow in (FLOW, other) for edge in ((A, B), (B, C), (A, C))))
    commit(DeleteTask(FLOW, B), DeleteTask(FLOW, TaskId("not there")))
    record, untouched = store.load_workflow(FLOW), store.load_workflow(other)
    assert record is not None
    assert untouched is not None
    assert record.edges == ((A, C),)
    assert untouched.edges == ((A, B), (B, C), (A, C))


def test_edits_of_a_workflow_in_one_commit_apply_in_their_order(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(
        PutWorkflow(FLOW, NOW),
        PutTask(FLOW, A, '"first"'),
        PutEdge(FLOW, A, B),
        DeleteTask(FLOW, A),
        PutTask(FLOW, B, '"b"'),
        PutTask(FLOW, A, '"second"'),
        PutEdge(FLOW, A, C),
        DeleteEdge(FLOW, A, C),
        PutEdge(FLOW, C, A),
    )
    assert store.load_workflow(FLOW) == WorkflowRecord(FLOW, NOW, ('"b"', '"second"'), ((C, A),))


@pytest.mark.parametrize(
    "data", [b"", bytes(range(256)), b"\x00" * 5_000_000], ids=["empty", "all bytes", "5 MB"]
)
def test_a_blob_is_stored_as_it_is_and_once(
    store: Store, commit: Callable[..., None], data: bytes
) -> None:
    commit(PutBlob(GRAPH, data), PutBlob(GRAPH, data))
    commit(PutBlob(GRAPH, data))
    assert store.load_blob(GRAPH) == data


def test_a_run_is_running_until_it_is_finished(store: Store, commit: Callable[..., None]) -> None:
    commit(PutRun(RUN, FLOW, GRAPH, NOW))
    assert store.load_run(RUN) == RunRecord(RUN, FLOW, GRAPH, "running", NOW, None)
    commit(FinishRun(RUN, "failed", NOW + 1.5))
    assert store.load_run(RUN) == RunRecord(RUN, FLOW, GRAPH, "failed", NOW, NOW + 1.5)


def test_a_run_can_begin_and_end_in_one_commit(store: Store, commit: Callable[..., None]) -> None:
    other = RunId("other")
    commit(
        PutRun(RUN, FLOW, GRAPH, NOW),
        message(1, "finish_workflow"),
        FinishRun(RUN, "succeeded", NOW),
        PutRun(other, FLOW, GRAPH, NOW),
    )
    assert run_ids(store.unfinished_runs()) == ["other"]
    assert run_ids(store.list_runs(9, status="succeeded")) == ["run"]


def test_unfinished_runs_come_oldest_first(store: Store, commit: Callable[..., None]) -> None:
    created = {"late": 3.0, "early": 1.0, "done": 2.0, "same time": 1.0}
    commit(*(PutRun(RunId(name), FLOW, GRAPH, at) for name, at in created.items()))
    commit(FinishRun(RunId("done"), "cancelled", 4.0))
    assert run_ids(store.unfinished_runs()) == ["early", "same time", "late"]


def test_messages_are_read_in_order_after_a_seq_and_up_to_a_limit(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(message(2), message(1), message(7, run_id=RunId("other")))
    commit(message(10), message(3))
    read = [json.loads(text)["data"]["seq"] for text in store.load_messages(RUN, 0, 100)]
    assert read == [1, 2, 3, 10]
    assert store.load_messages(RUN, 1, 2) == [message(2).document, message(3).document]
    assert store.load_messages(RUN, 10, 100) == []
    assert store.load_messages(RUN, 0, 0) == []


def test_values_of_finished_tasks_are_kept_with_their_place(
    store: Store, commit: Callable[..., None]
) -> None:
    inline, empty = Value(3, inline=b"\x00\xff\n"), Value(0, inline=b"")
    stored = Value(2**40, location="run/a/big")
    commit(message(1), finish(2, A, x=inline, big=stored), finish(3, B, y=empty), finish(4, C))
    assert store.load_task_values(RUN, A) == {"x": inline, "big": stored}
    assert store.load_task_values(RUN, C) == {}
    assert store.load_task_values(RunId("other"), A) == {}
    assert store.load_values(RUN) == {A: {"x": inline, "big": stored}, B: {"y": empty}}


def test_the_longest_key_of_an_output_is_kept(store: Store, commit: Callable[..., None]) -> None:
    """Of text that does not compress; the index has room for it beside the ids."""
    random = Random(1)
    key = "".join(chr(random.randrange(0x4E00, 0x9FFF)) for _ in range(MAX_OUTPUT_KEY // 3))
    assert is_output_key(key)
    commit(finish(1, A, **{key: Value(1, inline=b"1"), "\x01": Value(2**53 - 1, location=key)}))
    assert {*store.load_task_values(RUN, A)} == {"\x01", key}
    assert store.referenced([key]) == {key}


def test_a_value_that_was_computed_again_replaces_the_first(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(finish(1, A, x=Value(1, location="lost")), finish(2, A, x=Value(1, inline=b"2")))
    assert store.load_task_values(RUN, A) == {"x": Value(1, inline=b"2")}
    commit(finish(3, A, x=Value(5, location="found")))
    assert store.load_task_values(RUN, A) == {"x": Value(5, location="found")}


def test_a_large_inline_value_is_stored_as_it_is(store: Store, commit: Callable[..., None]) -> None:
    data = bytes(range(256)) * 8192
    commit(finish(1, A, x=Value(len(data), inline=data)))
    assert store.load_task_values(RUN, A)["x"].inline == data


def test_the_result_of_a_task_is_its_finish_task_message(
    store: Store, commit: Callable[..., None]
) -> None:
    def of_a(seq: int, kind: str) -> AppendMessage:
        return AppendMessage(RUN, seq, json.dumps({"type": kind, "data": {"seq": seq}}), A)

    commit(of_a(1, "start_task"), of_a(2, "task_retry"), of_a(3, "start_task"))
    commit(AppendMessage(RunId("other"), 1, finish(1, A).document, A), finish(4, B))
    assert store.load_task_result(RUN, A) is None
    commit(finish(5, A), message(6, "finish_workflow"))
    assert store.load_task_result(RUN, A) == finish(5, A).document


def test_nodes_come_in_the_order_in_which_they_were_first_put(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(PutNode(NodeId("z"), "1"), PutNode(NodeId("a"), "2"))
    commit(PutNode(NodeId("m"), "3"), PutNode(NodeId("z"), "4"), PutNode(NodeId("z"), "5"))
    assert store.load_nodes() == ["5", "2", "3"]
    commit(DeleteNode(NodeId("a")), DeleteNode(NodeId("nobody")))
    assert store.load_nodes() == ["5", "3"]
    commit(DeleteNode(NodeId("m")), PutNode(NodeId("m"), "6"), DeleteNode(NodeId("z")))
    assert store.load_nodes() == ["6"]


def test_the_first_reply_to_a_key_stands(store: Store, commit: Callable[..., None]) -> None:
    commit(PutReply("key", "print", '"first"', NOW), PutReply("key", "other", '"second"', NOW))
    commit(PutReply("key", "other", '"third"', NOW))
    assert store.load_reply("key") == ReplyRecord("key", "print", '"first"')


# -- pages of runs -----------------------------------------------------------------------------


@pytest.fixture
def many_runs(commit: Callable[..., None]) -> list[str]:
    """Names of runs, newest first: three for each of five times, which one page's end can divide."""
    names = [f"run-{number}" for number in range(15)]
    commit(
        *(
            PutRun(RunId(name), WorkflowId(f"flow-{number % 2}"), GRAPH, float(number // 3))
            for number, name in enumerate(names)
        )
    )
    commit(*(FinishRun(RunId(name), "succeeded", 9.0) for name in names[:10:2]))
    return names[::-1]


def test_runs_come_newest_first_and_page_by_page(store: Store, many_runs: list[str]) -> None:
    pages: list[list[str]] = []
    before: RunId | None = None
    while page := run_ids(store.list_runs(4, before=before)):
        pages.append(page)
        before = RunId(page[-1])
    assert [name for page in pages for name in page] == many_runs
    assert [len(page) for page in pages] == [4, 4, 4, 3]


def test_runs_are_found_by_workflow_and_status(store: Store, many_runs: list[str]) -> None:
    def numbers(runs: list[RunRecord]) -> list[int]:
        return [int(run.run_id.removeprefix("run-")) for run in runs]

    even, odd = WorkflowId("flow-0"), WorkflowId("flow-1")
    assert numbers(store.list_runs(99, workflow_id=odd)) == [13, 11, 9, 7, 5, 3, 1]
    assert numbers(store.list_runs(99, status="succeeded")) == [8, 6, 4, 2, 0]
    assert numbers(store.list_runs(99, status="succeeded", workflow_id=odd)) == []
    assert numbers(store.list_runs(99, status="running", workflow_id=even)) == [14, 12, 10]
    assert numbers(store.list_runs(99, status="succeeded", before=RunId("run-5"))) == [4, 2, 0]
    assert numbers(store.list_runs(2, workflow_id=even, before=RunId("run-7"))) == [6, 4]


def test_no_run_is_older_than_one_that_does_not_exist(store: Store, many_runs: list[str]) -> None:
    assert store.list_runs(99, before=RunId("not there")) == []
    assert store.list_runs(0) == []


# -- all or nothing ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "refused",
    [
        pytest.param([message(1)], id="a message that exists"),
        pytest.param([message(5), message(5)], id="a message twice"),
        pytest.param([PutRun(RUN, FLOW, GRAPH, NOW)], id="a run that exists"),
        pytest.param([PutWorkflow(FLOW, NOW)], id="a workflow that exists"),
        pytest.param([FinishRun(RunId("not there"), "failed", NOW)], id="the end of no run"),
        pytest.param(
            [AppendMessage(RUN, 5, "{}", None, {"x": Value(1, b"1")})], id="values of no task"
        ),
    ],
)
def test_a_commit_of_which_one_write_is_refused_writes_nothing(
    store: Store, commit: Callable[..., None], refused: list[Write]
) -> None:
    commit(PutWorkflow(FLOW, NOW), PutTask(FLOW, A, '"a"'), PutEdge(FLOW, A, B))
    commit(PutRun(RUN, FLOW, GRAPH, NOW), message(1))

    def state() -> tuple[object, ...]:
        return (
            store.load_workflow(FLOW),
            store.load_workflow(WorkflowId("new")),
            store.list_runs(99),
            store.load_messages(RUN, 0, 99),
            store.load_values(RUN),
            store.load_blob(GRAPH),
            store.load_nodes(),
            store.load_reply("key"),
        )

    before = state()
    with pytest.raises(StoreRefusedError):
        commit(
            PutWorkflow(WorkflowId("new"), NOW),
            PutTask(FLOW, A, '"changed"'),
            DeleteTask(FLOW, B),
            PutBlob(GRAPH, b"graph"),
            finish(2, A, x=Value(1, inline=b"1")),
            *refused,
            PutRun(RunId("new"), FLOW, GRAPH, NOW),
            FinishRun(RUN, "failed", NOW),
            message(3),
            PutNode(NodeId("node"), "{}"),
            PutReply("key", "print", "{}", NOW),
        )
    assert state() == before
    commit(message(2), FinishRun(RUN, "failed", NOW))
    assert len(store.load_messages(RUN, 0, 99)) == 2


# -- a group of writes amounts to its writes one after another ---------------------------------

_task_ids = st.sampled_from([A, B, C])
_edits = st.one_of(
    st.builds(PutTask, st.just(FLOW), _task_ids, st.sampled_from(["1", "2"])),
    st.builds(DeleteTask, st.just(FLOW), _task_ids),
    st.builds(PutEdge, st.just(FLOW), _task_ids, _task_ids),
    st.builds(DeleteEdge, st.just(FLOW), _task_ids, _task_ids),
)
_examples = count()


@settings(
    max_examples=40,
    deadline=None,
    # Examples share the store, and each has a workflow of its own in it.
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(edits=st.lists(_edits, max_size=12))
def test_any_edits_as_one_group_give_what_they_give_one_by_one(
    store: Store, edits: list[PutTask | DeleteTask | PutEdge | DeleteEdge]
) -> None:
    flow = WorkflowId(f"flow-{next(_examples)}")
    moved = [replace(edit, workflow_id=flow) for edit in edits]
    model = MemoryStore()
    lease = model.acquire_lease()
    for write in (PutWorkflow(flow, NOW), *moved):
        model.commit(lease, [write])
    store.commit(store.acquire_lease(), [PutWorkflow(flow, NOW), *moved])
    assert store.load_workflow(flow) == model.load_workflow(flow)


# -- text --------------------------------------------------------------------------------------

TEXTS = [
    "žluťoučký 任务 🚀 \u2028",
    "quote ' double \" percent %s %(x)s colon :name back\\slash",
    "\x01\t\r\n\x7f",
    "",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_is_stored_as_it_is(store: Store, commit: Callable[..., None], text: str) -> None:
    document = json.dumps({"type": "finish_task", "data": {"text": text}}, ensure_ascii=False)
    task_id = TaskId(text)
    commit(
        PutWorkflow(WorkflowId(text), NOW),
        PutTask(WorkflowId(text), task_id, document),
        PutRun(RunId(text), WorkflowId(text), GRAPH, NOW),
        AppendMessage(RunId(text), 1, document, task_id, {text: Value(1, location=text)}),
        PutReply(text, text, document, NOW),
    )
    record = store.load_workflow(WorkflowId(text))
    assert record is not None
    assert record.tasks == (document,)
    assert run_ids(store.list_runs(9, workflow_id=WorkflowId(text))) == [text]
    assert store.load_messages(RunId(text), 0, 9) == [document]
    assert store.load_values(RunId(text)) == {task_id: {text: Value(1, location=text)}}
    assert store.load_task_result(RunId(text), task_id) == document
    assert store.load_reply(text) == ReplyRecord(text, text, document)


def test_json_text_of_a_nul_and_of_half_a_surrogate_pair_is_stored(
    store: Store, commit: Callable[..., None]
) -> None:
    document = json.dumps({"data": "\x00 \ud83d"})
    commit(AppendMessage(RUN, 1, document))
    assert store.load_messages(RUN, 0, 9) == [document]


@pytest.mark.parametrize("text", ["a\x00b", "\ud83d"], ids=["nul", "surrogate"])
def test_ids_that_no_database_can_hold_are_not_found(store: Store, text: str) -> None:
    assert store.load_workflow(WorkflowId(text)) is None
    assert store.load_run(RunId(text)) is None
    assert store.list_runs(9, workflow_id=WorkflowId(text)) == []
    assert store.list_runs(9, before=RunId(text)) == []
    assert store.load_messages(RunId(text), 0, 9) == []
    assert store.load_task_values(RUN, TaskId(text)) == {}
    assert store.load_task_result(RUN, TaskId(text)) is None
    assert store.load_reply(text) is None


def test_no_message_comes_after_a_seq_beyond_all_numbers(
    store: Store, commit: Callable[..., None]
) -> None:
    commit(message(1))
    assert store.load_messages(RUN, 2**70, 9) == []


# -- many threads ------------------------------------------------------------------------------


def test_threads_commit_and_read_at_once(store: Store) -> None:
    """Every commit of every thread is there in the end, and nobody ever sees half of one."""
    lease = store.acquire_lease()
    writers, commits, group = 4, 10, 5
    together = threading.Barrier(writers + 2)
    all_written = threading.Event()

    def write(number: int) -> None:
        run_id = RunId(f"run-{number}")
        together.wait(30)
        store.commit(lease, [PutRun(run_id, FLOW, GRAPH, float(number))])
        for first in range(1, commits * group, group):
            store.commit(lease, [message(first + i, run_id=run_id) for i in range(group)])

    def read() -> None:
        together.wait(30)
        while not all_written.is_set():
            for run in store.unfinished_runs():
                documents = store.load_messages(run.run_id, 0, 999)
                seqs = [json.loads(document)["data"]["seq"] for document in documents]
                assert seqs == list(range(1, len(seqs) + 1))
                assert len(seqs) % group == 0

    with ThreadPoolExecutor(writers + 2) as pool:
        reading = [pool.submit(read) for _ in range(2)]
        writing = [pool.submit(write, number) for number in range(writers)]
        try:
            for future in writing:
                future.result(60)
        finally:
            all_written.set()
        for future in reading:
            future.result(60)
    for number in range(writers):
        assert len(store.load_messages(RunId(f"run-{number}"), 0, 999)) == commits * group


class HeldValues(Mapping[str, Value]):
    """Values that nobody gets to see before `go_on`."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.values_in_the_end = values
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __getitem__(self, key: str) -> Value:
        return self.values_in_the_end[key]

    def __len__(self) -> int:
        return len(self.values_in_the_end)

    def __iter__(self) -> Iterator[str]:
        self.reached.set()
        assert self.go_on.wait(30)
        return iter(self.values_in_the_end)


def test_a_message_is_never_seen_without_its_values(store: Store) -> None:
    lease = store.acquire_lease()
    values = HeldValues({"x": Value(1, inline=b"1")})
    with ThreadPoolExecutor(2) as pool:
        committing = pool.submit(
            store.commit, lease, [AppendMessage(RUN, 1, "{}", A, values), message(2)]
        )
        assert values.reached.wait(30)
        reading = pool.submit(lambda: (store.load_messages(RUN, 0, 9), store.load_values(RUN)))
        # A store may read now, or wait for the commit. A longer look could only find more defects.
        wait([reading], timeout=0.2)
        values.go_on.set()
        committing.result(30)
        seen_messages, seen_values = reading.result(30)
    assert (len(seen_messages), len(seen_values)) in [(0, 0), (2, 1)]
    assert len(store.load_messages(RUN, 0, 9)) == 2


def test_of_many_that_take_the_lease_at_once_one_can_commit(store: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        leases = list(pool.map(lambda _: store.acquire_lease(), range(8)))
    assert len(set(leases)) == 8
    for lease in sorted(leases)[:-1]:
        with pytest.raises(LeaseLostError):
            store.commit(lease, [])
    store.commit(max(leases), [])


# -- URLs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        "",
        "memory",
        "lattice.db",
        "sqlite://",
        "sqlite:///:memory:",
        "sqlite:///file:lattice.db?uri=true",
        "sqlite+aiosqlite:///lattice.db",
        "sqlite:///lattice.db?timeout=soon",
        "mysql://user:secret@host/lattice",
        "nothing://user:secret@host/lattice",
        "postgresql+asyncpg://user:secret@host/lattice",
        "postgresql+psycopg://user:secret@host:port/lattice",
    ],
)
def test_a_url_of_no_store_is_refused_without_telling_its_password(broken: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        open_store(broken)
    assert caught.value.field == "store_url"
    assert "sqlite:///PATH" in str(caught.value) or "timeout" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_what_is_whose(store: Store, commit: Callable[..., None]) -> None:
    """Workflows and runs keep their tenant; a tenant's runs are listed by themselves, in pages."""
    owners = {"a": ALICE, "b": BOB, "c": None}
    for name, owner in owners.items():
        flow = WorkflowId(name)
        commit(PutWorkflow(flow, NOW, owner))
        commit(*(PutRun(RunId(f"{name}{n}"), flow, GRAPH, NOW + n, tenant=owner) for n in range(3)))
    commit(PutWorkflow(WorkflowId("a-second"), NOW, ALICE))
    for name, owner in owners.items():
        workflow, run = store.load_workflow(WorkflowId(name)), store.load_run(RunId(f"{name}0"))
        assert workflow is not None
        assert run is not None
        assert (workflow.tenant, run.tenant) == (owner, owner)
    assert store.count_workflows() == {ALICE: 2, BOB: 1, None: 1}
    assert [run.run_id for run in store.list_runs(9, tenant=ALICE)] == ["a2", "a1", "a0"]
    older = store.list_runs(1, tenant=BOB, before=RunId("b2"), status="running")
    assert [run.run_id for run in older] == ["b1"]
    assert store.list_runs(9, tenant=Tenant("nobody")) == []
    assert len(store.list_runs(99)) == 9
    assert {run.tenant for run in store.unfinished_runs()} == {ALICE, BOB, None}
