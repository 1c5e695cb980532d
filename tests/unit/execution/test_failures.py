"""Errors as people see them: bounded, encodable, with the user's own frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lattice.execution import wire
from lattice.execution.failures import MAX_KINDS, MAX_MESSAGE, MAX_TRACEBACK, describe
from lattice.ids import TaskId
from lattice.workflow.events import ErrorInfo, TaskFailed


def raised(function: Callable[[], object]) -> ErrorInfo:
    with pytest.raises(BaseException) as caught:  # noqa: PT011  # whatever it is
        function()
    return describe(caught.value, "the task")


class SilentError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class QuitError(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


class Texts:
    """Things an exception may hold."""

    def __repr__(self) -> str:
        raise ValueError


def _raise(error: BaseException) -> Callable[[], None]:
    def function() -> None:
        raise error

    return function


@pytest.mark.parametrize("error", [SilentError(), QuitError()])
def test_an_exception_that_cannot_be_printed_is_still_told(error: Exception) -> None:
    """Its type, and that its text cannot be had."""
    info = raised(_raise(error))
    assert info.type.endswith(type(error).__qualname__)
    assert "cannot be shown" in info.message
    assert "in function" in info.traceback


def test_types_are_qualified() -> None:
    """Those of a module with its name, builtins without."""
    assert raised(_raise(SilentError())).type == f"{__name__}.SilentError"
    assert raised(lambda: 1 / 0).type == "ZeroDivisionError"


def test_long_texts_are_cut_in_the_middle() -> None:
    """What says most stands at the beginning and the end."""
    info = raised(_raise(ValueError("begin" + "x" * 10**6 + "end")))
    assert len(info.message) <= MAX_MESSAGE
    assert info.message.startswith("begin")
    assert info.message.endswith("end")
    assert len(info.traceback) <= MAX_TRACEBACK


def test_an_endless_recursion_has_a_bounded_traceback() -> None:
    """Also where two functions call each other, which Python does not shorten."""

    def ping() -> None:
        pong()

    def pong() -> None:
        ping()

    info = raised(ping)
    assert info.type == "RecursionError"
    assert len(info.traceback) <= MAX_TRACEBACK


def test_text_that_cannot_be_encoded_is_escaped() -> None:
    """Half a surrogate pair in a message reaches the database as an escape."""
    info = raised(_raise(ValueError("bad \ud800 text")))
    assert info.message == "bad \\ud800 text"
    info.traceback.encode()


def test_causes_and_groups_are_shown() -> None:
    """`raise ... from`, errors while handling errors, exception groups."""

    def chained() -> None:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    traceback = raised(chained).traceback
    assert "KeyError: 'first'" in traceback
    assert "direct cause" in traceback
    assert "ValueError: second" in traceback

    group = ExceptionGroup("several", [ValueError("one"), TypeError("two")])
    info = raised(_raise(group))
    assert info.type == "ExceptionGroup"
    assert "ValueError: one" in info.traceback
    assert "TypeError: two" in info.traceback


def test_a_chain_that_bites_its_own_tail_ends() -> None:
    """An exception may name itself as its cause."""
    error = ValueError("self")
    error.__cause__ = error
    assert raised(_raise(error)).message == "self"


def test_arguments_that_cannot_be_shown_do_not_matter() -> None:
    """The text of an exception may depend on objects that raise."""
    assert "cannot be shown" in raised(_raise(ValueError(Texts()))).message


def test_the_bases_of_an_exception_are_named_for_retry_policies() -> None:
    """Bounded, whatever the classes are, and carried to the dispatcher."""

    class DerivedError(SilentError, ConnectionError):
        pass

    info = raised(_raise(DerivedError()))
    assert info.kinds[0] == info.type
    assert info.kinds[1:] == (
        f"{__name__}.SilentError",
        "ConnectionError",
        "OSError",
        "Exception",
        "BaseException",
    )
    assert wire.find_error(wire.error_text(info)) == (info, ())
    failed = TaskFailed(TaskId("t"), 1, 2.0, info)
    assert wire.decode_end(wire.encode_end(failed)) == failed
    kind: type[Exception] = ValueError
    for _ in range(100):
        kind = type("E" * 400, (kind,), {})
    assert len(raised(_raise(kind())).kinds) == MAX_KINDS
    assert raised(_raise(type("E" * 10**6, (KeyError,), {})())).kinds[0] == "KeyError"


class _OddMeta(type):
    @property
    def __mro__(cls) -> tuple[type, ...]:  # type: ignore[override]
        raise SystemExit(1)


class OddError(Exception, metaclass=_OddMeta):
    pass


def test_a_class_that_cannot_be_looked_at_has_no_bases() -> None:
    """It is known by its type."""
    assert describe(OddError(), "the task").kinds == ()
