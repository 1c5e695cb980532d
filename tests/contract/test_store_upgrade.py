"""A database that an older version of Lattice has used is brought to the present, with all that is in it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import Engine, text

from lattice.ids import Digest, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.removal import DeleteUnusedBlobs
from lattice.ports.store import LogRecord, PutLog, PutWorkflow, RunRecord
from lattice.store import open_store
from lattice.store.database import connect, for_writing
from lattice.store.tables import metadata
from lattice.workflow.events import Value

ROWS = [
    "INSERT INTO lease VALUES (1, 7)",
    "INSERT INTO workflows VALUES ('flow', 1.5)",
    "INSERT INTO edges VALUES (1, 'flow', 'a', 'b')",
    "INSERT INTO runs VALUES (1, 'done', 'flow', 'graph', 'failed', 2.5, 3.5)",
    "INSERT INTO runs VALUES (2, 'live', 'flow', 'graph', 'running', 4.5, NULL)",
    "INSERT INTO runs VALUES (3, 'lost', 'flow', 'missing', 'failed', 5.5, 6.5)",
    "INSERT INTO messages VALUES ('done', 1, 'a', '{\"type\": \"start_task\"}')",
    "INSERT INTO task_values VALUES ('done', 'a', 'x', 9, NULL, 'runs/done/a/1/x')",
    "INSERT INTO nodes VALUES (1, 'node', '{}')",
    "INSERT INTO replies VALUES ('key', 'print', '{}', 8.5)",
]


def document(task_id: str, code: str | None) -> str:
    found = None if code is None else {"digest": code, "form": "source", "name": "f"}
    return json.dumps({"task_id": task_id, "task_name": task_id, "code": found})


def fill(engine: Engine) -> None:
    """What revision 0001 would have: drafts, a shared code, a code that only a run uses, an unused one."""
    graph = {
        "tasks": [json.loads(document(name, code)) for name, code in (("a", "c1"), ("b", "c2"))]
    }
    with for_writing(engine).begin() as connection:
        for row in ROWS:
            connection.execute(text(row))
        for position, (task_id, code) in enumerate(
            {"a": "c1", "b": "c3", "draft": None}.items(), 1
        ):
            connection.execute(
                text("INSERT INTO tasks VALUES (:position, 'flow', :task_id, :document)"),
                {"position": position, "task_id": task_id, "document": document(task_id, code)},
            )
        blobs = {
            "c1": b"1",
            "c2": b"2",
            "c3": b"3",
            "c4": b"4",
            "graph": json.dumps(graph).encode(),
        }
        for digest, data in blobs.items():
            connection.execute(
                text("INSERT INTO blobs VALUES (:digest, :data)"), {"digest": digest, "data": data}
            )


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/lattice.db"
    found: str = request.getfixturevalue("postgresql_url")
    return found


@pytest.fixture
def old_database(url: str) -> Iterator[Engine]:
    """A database that revision 0001 has made, with data in it."""
    engine = connect(url)
    with for_writing(engine).begin() as connection:
        config = Config()
        config.set_main_option("script_location", "lattice.store:migrations")
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
    fill(engine)
    yield engine
    engine.dispose()


def test_revision_0001_is_upgraded_with_its_data(old_database: Engine, url: str) -> None:
    """All is there, runs that were under way too; the schema is that of the code."""
    with closing(open_store(url)) as store:
        live = RunRecord(RunId("live"), WorkflowId("flow"), Digest("graph"), "running", 4.5, None)
        assert store.unfinished_runs() == [live]
        assert [run.run_id for run in store.list_runs(9)] == ["lost", "live", "done"]
        assert store.finished_runs(9) == ["done", "lost"]
        workflow = store.load_workflow(WorkflowId("flow"))
        assert workflow is not None
        assert [json.loads(task)["task_id"] for task in workflow.tasks] == ["a", "b", "draft"]
        assert len(store.load_messages(RunId("done"), 0, 9)) == 1
        stored = {TaskId("a"): {"x": Value(9, location="runs/done/a/1/x")}}
        assert store.load_values(RunId("done")) == stored
        assert store.referenced(["runs/done/a/1/x"]) == {"runs/done/a/1/x"}
        assert store.load_reply("key") is not None
        # What was there before there were tenants is nobody's; what comes now has one.
        assert workflow.tenant is live.tenant is None
        assert store.count_workflows() == {None: 1}
        assert store.acquire_lease() == 8
        store.commit(8, [PutLog(RunId("done"), TaskId("a"), 1, 0, "[]")])
        assert store.load_logs(RunId("done"), 9) == [LogRecord(TaskId("a"), 1, 0, "[]")]
        alice = Tenant("alice")
        store.commit(8, [PutWorkflow(WorkflowId("hers"), 9.5, alice)])
        assert store.list_runs(9, tenant=alice) == []
        assert store.count_workflows() == {None: 1, alice: 1}
    with old_database.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, metadata) == []


def test_codes_of_before_are_known_to_be_in_use(old_database: Engine, url: str) -> None:
    """What a task or a run of before refers to stays; what nobody refers to may go."""
    with closing(open_store(url)) as store:
        lease = store.acquire_lease()
        everything = tuple(store.blobs_after(Digest(""), 99))
        store.commit(lease, [DeleteUnusedBlobs(everything)])
        assert store.blobs_after(Digest(""), 99) == ["c1", "c2", "c3", "graph"]
