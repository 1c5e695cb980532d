"""How many tasks of a shape the engine has at a time."""

from __future__ import annotations

import math

import pytest

from lattice.execution.pacing import Durations, Pacing
from lattice.execution.shape import Shape
from lattice.ids import Digest, NodeId
from lattice.ports.execution import EngineNode
from lattice.workflow.task import Code, CodeForm

NODES = [
    EngineNode(NodeId("a"), "10.0.0.1", cpu=8.0, gpu=1.0, memory=1000.0),
    EngineNode(NodeId("b"), "10.0.0.2", cpu=2.0, gpu=0.0, memory=500.0),
]


def shape(cpus: float = 1, memory: float = 0, gpus: float = 0, *excluded: str) -> Shape:
    return Shape(cpus, memory, gpus, "", frozenset(map(NodeId, excluded)))


@pytest.mark.parametrize(
    ("needs", "places"),
    [
        (shape(), 10),
        (shape(0.5), 20),
        (shape(3), 2),
        (shape(1, 500), 3),
        (shape(1, 0, 0.5), 2),
        (shape(1, 0, 0, "a"), 2),
        (shape(100), 0),
        (shape(0), float("inf")),
    ],
)
def test_places_are_counted_node_by_node(needs: Shape, places: float) -> None:
    """What fits on each, by what it has least of."""
    assert sum(needs.places(node) for node in NODES) == places


def test_the_shorter_tasks_are_the_more_the_engine_has() -> None:
    """About half a second of work beyond what runs, and never more than the most."""
    pacing = Pacing(1000)
    pacing.set_nodes(NODES)
    for _ in range(100):
        pacing.observe(shape(), 10.0)
        pacing.observe(shape(2), 0.001)
    assert 10 <= pacing.limit(shape()) <= 30
    assert pacing.limit(shape(2)) == 1000
    assert pacing.limit(shape(0)) == 1000


def test_a_cluster_without_places_still_gets_something() -> None:
    """So that one that scales itself sees that something is wanted."""
    assert Pacing(1000).limit(shape()) > 0


def test_what_was_long_is_expected_to_be_long() -> None:
    """At once, and for a while; of what has never ended nothing is known."""
    durations, code = Durations(), Code(Digest("d"), CodeForm.SOURCE, "f")
    assert durations.expected(code) == math.inf
    durations.observe(code, 0.001)
    assert durations.expected(code) == 0.001
    durations.observe(code, 1.0)
    assert durations.expected(code) == 1.0
    for _ in range(10):
        durations.observe(code, 0.001)
    assert 0.001 < durations.expected(code) < 0.1
