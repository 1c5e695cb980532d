"""What an operator counts of runs, tasks and commits, on OpenTelemetry.

The numbers are those of the process in which the orchestrator lives. Where that is not the process
that answers `/metrics` (Ray Serve keeps them apart), they do not show there.
"""

from __future__ import annotations

from opentelemetry.metrics import Meter

from lattice.ports.environment import Telemetry

_RUN_STATUSES = frozenset({"succeeded", "failed", "cancelled"})
_TASK_STATES = frozenset({"succeeded", "failed", "lost"})

#: Bounds of histograms, in seconds: from a warm call to a long training run, and of a commit.
_WORK_BOUNDS = (0.005, 0.02, 0.1, 0.5, 1, 5, 15, 60, 300, 1800, 7200, 43200)
_COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 2, 10)


class NoTelemetry(Telemetry):
    """Counts nothing."""

    def run_started(self) -> None:
        return

    def run_finished(self, status: str, seconds: float) -> None:
        return

    def task_finished(self, state: str, seconds: float) -> None:
        return

    def committed(self, writes: int, seconds: float) -> None:
        return


class MeterTelemetry(Telemetry):
    """Counts with the instruments of a meter. Labels have few values, whatever users do."""

    def __init__(self, meter: Meter) -> None:
        self._active = meter.create_up_down_counter(
            "lattice.runs.active", description="Runs that have not ended."
        )
        self._runs = meter.create_histogram(
            "lattice.run.duration",
            unit="s",
            description="From the request of a run to its end, by status.",
            explicit_bucket_boundaries_advisory=_WORK_BOUNDS,
        )
        self._tasks = meter.create_histogram(
            "lattice.task.duration",
            unit="s",
            description="Attempts of tasks, by how they ended.",
            explicit_bucket_boundaries_advisory=_WORK_BOUNDS,
        )
        self._writes = meter.create_counter(
            "lattice.store.writes", description="Writes that became durable."
        )
        self._commits = meter.create_histogram(
            "lattice.store.commit.duration",
            unit="s",
            description="Commits of groups of writes.",
            explicit_bucket_boundaries_advisory=_COMMIT_BOUNDS,
        )

    def run_started(self) -> None:
        self._active.add(1)

    def run_finished(self, status: str, seconds: float) -> None:
        self._active.add(-1)
        self._runs.record(max(0.0, seconds), {"status": _bounded(status, _RUN_STATUSES)})

    def task_finished(self, state: str, seconds: float) -> None:
        self._tasks.record(max(0.0, seconds), {"state": _bounded(state, _TASK_STATES)})

    def committed(self, writes: int, seconds: float) -> None:
        self._writes.add(writes)
        self._commits.record(max(0.0, seconds))


def _bounded(label: str, known: frozenset[str]) -> str:
    return label if label in known else "other"
