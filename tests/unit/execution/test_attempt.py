"""An attempt in a worker process, from what comes in to what goes out."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lattice.execution import attempt, spans, wire
from lattice.execution.assignment import Assignment
from lattice.execution.attempt import Large
from lattice.execution.secrets import hidden, in_environment
from lattice.execution.storage import FsspecStorage
from lattice.ids import Digest, NodeId, RunId, TaskId
from lattice.ports.execution import Argument
from lattice.workflow.events import (
    ErrorInfo,
    Placement,
    TaskFailed,
    TaskLost,
    TaskSucceeded,
    Value,
)
from lattice.workflow.sandbox import Sandbox
from lattice.workflow.task import Code, CodeForm
from tests.unit.execution.codes import pickled

numpy = pytest.importorskip("numpy")

PLACEMENT = Placement(NodeId("n"), "10.0.0.1", 5.0)
INLINE = 1024


class Worker:
    """Runs attempts of pickled functions, with a storage of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.storage = FsspecStorage(url)

    def run(
        self,
        function: object,
        arguments: tuple[Argument, ...] = (),
        outputs: tuple[str, ...] = (),
        upstream: tuple[Large | None, ...] = (),
        **changes: Any,
    ) -> tuple[wire.End, Large | None]:
        changed = self.assignment(function, arguments, outputs, upstream, **changes)
        _, data = pickled(function)
        (assignment,) = attempt.decode_group(attempt.encode_group([changed]))
        frame, large = attempt.run_attempt(assignment, lambda: data, upstream, PLACEMENT)
        return wire.decode_end(frame), large

    def assignment(
        self,
        function: object,
        arguments: tuple[Argument, ...] = (),
        outputs: tuple[str, ...] = (),
        upstream: tuple[Large | None, ...] = (),
        **changes: Any,
    ) -> Assignment:
        code, _ = pickled(function)
        assignment = Assignment(
            run_id=RunId("r"),
            task_id=TaskId("t"),
            attempt=2,
            name="work",
            code=code,
            arguments=arguments,
            upstream=tuple(0 if each.source and upstream else None for each in arguments),
            output_keys=outputs,
            batched=False,
            timed=False,
            has_gpu=False,
            storage_url=self.url,
            inline_value_bytes=INLINE,
            mailbox="m",
        )
        return dataclasses.replace(assignment, **changes)

    def succeed(self, function: object, *args: Any, **changes: Any) -> TaskSucceeded:
        end, _ = self.run(function, *args, **changes)
        assert isinstance(end, TaskSucceeded), end
        return end

    def fail(self, function: object, *args: Any, **changes: Any) -> ErrorInfo:
        end, large = self.run(function, *args, **changes)
        assert isinstance(end, TaskFailed), end
        assert large is None
        assert end.placement == PLACEMENT
        return end.error


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path.as_uri())


def given(key: str, value: object) -> Argument:
    return Argument(key, json.dumps(value))


def from_task(key: str, value: Value, output: str = "out") -> Argument:
    return Argument(key, None, (TaskId("before"), output), value)


def test_an_attempt_reports_result_values_and_placement(worker: Worker) -> None:
    """Everything the run machine and the store need."""
    end = worker.succeed(lambda p: {"y": p["x"] + 1, "z": {3}}, (given("x", 1),), ("y",))
    assert (end.task_id, end.attempt, end.placement) == ("t", 2, PLACEMENT)
    assert end.result["y"] == 2
    assert end.result["z"] == {
        "type": "set",
        "size": end.values["z"].size,
        "url": "/runs/r/tasks/t/result/z",
    }
    assert end.values["y"].location is None
    assert pickle.loads(end.values["y"].inline or b"") == 2
    assert pickle.loads(end.values["z"].inline or b"") == {3}


def test_a_large_value_is_stored_and_goes_to_the_next_task(worker: Worker) -> None:
    """From the object store, or from the storage where there is none."""
    end, large = worker.run(lambda p: {"out": __import__("numpy").arange(100_000), "n": 1})
    assert isinstance(end, TaskSucceeded)
    value = end.values["out"]
    assert value.inline is None
    assert value.location == "runs/r/t/2/out"
    assert len(worker.storage.read(value.location)) == value.size
    assert end.result["out"]["shape"] == [100_000]  # type: ignore[index]  # a description
    assert large is not None
    assert list(large) == ["out"]

    def total(params: dict[str, Any]) -> dict[str, object]:
        return {"sum": int(params["a"].sum())}

    arguments = (from_task("a", value),)
    held = worker.succeed(total, arguments, ("sum",), (large,))
    read = worker.succeed(total, arguments, ("sum",))
    assert held.result == read.result == {"sum": 4999950000}


