"""The parts of an orchestrator in charge: how they are put together, started in order, and closed in order."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lattice.errors import LatticeError, StoreRefusedError, StoreUnavailableError
from lattice.ids import Digest, NodeId, RunId, Tenant
from lattice.orchestrator.catalogue import Catalogue
from lattice.orchestrator.feed import Feed
from lattice.orchestrator.housekeeping import Housekeeping
from lattice.orchestrator.journal import Journal
from lattice.orchestrator.logs import TaskLogs
from lattice.orchestrator.nodes import NodeRegistry
from lattice.orchestrator.observer import Observer
from lattice.orchestrator.placing import Placing
from lattice.orchestrator.policies import Defaults, Limits, Retention, Tenancy
from lattice.orchestrator.quotas import Quotas
from lattice.orchestrator.reading import Reading
from lattice.orchestrator.recovery import Graphs, end_unread, rebuild_each
from lattice.orchestrator.replies import Replies
from lattice.orchestrator.runs import Runs
from lattice.orchestrator.starts import Starts
from lattice.ports.environment import Clock, Gauges, IdSource, Telemetry
from lattice.ports.execution import Dispatcher
from lattice.ports.secrets import NoSecrets, Secrets
from lattice.ports.store import Store, ValueStorage, Write
from lattice.ports.tracing import Traces
from lattice.workflow.placement import check as check_placement
from lattice.workflow.states import RunStatus
from lattice.workflow.task import Resources

_log = logging.getLogger(__name__)

#: The list of the engine's nodes is asked for again after this many seconds.
_NODES_FRESH = 1.0

#: Seconds between two tries to read code from a database that is away, doubled each time.
_FIRST_PAUSE = 0.1
_LONGEST_PAUSE = 5.0

#: Runs that are rebuilt in one go of a thread, which is slow to get its turn on a busy machine.
_REBUILT = 100


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What an orchestrator is given from outside, and what it is to keep to.

    Without `retention` nothing is removed but on request, and nothing of what is left of that. Without `traces`
    no spans are written.
    """

    store: Store
    storage: ValueStorage
    dispatcher: Dispatcher
    clock: Clock
    ids: IdSource
    telemetry: Telemetry
    limits: Limits
    defaults: Defaults = field(default_factory=Defaults)
    retention: Retention | None = None
    traces: Traces | None = None
    tenancy: Tenancy = field(default_factory=Tenancy)
    secrets: Secrets = field(default_factory=NoSecrets)


