"""How `lattice logs` prints what comes in pieces."""

from __future__ import annotations

import pytest

from lattice.cli.logs import _Printer


def test_pieces_of_several_tasks_become_lines(capsys: pytest.CaptureFixture[str]) -> None:
    """Whole ones, after the task's name; what has no end is told at the end. Streams are told apart."""
    printer = _Printer({"1": "a", "2": "b"})
    for task_id, stream, text in (
        ("1", "stdout", "one"),
        ("2", "stdout", "two\nthree"),
        ("1", "stderr", "aside\r\n"),
        ("1", "stdout", " line\n\n"),
        ("2", "stdout", " lines\nopen"),
    ):
        printer.add(task_id, stream, text)
    assert capsys.readouterr().out == "b: two\na: aside\na: one line\na: \nb: three lines\n"
    printer.end()
    assert capsys.readouterr().out == "b: open\n"


def test_what_one_task_prints_is_left_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """But for what cannot be encoded."""
    printer = _Printer({"1": "a"})
    printer.add("1", "stdout", "50 %\r")
    printer.add("1", "stdout", "\udcff")
    assert capsys.readouterr().out == "50 %\r?"
