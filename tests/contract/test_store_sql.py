"""What the stores in a database do beyond the common suite: they last, and their schema is kept."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, event, text

from lattice.errors import LeaseLostError, StoreRefusedError, StoreUnavailableError
from lattice.ids import Digest, NodeId, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.removal import (
    DeleteMessages,
    DeleteReplies,
    DeleteRun,
    DeleteUnusedBlobs,
    DeleteValues,
    DropNote,
    PutNote,
)
from lattice.ports.store import (
    AppendMessage,
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
    Store,
)
from lattice.store import open_store
from lattice.store.database import connect, for_writing
from lattice.store.tables import metadata
from lattice.workflow.events import Value
from tests.postgresql import PostgresqlServer

FLOW = WorkflowId("flow")
RUN = RunId("run")
TASK = TaskId("task")
GRAPH = Digest("d" * 64)
#: How long to look whether something waits that must, in seconds. Too short could only hide a defect.
BLOCKED = 0.3
RESULT = '{"type":"finish_task","data":{}}'


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "new" / "lattice.db"


@pytest.fixture
def sqlite_url(sqlite_path: Path) -> str:
    return f"sqlite:///{sqlite_path}"


@pytest.fixture(params=["sqlite_url", "postgresql_url"])
def url(request: pytest.FixtureRequest) -> str:
    found: str = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with closing(open_store(url)) as opened:
        yield opened


@contextmanager
def connected(url: str) -> Iterator[Engine]:
    """The database without a store."""
    engine = connect(url)
    try:
        yield engine
    finally:
        engine.dispose()


@contextmanager
def held_at(fragment: str) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Holds each statement that contains `fragment`: events that one is reached, and to let it go."""
    reached, go_on = threading.Event(), threading.Event()

    def hold(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if fragment in statement:
            reached.set()
            assert go_on.wait(30)

    event.listen(Engine, "before_cursor_execute", hold)
    try:
        yield reached, go_on
    finally:
        go_on.set()
        event.remove(Engine, "before_cursor_execute", hold)


# -- durability --------------------------------------------------------------------------------


def test_everything_is_there_after_a_restart(url: str) -> None:
    with closing(open_store(url)) as store:
        old = store.acquire_lease()
        store.commit(
            old,
            [
                PutWorkflow(FLOW, 1.5),
                PutBlob(GRAPH, b"graph"),
                PutRun(RUN, FLOW, GRAPH, 2.5),
                AppendMessage(RUN, 1, RESULT, TASK, {"x": Value(1, inline=b"1")}),
                PutNode(NodeId("node"), "{}"),
                PutReply("key", "print", "{}", 3.5),
            ],
        )
    with closing(open_store(url)) as store:
        assert store.load_workflow(FLOW) is not None
        assert store.load_blob(GRAPH) == b"graph"
        assert [run.run_id for run in store.unfinished_runs()] == [RUN]
        assert store.load_messages(RUN, 0, 9) == [RESULT]
        assert store.load_values(RUN) == {TASK: {"x": Value(1, inline=b"1")}}
        assert store.load_nodes() == ["{}"]
        assert store.load_reply("key") == ReplyRecord("key", "print", "{}")
        new = store.acquire_lease()
        assert new > old
        with pytest.raises(LeaseLostError):
            store.commit(old, [])


_COMMIT_AND_STOP = """
import sys
from sqlalchemy import Engine, event
from lattice.ports.store import AppendMessage, PutRun
from lattice.store import open_store

def stop(*_):
    print("stopped", flush=True)
    sys.stdin.read()

url, where = sys.argv[1:]
store = open_store(url)
lease = store.acquire_lease()
if where == "before":
    event.listen(Engine, "commit", stop)
store.commit(lease, [PutRun("run", "flow", "graph", 1.0), AppendMessage("run", 1, "{}")])
stop()
"""


@pytest.mark.parametrize(("where", "found"), [("before", []), ("after", ["{}"])])
def test_a_process_killed_around_a_commit_leaves_all_of_it_or_nothing(
    url: str, where: str, found: list[str]
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMIT_AND_STOP, url, where],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"stopped\n"
        process.kill()
    with closing(open_store(url)) as store:
        lease = store.acquire_lease()
        assert store.load_messages(RUN, 0, 9) == found
        assert (store.load_run(RUN) is not None) == bool(found)
        store.commit(lease, [AppendMessage(RUN, 2, "{}")])


def test_sqlite_commits_are_synced_to_the_disk(sqlite_url: str) -> None:
    with connected(sqlite_url) as engine, for_writing(engine).begin() as connection:
        full = 2
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == full
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"


def test_an_sqlite_file_is_for_its_user_alone(sqlite_path: Path, sqlite_url: str) -> None:
    with closing(open_store(sqlite_url)):
        assert stat.S_IMODE(sqlite_path.parent.stat().st_mode) == 0o700
        files = list(sqlite_path.parent.iterdir())
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


# -- a commit under way ------------------------------------------------------------------------


def test_readers_neither_wait_for_a_commit_nor_see_a_part_of_it(store: Store) -> None:
    lease = store.acquire_lease()
    store.commit(lease, [PutRun(RUN, FLOW, GRAPH, 1.0)])
    with held_at("UPDATE runs") as (reached, go_on), ThreadPoolExecutor(1) as pool:
        committing = pool.submit(
            store.commit, lease, [AppendMessage(RUN, 1, "{}"), FinishRun(RUN, "failed", 2.0)]
        )
        assert reached.wait(30)
        assert store.load_messages(RUN, 0, 9) == []
        assert [run.run_id for run in store.unfinished_runs()] == [RUN]
        go_on.set()
        committing.result(30)
    assert store.load_messages(RUN, 0, 9) == ["{}"]
    assert store.unfinished_runs() == []


def test_a_workflow_is_read_as_it_was_at_one_moment(store: Store) -> None:
    lease = store.acquire_lease()
    other = TaskId("other")
    store.commit(lease, [PutWorkflow(FLOW, 1.0), PutTask(FLOW, TASK, "{}")])
    store.commit(lease, [PutEdge(FLOW, TASK, other)])
    # The statement that deletes edges has another spelling than the one that reads them.
    with held_at("\nFROM edges") as (reached, go_on), ThreadPoolExecutor(1) as pool:
        loading = pool.submit(store.load_workflow, FLOW)
        assert reached.wait(30)
        store.commit(lease, [DeleteTask(FLOW, TASK)])
        go_on.set()
        record = loading.result(30)
    assert record is not None
    assert (record.tasks, record.edges) == (("{}",), ((TASK, other),))


def test_a_new_lease_waits_for_the_commit_under_way(url: str) -> None:
    """The old orchestrator's last commit is whole before the new one begins to read."""
    with closing(open_store(url)) as old_store, closing(open_store(url)) as new_store:
        old = old_store.acquire_lease()
        with held_at("INSERT INTO messages") as (reached, go_on), ThreadPoolExecutor(2) as pool:
            committing = pool.submit(old_store.commit, old, [AppendMessage(RUN, 1, "{}")])
            assert reached.wait(30)
            acquiring = pool.submit(
                lambda: (new_store.acquire_lease(), new_store.load_messages(RUN, 0, 9))
            )
            assert not wait([acquiring], BLOCKED).done
            go_on.set()
            committing.result(30)
            new, seen = acquiring.result(30)
        assert new > old
        assert seen == ["{}"]
        with pytest.raises(LeaseLostError) as caught:
            old_store.commit(old, [AppendMessage(RUN, 2, "{}")])
        assert (caught.value.held, caught.value.current) == (old, new)
        assert new_store.load_messages(RUN, 0, 9) == ["{}"]


# -- a database that refuses -------------------------------------------------------------------


def test_a_refusal_has_the_words_of_the_database_and_no_user_data(store: Store) -> None:
    lease = store.acquire_lease()
    store.commit(lease, [AppendMessage(RUN, 1, "{}")])
    with pytest.raises(StoreRefusedError, match=r"(?i)unique.*messages") as caught:
        store.commit(lease, [AppendMessage(RUN, 1, '"secret"')])
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


def test_text_that_is_not_unicode_is_refused(store: Store) -> None:
    with pytest.raises(StoreRefusedError, match="not Unicode"):
        store.commit(store.acquire_lease(), [AppendMessage(RUN, 1, "\ud83d")])


def test_a_file_that_is_no_database_is_refused(sqlite_path: Path, sqlite_url: str) -> None:
    sqlite_path.parent.mkdir()
    sqlite_path.write_bytes(b"something else" * 1000)
    with pytest.raises(StoreRefusedError, match="file is not a database"):
        open_store(sqlite_url)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailableError, match="file"):
        open_store(f"sqlite:///{tmp_path}/file/lattice.db")


