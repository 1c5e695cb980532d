"""What the nodes lack for one more task of a shape: the words, for people. The engine itself places tasks."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from lattice.execution.shape import Shape
from lattice.ports.execution import EngineNode

#: Sums of fractions may be off by less than the engine's step.
_DUST = 1e-5


@dataclass(frozen=True, slots=True)
class Room:
    """A live node and what of it is free: CPUs, GPUs, and MiB of memory."""

    node: EngineNode
    cpu: float
    gpu: float
    memory: float


def shortage(shape: Shape, rooms: Sequence[Room]) -> str | None:
    """What a task of that shape waits for, such as "a free CPU: 2 asked, 0 of 2 free".

    None if a node has room for it. Where several nodes might take it, that which lacks the least is shown.
    """
    usable = [room for room in rooms if room.node.node_id not in shape.excluded]
    if not usable:
        return "a node that is connected" if rooms else "a node: the engine has none"
    large = [room for room in usable if shape.places(room.node) >= 1]
    if not large:
        # Of all that was asked for, as one node may lack this and another one that.
        found = [_lacking(shape, room, total=True) for room in usable]
        text = _of_several(min(found, key=len), len(usable))
        return "a larger node: " + text.replace("a free ", "")
    found = [_lacking(shape, room) for room in large]
    least = min(range(len(large)), key=lambda at: (len(found[at]), -large[at].cpu, -large[at].gpu))
    if not found[least]:
        return None
    return _of_several(found[least], len(large))


def kinds_lacking(shape: Shape, rooms: Sequence[Room]) -> set[str]:
    """Of what (`cpus`, `gpus`, `memory`) a task of that shape waits until more is free; none if a node has room for it."""
    large = [room for room in rooms if shape.places(room.node) >= 1]
    found = [_kinds(shape, room) for room in large]
    return set() if not all(found) else set().union(*found)


def occupies(shape: Shape, kinds: Container[str]) -> bool:
    """Whether what has that shape holds something of those kinds."""
    held = (("cpus", shape.cpus), ("gpus", shape.gpus), ("memory", shape.memory))
    return any(kind in kinds and amount > 0 for kind, amount in held)


def _kinds(shape: Shape, room: Room) -> set[str]:
    return {kind for kind, _, asked, free, *_ in _needs(shape, room) if asked > free + _DUST}


def _lacking(shape: Shape, room: Room, *, total: bool = False) -> list[str]:
    """What a node has too little of; `total`: even if all of it were free."""
    return [
        f"{what}: {_shown(asked)}{unit} asked, "
        + (f"{_shown(has)}{unit} there" if total else f"{_shown(free)} of {_shown(has)}{unit} free")
        for _, what, asked, free, has, unit in _needs(shape, room)
        if asked > (has if total else free) + _DUST
    ]


def _needs(shape: Shape, room: Room) -> tuple[tuple[str, str, float, float, float, str], ...]:
    """Of each kind its name and words, how much is asked, free and there, and the unit."""
    node = room.node
    return (
        ("cpus", "a free CPU", shape.cpus, room.cpu, node.cpu, ""),
        ("gpus", "a free GPU", shape.gpus, room.gpu, node.gpu, ""),
        ("memory", "memory", shape.memory, room.memory, node.memory, " MiB"),
    )


def _shown(amount: float) -> str:
    return f"{round(amount, 4 if amount < 100 else 0):.10g}"


def _of_several(lacking: Sequence[str], nodes: int) -> str:
    text = "; ".join(lacking)
    return text if nodes == 1 else f"{text} on the best of {nodes} nodes"
