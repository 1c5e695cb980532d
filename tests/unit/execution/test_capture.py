"""What user code prints is passed on as it is, and recorded within bounds."""

from __future__ import annotations

import asyncio
import contextvars
import io
import itertools
import logging
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

import cloudpickle
import pytest

from lattice.execution import capture, wire
from lattice.execution import recorder as recorders
from lattice.execution.capture import recording
from lattice.execution.recorder import Recorder
from lattice.ids import RunId, TaskId
from lattice.ports.execution import LogEntry, TaskLogged
from lattice.workflow.events import ErrorInfo

#: Longest wait, in seconds, for something that does happen.
LONG = 20.0
LIMIT = 8 * 1024


def nobody(entries: list[LogEntry]) -> None:
    """Where it does not matter what is told meanwhile."""


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Streams of the test's own; these and loggers are as they were at the end, with `pytest -s` too."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(logging.Logger, "callHandlers", logging.Logger.callHandlers)
    # Text that was told does not grow: how much that is would be a matter of time.
    monkeypatch.setattr(recorders, "_FIRST", 3600.0)
    # Not before: what is patched last is restored first.
    request.getfixturevalue("capsys")


@pytest.fixture
def telling(_restored: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is printed is told while it goes on."""
    monkeypatch.setattr(recorders, "_FIRST", 0.05)


def texts(recorder: Recorder) -> list[tuple[str, str]]:
    return [(entry.stream, entry.text) for entry in recorder.kept()]


def test_text_is_recorded_and_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    """Pieces are put together, streams kept apart; outside nothing is recorded."""
    with recording(LIMIT, nobody) as recorder:
        print("one", 2)
        sys.stdout.writelines(["three", "\n"])
        print("broken", file=sys.stderr)
        print("four äöü")
    print("outside")
    assert texts(recorder) == [
        ("stdout", "one 2\nthree\n"),
        ("stderr", "broken\n"),
        ("stdout", "four äöü\n"),
    ]
    assert [entry.offset for entry in recorder.kept()] == [0, 12, 19]
    assert recorder.kept()[-1].end == 31
    assert capsys.readouterr() == ("one 2\nthree\nfour äöü\noutside\n", "broken\n")


class Wrapper:
    """What users, and libraries such as colorama, put in place of a stream."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        return int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_stream_that_user_code_has_wrapped_is_recorded_once(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the attempt that wraps it and in the next, though the tee of the first is below the wrapper."""
    with recording(LIMIT, nobody) as recorder, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", Wrapper(sys.stdout))
        print("first")
        with recording(LIMIT, nobody) as second:
            print("second")
    assert texts(recorder) == [("stdout", "first\n")]
    assert texts(second) == [("stdout", "second\n")]
    assert capsys.readouterr().out == "first\nsecond\n"


def test_a_limit_of_nothing_leaves_the_process_alone() -> None:
    stdout = sys.stdout
    with recording(0, nobody) as recorder:
        print("x")
        assert sys.stdout is stdout
    assert recorder.kept() == []


def test_the_streams_are_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is asked of one is answered by the stream below; it is pickled by name."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="latin-1", line_buffering=True)
    monkeypatch.setattr(sys, "stdout", file)
    with recording(LIMIT, nobody):
        assert isinstance(sys.stdout, io.TextIOBase)
        assert sys.stdout.encoding == "latin-1"
        assert sys.stdout.buffer is file.buffer
        assert sys.stdout.line_buffering
        assert not sys.stdout.isatty()
        with pytest.raises(OSError, match="fileno"):
            sys.stdout.fileno()
        tee = sys.stdout
        assert pickle.loads(cloudpickle.dumps(lambda: tee))() is sys.stdout
        sys.stdout.close()
        print("still there")


def test_records_of_loggers_are_seen_whatever_handles_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As far as the loggers' levels let them through, once, and without their handlers' text as well."""
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    logger = logging.getLogger("mine")
    with recording(LIMIT, nobody) as recorder:
        logger.info("not let through")
        logger.warning("last resort %d", 1)
        logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
        try:
            raise ValueError("no")
        except ValueError:
            logger.exception("handled")
        logging.getLogger("lattice.execution").warning("ours")
        logging.getLogger("deployments.task_replica").warning("the service's")
        logging.getLogger("ray.serve").warning("the engine's")
        logger.warning("bad %d", "argument")
    shown = capsys.readouterr().err
    assert "last resort 1" in shown
    assert "ERROR handled\nTraceback" in shown
    assert "ours" in shown
    first, second, third = recorder.kept()
    assert (first.stream, first.level, first.logger) == ("log", "WARNING", "mine")
    assert first.text == "last resort 1\n"
    assert second.text.startswith("handled\nTraceback")
    assert second.text.endswith("ValueError: no\n")
    assert third.text == "bad %d\n"


class Unspeakable:
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


def test_a_message_without_a_text_disturbs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """What logging itself would forgive must not come out of the call that logs."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    with recording(LIMIT, nobody) as recorder:
        logging.getLogger("mine").warning(Unspeakable())
    ((stream, text),) = texts(recorder)
    assert stream == "log"
    assert "Unspeakable object at" in text


def test_threads_and_coroutines_belong_to_their_attempt() -> None:
    """Two attempts at a time: a plain thread then belongs to none; alone, to the one that there is."""

    async def speak(text: str) -> None:
        await asyncio.create_task(asyncio.to_thread(print, text))

    def thread(text: str) -> None:
        speaking = threading.Thread(target=print, args=(text,))
        speaking.start()
        speaking.join()

    both = threading.Barrier(2)
    found: dict[str, list[tuple[str, str]]] = {}

    def work(name: str) -> None:
        with recording(LIMIT, nobody) as recorder:
            both.wait(LONG)
            print(name)
            asyncio.run(speak(f"{name} in a coroutine"))
            thread("nobody's")
            both.wait(LONG)
        found[name] = texts(recorder)

    workers = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for each in workers:
        each.start()
    for each in workers:
        each.join(LONG)
    assert found == {name: [("stdout", f"{name}\n{name} in a coroutine\n")] for name in "ab"}
    with recording(LIMIT, nobody) as recorder:
        thread("mine")
    assert texts(recorder) == [("stdout", "mine\n")]


def test_a_forked_child_records_nothing() -> None:
    """Nobody would tell it, and a lock that another thread had would never be released."""
    with recording(LIMIT, nobody) as recorder:
        recorder._lock.acquire()
        locking = threading.Event()
        recorder._lock.release()

        def hold() -> None:
            with recorder._lock:
                locking.set()
                done.wait(LONG)

        done = threading.Event()
        holder = threading.Thread(target=hold)
        holder.start()
        assert locking.wait(LONG)
        elsewhere = contextvars.copy_context()
        elsewhere.run(capture._current.set, recorder)
        child = os.fork()
        if child == 0:
            signal.alarm(int(LONG))
            print("in the child")
            elsewhere.run(print, "in another coroutine of the child")
            capture.flush()
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        done.set()
        holder.join()
    assert recorder.kept() == []


def test_beginning_and_end_are_kept() -> None:
    """Within the bound, in memory too; offsets tell what is missing."""
    with recording(LIMIT, nobody) as recorder:
        for number in range(10_000):
            print(f"line {number:05d}")
        size = sum(piece.cost for piece in (*recorder._head, *recorder._tail))
        assert size <= LIMIT + 2 * LogEntry.OVERHEAD
    entries = recorder.kept()
    kept = "".join(entry.text for entry in entries)
    assert kept.startswith("line 00000\n")
    assert kept.endswith("line 09999\n")
    assert len(kept) > LIMIT * 5 // 8
    gaps = [later.offset - entry.end for entry, later in itertools.pairwise(entries)]
    assert sorted(gaps)[-2] == 0
    assert max(gaps) == 110_000 - len(kept)


@pytest.mark.parametrize("character", ["x", "ä", "𝄞"])
def test_one_huge_text(character: str) -> None:
    """It is never copied whole, and no character is torn."""
    with recording(LIMIT, nobody) as recorder:
        sys.stdout.write("begin " + character * 1_000_000 + " end")
    kept = "".join(entry.text for entry in recorder.kept())
    assert kept.startswith("begin ")
    assert kept.endswith(" end")
    assert set(kept) == {*"begin d", character}
    assert len(kept.encode()) <= LIMIT + 8


def test_any_text_can_be_recorded() -> None:
    """Streams may take what UTF-8 has no form for."""
    recorder = Recorder(LIMIT, nobody)
    recorder.write("stdout", "\ud800\0\n")
    assert texts(recorder) == [("stdout", "\\ud800\0\n")]


def test_what_is_new_is_told_while_it_runs(telling: None) -> None:
    """Without its end, and each text once; of much text the beginning, and then the last of it."""
    told: list[list[LogEntry]] = []
    arrived = threading.Event()

    def tell(entries: list[LogEntry]) -> None:
        told.append(entries)
        arrived.set()

    def wait() -> list[LogEntry]:
        assert arrived.wait(LONG)
        arrived.clear()
        return told[-1]

    with recording(LIMIT, tell) as recorder:
        # Each in one write, of which a thread that tells sees nothing or all.
        sys.stdout.write("first\n")
        assert [entry.text for entry in wait()] == ["first\n"]
        sys.stdout.write("second\n")
        assert [(entry.offset, entry.text) for entry in wait()] == [(6, "second\n")]
        sys.stdout.write("x" * 3 * LIMIT + "last\n")
        entries = wait()
        assert entries[0].offset == 13
        assert "".join(entry.text for entry in entries).endswith("xlast\n")
        assert LIMIT * 3 // 8 < sum(entry.size for entry in entries) < LIMIT * 5 // 8
        sys.stdout.write("and more\n")
        assert [entry.text for entry in wait()] == ["and more\n"]
        recorder.flush()
        assert not arrived.is_set()
    assert recorder.kept()[0].text == "first\n"
    assert recorder.kept()[-1].text == "and more\n"


def test_what_another_has_kept_comes_first() -> None:
    """As it was said, with its own times; and within the bound."""
    with recording(LIMIT, nobody) as first:
        print("x" * 100)
        logging.getLogger("mine").warning("logged")
    with recording(LIMIT, nobody) as recorder:
        recorder.take_over(first.kept())
        print("then")
    assert recorder.kept()[:2] == first.kept()
    assert texts(recorder)[2:] == [("stdout", "then\n")]
    with recording(50, nobody) as small:
        small.take_over(first.kept())
    assert 0 < sum(entry.size for entry in small.kept()) <= 50


def test_an_attempt_that_is_interrupted_tells_at_once() -> None:
    told: list[LogEntry] = []
    with recording(LIMIT, told.extend):
        print("last words")
        capture.flush()
        assert [entry.text for entry in told] == ["last words\n"]


def test_a_process_without_room_for_a_thread_only_tells_later(
    monkeypatch: pytest.MonkeyPatch, telling: None
) -> None:
    """The limit of threads is no error of who prints, and the next text tries again."""
    monkeypatch.setattr(recorders, "_teller", recorders._Teller())
    told = threading.Event()

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with recording(LIMIT, nobody) as recorder:
            print("x")
    assert texts(recorder) == [("stdout", "x\n")]
    assert recorders._teller._due == {}
    with recording(LIMIT, lambda entries: told.set()):
        print("y")
        assert told.wait(LONG)


def test_a_destructor_may_print_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the thread that runs it has just taken the lock that its text needs."""
    # Of the test's own, so that it alone would fail.
    monkeypatch.setattr(capture, "_changing", type(capture._changing)())
    monkeypatch.setattr(recorders, "_teller", recorders._Teller())
    done = threading.Event()

    def work() -> None:
        with recording(LIMIT, nobody), capture._changing, recorders._teller._starting:
            print("in a destructor")
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(LONG)


@pytest.mark.parametrize("wrong", [-5, None])
def test_times_that_user_code_has_replaced_do_not_matter(
    wrong: object, monkeypatch: pytest.MonkeyPatch, telling: None
) -> None:
    """As tests with a time of their own do; what is told has the real one."""
    monkeypatch.setattr(recorders, "_teller", recorders._Teller())
    told = threading.Event()
    before = time.time()
    with monkeypatch.context() as patched:
        for name in ("time", "monotonic"):
            patched.setattr(time, name, lambda: wrong)
        with recording(LIMIT, lambda entries: told.set()) as recorder:
            sys.stdout.write("x\n")
            assert told.wait(LONG)
    (entry,) = recorder.kept()
    assert before <= entry.time <= time.time()
    assert wire.split_logs(wire.logs_before([entry]) + b"frame")[1] == b"frame"


def test_last_words_that_cannot_be_told_disturb_nobody() -> None:
    """They are told on the way to the report of an attempt's end, which counts more."""

    def fail(entries: list[LogEntry]) -> None:
        raise TypeError("user code has damaged the process")

    with recording(LIMIT, fail) as recorder:
        print("x")
        capture.flush()
    assert texts(recorder) == [("stdout", "x\n")]


def test_who_cannot_tell_does_not_disturb(caplog: pytest.LogCaptureFixture, telling: None) -> None:
    """The next telling is tried, and the end has all."""
    tried = threading.Event()

    def fail(entries: list[LogEntry]) -> None:
        tried.set()
        raise RuntimeError("no mailbox")

    for _ in range(2):
        tried.clear()
        with recording(LIMIT, fail) as recorder:
            sys.stdout.write("x\n")
            assert tried.wait(LONG)
        assert texts(recorder) == [("stdout", "x\n")]


# -- on the wire -----------------------------------------------------------------------------------

ENTRIES = (LogEntry(0, 5.5, "stdout", "a\0\n"), LogEntry(3, 6.0, "log", "ä\n", "INFO", "mine"))


def test_logs_travel_before_the_frame_of_an_end() -> None:
    assert wire.logs_before(()) == b""
    assert wire.split_logs(b"frame") == ((), b"frame")
    assert wire.split_logs(wire.logs_before(ENTRIES) + b"frame") == (ENTRIES, b"frame")


def test_logs_travel_in_the_text_of_an_error() -> None:
    """Whatever they say, and however much text is around it."""
    info = ErrorInfo("OSError", "no")
    entries = (*ENTRIES, LogEntry(6, 7.0, "stdout", "[lattice-error:AAAA]"))
    text = f"before\n{wire.error_text(info, entries)}\nafter"
    assert wire.find_error(text) == (info, entries)
    assert wire.find_error(text.replace("]", "", 1)) is None


def test_a_note_is_of_each_attempt_of_a_batch() -> None:
    attempts = [(RunId("r"), TaskId("a"), 1), (RunId("s"), TaskId("b"), 2)]
    assert wire.decode_logs(wire.encode_logs(attempts, ENTRIES)) == [
        (RunId("r"), TaskLogged(TaskId("a"), 1, ENTRIES)),
        (RunId("s"), TaskLogged(TaskId("b"), 2, ENTRIES)),
    ]


@pytest.mark.parametrize(
    "entry",
    [
        LogEntry(-1, 1.0, "stdout", "x"),
        LogEntry(2**70, 1.0, "stdout", "x"),
        LogEntry(0, float("nan"), "stdout", "x"),
        LogEntry(0, 1e300, "stdout", "x"),
        LogEntry(0, 1.0, "stdout", ""),
        LogEntry(0, 1.0, "elsewhere", "x"),
    ],
)
def test_what_is_forged_is_refused(entry: LogEntry) -> None:
    """What no column could hold and no page could show must not get as far as the journal."""
    with pytest.raises(wire.FrameError):
        wire.decode_logs(wire.encode_logs([(RunId("r"), TaskId("a"), 1)], [entry]))
    assert wire.split_logs(wire.logs_before([entry]) + b"frame") == ((), b"frame")


def test_no_log_decides_the_end_of_an_attempt() -> None:
    """What cannot be told is not told; only where the end itself cannot be found, there is none."""
    unknown: Any = object()
    assert wire.logs_before([LogEntry(0, 1.0, "log", "x", unknown, "mine")]) == b""
    logs = wire.logs_before(ENTRIES)
    assert wire.split_logs(logs.replace(b"[", b"{") + b"frame") == ((), b"frame")
    for broken in (logs[:6], logs[:-1]):
        with pytest.raises(wire.FrameError):
            wire.split_logs(broken)