def test_a_lock_is_waited_for_as_long_as_the_url_says(sqlite_path: Path, sqlite_url: str) -> None:
    with closing(open_store(f"{sqlite_url}?timeout=0.05")) as store:
        lease = store.acquire_lease()
        with closing(sqlite3.connect(sqlite_path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailableError, match="locked"):
                store.commit(lease, [AppendMessage(RUN, 1, "{}")])
            assert store.load_messages(RUN, 0, 9) == []
        store.commit(lease, [AppendMessage(RUN, 1, "{}")])


def test_a_server_that_is_not_there_is_unavailable(postgresql_server: PostgresqlServer) -> None:
    with pytest.raises(StoreUnavailableError, match='database "nowhere" does not exist'):
        open_store(postgresql_server.url("nowhere"))
    with pytest.raises(StoreUnavailableError, match="No such file"):
        open_store(postgresql_server.url("lattice") + "/nowhere")


def test_what_a_server_will_never_take_is_refused(postgresql_url: str) -> None:
    """To be asked for the same again and again would not end."""
    key = "".join(map(chr, Random(1).choices(range(0x4E00, 0x9FFF), k=2_000)))
    write = AppendMessage(RUN, 1, "{}", TaskId("t"), {key: Value(1, inline=b"1")})
    with (
        closing(open_store(postgresql_url)) as store,
        pytest.raises(StoreRefusedError, match="index row size"),
    ):
        store.commit(store.acquire_lease(), [write])


def test_connections_that_the_server_has_cut_are_replaced(postgresql_url: str) -> None:
    with closing(open_store(postgresql_url)) as store, connected(postgresql_url) as engine:
        lease = store.acquire_lease()
        with engine.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        store.commit(lease, [AppendMessage(RUN, 1, "{}")])
        assert store.load_messages(RUN, 0, 9) == ["{}"]


# -- the schema --------------------------------------------------------------------------------


def test_the_migrations_lead_to_the_tables_of_the_code(url: str) -> None:
    with closing(open_store(url)), connected(url) as engine, engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_a_database_of_a_newer_version_is_refused_and_left_alone(url: str) -> None:
    with closing(open_store(url)) as store:
        store.commit(store.acquire_lease(), [PutWorkflow(FLOW, 1.0)])
    with connected(url) as engine:
        with for_writing(engine).begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(StoreRefusedError, match=r"revision 9999.*newest is 0005"):
            open_store(url)
        with engine.connect() as connection:
            found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one()
            assert found == "9999"


def test_a_migration_that_fails_leaves_nothing(url: str) -> None:
    with connected(url) as engine:
        with for_writing(engine).begin() as connection:
            connection.execute(text("CREATE TABLE replies (something_else INTEGER)"))
        with pytest.raises(StoreUnavailableError, match="replies"):
            open_store(url)
        with for_writing(engine).begin() as connection:
            connection.execute(text("DROP TABLE replies"))
    with closing(open_store(url)) as store:
        store.acquire_lease()


_OPEN_WHEN_TOLD = """
import sys
from lattice.store import open_store

print("ready", flush=True)
sys.stdin.readline()
store = open_store(sys.argv[1])
print(store.acquire_lease(), flush=True)
store.close()
"""


@contextmanager
def ready_to_open(url: str, number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that open the store and take the lease when they are sent a line."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", _OPEN_WHEN_TOLD, url],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            for _ in range(number)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        yield processes


def test_processes_may_open_a_new_database_at_once(url: str) -> None:
    with ready_to_open(url, 3) as processes:
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        leases = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert sorted(leases) == ["1", "2", "3"]


def test_a_process_waits_for_the_migration_of_another(url: str) -> None:
    with (
        ready_to_open(url, 1) as (process,),
        held_at("CREATE TABLE replies") as (reached, go_on),
        ThreadPoolExecutor(1) as pool,
    ):
        opening = pool.submit(open_store, url)
        assert reached.wait(30)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate("go\n", timeout=BLOCKED)
        go_on.set()
        opening.result(30).close()
        assert process.communicate(timeout=60)[0] == "1\n"


def test_threads_may_open_new_databases_at_once(tmp_path: Path) -> None:
    """Even different ones: what Alembic keeps in global variables is never shared."""
    with held_at("CREATE TABLE runs") as (reached, go_on), ThreadPoolExecutor(2) as pool:
        first = pool.submit(open_store, f"sqlite:///{tmp_path}/first.db")
        assert reached.wait(30)
        second = pool.submit(open_store, f"sqlite:///{tmp_path}/second.db")
        assert not wait([second], BLOCKED).done
        go_on.set()
        for opening in (first, second):
            with closing(opening.result(30)) as store:
                assert store.acquire_lease() == 1


# -- what finished runs cost -------------------------------------------------------------------


@contextmanager
def recorded_plans(path: Path) -> Iterator[list[str]]:
    """How SQLite goes about each statement that is executed, step by step."""
    executed: list[tuple[str, Any]] = []
    plans: list[str] = []

    def record(
        _connection: object, _cursor: object, statement: str, parameters: Any, *_: object
    ) -> None:
        if not statement.startswith(("BEGIN", "PRAGMA")):
            executed.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        yield plans
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    with closing(sqlite3.connect(path)) as connection:
        for statement, parameters in executed:
            rows = parameters if isinstance(parameters, list) else [parameters]
            plan = connection.execute(f"EXPLAIN QUERY PLAN {statement}", rows[0]).fetchall()
            plans.extend(step[-1] for step in plan)


def test_the_hot_path_finds_everything_by_an_index(sqlite_path: Path, sqlite_url: str) -> None:
    with closing(open_store(sqlite_url)) as store:
        with recorded_plans(sqlite_path) as plans:
            store.unfinished_runs()
            store.load_messages(RUN, 0, 100)
            store.load_task_result(RUN, TASK)
            store.load_values(RUN)
            store.load_task_values(RUN, TASK)
            store.load_run(RUN)
        assert [plan.replace("USING INDEX ", "") for plan in plans] == [
            "SEARCH runs ix_runs_status_created_position (status=?)",
            "SEARCH messages sqlite_autoindex_messages_1 (run_id=? AND seq>?)",
            "SEARCH messages ix_messages_run_id_task_id_seq (run_id=? AND task_id=?)",
            "SEARCH task_values sqlite_autoindex_task_values_1 (run_id=?)",
            "SEARCH task_values sqlite_autoindex_task_values_1 (run_id=? AND task_id=?)",
            "SEARCH runs sqlite_autoindex_runs_1 (run_id=?)",
        ]
        lease = store.acquire_lease()
        store.commit(lease, [PutRun(RUN, FLOW, GRAPH, 1.0)])
        with recorded_plans(sqlite_path) as plans:
            value = Value(1, inline=b"1")
            store.commit(lease, [AppendMessage(RUN, 1, RESULT, TASK, {"x": value})])
            store.commit(lease, [PutBlob(GRAPH, b""), FinishRun(RUN, "failed", 2.0)])
        assert set(plans) == {
            "SCAN lease",
            "SEARCH runs USING INDEX sqlite_autoindex_runs_1 (run_id=?)",
        }


def test_a_page_of_runs_is_read_in_the_order_of_an_index(
    sqlite_path: Path, sqlite_url: str
) -> None:
    with closing(open_store(sqlite_url)) as store:
        store.commit(store.acquire_lease(), [PutRun(RUN, FLOW, GRAPH, 1.0)])
        with recorded_plans(sqlite_path) as plans:
            store.list_runs(10)
            store.list_runs(10, workflow_id=FLOW)
            store.list_runs(10, status="failed")
            store.list_runs(10, before=RUN)
            store.list_runs(10, workflow_id=FLOW, status="failed", before=RUN)
        assert all("USING INDEX" in step for step in plans), plans


def test_housekeeping_finds_everything_by_an_index(sqlite_path: Path, sqlite_url: str) -> None:
    """However many runs have finished, what has to go is found without a look at the others."""
    with closing(open_store(sqlite_url)) as store:
        lease = store.acquire_lease()
        with recorded_plans(sqlite_path) as plans:
            store.finished_runs(10, before=5.0)
            store.finished_runs(10, keep=5)
            store.finished_runs(10, workflow_id=FLOW)
            store.due_notes(5.0, 10)
            store.leftovers(RUN, 10)
            store.referenced(["a", "b"])
            store.blobs_after(GRAPH, 10)
            store.replies_before(5.0, 10)
            store.commit(
                lease,
                [
                    DeleteRun(RUN, 5.0),
                    PutNote(RUN, 5.0),
                    DropNote(RUN, 5.0),
                    DeleteMessages(RUN, 5),
                    DeleteValues(RUN, ((TASK, "x"),)),
                    DeleteUnusedBlobs((GRAPH,)),
                    DeleteReplies(("key",)),
                ],
            )
        searches = [plan for plan in plans if "SCALAR SUBQUERY" not in plan]
        assert all(plan.startswith("SEARCH") or plan == "SCAN lease" for plan in searches), plans
        assert not any("TEMP B-TREE" in plan for plan in plans), plans


def test_pages_of_a_tenants_runs_are_read_in_order_by_an_index(
    sqlite_path: Path, sqlite_url: str
) -> None:
    """Whatever others have, and without an entry for runs that are nobody's."""
    with closing(open_store(sqlite_url)) as store, recorded_plans(sqlite_path) as plans:
        store.list_runs(10, tenant=Tenant("alice"))
    assert plans == ["SEARCH runs USING INDEX ix_runs_tenant_created_position (tenant=?)"]


def test_finished_runs_of_a_workflow_are_found_among_its_own(
    sqlite_path: Path, sqlite_url: str
) -> None:
    """However many its tenant has."""
    with closing(open_store(sqlite_url)) as store, recorded_plans(sqlite_path) as plans:
        store.finished_runs(10, workflow_id=FLOW, tenant=Tenant("alice"))
    assert plans == ["SEARCH runs USING INDEX ix_runs_workflow_id_created_position (workflow_id=?)"]
