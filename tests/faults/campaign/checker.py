"""Compares what clients were told, what is stored and what tasks did: every difference is a violation.

LOST is what somebody was told and is not so any more; TWICE is what was finished, or accepted, and was done
once more; WRONG is all else that should not be.
"""

from __future__ import annotations

import bisect
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from lattice.client.events import Event, FinishTask, TaskRetry
from tests.faults.campaign.marks import Mark
from tests.faults.campaign.notes import Notes, RunNotes
from tests.faults.campaign.store import Stored

#: What a dead orchestrator had handed over may begin so many seconds after its death, unknown to its successor.
_HANDED_OVER = 10.0


class Breach(StrEnum):
    """Which promise is broken."""

    LOST = "lost"
    TWICE = "run twice"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Violation:
    """A promise that was broken, at about `at`, in seconds since the epoch."""

    breach: Breach
    at: float
    text: str


@dataclass(slots=True)
class Verdict:
    """Violations, and when tasks began again that nobody had been told had finished."""

    violations: list[Violation] = field(default_factory=list)
    repetitions: list[float] = field(default_factory=list)


def check(
    notes: Notes,
    stored: Stored,
    marks: Sequence[Mark],
    late: Mapping[str, Sequence[Event]],
    untold: Sequence[float],
) -> Verdict:
    """Compares everything, when no client waits for anything any more.

    `late` are the messages of runs as somebody got them who came after all was over; `untold` the times of deaths
    after which tasks may begin again without a message.
    """
    verdict = Verdict()
    _check_accepted(notes, stored, verdict.violations)
    for run in notes.runs:
        verdict.violations += _check_run(run, stored, late)
    _check_calls(notes, marks, sorted(untold), verdict)
    return verdict


def _check_accepted(notes: Notes, stored: Stored, found: list[Violation]) -> None:
    """What was acknowledged is there, and was made once."""
    for error in notes.errors:
        found.append(Violation(Breach.WRONG, 0.0, f"a client got {error}"))
    workflows = {*notes.workflows, *(run.workflow_id for run in notes.runs)}
    for kind, told, kept, there in (
        ("workflow", workflows, workflows, stored.workflows),
        # A node takes the place of the one before, which may have been forgotten.
        ("node", set(notes.nodes), set(notes.nodes[-1:]), stored.nodes),
    ):
        for name in kept - there:
            found.append(Violation(Breach.LOST, 0.0, f"{kind} {name} is not stored"))
        if len(there - told) > notes.unanswered:
            found.append(Violation(Breach.TWICE, 0.0, f"nobody asked for {kind}s {there - told}"))
    untold = stored.runs.keys() - {run.run_id for run in notes.runs}
    if len(untold) > notes.unanswered:
        found.append(Violation(Breach.TWICE, 0.0, f"nobody asked for the runs {untold}"))
    for run_id, times in Counter(run.run_id for run in notes.runs).items():
        if times > 1:
            found.append(Violation(Breach.LOST, 0.0, f"{times} requests made one run {run_id}"))


