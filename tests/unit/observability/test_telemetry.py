"""What an operator counts: the numbers are right and labels have few values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from lattice.observability.metrics import Metrics
from lattice.observability.telemetry import MeterTelemetry, NoTelemetry
from lattice.ports.environment import Telemetry


@pytest.fixture
def metrics() -> Iterator[Metrics]:
    metrics = Metrics()
    yield metrics
    metrics.shutdown()


def numbers(metrics: Metrics) -> dict[str, float]:
    """The samples by name and labels."""
    text = (metrics.render() or b"").decode()
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in lines}


def test_runs_tasks_and_commits_are_counted(metrics: Metrics) -> None:
    telemetry = MeterTelemetry(metrics.meter)
    for _ in range(3):
        telemetry.run_started()
    telemetry.run_finished("succeeded", 2.5)
    telemetry.task_finished("succeeded", 0.25)
    telemetry.task_finished("lost", 0.5)
    telemetry.committed(7, 0.001)
    telemetry.committed(5, 0.003)
    found = numbers(metrics)
    assert found["lattice_runs_active"] == 2
    assert found['lattice_run_duration_seconds_count{status="succeeded"}'] == 1
    assert found['lattice_run_duration_seconds_sum{status="succeeded"}'] == 2.5
    assert found['lattice_task_duration_seconds_sum{state="succeeded"}'] == 0.25
    assert found['lattice_task_duration_seconds_count{state="lost"}'] == 1
    assert found["lattice_store_writes_total"] == 12
    assert found["lattice_store_commit_duration_seconds_count"] == 2


def test_labels_are_bounded_and_times_not_negative(metrics: Metrics) -> None:
    telemetry = MeterTelemetry(metrics.meter)
    for number in range(100):
        telemetry.run_finished(f"status-{number}", -1.0)
        telemetry.task_finished(f"state-{number}", -1.0)
    found = numbers(metrics)
    assert found['lattice_run_duration_seconds_count{status="other"}'] == 100
    assert found['lattice_task_duration_seconds_sum{state="other"}'] == 0
    assert not any("status-" in name or "state-" in name for name in found)


def test_no_telemetry_takes_everything() -> None:
    telemetry: Telemetry = NoTelemetry()
    telemetry.run_started()
    telemetry.run_finished("succeeded", 1)
    telemetry.task_finished("failed", 1)
    telemetry.committed(1, 1)
