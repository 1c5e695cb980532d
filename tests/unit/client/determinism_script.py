"""A user's script with everything that makes cloudpickle's bytes differ from process to process.

Prints the digest of each task's pickled code, one a line.
"""

import abc
import collections.abc
import dataclasses
import enum
import functools
import hashlib
import sys
import typing

import helper_module

from lattice import task
from lattice.client.pickling import dumps_code
from lattice.client.tasks import declaration_of

STOPWORDS = {"the", "a", "of", "and", "to", "in"}
NESTED = {"groups": [frozenset({"x", "y", "z"}), {1, 2.5, "three", None, (4, "four")}]}
T = typing.TypeVar("T")
UserId = typing.NewType("UserId", str)


class Colour(enum.Enum):
    RED = "red"
    GREEN = "green"


@dataclasses.dataclass
class Point:
    """Without words of its own, the default's repr would be among those that are made for it."""

    x: int
    y: int = 2
    tags: frozenset = frozenset({"p", "q", "r"})


class Shape(abc.ABC):
    names: typing.ClassVar = {"circle", "square", "line"}

    @abc.abstractmethod
    def area(self) -> float: ...

    @abc.abstractmethod
    def edge(self) -> float: ...


class Square(Shape):
    def area(self) -> float:
        return 1.0

    def edge(self) -> float:
        return 1.0


Shape.register(Point)
Shape.register(Colour)


@functools.lru_cache(maxsize=7)
def cached(number: int) -> int:
    return number + 1


def first(items: typing.Sequence[T]) -> T:
    return items[0]


@task(inputs=["text"], outputs=["words"])
def split(params):
    words = [w for w in params["text"].split() if w not in STOPWORDS]
    if params["text"] in {"alpha", "beta", "gamma", "delta"}:
        words.append("greek")
    return {"words": words, "nested": NESTED}


@task
def typed(text: str, user: UserId = UserId("me"), kind: Colour = Colour.RED) -> dict[str, int]:
    def inner(value: str) -> bool:
        return value in {"one", "two", "three"}

    return {"n": len(text) + cached(1) + helper_module.weight(text), "inner": inner(text)}


@task(outputs=["point"])
def shaped(x: int):
    return {"point": Point(x, Square().edge(), first(["a"])), "k": collections.abc.Mapping}


@task(inputs=["x"], outputs=["y"])
class Model:
    labels: typing.ClassVar = {"cat", "dog", "bird"}

    def __call__(self, params):
        return {"y": params["x"] in self.labels and isinstance(params["x"], Point)}


class Output(typing.TypedDict):
    total: int


@task
class Typed:
    def __init__(self):
        self.seen = set()

    def __call__(self, a: int, b: int = 2) -> Output:
        return {"total": a + b}


@task
async def waits(n: int) -> int:
    return n


for code in (split, typed, shaped, Model, Typed, waits):
    payload = declaration_of(code).payload(code, {})
    print(code.__name__, hashlib.sha256(dumps_code(payload)).hexdigest())
if len(sys.argv) > 1:
    with open(sys.argv[1], "wb") as file:
        file.write(dumps_code(declaration_of(Typed).payload(Typed, {})))
