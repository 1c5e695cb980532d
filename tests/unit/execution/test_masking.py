"""What is told holds no value of a secret, and no part of one that was cut."""

from __future__ import annotations

import ctypes
import itertools
import os
import sys
import threading
import traceback
from types import FrameType

import pytest

from lattice.execution.capture import mask, recording
from lattice.execution.failures import MAX_MESSAGE, MAX_TRACEBACK, describe
from lattice.execution.secrets import Masking, hidden, hide, in_environment, masked, masked_error

SECRET = "s3cr3t-0123456789"


def test_a_value_that_holds_another_is_masked_whole() -> None:
    """Whichever was named first."""
    for values in itertools.permutations(["key-1", "key-1-of-all", "of-all"]):
        assert masked("<key-1-of-all key-1>", values) == "<*** ***>"


@pytest.mark.parametrize(
    ("values", "text", "shown"),
    [
        ([SECRET], f"a {SECRET}b{SECRET}", "a ***b***"),
        (["abcd", "abcdefgh"], "abcdefgh abcd abcdef", "*** *** ***ef"),
        (["xabcd", "abcdefgh"], "xabcdzzz", "***zzz"),
        (["aaaa"], "aaaaaaaab", "******b"),
        (["abab"], "ababab", "***ab"),
        (["line 1\nline 2"], "line 1\nline 2\nline 1\nline 3", "***\nline 1\nline 3"),
        (["no"], "no secret", "no secret"),
        ([], "nothing", "nothing"),
    ],
)
def test_a_value_in_pieces_is_masked(values: list[str], text: str, shown: str) -> None:
    """However the text is divided."""
    for cuts in itertools.combinations(range(len(text) + 1), 2):
        masking = Masking(values)
        pieces = [text[: cuts[0]], text[cuts[0] : cuts[1]], text[cuts[1] :]]
        assert "".join([*map(masking.take, pieces), masking.rest()]) == shown
    masking = Masking(values)
    assert "".join([*map(masking.take, text), masking.rest()]) == shown


def test_values_are_hidden_as_long_as_any_batch_has_them() -> None:
    """Several may run at a time in a process, and end in any order."""
    first, second = hidden([SECRET]), hidden([SECRET])
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert hide(f"<{SECRET}>") == "<***>"
    second.__exit__(None, None, None)
    assert hide(f"<{SECRET}>") == f"<{SECRET}>"


def test_what_is_printed_while_nothing_is_recorded_is_masked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By threads that outlive what started them."""
    mask([SECRET])
    try:
        thread = threading.Thread(target=print, args=(f"<{SECRET}>",))
        thread.start()
        thread.join()
        with recording(1000, lambda entries: None, [SECRET]) as recorder:
            sys.stdout.write(f"({SECRET})\n")
    finally:
        mask(())
    assert capsys.readouterr().out == "<***>\n(***)\n"
    assert [entry.text for entry in recorder.kept()] == ["(***)\n"]
    print(SECRET)
    assert capsys.readouterr().out == f"{SECRET}\n"


def test_what_can_be_no_secret_is_told_at_once() -> None:
    """And at the end what could have been one, unless it is much of one."""
    masking = Masking([SECRET])
    assert masking.take("step 1\n") == "step 1\n"
    assert masking.take("less") == "les"
    assert masking.take("\n") == "s\n"
    assert masking.take("this") == "thi"
    assert masking.rest() == "s"
    assert masking.take(f"<{SECRET[:10]}") == "<"
    assert masking.rest() == "***"


@pytest.mark.parametrize("limit", [MAX_MESSAGE, MAX_TRACEBACK])
def test_an_error_is_masked_before_it_is_cut(limit: int) -> None:
    """Wherever the cut is."""
    for before in range(limit // 2 - 60, limit // 2, 7):
        with hidden([SECRET]):
            error = describe(ValueError("x" * before + SECRET + "x" * limit), "task")
        assert SECRET[:6] not in error.message
        assert SECRET[:6] not in error.traceback
        assert SECRET[-6:] not in error.message
        assert SECRET[-6:] not in error.traceback
    assert SECRET in describe(ValueError(SECRET), "task").message


def test_what_is_printed_in_pieces_is_masked(capsys: pytest.CaptureFixture[str]) -> None:
    """In the record, and in what is passed on; streams are apart, and nothing is lost."""
    with recording(8 * 1024, lambda entries: None, [SECRET]) as recorder:
        for character in f"<{SECRET}> ":
            sys.stdout.write(character)
            sys.stderr.write(f"{character}\n")
        try:
            raise ValueError(SECRET)
        except ValueError:
            traceback.print_exc(limit=0)
        print("this", end="")
        kept: dict[str, str] = {}
        for entry in recorder.kept():
            kept[entry.stream] = kept.get(entry.stream, "") + entry.text
    shown = capsys.readouterr()
    assert kept["stdout"] == shown.out == "<***> this"
    assert kept["stderr"] == shown.err
    assert kept["stderr"].endswith("ValueError: ***\n")
    assert masked_error(describe(ValueError("x"), "t"), [SECRET]).message == "x"


def test_no_interrupt_leaves_a_secret_in_the_environment() -> None:
    """Wherever it comes: the next attempt in the process, and what it starts, must not find it."""
    libc = ctypes.CDLL(None)
    libc.getenv.restype = ctypes.c_char_p
    left = 0

    def interrupt(frame: FrameType, event: str, argument: object) -> object:
        nonlocal left
        frame.f_trace_opcodes = True
        if frame.f_globals.get("__name__") in ("lattice.execution.secrets", "contextlib", "os"):
            left -= event == "opcode"
            if left == 0:
                raise KeyboardInterrupt
        return interrupt

    os.environ["LATTICE_TEST_OLD"] = "before"
    for number in itertools.count(1):
        left = number
        before = sys.gettrace()
        try:
            sys.settrace(interrupt)  # type: ignore[arg-type]  # its type refers to itself
            with in_environment({"LATTICE_TEST_OLD": SECRET, "LATTICE_TEST_NEW": SECRET}):
                pass
            break
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        assert os.environ["LATTICE_TEST_OLD"] == "before"
        assert "LATTICE_TEST_NEW" not in os.environ
        assert libc.getenv(b"LATTICE_TEST_OLD") == b"before"
        assert libc.getenv(b"LATTICE_TEST_NEW") is None
    assert number > 100
    del os.environ["LATTICE_TEST_OLD"]
