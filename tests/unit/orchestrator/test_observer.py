"""What operators count comes from what runs told, whatever ended an attempt, and never hurts a run."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from lattice.ids import TaskId
from lattice.observability.telemetry import NoTelemetry
from tests.unit.orchestrator.world import World, upload

A, B = TaskId("a"), TaskId("b")


class Notes(NoTelemetry):
    """Remembers how attempts and runs ended."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, str, float]] = []
        self.runs: list[str] = []

    def attempt_ended(self, task: str, state: str, timing: Mapping[str, float]) -> None:
        self.attempts.append((task, state, timing["running"]))

    def run_finished(self, status: str, seconds: float) -> None:
        self.runs.append(status)


def watched(world: World, monkeypatch: pytest.MonkeyPatch) -> Notes:
    notes = Notes()
    monkeypatch.setattr(world.orchestrator._parts.runs._observer, "_telemetry", notes)
    return notes


async def test_every_end_of_an_attempt_is_counted_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed and tried again, timed out, lost, succeeded; a report that comes twice counts once."""
    notes = watched(world, monkeypatch)
    retry = {"max_attempts": 3, "backoff": 0}
    tasks = [upload("a", retry=retry, timeout=5), upload("b")]
    _, run_id = await world.orchestrator.submit_workflow(tasks, [])
    world.dispatcher.fail(run_id, A)
    world.dispatcher.start_job(run_id, A)
    world.clock.advance(5)
    world.dispatcher.lose(run_id, A)
    world.dispatcher.start_job(run_id, A)
    world.clock.advance(2)
    job = world.dispatcher.jobs[run_id, A]
    world.dispatcher.succeed(run_id, A, out=b"")
    world.dispatcher.jobs[run_id, A] = job
    world.dispatcher.succeed(run_id, A, out=b"")
    world.dispatcher.fail(run_id, B)
    assert (await world.messages(run_id))[-1] == "finish_workflow"
    assert notes.attempts == [
        ("a", "failed", 0.0),
        ("a", "timed_out", 5.0),
        ("a", "lost", 0.0),
        ("a", "succeeded", 2.0),
        ("b", "failed", 0.0),
    ]
    assert notes.runs == ["failed"]


async def test_what_cannot_be_counted_harms_no_run(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every message is stored all the same."""

    class Broken(NoTelemetry):
        def attempt_ended(self, task: str, state: str, timing: Mapping[str, float]) -> None:
            raise RuntimeError("a defect")

    monkeypatch.setattr(world.orchestrator._parts.runs._observer, "_telemetry", Broken())
    _, run_id = await world.orchestrator.submit_workflow([upload("a"), upload("b")], [(A, B)])
    world.dispatcher.succeed(run_id, A, out=b"")
    world.dispatcher.succeed(run_id, B, out=b"")
    assert (await world.messages(run_id))[-1] == "finish_workflow"
