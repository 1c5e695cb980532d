"""Attempts that share a call: which runs next, with what, and when no other is begun."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from lattice.execution import fusion, wire
from lattice.execution.assignment import Assignment
from lattice.execution.fusion import Fusion
from lattice.ids import Digest, NodeId, RunId, TaskId
from lattice.ports.execution import Argument
from lattice.workflow.events import (
    ErrorInfo,
    Placement,
    TaskFailed,
    TaskLost,
    TaskStarted,
    TaskSucceeded,
    Value,
)
from lattice.workflow.task import Code, CodeForm

PLACEMENT = Placement(NodeId("n"), "127.0.0.1", 1.0)
NUMBER = Value(5, pickle.dumps(7))


def assigned(name: str, *after: str) -> Assignment:
    """An attempt that takes the output of each that it comes after."""
    return Assignment(
        run_id=RunId("r"),
        task_id=TaskId(name),
        attempt=1,
        name=name,
        code=Code(Digest("d"), CodeForm.SOURCE, "run"),
        arguments=tuple(Argument(each, None, (TaskId(each), "y")) for each in after),
        upstream=(None,) * len(after),
        output_keys=("y",),
        batched=False,
        timed=False,
        has_gpu=False,
        storage_url="memory://",
        inline_value_bytes=1,
        mailbox="",
        after=tuple(map(TaskId, after)),
    )


def succeeded(name: str) -> bytes:
    return wire.encode_end(TaskSucceeded(TaskId(name), 1, 2.0, PLACEMENT, {"y": 7}, {"y": NUMBER}))


def failed(name: str) -> bytes:
    return wire.encode_end(TaskFailed(TaskId(name), 1, 2.0, ErrorInfo("E", "no"), PLACEMENT))


def lost(name: str) -> bytes:
    return wire.encode_end(TaskLost(TaskId(name), 1, 2.0, ErrorInfo("E", "gone")))


def next_of(fused: Fusion) -> str:
    """The name of the next attempt; empty if there is none."""
    found = fused.next()
    return "" if found is None else found.task_id


def ends_of(frame: bytes, attempts: int) -> dict[int, bytes]:
    return wire.decode_ends(frame, attempts, first=False)


def test_each_runs_after_those_it_follows_with_their_values() -> None:
    """Arguments are filled in; what did not run is not among the ends."""
    fused = Fusion([assigned("a"), assigned("b", "a"), assigned("c", "a", "b")])
    assert next_of(fused) == "a"
    fused.ended(succeeded("a"), large=False)
    following = fused.next()
    assert following is not None
    assert following.arguments == (Argument("a", None, (TaskId("a"), "y"), NUMBER),)
    fused.ended(succeeded("b"), large=False)
    assert next_of(fused) == "c"
    fused.ended(succeeded("c"), large=False)
    assert next_of(fused) == ""
    assert ends_of(fused.frame(), 3) == {0: succeeded("a"), 1: succeeded("b"), 2: succeeded("c")}


def test_what_follows_a_failure_is_passed_over() -> None:
    """And what follows that; others run."""
    fused = Fusion([assigned("a"), assigned("b", "a"), assigned("c", "b"), assigned("d")])
    assert next_of(fused) == "a"
    fused.ended(failed("a"), large=False)
    assert next_of(fused) == "d"
    fused.ended(succeeded("d"), large=False)
    assert next_of(fused) == ""
    assert [*ends_of(fused.frame(), 4)] == [0, 3]


@pytest.mark.parametrize("reason", ["large", "lost", "time", "bytes"])
def test_no_other_is_begun(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After large outputs, which go by reference; after a loss, a moment, or much to report."""
    if reason == "time":
        monkeypatch.setattr(fusion, "_LONGEST", 0.0)
    if reason == "bytes":
        monkeypatch.setattr(fusion, "_MOST_BYTES", 10)
    fused = Fusion([assigned("a"), assigned("b")])
    assert next_of(fused) == "a"
    fused.ended(lost("a") if reason == "lost" else succeeded("a"), large=reason == "large")
    assert next_of(fused) == ""


def test_one_that_takes_long_has_the_call_for_itself() -> None:
    """What has ended before it is told at once; one that has ended meanwhile holds up nobody."""
    fused = Fusion([assigned("a"), assigned("b"), assigned("c")])
    first = fused.next()
    assert first is not None
    fused.ended(succeeded("a"), large=False)
    assert fused.alone(first) is None
    second = fused.next()
    assert second is not None
    ends = fused.alone(second)
    assert ends is not None
    assert ends_of(ends, 3) == {0: succeeded("a")}
    fused.ended(succeeded("b"), large=False)
    assert next_of(fused) == ""
    assert [*ends_of(fused.frame(), 3)] == [0, 1]


@pytest.mark.parametrize("at", [None, "soon", float("nan"), float("inf"), -1.0, 1e300, [1]])
def test_times_that_cannot_be_counted_with_are_refused(at: object) -> None:
    """As user code may leave its process with another clock, and the process reports others after it."""
    end = TaskSucceeded(TaskId("a"), 1, at, PLACEMENT, {"y": 7}, {"y": NUMBER})  # type: ignore[arg-type]
    with pytest.raises(wire.FrameError):
        wire.decode_end(wire.encode_end(end))
    started = TaskStarted(TaskId("a"), 1, replace(PLACEMENT, at=at))  # type: ignore[arg-type]
    with pytest.raises(wire.FrameError):
        wire.decode_start(wire.encode_start(wire.StartNote(RunId("r"), started)))


def test_a_note_is_read_as_it_was_written() -> None:
    """Also that of a replica."""
    for place in (PLACEMENT, replace(PLACEMENT, replica="x", batch_size=3, starting=0.5)):
        note = wire.StartNote(RunId("r"), TaskStarted(TaskId("a"), 2, place), 7, b"ends")
        assert wire.decode_start(wire.encode_start(note)) == note


def test_a_forged_frame_is_refused() -> None:
    """Places that no attempt has, or no end of the first, which runs always."""
    with pytest.raises(wire.FrameError):
        wire.decode_ends(wire.encode_ends({0: b"", 5: b""}), 5, first=True)
    with pytest.raises(wire.FrameError):
        wire.decode_ends(wire.encode_ends({1: b""}), 5, first=True)
    with pytest.raises(wire.FrameError):
        wire.decode_ends(b"damaged", 5, first=False)
