"""What an operator counts of runs, tasks and commits, on OpenTelemetry.

Labels have few values, whatever users do: of the names of tasks, the first `_MAX_NAMES` are told apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from lattice.ports.environment import Gauges, Telemetry

_RUN_STATUSES = frozenset({"succeeded", "failed", "cancelled"})
_ATTEMPT_STATES = frozenset({"succeeded", "failed", "timed_out", "lost", "restarted"})
_WAITS = ("queued", "starting", "batching")

#: Names of tasks that have a label of their own; those that come later share one.
_MAX_NAMES = 100

#: Bounds of histograms, in seconds: from a warm call to a long training run, and of a commit.
_WORK_BOUNDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 43200)
_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2, 10)
_BATCH_BOUNDS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)

#: Name, unit, description and attribute of what is read when somebody looks.
_GAUGES = (
    ("lattice.runs.active", "{run}", "Runs that have not ended.", "runs"),
    ("lattice.tasks.active", "{task}", "Tasks of runs that have not ended.", "tasks"),
    ("lattice.attempts.waiting", "{attempt}", "Attempts that wait in the orchestrator.", "waiting"),
    ("lattice.attempts.engaged", "{attempt}", "Attempts that the engine has.", "engaged"),
    ("lattice.replicas", "{replica}", "Replicas that take calls.", "replicas"),
    ("lattice.definitions", "{definition}", "Task definitions that are deployed.", "definitions"),
    ("lattice.streams.open", "{stream}", "Open streams of messages.", "streams"),
    (
        "lattice.store.available",
        "1",
        "1 while the database can be written to, else 0.",
        "available",
    ),
)

#: As long as there is no orchestrator, such as one that waits for its database.
_NOTHING = Gauges(0, 0, 0, 0, 0, 0, 0, available=False)


class NoTelemetry(Telemetry):
    """Counts nothing."""

    def watch(self, read: Callable[[], Gauges]) -> None:
        return

    def run_finished(self, status: str, seconds: float) -> None:
        return

    def attempt_ended(self, task: str, state: str, timing: Mapping[str, float]) -> None:
        return

    def call_began(self, batch_size: int) -> None:
        return

    def committed(self, writes: int, seconds: float) -> None:
        return

    def commit_failed(self) -> None:
        return


class MeterTelemetry(Telemetry):
    """Counts with the instruments of a meter."""

    def __init__(self, meter: Meter) -> None:
        self._read: Callable[[], Gauges] = lambda: _NOTHING
        self._names: set[str] = set()
        for name, unit, description, attribute in _GAUGES:
            meter.create_observable_gauge(
                name, [self._observing(attribute)], unit=unit, description=description
            )
        self._runs = meter.create_histogram(
            "lattice.run.duration",
            unit="s",
            description="From the request of a run to its end, by status.",
            explicit_bucket_boundaries_advisory=_WORK_BOUNDS,
        )
        self._attempts = meter.create_histogram(
            "lattice.attempt.duration",
            unit="s",
            description="How long attempts ran, by task and by how they ended.",
            explicit_bucket_boundaries_advisory=_WORK_BOUNDS,
        )
        self._waits = meter.create_histogram(
            "lattice.attempt.wait",
            unit="s",
            description="How long attempts waited before they ran, by what for: a free place (queued), "
            "a replica's start (starting), their batch to fill (batching).",
            explicit_bucket_boundaries_advisory=_WORK_BOUNDS,
        )
        self._batches = meter.create_histogram(
            "lattice.batch.size",
            unit="{call}",
            description="Size of the batch that a call ran in, counted for each call.",
            explicit_bucket_boundaries_advisory=_BATCH_BOUNDS,
        )
        self._writes = meter.create_counter(
            "lattice.store.writes", unit="{write}", description="Writes that became durable."
        )
        self._commits = meter.create_histogram(
            "lattice.store.commit.duration",
            unit="s",
            description="Commits of groups of writes.",
            explicit_bucket_boundaries_advisory=_COMMIT_BOUNDS,
        )
        self._failures = meter.create_counter(
            "lattice.store.failures", unit="{commit}", description="Commits that failed."
        )
        # A counter that has counted nothing would not be there to be looked at.
        self._failures.add(0)

    def _observing(self, attribute: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
        number = attrgetter(attribute)
        return lambda options: [Observation(int(number(self._read())))]

    def watch(self, read: Callable[[], Gauges]) -> None:
        self._read = read

    def run_finished(self, status: str, seconds: float) -> None:
        self._runs.record(max(0.0, seconds), {"status": _bounded(status, _RUN_STATUSES)})

    def attempt_ended(self, task: str, state: str, timing: Mapping[str, float]) -> None:
        labels = {"task": self._named(task), "state": _bounded(state, _ATTEMPT_STATES)}
        self._attempts.record(max(0.0, timing.get("running", 0.0)), labels)
        for wait in _WAITS:
            seconds = timing.get(wait, 0.0)
            if wait == "queued" or seconds > 0:
                self._waits.record(max(0.0, seconds), {"for": wait})

    def call_began(self, batch_size: int) -> None:
        self._batches.record(batch_size)

    def committed(self, writes: int, seconds: float) -> None:
        self._writes.add(writes)
        self._commits.record(max(0.0, seconds))

    def commit_failed(self) -> None:
        self._failures.add(1)

    def _named(self, task: str) -> str:
        if task not in self._names:
            if len(self._names) >= _MAX_NAMES:
                return "other"
            self._names.add(task)
        return task


def _bounded(label: str, known: frozenset[str]) -> str:
    return label if label in known else "other"
