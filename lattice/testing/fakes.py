"""Stand-ins with state for what the orchestrator needs from outside, for tests without an engine.

They keep the ports' promises as far as the orchestrator relies on them, and add the handles by which a
test decides what happens next.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping

from lattice.errors import InvalidRequestError
from lattice.ids import NodeId, RunId, TaskId, Tenant
from lattice.ports.execution import (
    Ahead,
    Call,
    CallResult,
    Definition,
    EngineNode,
    Job,
    Load,
    LoadCode,
    Report,
)
from lattice.workflow.events import (
    ErrorInfo,
    Placement,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)


class FakeClock:
    """Time that passes only when a test says so."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self._now = now
        self._order = itertools.count()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._cancelled: set[int] = set()

    def now(self) -> float:
        """Seconds since the epoch, as the test set them."""
        return self._now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` when `advance` passes its time; calling what it returns prevents that."""
        number = next(self._order)
        heapq.heappush(self._timers, (self._now + delay, number, callback))
        return lambda: self._cancelled.add(number)

    def advance(self, seconds: float) -> None:
        """Lets time pass, and fires the timers that are due on the way."""
        end = self._now + seconds
        while self._timers and self._timers[0][0] <= end:
            at, number, callback = heapq.heappop(self._timers)
            self._now = at
            if number not in self._cancelled:
                callback()
            self._cancelled.discard(number)
        self._now = end

    @property
    def armed(self) -> int:
        """How many timers have neither fired nor been prevented."""
        return sum(number not in self._cancelled for _, number, _ in self._timers)


class CountedIds:
    """Ids in their order: `prefix-1`, `prefix-2` and so on."""

    def __init__(self, prefix: str = "id") -> None:
        self._prefix = prefix
        self._numbers = itertools.count(1)

    def new_id(self) -> str:
        """The next id."""
        return f"{self._prefix}-{next(self._numbers)}"


class HeldDispatcher:
    """Holds every job until the test says how it goes. `jobs` has those that were not ended."""

    def __init__(self, clock: FakeClock, nodes: list[EngineNode] | None = None) -> None:
        self._clock = clock
        self.engine = nodes or [EngineNode(NodeId("engine-1"), "127.0.0.1", 4, 1, 8192)]
        self.jobs: dict[tuple[RunId, TaskId], Job] = {}
        self.submitted: list[tuple[TaskId, int]] = []
        self.prepared: list[Definition] = []
        self.called: list[Call] = []
        self.cancelled: list[tuple[TaskId, int]] = []
        self.released: list[TaskId] = []
        self.excluded: frozenset[NodeId] = frozenset()
        self.calls: dict[NodeId, int] = {}
        self.paused = False
        self.closed = False
        self._report: Callable[[RunId, Report], None] | None = None

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: LoadCode,
        ahead: Ahead,
    ) -> None:
        """Remembers whom to tell, and whom to ask what follows."""
        self._report = report
        self.ahead = ahead

    def pause(self, paused: bool) -> None:
        """Notes it."""
        self.paused = paused

    def submit(self, job: Job) -> None:
        """Holds the job."""
        self.jobs[job.run_id, job.task_id] = job
        self.submitted.append((job.task_id, job.attempt))

    def prepare(self, definition: Definition) -> None:
        """Notes it in `prepared`."""
        self.prepared.append(definition)

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> dict[TaskId, str]:
        """All wait for the test."""
        return {task_id: "the test" for task_id in attempts if (run_id, task_id) in self.jobs}

    def load(self) -> Load:
        """All jobs are with the test."""
        return Load(engaged=len(self.jobs), calls=self.calls)

    def exclude(self, nodes: frozenset[NodeId]) -> None:
        """Notes them."""
        self.excluded = nodes

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Drops the job."""
        self.cancelled.append((task_id, attempt))
        self.jobs.pop((run_id, task_id), None)

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Notes it."""
        self.released.append(task_id)

    async def call(self, call: Call) -> CallResult:
        """Notes it and gives the arguments back."""
        self.called.append(call)
        return CallResult(None, call.args)

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """Nothing is JSON here."""
        raise InvalidRequestError("format", "a value of a test", "nothing is rendered")

    async def nodes(self) -> list[EngineNode]:
        """The nodes that the test gave."""
        return self.engine

    async def head_port(self) -> int:
        """A port that nobody listens on."""
        return 6379

    async def close(self) -> None:
        """Notes it."""
        self.closed = True

    def tell(self, run_id: RunId, report: Report) -> None:
        """Reports whatever the test likes."""
        assert self._report is not None
        self._report(run_id, report)

    def start_job(self, run_id: RunId, task_id: TaskId) -> None:
        """A process begins a held job."""
        job = self.jobs[run_id, task_id]
        self.tell(run_id, TaskStarted(task_id, job.attempt, self._placement()))

    def succeed(self, run_id: RunId, task_id: TaskId, **outputs: bytes) -> None:
        """A held job returns; its outputs' summaries are their lengths."""
        job = self.jobs.pop((run_id, task_id))
        values = {key: Value(len(data), data) for key, data in outputs.items()}
        result = {key: len(data) for key, data in outputs.items()}
        report = TaskSucceeded(
            task_id, job.attempt, self._clock.now(), self._placement(), result, values
        )
        self.tell(run_id, report)

    def fail(self, run_id: RunId, task_id: TaskId, message: str = "no") -> None:
        """A held job raises."""
        job = self.jobs.pop((run_id, task_id))
        error = ErrorInfo("ValueError", message, "Traceback")
        report = TaskFailed(task_id, job.attempt, self._clock.now(), error, self._placement())
        self.tell(run_id, report)

    def lose(self, run_id: RunId, task_id: TaskId) -> None:
        """The process of a held job dies."""
        job = self.jobs.pop((run_id, task_id))
        error = ErrorInfo("WorkerCrashedError", "died")
        self.tell(run_id, TaskLost(task_id, job.attempt, self._clock.now(), error))

    def _placement(self) -> Placement:
        node = self.engine[0]
        return Placement(node.node_id, node.node_ip, self._clock.now())