def _check_run(
    run: RunNotes, stored: Stored, late: Mapping[str, Sequence[Event]]
) -> Iterable[Violation]:
    """A run is stored, has ended, and as its followers were told."""
    name = f"{run.shape} run {run.run_id} ({run.nonce})"
    if run.deleted:
        if run.run_id in stored.runs:
            yield Violation(Breach.LOST, run.asked, f"{name} is there, though it was deleted")
        return
    if run.run_id not in stored.runs:
        yield Violation(Breach.LOST, run.accepted, f"{name} is not stored")
        return
    status = stored.runs[run.run_id]
    if run.ended is None or status != run.status:
        yield Violation(Breach.LOST, run.accepted, f"{name} is {status}, told {run.status}")
    log = stored.messages.get(run.run_id, [])
    seqs = [document["data"]["seq"] for document in log]
    if seqs != [*range(1, len(log) + 1)]:
        yield Violation(Breach.LOST, run.accepted, f"{name} has the messages {seqs}")
    datas = [document["data"] for document in log]
    for who, events in (
        ("a follower", [seen.event for seen in run.seen]),
        ("one who came later", late.get(run.run_id, ())),
    ):
        if [event.data for event in events] != datas:
            got = [event.seq for event in events]
            yield Violation(
                Breach.LOST, run.accepted, f"{who} of {name} got {got} of {len(log)} as stored"
            )
    ends = Counter(
        document["data"]["task_id"] for document in log if document["type"] == "finish_task"
    )
    for task_id, times in ends.items():
        if times > 1:
            yield Violation(
                Breach.TWICE, run.accepted, f"{run.names[task_id]} of {name} finished {times} times"
            )
    wanted = ("succeeded", run.cancelled or "succeeded")
    if run.status not in wanted:
        told = [document for document in log if document["type"] == "task_exception"]
        yield Violation(Breach.WRONG, run.accepted, f"{name} has {run.status}: {told}")
    if run.cancelled == "cancelled" and status != "cancelled":
        yield Violation(Breach.LOST, run.accepted, f"{name} was cancelled and has {status}")
    if run.status == "succeeded" and run.results != run.expected:
        yield Violation(Breach.WRONG, run.accepted, f"{name} came to {_shown(run.results)}")


def _shown(results: Mapping[str, Mapping[str, Any]] | None) -> str:
    return repr(results)[:300]


def _check_calls(
    notes: Notes, marks: Sequence[Mark], untold: Sequence[float], verdict: Verdict
) -> None:
    """What was told to be finished was done before and never begins again; all else has its reason."""
    runs: dict[str, list[RunNotes]] = defaultdict(list)
    for run in sorted(notes.runs, key=lambda each: each.asked):
        runs[run.nonce].append(run)
    calls: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for mark in marks:
        calls[mark.nonce, mark.task, mark.moment].append(mark.at)
    for nonce, its_runs in runs.items():
        for run, following in zip(its_runs, [*its_runs[1:], None], strict=True):
            # Runs of one workflow come one after another, so the time tells them apart.
            until = following.asked if following else float("inf")
            for task in run.names.values():
                begins, ends = (
                    sorted(at for at in calls[nonce, task, moment] if run.asked <= at < until)
                    for moment in ("begin", "end")
                )
                _check_task(run, task, begins, ends, untold, verdict)


def _check_task(
    run: RunNotes,
    task: str,
    begins: Sequence[float],
    ends: Sequence[float],
    untold: Sequence[float],
    verdict: Verdict,
) -> None:
    """`begins` and `ends` are the times of a task's marks while the run was its workflow's last."""
    name = f"{task} of {run.shape} run {run.run_id} ({run.nonce})"
    found = verdict.violations
    told = [seen for seen in run.seen if run.names.get(seen.event.data.get("task_id", "")) == task]
    finish = next((seen for seen in told if isinstance(seen.event, FinishTask)), None)
    if finish is not None:
        taken_over = "taken_from" in finish.event.data
        for at in begins:
            if taken_over or at > finish.at:
                found.append(Violation(Breach.TWICE, at, f"{name} began again after its end"))
        if not taken_over and not any(at < finish.at for at in ends):
            found.append(Violation(Breach.WRONG, finish.at, f"{name} finished and never did"))
    if len(begins) > 1:
        verdict.repetitions += begins[1:]
        retries = sum(isinstance(seen.event, TaskRetry) for seen in told)
        since = begins[0] - _HANDED_OVER
        deaths = bisect.bisect(untold, begins[-1]) - bisect.bisect(untold, since)
        if len(begins) - 1 > retries + deaths:
            text = (
                f"{name} began {len(begins)} times, with {retries} retries told and {deaths} deaths "
                "that explain it"
            )
            found.append(Violation(Breach.WRONG, begins[-1], text))
