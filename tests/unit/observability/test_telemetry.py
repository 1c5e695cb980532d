"""What an operator counts: the numbers are right and labels have few values."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from lattice.observability.metrics import Metrics
from lattice.observability.telemetry import MeterTelemetry, NoTelemetry
from lattice.ports.environment import Gauges, Telemetry


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


GAUGES = Gauges(
    runs=2, tasks=7, waiting=3, engaged=4, replicas=1, definitions=5, streams=6, available=True
)


def test_runs_attempts_and_commits_are_counted(metrics: Metrics) -> None:
    telemetry = MeterTelemetry(metrics.meter)
    telemetry.run_finished("succeeded", 2.5)
    timing = {"queued": 0.5, "starting": 2.0, "batching": 0.0, "running": 0.25}
    telemetry.attempt_ended("embed", "succeeded", timing)
    telemetry.attempt_ended("embed", "lost", {})
    telemetry.call_began(8)
    telemetry.committed(7, 0.001)
    telemetry.committed(5, 0.003)
    telemetry.commit_failed()
    found = numbers(metrics)
    assert found['lattice_run_duration_seconds_count{status="succeeded"}'] == 1
    assert found['lattice_run_duration_seconds_sum{status="succeeded"}'] == 2.5
    succeeded = '{state="succeeded",task="embed"}'
    assert found[f"lattice_attempt_duration_seconds_sum{succeeded}"] == 0.25
    assert found['lattice_attempt_duration_seconds_count{state="lost",task="embed"}'] == 1
    assert found['lattice_attempt_wait_seconds_sum{for="queued"}'] == 0.5
    assert found['lattice_attempt_wait_seconds_sum{for="starting"}'] == 2
    assert 'lattice_attempt_wait_seconds_sum{for="batching"}' not in found
    assert found["lattice_batch_size_sum"] == 8
    assert found["lattice_store_writes_total"] == 12
    assert found["lattice_store_failures_total"] == 1
    assert found["lattice_store_commit_duration_seconds_count"] == 2


def test_what_there_is_is_read_when_somebody_looks(metrics: Metrics) -> None:
    now = GAUGES
    MeterTelemetry(metrics.meter).watch(lambda: now)
    assert numbers(metrics)["lattice_attempts_waiting"] == 3
    now = replace(GAUGES, waiting=0, available=False)
    found = numbers(metrics)
    assert found["lattice_attempts_waiting"] == 0
    assert found["lattice_store_available"] == 0
    assert found["lattice_runs_active"] == 2


def test_labels_are_bounded_and_times_not_negative(metrics: Metrics) -> None:
    telemetry = MeterTelemetry(metrics.meter)
    for number in range(1000):
        telemetry.run_finished(f"status-{number}", -1.0)
        telemetry.attempt_ended(f"task-{number}", f"state-{number}", {"running": -1.0})
    found = numbers(metrics)
    assert found['lattice_run_duration_seconds_count{status="other"}'] == 1000
    assert found['lattice_attempt_duration_seconds_sum{state="other",task="other"}'] == 0
    assert found['lattice_attempt_duration_seconds_count{state="other",task="other"}'] == 900
    assert not any("status-" in name or "state-" in name for name in found)


def test_no_telemetry_takes_everything() -> None:
    telemetry: Telemetry = NoTelemetry()
    telemetry.watch(lambda: GAUGES)
    telemetry.run_finished("succeeded", 1)
    telemetry.attempt_ended("a", "failed", {})
    telemetry.call_began(1)
    telemetry.committed(1, 1)
    telemetry.commit_failed()