def test_a_value_that_is_held_is_not_read_from_storage(worker: Worker, tmp_path: Path) -> None:
    """The object store is enough; without it, the missing file is said in words."""
    end, large = worker.run(lambda p: {"out": b"x" * 5000})
    assert isinstance(end, TaskSucceeded)
    (tmp_path / "runs/r/t/2/out").unlink()
    arguments = (from_task("a", end.values["out"]),)
    assert worker.succeed(lambda p: {"n": len(p["a"])}, arguments, (), (large,)).result == {
        "n": 5000
    }
    error = worker.fail(lambda p: {}, arguments)
    assert error.message.startswith(
        "the value of the input 'a' (output 'out' of task before) is not in the storage"
    )


def test_many_small_values_do_not_all_travel_inline(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sum is bounded too."""
    monkeypatch.setattr(attempt, "MAX_INLINE_TOTAL", 2_000)
    end = worker.succeed(lambda p: {str(number): "x" * 900 for number in range(4)})
    assert [value.inline is not None for value in end.values.values()] == [True, True, False, False]


def test_an_output_that_cannot_be_pickled_is_named(worker: Worker) -> None:
    """With its type and the reason."""
    error = worker.fail(lambda p: {"good": 1, "bad": __import__("threading").Lock()})
    assert error.type == "TypeError"
    assert error.message.startswith("the output 'bad' (_thread.lock) cannot be pickled: TypeError")


def test_an_argument_that_cannot_be_unpickled_is_named(worker: Worker) -> None:
    """A class that raises when it is rebuilt, bytes that are no pickle."""
    value = Value(3, inline=b"bad")
    error = worker.fail(lambda p: {}, (from_task("a", value),))
    assert "(output 'out' of task before) could not be unpickled" in error.message


def test_a_batched_task_gets_a_list_of_one(worker: Worker) -> None:
    """And its item is the result."""
    end = worker.succeed(lambda batch: [{"n": len(batch)} for _ in batch], (), ("n",), batched=True)
    assert end.result == {"n": 1}
    error = worker.fail(lambda batch: [ValueError("item")], batched=True)
    assert (error.type, error.message) == ("ValueError", "item")


def test_code_that_does_not_load_fails_the_attempt(worker: Worker) -> None:
    """With what `code` says."""
    data = textwrap.dedent("def run(params:\n").encode()
    code = Code(Digest(hashlib.sha256(data).hexdigest()), CodeForm.SOURCE, "work")
    end, _ = worker.run(None, code=code)
    assert isinstance(end, TaskFailed)
    error = worker.fail(3)
    assert "cannot be called" in error.message


def test_code_that_cannot_be_fetched_loses_the_attempt(worker: Worker) -> None:
    """It is not the user's fault."""

    def fetch() -> bytes:
        raise OSError("gone")

    assignment = Assignment(
        RunId("r"),
        TaskId("t"),
        1,
        "work",
        Code(Digest("0" * 64), CodeForm.PICKLE, "work"),
        (),
        (),
        (),
        batched=False,
        timed=False,
        has_gpu=False,
        storage_url=worker.url,
        inline_value_bytes=INLINE,
        mailbox="",
    )
    frame, _ = attempt.run_attempt(assignment, fetch, (), PLACEMENT)
    end = wire.decode_end(frame)
    assert isinstance(end, TaskLost)
    assert "could not be fetched: gone" in end.error.message


def test_an_interrupt_loses_the_attempt(worker: Worker) -> None:
    """It may have come late, for the attempt before."""

    def interrupted(params: object) -> None:
        raise KeyboardInterrupt

    end, _ = worker.run(interrupted)
    assert isinstance(end, TaskLost)
    assert end.error.message == "the task was interrupted"


def test_a_storage_that_cannot_be_written_loses_the_attempt(tmp_path: Path) -> None:
    """Trying again may help."""
    (tmp_path / "file").write_text("")
    end, _ = Worker((tmp_path / "file" / "below").as_uri()).run(lambda p: {"out": b"x" * 5000})
    assert isinstance(end, TaskLost)
    assert "the output 'out' could not be written to the storage" in end.error.message


def test_a_process_is_left_in_order(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folder and standard streams are those from before; GPUs are hidden from who asked for none."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gone = tmp_path / "gone"
    gone.mkdir()
    streams, folder = (sys.stdout, sys.stderr), os.getcwd()

    def mess(params: dict[str, object]) -> dict[str, object]:
        os.chdir(gone)
        gone.rmdir()
        sys.stdout = sys.stderr = None  # as bad code does
        return {"gpus": os.environ["CUDA_VISIBLE_DEVICES"]}

    assert worker.succeed(mess).result == {"gpus": ""}
    assert (sys.stdout, sys.stderr) == streams
    assert os.getcwd() == folder
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    gone.mkdir()
    assert worker.succeed(mess, has_gpu=True).result == {"gpus": "0"}


def test_code_keeps_no_secret_for_another_attempt(worker: Worker) -> None:
    """Neither for one without the secret nor for one with another value; those without share what is loaded."""
    code = """
import os
KEY = os.environ.get("K", "none")
TIMES = []
class Kept:
    key = KEY
def work(p):
    TIMES.append(1)
    if KEY == "fails": raise ValueError("it does")
    return {"key": KEY, "times": len(TIMES), "of a class": Kept()}
"""

    def found(**secrets: str) -> tuple[str, int]:
        end = worker.succeed(code, secrets=secrets)
        return end.result["key"], end.result["times"]

    assert [found(), found(K="mine"), found(K="yours"), found()] == [
        ("none", 1),
        ("mine", 1),
        ("yours", 1),
        ("none", 2),
    ]
    error = worker.fail(code, secrets={"K": "fails"})
    assert 'raise ValueError("it does")' in error.traceback
    assert found() == ("none", 3)
    assert "K" not in os.environ


@pytest.mark.parametrize("alone", [True, False])
def test_what_loses_an_attempt_tells_no_secret(worker: Worker, tmp_path: Path, alone: bool) -> None:
    """What reading an argument raises, as where no file can have its name; nor one that was hidden before."""
    argument = from_task("a", Value(1, location=f"by mine 1234 old 1234 {300 * 'x'}"))
    secrets = {"K": "mine 1234"}
    with hidden(["old 1234"]):
        if alone:
            end, _ = worker.run(lambda p: {}, (argument,), secrets=secrets)
        else:
            assignment = worker.assignment(lambda p: {}, (argument,), secrets=secrets)
            with in_environment(secrets):
                ((frame, _),) = attempt.run_items_of(lambda p: {}, [assignment], [[]], [PLACEMENT])
            end = wire.decode_end(frame)
    assert isinstance(end, TaskLost)
    assert "could not be read from the storage: " in end.error.message
    assert end.error.message.endswith(f"/by *** *** {300 * 'x'}'")


@pytest.mark.parametrize("stored", [False, True])
def test_a_value_whose_class_cannot_be_made_again_fails_the_attempt(
    worker: Worker, tmp_path: Path, stored: bool
) -> None:
    """With the traceback, whatever the class raises: the storage has not failed."""
    for kind in ("ConnectionError", "FileNotFoundError"):

        class Refused:
            def __reduce__(self, kind: str = kind) -> tuple[Any, ...]:
                return exec, (f"def connect():\n    raise {kind}('the database')\nconnect()",)

        data = cloudpickle.dumps(Refused())
        value = Value(len(data), location="runs/x") if stored else Value(len(data), inline=data)
        (tmp_path / "runs").mkdir(exist_ok=True)
        (tmp_path / "runs/x").write_bytes(data)
        error = worker.fail(lambda p: {}, (from_task("a", value),))
        assert f"could not be unpickled: {kind}: the database" in error.message
        assert "in connect" in error.traceback


def test_a_storage_that_has_gone_when_a_batch_is_split_loses_the_attempt(
    worker: Worker, tmp_path: Path
) -> None:
    """It alone, and it is nobody's mistake."""
    made, _ = worker.run(lambda p: {"out": b"x" * 5000})
    assert isinstance(made, TaskSucceeded)

    def work(batch: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(batch) > 1:
            # In the way of its file is something that is no file.
            (tmp_path / "runs/r/t/2/out").unlink()
            (tmp_path / "runs/r/t/2/out").symlink_to("out")
            raise ValueError("not together")
        return [{"n": len(batch)}]

    assignments = [
        worker.assignment(work, arguments, batched=True)
        for arguments in ((from_task("a", made.values["out"]),), (given("a", 1),))
    ]
    ends = attempt.run_items_of(work, assignments, [[], []], [PLACEMENT] * 2)
    lost, succeeded = [wire.decode_end(frame) for frame, _ in ends]
    assert isinstance(lost, TaskLost)
    assert "could not be read from the storage" in lost.error.message
    assert isinstance(succeeded, TaskSucceeded)


def test_what_comes_out_of_a_sandbox_is_bounded_as_it_is_kept(worker: Worker) -> None:
    """One object under many keys comes out once, and is kept as often."""
    outputs: dict[str, object] = dict.fromkeys("abcde", b"x" * (5 << 20))
    assignment = worker.assignment(lambda p: {}, sandbox=Sandbox(memory=16))
    frame, large = attempt._pack(assignment, outputs, PLACEMENT)
    end = wire.decode_end(frame)
    assert isinstance(end, TaskFailed)
    assert (end.error.type, large) == ("SandboxLimit", None)
    assert end.error.message == "its outputs, each by itself, are over 16 MiB"
    del outputs["d"], outputs["e"]
    frame, _ = attempt._pack(assignment, outputs, PLACEMENT)
    assert isinstance(wire.decode_end(frame), TaskSucceeded)


@pytest.mark.parametrize(
    ("key", "size", "location"),
    [
        ("a\0", 1, "x"),
        ("k" * 1001, 1, "x"),
        ("a", -1, "x"),
        ("a", 2**63, "x"),
        ("a", 1, "x\0"),
        ("a", 1, ""),
    ],
)
def test_a_report_that_no_database_could_hold_is_none(
    worker: Worker, key: str, size: int, location: str
) -> None:
    """User code may write what it likes into the memory of its process."""
    values = {key: Value(size, location=location)}
    end = TaskSucceeded(TaskId("t"), 1, 5.0, PLACEMENT, {}, values)
    with pytest.raises(wire.FrameError):
        wire.decode_end(wire.encode_end(end))


def test_a_batch_tells_no_secret(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in its reports nor on its spans, whether one item fails or the whole call."""
    noted: list[ErrorInfo | None] = []

    @contextlib.contextmanager
    def of_calls(assignments: object) -> Iterator[Callable[[Sequence[ErrorInfo | None]], None]]:
        yield noted.extend

    monkeypatch.setattr(spans, "of_calls", of_calls)

    def fail(batch: list[dict[str, object]]) -> list[object]:
        if batch[0]["x"] == 1:
            raise ValueError("call with mine 1234")
        return [ValueError("item with mine 1234") for _ in batch]

    assignments = [
        worker.assignment(fail, (given("x", x),), batched=True, secrets={"K": "mine 1234"})
        for x in range(2)
    ]
    ends = attempt.run_items_of(fail, assignments, [[], []], [PLACEMENT] * 2)
    errors = [wire.decode_end(frame).error for frame, _ in ends]
    messages = ["item with ***", "item with ***"]
    assert [error.message for error in errors] == messages
    assert [error.message for error in noted if error] == messages
    assert "mine" not in f"{errors} {noted}"
    assignments.reverse()
    noted.clear()
    ends = attempt.run_items_of(fail, assignments, [[], []], [PLACEMENT] * 2)
    assert [wire.decode_end(frame).error.message for frame, _ in ends] == [
        "call with ***",
        "item with ***",
    ]
    assert "mine" not in f"{noted}"


@pytest.mark.parametrize(
    "decode",
    [
        wire.decode_end,
        wire.decode_start,
        wire.decode_logs,
        wire.decode_call,
        wire.decode_rendering,
    ],
)
@pytest.mark.parametrize(
    "frame", [b"", b"\0\0\0\0", b"\x02\0\0\0[]", b"\x06\0\0\0[{},0]", pickle.dumps({}), b"\xff" * 9]
)
def test_bytes_that_are_no_frame_are_refused(
    decode: Callable[[bytes], object], frame: bytes
) -> None:
    """Whatever user code has done to its process, the dispatcher gets one kind of error, without its bytes."""
    with pytest.raises(wire.FrameError):
        decode(frame)
    text = b"the user's own words" * 1000 + b"\xff"
    with pytest.raises(wire.FrameError) as caught:
        decode(len(text).to_bytes(4, "little") + text)
    assert str(caught.value) == "UnicodeDecodeError"