class Parts:
    """What exists while an orchestrator is in charge under the lease `lease`."""

    def __init__(
        self,
        around: Surroundings,
        lease: int,
        nodes: NodeRegistry,
        workflows: Mapping[Tenant | None, int],
    ) -> None:
        store, clock, limits = around.store, around.clock, around.limits
        self._around = around
        self._nodes_at = float("-inf")
        self._excluded: frozenset[NodeId] = frozenset()
        self.nodes = nodes
        self.feed = Feed(store)
        self.journal = Journal(
            store, lease, clock, around.telemetry, self._fail, around.dispatcher.pause
        )
        self.quotas = Quotas(around.tenancy.max_concurrent_tasks)
        logs = TaskLogs(self.journal, self.feed, clock, limits.max_log_bytes)
        self.runs = Runs(
            self.journal,
            self.feed,
            logs,
            around.dispatcher,
            nodes,
            clock,
            Observer(around.telemetry, around.traces),
            limits,
            self.quotas,
        )
        self.catalogue = Catalogue(
            store,
            self.journal,
            clock,
            around.ids,
            limits,
            around.defaults,
            workflows,
            around.secrets,
        )
        self.replies = Replies(store, self.journal, clock)
        self.reading = Reading(
            store,
            around.storage,
            around.dispatcher,
            self.journal,
            self.runs,
            logs,
            clock,
            limits.max_result_bytes,
            self.quotas,
        )
        self.starts = Starts(
            store,
            self.runs,
            clock,
            around.ids,
            self.check_placement,
            around.defaults.deadline,
            around.traces,
            limits.max_deadline,
        )
        self.housekeeping = Housekeeping(
            store,
            around.storage,
            self.journal,
            clock,
            around.retention or Retention(),
            self._forget_nodes,
        )

        self.placing = Placing(
            self.runs,
            nodes,
            functools.partial(self.refresh_nodes, fresh=0.0),
            clock,
            limits.no_node_seconds,
        )

    @classmethod
    async def start(cls, around: Surroundings, lease: int) -> Parts:
        """Listens to the engine and goes on with every run that had not ended."""
        nodes = NodeRegistry(
            await asyncio.to_thread(around.store.load_nodes),
            share_definitions=around.tenancy.share_definitions,
        )
        workflows = await asyncio.to_thread(around.store.count_workflows)
        parts = cls(around, lease, nodes, workflows)
        try:
            await around.dispatcher.start(parts.runs.report, parts._load_code, parts.runs.ahead)
            await parts.refresh_nodes()
            await parts._resume()
            parts.placing.start()
        except BaseException:
            # What was begun must not go on beside a second attempt to start, or after `close`.
            parts.runs.stop()
            await parts.journal.close()
            raise
        if around.retention is not None:
            parts.housekeeping.start()
        around.telemetry.watch(parts.gauges)
        return parts

    async def _resume(self) -> None:
        store = self._around.store
        records = await asyncio.to_thread(store.unfinished_runs)
        graphs = Graphs(store)
        for start in range(0, len(records), _REBUILT):
            some = records[start : start + _REBUILT]
            for record, run in await asyncio.to_thread(rebuild_each, store, some, graphs):
                self.runs.resume(run, record.created, record.trace)
        if records:
            _log.info("went on with %d unfinished runs", len(records))

    async def close(self) -> None:
        """Ends what runs, which the next orchestrator runs again, and lets go of the engine."""
        # Before the dispatcher closes, as a timer would hand it one more job.
        self.runs.stop()
        await self._around.dispatcher.close()
        await self.placing.close()
        await self.housekeeping.close()
        await self.journal.close()

    def _fail(self, error: LatticeError) -> None:
        self.runs.stop()
        self.feed.fail(error)

    def check_health(self) -> None:
        """Raises UnavailableError once nothing can be made durable any more."""
        if self.journal.failure is not None:
            raise self.journal.failure.with_traceback(None)
        if self.journal.outage is None:
            # Looks at the lease, so that one that was replaced learns of it although nobody asks it for
            # anything. Not awaited: a database that is slow for a while is no reason to be replaced.
            self.journal.append(())

    def gauges(self) -> Gauges:
        """How much there is just now. May be called from any thread."""
        runs, tasks = self.runs.active
        load = self._around.dispatcher.load()
        return Gauges(
            runs=runs,
            tasks=tasks,
            waiting=load.waiting,
            engaged=load.engaged,
            replicas=load.replicas,
            definitions=load.definitions,
            streams=self.feed.followers,
            available=self.journal.failure is None and self.journal.outage is None,
        )

    async def refresh_nodes(self, *, fresh: float = _NODES_FRESH) -> None:
        """Asks for the engine's nodes, unless that was done less than `fresh` seconds ago."""
        now = self._around.clock.now()
        if abs(now - self._nodes_at) >= fresh:
            self.nodes.refresh(await self._around.dispatcher.nodes(), now)
            self._nodes_at = now
            self.exclude_nodes()

    def exclude_nodes(self) -> None:
        """Tells the dispatcher which nodes get nothing new, if that has changed."""
        if self.nodes.excluded != self._excluded:
            self._excluded = self.nodes.excluded
            self._around.dispatcher.exclude(self._excluded)

    async def _forget_nodes(self, seconds: float | None) -> Sequence[Write]:
        await self.refresh_nodes(fresh=0.0)
        self.journal.check()
        return self.nodes.forget(self._around.clock.now(), seconds)

    async def cancel(self, run_id: RunId) -> str:
        """Ends a run; its status. Raises RunNotFoundError, and UnavailableError once this has stopped."""
        await self.journal.barrier()
        await self.reading.record(run_id)
        self.runs.cancel(run_id)
        await self.journal.barrier()
        if await self._is_unread(run_id):
            # Whoever else cancels it waits.
            async with self.housekeeping.lock:
                if await self._is_unread(run_id):
                    record = await self.reading.record(run_id)
                    store, now = self._around.store, self._around.clock.now()
                    writes = await asyncio.to_thread(end_unread, store, record, now)
                    await self.journal.append(writes)
        return (await self.reading.record(run_id)).status

    async def _is_unread(self, run_id: RunId) -> bool:
        """Whether a run does not go on as it could not be read. Raises UnavailableError where nothing goes on."""
        record = await self.reading.record(run_id)
        if record.status != RunStatus.RUNNING or self.runs.live(run_id) is not None:
            return False
        self.runs.cancel(run_id)
        return True

    def running(self) -> Counter[NodeId]:
        """How many tasks and calls run on each node, by the id under which users know it."""
        found = self.runs.running()
        for engine_id, number in self._around.dispatcher.load().calls.items():
            found[self.nodes.name(engine_id)] += number
        return found

    def check_placement(self, resources: Resources, where: str) -> None:
        """Raises InvalidRequestError for resources that no node has; `where` says whose they are."""
        check_placement(resources, where, self.nodes.capacities(), self.nodes.gpu_memories)

    async def _load_code(self, digest: Digest) -> bytes:
        """The code, as soon as the database is there."""
        pause = _FIRST_PAUSE
        while True:
            try:
                data = await asyncio.to_thread(self._around.store.load_blob, digest)
                break
            except StoreUnavailableError as error:
                if isinstance(error, StoreRefusedError) or self.journal.failure is not None:
                    raise
                _log.warning("the code of a task is waited for: %s", error)
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
        if data is None:
            raise LatticeError(f"the code {digest} is missing from the store")
        return data
