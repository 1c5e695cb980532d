"""What people get to see of a result: bounded, strictly JSON."""

from __future__ import annotations

import collections
import enum
import json
import math
from typing import Any

import pytest

from lattice.execution import pickling
from lattice.execution.summary import (
    MAX_SUMMARY,
    NotJsonError,
    TooLongError,
    json_text,
    summarise,
)
from lattice.ids import RunId, TaskId

numpy = pytest.importorskip("numpy")


def summary(outputs: dict[str, object]) -> dict[str, Any]:
    sizes = {key: pickling.pack(value, 1024).size for key, value in outputs.items()}
    found = summarise(RunId("r1"), TaskId("t/1"), outputs, sizes)
    assert list(found) == list(outputs)
    text = json.dumps(found, allow_nan=False, ensure_ascii=False)
    assert len(text.encode()) <= MAX_SUMMARY + 4096
    assert json.loads(text) == found
    return found


Pair = collections.namedtuple("Pair", "a b")


class Level(enum.IntEnum):
    LOW = 1


class Name(str):
    """Claims to be something else."""

    def __str__(self) -> str:
        return "changed"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        (True, True),
        ("text ü", "text ü"),
        (-(10**30), -(10**30)),
        (1.5, 1.5),
        ([1, [2, {"a": None}]], [1, [2, {"a": None}]]),
        ((1, (2,)), [1, [2]]),
        (Pair(1, 2), [1, 2]),
        (Level.LOW, 1),
        (Name("name"), "name"),
        (collections.OrderedDict(a=1), {"a": 1}),
        (numpy.float64(0.5), 0.5),
    ],
)
def test_json_is_shown_as_it_is(value: object, shown: object) -> None:
    """Tuples as lists, subclasses of builtins as what they are underneath."""
    assert summary({"x": value}) == {"x": shown}


def _deep(depth: int) -> object:
    value: object = 0
    for _ in range(depth):
        value = [value]
    return value


class Items(dict[str, object]):
    """A dict that shows something else when it is asked."""

    def items(self) -> Any:
        return {"nan": math.nan}.items()


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        {1: "a"},
        {None: 1},
        {1, 2},
        b"bytes",
        "\ud800",
        {"\udfff": 1},
        10**4400,
        _deep(150),
        object,
        1j,
        numpy.int64(3),
    ],
    ids=lambda value: type(value).__name__,  # some of the values have no text
)
def test_what_is_not_strictly_json_is_described(value: object) -> None:
    """By its type, its size and where it can be fetched; the rest of the result is shown."""
    found = summary({"a b/ü.": value, "fine": 1})
    assert found["fine"] == 1
    described = found["a b/ü."]
    assert described["type"].endswith(type(value).__name__)
    assert described["size"] > 0
    assert described["url"] == "/runs/r1/tasks/t%2F1/result/a%20b%2F%C3%BC."


def test_a_subclass_is_read_past_its_own_methods() -> None:
    """What a user's class overrides cannot bring anything else into the summary."""
    assert summary({"x": Items(a=1)}) == {"x": {"a": 1}}


def test_an_array_is_described_with_its_shape() -> None:
    """As numpy and its kin have one."""
    described = summary({"x": numpy.zeros((3, 4))})["x"]
    assert (described["type"], described["shape"]) == ("numpy.ndarray", [3, 4])


class Shaped:
    def __init__(self, shape: object) -> None:
        self.shape = shape


class Raising:
    @property
    def shape(self) -> object:
        raise RuntimeError

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Raising, ()


@pytest.mark.parametrize(
    "value", [Shaped("x"), Shaped((1, "a")), Shaped((-1,)), Shaped((10**30,)), Raising()]
)
def test_a_shape_that_is_none_is_left_out(value: object) -> None:
    """An attribute of that name may be anything."""
    assert "shape" not in summary({"x": value})["x"]


def test_the_largest_are_described_until_the_whole_fits() -> None:
    """Small outputs stay readable beside large ones."""
    found = summary(
        {"large": "x" * 60_000, "middle": "y" * 10_000, "small": 1, "huge": "z" * 70_000}
    )
    assert found["small"] == 1
    assert found["middle"] == "y" * 10_000
    assert found["large"]["type"] == "str"
    assert found["huge"]["type"] == "str"


def test_a_result_just_within_the_limit_is_shown() -> None:
    """And one byte more is not."""
    room = MAX_SUMMARY - len('{"x":""}')
    assert summary({"x": "a" * (room - 1)})["x"] == "a" * (room - 1)
    assert isinstance(summary({"x": "ü" * (room // 2 + 1)})["x"], dict)


def test_a_small_object_with_an_enormous_text_is_given_up_early() -> None:
    """Ten levels of ten references each would be ten thousand million items."""
    value: object = [0]
    for _ in range(10):
        value = [value] * 10
    assert summary({"x": value})["x"]["type"] == "list"
    loop: list[object] = []
    loop.append(loop)
    assert summary({"x": loop})["x"]["type"] == "list"


def test_integers_of_many_digits_count_as_such() -> None:
    """Those that are shared make a short pickle and a long text."""
    with pytest.raises(TooLongError) as caught:
        json_text([1 << 13_000] * 1_000, MAX_SUMMARY)
    assert caught.value.found == MAX_SUMMARY + 1


def test_json_text_says_why_not() -> None:
    """The reason, or how long it is."""
    with pytest.raises(NotJsonError, match="a dict with a key of type int"):
        json_text({"a": {1: 2}}, 100)
    with pytest.raises(NotJsonError, match="the number nan"):
        json_text([math.nan], 100)
    with pytest.raises(TooLongError) as caught:
        json_text("ü" * 60, 100)
    assert caught.value.found == 122
