"""One call or one batch of user code: every way in which it may end is an outcome of its item."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import pytest

from lattice.execution.runner import MAX_OUTPUTS, Failed, Outcome, run_batch, run_call
from lattice.workflow.checks import MAX_OUTPUT_KEY
from lattice.workflow.events import ErrorInfo

Params = dict[str, object]


def call(function: Callable[..., Any], *keys: str, params: Params | None = None) -> Outcome:
    return run_call(function, params or {}, keys, "the task")


def outputs(outcome: Outcome) -> dict[str, object]:
    assert not isinstance(outcome, Failed), outcome
    return outcome.outputs


def error(outcome: Outcome) -> ErrorInfo:
    assert isinstance(outcome, Failed), outcome
    return outcome.error


def test_the_result_is_the_dict_that_was_returned() -> None:
    """Keys that are not declared are kept."""
    outcome = call(lambda params: {"y": params["x"], "more": [1]}, "y", params={"x": 3})
    assert outputs(outcome) == {"y": 3, "more": [1]}


def test_async_functions_and_methods_are_run_to_their_end() -> None:
    """`async def`, an async `__call__`, and anything else that is awaitable."""

    async def function(params: Params) -> Params:
        await asyncio.sleep(0)
        return {"a": 1}

    class Model:
        async def __call__(self, params: Params) -> Params:
            await asyncio.sleep(0)
            return {"a": 2}

    assert outputs(call(function, "a")) == {"a": 1}
    assert outputs(call(Model(), "a")) == {"a": 2}
    assert outputs(call(lambda params: function(params), "a")) == {"a": 1}


def test_an_exception_is_told_with_the_users_own_frames() -> None:
    """Type, text, file and line; nothing of Lattice."""

    def helper() -> None:
        raise LookupError("nothing here")

    def function(params: Params) -> None:
        helper()

    found = error(call(function))
    assert (found.type, found.message) == ("LookupError", "nothing here")
    assert f'File "{__file__}", line {helper.__code__.co_firstlineno + 1}, in helper' in (
        found.traceback
    )
    assert 'raise LookupError("nothing here")' in found.traceback
    assert "/runner.py" not in found.traceback


def test_an_exception_in_a_coroutine_shows_no_event_loop() -> None:
    """The same for `async def`."""

    async def function(params: Params) -> None:
        await asyncio.sleep(0)
        raise ValueError("late")

    found = error(call(function))
    assert "in function" in found.traceback
    assert "asyncio" not in found.traceback
    assert "/runner.py" not in found.traceback


@pytest.mark.parametrize(
    ("code", "said"), [(3, "called sys.exit(3)"), (None, "called sys.exit()"), ("x", "'x'")]
)
def test_sys_exit_is_an_error(code: int | str | None, said: str) -> None:
    """The worker lives on."""
    found = error(call(lambda params: sys.exit(code)))
    assert found.type == "SystemExit"
    assert said in found.message


def test_any_base_exception_is_an_error() -> None:
    """Also those that are not exceptions in the narrow sense."""

    class Odd(BaseException):
        pass

    def function(params: Params) -> None:
        raise Odd("odd")

    assert error(call(function)).message == "odd"


def test_an_interrupt_passes() -> None:
    """It is not the function's: somebody cancels the task."""

    def function(params: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(function)
    with pytest.raises(KeyboardInterrupt):
        batch(function, 1, 2)


@pytest.mark.parametrize("returned", [None, 3, [("a", 1)], "text", ValueError("returned")])
def test_what_is_no_dict_is_refused_in_words(returned: object) -> None:
    """With the type that came, the keys wanted, and where the function stands."""

    def function(params: Params) -> object:
        return returned

    found = error(call(function, "a", "b"))
    assert found.type == "TypeError"
    assert f"returned {type(returned).__name__};" in found.message
    assert "('a', 'b')" in found.message
    line = function.__code__.co_firstlineno
    assert f'File "{__file__}", line {line}, in function' in found.traceback


def test_a_generator_is_no_dict() -> None:
    """`yield` in a task is a mistake that is said."""

    def function(params: Params) -> Any:
        yield {}

    assert "returned generator" in error(call(function)).message


@pytest.mark.parametrize(
    "key",
    [
        1,
        None,
        ("a",),
        "\ud800",
        "a\0b",
        "k" * (MAX_OUTPUT_KEY + 1),
        "é" * (MAX_OUTPUT_KEY // 2 + 1),
    ],
)
def test_keys_must_be_text(key: object) -> None:
    """Text that every database can hold, and not too long."""
    assert "keys must be text" in error(call(lambda params: {key: 1})).message


@pytest.mark.parametrize("key", ["", "a b\n", "k" * MAX_OUTPUT_KEY, "é" * (MAX_OUTPUT_KEY // 2)])
def test_keys_may_be_any_such_text(key: str) -> None:
    assert outputs(call(lambda params: {key: 1})) == {key: 1}


def test_a_missing_output_is_named() -> None:
    """With what was returned instead."""
    found = error(call(lambda params: {"a": 1}, "a", "b"))
    assert found.message == "the task did not return the declared output 'b'; it returned 'a'"


def test_too_many_keys_are_refused() -> None:
    """A table as a result belongs into one output."""
    keys = {str(number): 0 for number in range(MAX_OUTPUTS + 1)}
    assert "as the value of one key" in error(call(lambda params: keys)).message
    assert len(outputs(call(lambda params: keys, *keys))) == MAX_OUTPUTS + 1


def test_a_mapping_whose_reading_raises_is_an_error_of_its_own() -> None:
    """A dict subclass may do anything when it is read."""

    class Hostile(dict[str, object]):
        def items(self) -> Any:
            raise RuntimeError("hostile")

    assert error(call(lambda params: Hostile())).message == "hostile"


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (lambda: {}, 0),
        (lambda: 1 / 0, 1),
        (lambda: sys.exit(7), 7),
        (lambda: sys.exit("message"), 1),
        (lambda: os._exit(9), 9),
    ],
)
def test_a_forked_child_never_comes_back(ending: Callable[[], object], status: int) -> None:
    """It ends with the status that a script would have, whatever way it takes."""

    def function(params: Params) -> Params:
        child = os.fork()
        if not child:
            ending()
            return {"who": "child"}
        return {"who": "parent", "status": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}

    assert outputs(call(function)) == {"who": "parent", "status": status}


@pytest.mark.parametrize("raises", [False, True])
def test_a_child_that_is_forked_in_a_coroutine_leaves_the_parents_loop_alone(raises: bool) -> None:
    """The parent goes on to use its loop, with threads that wake it."""

    async def function(params: Params) -> Params:
        child = os.fork()
        if not child:
            if raises:
                raise RuntimeError
            return {"who": "child"}
        _, status = os.waitpid(child, 0)  # noqa: ASYNC222  # the child ends at once
        woken = await asyncio.get_running_loop().run_in_executor(None, lambda: True)
        return {"status": os.waitstatus_to_exitcode(status), "woken": woken}

    assert outputs(call(function)) == {"status": int(raises), "woken": True}


def _double(number: int) -> int:
    return 2 * number


def test_children_are_born_with_the_default_action_of_sigterm() -> None:
    """A handler of the engine that raises must not keep a pool from ending its children."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_multiprocessing_works() -> None:
    """A pool of forked processes inside a task."""

    def function(params: Params) -> Params:
        with multiprocessing.get_context("fork").Pool(2) as pool:
            return {"doubled": pool.map(_double, [1, 2, 3])}

    assert outputs(call(function)) == {"doubled": [2, 4, 6]}


def test_prints_are_fine(capfd: pytest.CaptureFixture[str]) -> None:
    """Output goes where it goes."""

    def function(params: Params) -> Params:
        print("hello")
        return {}

    assert outputs(call(function)) == {}
    assert capfd.readouterr().out == "hello\n"


# -- batches -----------------------------------------------------------------------------------


def batch(function: Callable[..., Any], *numbers: int) -> list[Outcome]:
    items = [(lambda x=number: {"x": x, "seen": []}, ("y",)) for number in numbers]
    return run_batch(function, items, "the task")


def test_a_batch_has_one_outcome_for_each_item_in_order() -> None:
    """In one call."""
    calls: list[int] = []

    def function(items: list[dict[str, int]]) -> list[dict[str, int]]:
        calls.append(len(items))
        return [{"y": 10 * item["x"]} for item in items]

    assert [outputs(each) for each in batch(function, 1, 2, 3)] == [{"y": 10}, {"y": 20}, {"y": 30}]
    assert calls == [3]


def test_an_exception_as_an_item_fails_that_item_only() -> None:
    """So does an item that is no result."""
    items = [{"y": 1}, ValueError("second"), 3, {"z": 1}]
    first, second, third, fourth = batch(lambda given: items, 1, 2, 3, 4)
    assert outputs(first) == {"y": 1}
    assert (error(second).type, error(second).message) == ("ValueError", "second")
    assert "returned int" in error(third).message
    assert "did not return the declared output 'y'" in error(fourth).message


def test_a_batch_that_raises_is_split_until_only_the_culprit_fails() -> None:
    """The others succeed."""

    async def function(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if any(item["x"] == 3 for item in items):
            raise ValueError("three")
        return [{"y": item["x"]} for item in items]

    outcomes = batch(function, 1, 2, 3, 4, 5)
    assert error(outcomes.pop(2)).message == "three"
    assert [outputs(each)["y"] for each in outcomes] == [1, 2, 4, 5]


@pytest.mark.parametrize(("returned", "found"), [([], "0 items"), (None, "NoneType"), ({}, "dict")])
def test_a_batch_of_the_wrong_length_fails(returned: object, found: str) -> None:
    """With what came back."""
    (outcome,) = batch(lambda items: returned, 1)
    assert f"for 1 items it returned {found}" in error(outcome).message


def test_a_function_cannot_change_the_batch_that_is_split() -> None:
    """It gets a list, and items, of its own each time."""

    def function(items: list[dict[str, Any]]) -> list[dict[str, int]]:
        for item in items:
            item["seen"].append(len(items))
        first = items.pop()
        x = first.pop("x")
        if items:
            raise ValueError
        return [{"y": x, "seen": first["seen"]}]

    found = [outputs(each) for each in batch(function, 1, 2)]
    assert found == [{"y": 1, "seen": [1]}, {"y": 2, "seen": [1]}]


def test_parameters_that_cannot_be_had_again_fail_only_their_item() -> None:
    """As where the storage has gone meanwhile."""
    left = [{"x": 1}]

    def function(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if len(items) > 1:
            raise ValueError
        return [{"y": items[0]["x"]}]

    items = [(left.pop, ("y",)), (lambda: {"x": 2}, ("y",))]
    first, second = run_batch(function, items, "the task")
    assert error(first).type == "IndexError"
    assert outputs(second) == {"y": 2}
