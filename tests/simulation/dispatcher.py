"""An engine that starts, finishes, fails, loses and hangs attempts, and reports them early, late and twice.

Some attempts it runs together with what follows them, and then reports the ends of all at once.

It is worse than the port allows: it repeats reports, and may still report what was cancelled or lost,
because the run machine promises to bear that. What it does of itself ends with its process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

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
    LogEntry,
    Report,
    TaskLogged,
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
from tests.simulation.ledger import Account, Attempt, Ledger
from tests.simulation.nature import Nature

_NODE = EngineNode(NodeId("engine-1"), "127.0.0.1", 64, 0, 65_536)

Later = Callable[[float, Callable[[], None]], Callable[[], None]]


class SimulatedDispatcher:
    """The `Dispatcher` of one process. `later` calls back in that process, unless it is dead."""

    def __init__(self, account: Account, ledger: Ledger, nature: Nature, later: Later) -> None:
        self._account = account
        self._ledger = ledger
        self._nature = nature
        self._later = later
        self._closed = False
        self._report: Callable[[RunId, Report], None] | None = None
        #: What is still to happen of its own to attempts that go on, and how to prevent it.
        self._coming: dict[tuple[RunId, TaskId, int], list[Callable[[], None]]] = {}
        self._results = itertools.count(1)
        #: What attempts that go on have in their company, in its order.
        self._company: dict[tuple[RunId, TaskId, int], Sequence[Job]] = {}

    async def start(
        self,
        report: Callable[[RunId, Report], None],
        load_code: LoadCode,
        ahead: Ahead,
    ) -> None:
        """Remembers whom to tell and whom to ask."""
        self._report = report
        self._ahead = ahead

    def pause(self, paused: bool) -> None:
        """All that was submitted is with the engine at once, and goes on."""

    def submit(self, job: Job) -> None:
        """Decides at once what becomes of the attempt, and lets it happen in time."""
        if self._closed:
            self._ledger.fail(f"{job.task_id} was submitted to a dispatcher that is closed")
        attempt = self._ledger.submitted(self._account, job)
        mood, nature = self._nature.mood, self._nature
        begin = nature.delay(0.05)
        end = begin + nature.delay(nature.choice((0.05, 1.0, 3.0)))
        key = job.run_id, job.task_id, job.attempt
        self._coming[key] = []
        attempt.printed = self._printed(attempt, nature.choice((0, 0, 1, 3)))
        for _ in range(nature.choice((0, 1, 2))):
            self._at(key, begin + nature.delay(0.5), lambda: self._tell_printed(attempt))
        if nature.flips(0.5):
            self._at(key, begin, lambda: self._ask_ahead(attempt))
        if nature.strikes(mood.task_lost):
            # Before or after it began; the process may have begun it without saying so.
            if nature.flips(0.7):
                self._at(key, begin, lambda: self._started(attempt))
            self._at(key, end, lambda: self._lost(attempt))
            return
        if nature.flips(mood.task_fails) and nature.flips(0.2):
            self._at(key, begin, lambda: self._failed(attempt, began=False))
            return
        # A start that is not reported comes with the end; a time-out needs the report.
        if job.timed or nature.flips(0.7):
            self._at(key, begin, lambda: self._started(attempt))
        if job.timed and nature.strikes(mood.task_hangs):
            return
        if nature.flips(mood.task_fails):
            self._at(key, end, lambda: self._failed(attempt, began=True))
        else:
            self._at(key, end, lambda: self._succeeded(attempt))

    def prepare(self, definition: Definition) -> None:
        """Nothing: all is ready here."""

    async def waiting(self, run_id: RunId, attempts: Mapping[TaskId, int]) -> dict[TaskId, str]:
        """Chance, as far as people need to know."""
        return {each[0]: "chance" for each in attempts.items() if (run_id, *each) in self._coming}

    def load(self) -> Load:
        """What is on its way."""
        return Load(engaged=len(self._coming))

    def exclude(self, nodes: frozenset[NodeId]) -> None:
        """Nothing: there is but one node."""

    def cancel(self, run_id: RunId, task_id: TaskId, attempt: int) -> None:
        """Ends an attempt; a report of it may be on its way already."""
        self._ledger.note(f"process {self._account.number} cancels {run_id}/{task_id}#{attempt}")
        found = self._account.attempts.get((run_id, task_id, attempt))
        if found is None or found.over:
            return
        found.cancelled = True
        self._stop((run_id, task_id, attempt))
        if self._nature.strikes(self._nature.mood.report_late):
            delay = self._nature.delay(0.5)
            late = self._nature.choice((self._lost, self._succeeded))
            self._later(delay, lambda: late(found))

    def release(self, run_id: RunId, task_id: TaskId) -> None:
        """Lets go of a task's values."""
        self._account.held.pop((run_id, task_id), None)

    async def call(self, call: Call) -> CallResult:
        """Gives the arguments back."""
        return CallResult(None, call.args)

    async def render(self, value: Value, limit: int, tenant: Tenant | None = None) -> bytes:
        """Nothing is JSON here."""
        raise InvalidRequestError("format", "a simulated value", "nothing is rendered")

    async def nodes(self) -> list[EngineNode]:
        """One node, on which everything fits."""
        return [_NODE]

    async def head_port(self) -> int:
        """A port that nobody listens on."""
        return 6379

    async def close(self) -> None:
        """Cancels what runs."""
        self._closed = True
        self.die()

    def die(self) -> None:
        """What runs ends with the process, and reports nothing any more."""
        for key in [*self._coming]:
            self._stop(key)
        for attempt in self._account.attempts.values():
            attempt.cancelled = attempt.cancelled or not attempt.over
        self._account.held.clear()
        self._company.clear()

    # -- what happens to an attempt ----------------------------------------------------------

    def _at(self, key: tuple[RunId, TaskId, int], delay: float, event: Callable[[], None]) -> None:
        self._coming[key].append(self._later(delay, event))

    def _stop(self, key: tuple[RunId, TaskId, int]) -> None:
        for prevent in self._coming.pop(key, []):
            prevent()

    def _started(self, attempt: Attempt) -> None:
        if attempt.began is None:
            attempt.began = self._ledger.now()
        self._tell(
            attempt, TaskStarted(attempt.job.task_id, attempt.job.attempt, self._place(attempt))
        )

    def _printed(self, attempt: Attempt, number: int) -> tuple[LogEntry, ...]:
        texts = [
            f"{each} of {attempt.job.task_id} by {self._account.number}\n" for each in range(number)
        ]
        offsets = itertools.accumulate((len(text) for text in texts), initial=0)
        return tuple(
            LogEntry(offset, 1.0, "stdout", text)
            for offset, text in zip(offsets, texts, strict=False)
        )

    def _tell_printed(self, attempt: Attempt, *, final: bool = False) -> None:
        """All of it at the end; before, perhaps a part, or only what came last."""
        job, entries = attempt.job, attempt.printed
        if not final:
            start = self._nature.choice((0, 0, 1))
            entries = entries[start : start + self._nature.choice((1, 2))]
        if entries:
            attempt.told_all = attempt.told_all or final
            self._tell(attempt, TaskLogged(job.task_id, job.attempt, entries, final))

    def _ask_ahead(self, attempt: Attempt) -> None:
        job = attempt.job
        followers = self._ahead(job.run_id, [job.task_id])
        jobs = [*itertools.islice(followers, self._nature.choice((1, 2, 5)))]
        self._ledger.told_ahead(self._account, job, jobs)
        self._company[job.run_id, job.task_id, job.attempt] = jobs

    def _succeeded(self, attempt: Attempt) -> None:
        job = attempt.job
        company = (
            () if attempt.over else self._company.pop((job.run_id, job.task_id, job.attempt), ())
        )
        number = f"{self._account.number}.{next(self._results)}"
        data = {key: f"{job.task_id}.{key} by {number}".encode() for key in job.output_keys}
        values = {key: Value(len(each), each) for key, each in data.items()}
        result = {key: each.decode() for key, each in data.items()}
        place = self._place(attempt)
        self._end(
            attempt,
            TaskSucceeded(job.task_id, job.attempt, self._ledger.now(), place, result, values),
        )
        for each in company:
            key = each.run_id, each.task_id, each.attempt
            follower = self._account.attempts.get(key)
            # What nobody has asked for by now is not told of.
            if key in self._coming and follower is not None and not follower.over:
                self._stop(key)
                if self._nature.flips(self._nature.mood.task_fails):
                    self._failed(follower, began=True)
                else:
                    self._succeeded(follower)

    def _failed(self, attempt: Attempt, *, began: bool) -> None:
        job = attempt.job
        error = ErrorInfo("ValueError", "the task's own fault", "Traceback")
        place = self._place(attempt) if began else None
        self._end(attempt, TaskFailed(job.task_id, job.attempt, self._ledger.now(), error, place))

    def _lost(self, attempt: Attempt) -> None:
        error = ErrorInfo("WorkerCrashedError", "its process died")
        job = attempt.job
        self._end(attempt, TaskLost(job.task_id, job.attempt, self._ledger.now(), error))

    def _end(self, attempt: Attempt, report: TaskSucceeded | TaskFailed | TaskLost) -> None:
        """Reports an end; perhaps once more, and perhaps another one that contradicts it."""
        job, nature = attempt.job, self._nature
        if not attempt.over:
            self._coming.pop((job.run_id, job.task_id, job.attempt), None)
            if not isinstance(report, TaskLost):
                self._tell_printed(attempt, final=True)
            self._ledger.ended(self._account, attempt, report)
        self._tell(attempt, report)
        if nature.strikes(nature.mood.report_repeated):
            self._later(nature.delay(0.5), lambda: self._tell(attempt, report))
        if isinstance(report, TaskLost) and nature.strikes(nature.mood.report_late):
            # The node was cut off, not dead.
            self._later(nature.delay(0.5), lambda: self._succeeded(attempt))

    def _tell(self, attempt: Attempt, report: Report) -> None:
        job = attempt.job
        self._ledger.note(
            f"process {self._account.number} is told {type(report).__name__} "
            f"of {job.run_id}/{job.task_id}#{job.attempt}"
        )
        assert self._report is not None
        self._report(job.run_id, report)

    def _place(self, attempt: Attempt) -> Placement:
        began = self._ledger.now() if attempt.began is None else attempt.began
        return Placement(_NODE.node_id, _NODE.node_ip, began)
