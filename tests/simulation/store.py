"""A database that outlives its processes, and the way to it, which fails: before a commit and after it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from lattice.errors import StoreUnavailableError
from lattice.ids import Digest, RunId, TaskId, Tenant, WorkflowId
from lattice.ports.store import ReplyRecord, RunRecord, WorkflowRecord, Write
from lattice.store.memory import MemoryStore
from lattice.workflow.events import Value
from tests.simulation.ledger import Account, Ledger
from tests.simulation.nature import Nature


class CrashingStore:
    """The `Store` of one process, over the database that all processes share.

    A commit may kill its process before or after it took effect, or fail before or after it: the caller
    of a commit that failed cannot know which. Reads may fail too. An outage goes on for a while.
    """

    def __init__(
        self,
        account: Account,
        database: MemoryStore,
        ledger: Ledger,
        nature: Nature,
        kill: Callable[[], None],
    ) -> None:
        self._account = account
        self._database = database
        self._ledger = ledger
        self._nature = nature
        self._kill = kill
        self._number: int | None = None
        self._away_until = float("-inf")

    def acquire_lease(self) -> int:
        """Takes the lease; the ledger remembers who holds it."""
        lease = self._database.acquire_lease()
        self._ledger.took_charge(self._account)
        return lease

    def commit(self, lease: int, writes: Sequence[Write], number: int | None = None) -> None:
        """Commits, or does not, or does and does not say so."""
        self._strike("before")
        self._database.commit(lease, writes, number)
        if not writes or number != self._number:
            self._ledger.committed(self._account, writes)
            self._number = number
        self._strike("after")

    def load_workflow(self, workflow_id: WorkflowId) -> WorkflowRecord | None:
        """A workflow with its tasks and explicit edges, or None."""
        self._read()
        return self._database.load_workflow(workflow_id)

    def load_blob(self, digest: Digest) -> bytes | None:
        """The bytes under `digest`, or None."""
        self._read()
        return self._database.load_blob(digest)

    def load_run(self, run_id: RunId) -> RunRecord | None:
        """A run, or None."""
        self._read()
        return self._database.load_run(run_id)

    def list_runs(
        self,
        limit: int,
        *,
        workflow_id: WorkflowId | None = None,
        status: str | None = None,
        before: RunId | None = None,
        tenant: Tenant | None = None,
    ) -> list[RunRecord]:
        """Runs, newest first."""
        self._read()
        return self._database.list_runs(
            limit, workflow_id=workflow_id, status=status, before=before, tenant=tenant
        )

    def count_workflows(self) -> dict[Tenant | None, int]:
        """How many workflows each tenant has."""
        self._read()
        return self._database.count_workflows()

    def unfinished_runs(self) -> list[RunRecord]:
        """Every run whose status is `running`, oldest first."""
        self._read()
        return self._database.unfinished_runs()

    def load_messages(self, run_id: RunId, after: int, limit: int) -> list[str]:
        """Messages of a run with a seq above `after`."""
        self._read()
        return self._database.load_messages(run_id, after, limit)

    def load_values(self, run_id: RunId) -> dict[TaskId, dict[str, Value]]:
        """The outputs of a run's finished tasks."""
        self._read()
        return self._database.load_values(run_id)

    def load_task_values(self, run_id: RunId, task_id: TaskId) -> dict[str, Value]:
        """The outputs of a task."""
        self._read()
        return self._database.load_task_values(run_id, task_id)

    def load_task_result(self, run_id: RunId, task_id: TaskId) -> str | None:
        """The JSON text of a task's `finish_task` message, or None."""
        self._read()
        return self._database.load_task_result(run_id, task_id)

    def load_nodes(self) -> list[str]:
        """The registered nodes."""
        self._read()
        return self._database.load_nodes()

    def load_reply(self, key: str) -> ReplyRecord | None:
        """The stored answer for an idempotency key, or None."""
        self._read()
        return self._database.load_reply(key)

    def close(self) -> None:
        """The database stays."""

    def _strike(self, when: str) -> None:
        mood = self._nature.mood
        if self._nature.strikes(mood.crash_in_commit / 2):
            self._ledger.note(f"process {self._account.number} dies {when} a commit")
            self._kill()
            raise StoreUnavailableError("the process is dead")
        if self._away(mood.outage / 2):
            self._ledger.note(f"process {self._account.number} has an outage {when} a commit")
            raise StoreUnavailableError(f"an outage {when} the commit")

    def _read(self) -> None:
        if self._away(self._nature.mood.outage / 4):
            self._ledger.note(f"process {self._account.number} cannot read")
            raise StoreUnavailableError("an outage")

    def _away(self, rate: float) -> bool:
        now = asyncio.get_running_loop().time()
        if self._nature.strikes(rate):
            self._away_until = now + self._nature.delay(1.0)
            return True
        return now < self._away_until and not self._nature.calm
