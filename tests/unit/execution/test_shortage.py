"""What is said of a task that no node has room for."""

from __future__ import annotations

import pytest

from lattice.execution.shape import Shape
from lattice.execution.shortage import Room, kinds_lacking, occupies, shortage
from lattice.ids import NodeId
from lattice.ports.execution import EngineNode


def shape(
    cpus: float = 0, memory: float = 0, gpus: float = 0, *, excluded: str | None = None
) -> Shape:
    return Shape(cpus, memory, gpus, "", frozenset({NodeId(excluded)} if excluded else ()))


def room(name: str, cpu: float, gpu: float = 0, memory: float = 8000.4) -> Room:
    """What is free of a node of 4 CPUs, a GPU and 8192 MiB."""
    return Room(EngineNode(NodeId(name), "127.0.0.1", 4, 1, 8192), cpu, gpu, memory)


@pytest.mark.parametrize(
    ("asked", "rooms", "expected"),
    [
        (shape(2), [room("a", 0)], "a free CPU: 2 asked, 0 of 4 free"),
        (shape(2), [room("a", 2)], None),
        (shape(0.3), [room("a", 0.1 + 0.1 + 0.1 - 1e-9)], None),
        (shape(gpus=0.5), [room("a", 4, 0.25)], "a free GPU: 0.5 asked, 0.25 of 1 free"),
        (
            shape(1, memory=4096),
            [room("a", 0, memory=100.7)],
            "a free CPU: 1 asked, 0 of 4 free; memory: 4096 MiB asked, 101 of 8192 MiB free",
        ),
        (
            shape(3, gpus=1),
            [room("a", 1), room("b", 2, 1), room("c", 0, 1)],
            "a free CPU: 3 asked, 2 of 4 free on the best of 3 nodes",
        ),
        (shape(3), [room("a", 1), room("b", 3)], None),
        (shape(1, excluded="b"), [room("a", 0), room("b", 4)], "a free CPU: 1 asked, 0 of 4 free"),
        (shape(1, excluded="a"), [room("a", 4)], "a node that is connected"),
        (shape(1), [], "a node: the engine has none"),
        (shape(8), [room("a", 4)], "a larger node: CPU: 8 asked, 4 there"),
    ],
    ids=range(11),
)
def test_the_words(asked: Shape, rooms: list[Room], expected: str | None) -> None:
    """Of the node that lacks the least, among those that are connected and large enough."""
    assert shortage(asked, rooms) == expected


@pytest.mark.parametrize(
    ("asked", "rooms", "kinds"),
    [
        (shape(2), [room("a", 0)], {"cpus"}),
        (shape(2), [room("a", 0), room("b", 2)], set()),
        (
            shape(1, memory=4096, gpus=1),
            [room("a", 0, 1, 100), room("b", 1, 0)],
            {"cpus", "memory", "gpus"},
        ),
        (shape(5), [room("a", 0)], set()),
        (shape(1), [], set()),
    ],
)
def test_what_would_have_to_become_free(asked: Shape, rooms: list[Room], kinds: set[str]) -> None:
    """Nothing where nothing would help."""
    assert kinds_lacking(asked, rooms) == kinds


def test_what_occupies_something() -> None:
    """Of what is wanted."""
    assert occupies(shape(0.1), {"cpus", "gpus"})
    assert occupies(shape(0.1, gpus=0.5), {"gpus"})
    assert not occupies(shape(0.1, memory=5), {"gpus"})
    assert not occupies(shape(1), set())
