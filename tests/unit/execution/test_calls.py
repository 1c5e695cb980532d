"""A call and a rendering in a worker process, from what comes in to what goes out."""

from __future__ import annotations

import os
import pickle
import sys
import threading
from collections.abc import Callable

import cloudpickle
import pytest

from lattice.errors import UserCodeError
from lattice.execution import attempt, pickling, wire
from lattice.ports.execution import CallResult
from lattice.workflow.events import (
    ErrorInfo,
    Value,
)
from tests.unit.execution.codes import pickled


def call(
    function: object,
    *args: object,
    limit: int = 10_000,
    secrets: dict[str, str] | None = None,
    **kwargs: object,
) -> CallResult | UserCodeError | wire.TooLarge:
    code, data = pickled(function)
    frame = attempt.run_function(
        code,
        lambda: data,
        cloudpickle.dumps(args),
        cloudpickle.dumps(kwargs),
        has_gpu=False,
        limit=limit,
        secrets=secrets,
    )
    return wire.decode_call(frame)


def test_a_call_returns_json_and_the_object() -> None:
    """With any signature, also of async functions."""

    def function(a: int, *rest: int, key: int = 0) -> tuple[object, ...]:
        return (a, rest, key)

    result = call(function, 1, 2, 3, key=4)
    assert isinstance(result, CallResult)
    assert result.json == [1, [2, 3], 4]
    assert pickle.loads(result.pickled) == (1, (2, 3), 4)

    async def late() -> int:
        return 3

    assert getattr(call(late), "json", None) == 3


def test_what_is_not_json_is_described() -> None:
    """The object comes all the same."""
    result = call(lambda: {1, 2})
    assert isinstance(result, CallResult)
    assert result.json == {"type": "set", "size": len(result.pickled)}
    assert pickle.loads(result.pickled) == {1, 2}


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda: 1 / 0, "division by zero"),
        (lambda: sys.exit(2), "called sys.exit(2)"),
        (lambda x: x, "missing 1 required positional argument"),
        (threading.Lock, "cannot pickle"),
        (3, "cannot be called"),
    ],
)
def test_a_call_that_fails_says_why(function: Callable[..., object], said: str) -> None:
    """As an error of the user's code."""
    answer = call(function)
    assert isinstance(answer, UserCodeError)
    assert said in answer.message


def test_arguments_that_do_not_load_are_said() -> None:
    """Not a pickle, or not a tuple and a dict."""
    code, data = pickled(lambda: 1)
    for args, said in ((b"bad", "could not be unpickled"), (pickle.dumps(3), "not a tuple")):
        frame = attempt.run_function(
            code, lambda: data, args, pickle.dumps({}), has_gpu=False, limit=100
        )
        answer = wire.decode_call(frame)
        assert isinstance(answer, UserCodeError)
        assert said in answer.message


def test_secrets_are_there_while_a_call_runs() -> None:
    """While its code is loaded, too; they are masked in its errors, and neither they nor what has kept them stay."""
    code = """
import os
KEPT = os.environ.get("K")
def work(fail=False):
    if fail: raise ValueError("refused " + os.environ["K"])
    return [os.environ.get("K"), KEPT]
"""
    for value in ("mine 1234", "yours 1234"):
        found = call(code, secrets={"K": value})
        assert isinstance(found, CallResult)
        assert found.json == [value, value]
    found = call(code)
    assert isinstance(found, CallResult)
    assert found.json == [None, None]
    failing = {
        code: {"fail": True},
        "import os\nraise ValueError('refused ' + os.environ['K'])": {},
    }
    for source, options in failing.items():
        failed = call(source, secrets={"K": "mine 1234"}, **options)
        assert isinstance(failed, UserCodeError)
        assert "refused ***" in failed.message
        assert "mine" not in str(failed.args)
    assert "K" not in os.environ


def test_a_call_over_the_limit_is_refused() -> None:
    """Before it travels anywhere."""
    answer = call(lambda: "x" * 1000, limit=900)
    assert answer == wire.TooLarge(len(pickling.dumps("x" * 1000)))


# -- rendering ---------------------------------------------------------------------------------


def rendered(value: object, limit: int = 1000) -> wire.Rendering:
    data = pickling.dumps(value)
    frame = attempt.render(Value(len(data), inline=data), "memory://x", limit)
    return wire.decode_rendering(frame)


def test_a_value_is_rendered_as_json() -> None:
    """Or it is said why not."""
    assert rendered({"a": (1, "ü")}) == '{"a":[1,"ü"]}'.encode()
    assert rendered({1}) == wire.NotJson("a set")
    assert rendered("x" * 1000) == wire.TooLarge(1002)
    frame = attempt.render(Value(3, inline=b"bad"), "memory://x", 10)
    assert isinstance(wire.decode_rendering(frame), ErrorInfo)
    frame = attempt.render(Value(3, location="../x"), "memory://x", 10)
    assert isinstance(wire.decode_rendering(frame), ErrorInfo)
    gone = wire.decode_rendering(attempt.render(Value(3, location="a/x"), "memory://x", 10))
    assert isinstance(gone, ErrorInfo)
    assert "input" not in gone.message
