"""How many tasks of a shape the engine has at a time, and how long tasks last.

The engine serves tasks of one shape in the order in which they came, so what it has is a queue that
newcomers stand behind. It should be long enough that no place ever idles between two short tasks, and not
longer: about half a second of work. Tasks of ten seconds then wait here, where runs take turns.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from lattice.execution.shape import Shape
from lattice.ports.execution import EngineNode
from lattice.workflow.task import Code

#: Seconds of work that the engine has beyond what runs.
_AHEAD = 0.5
#: What a task is taken to last before the first has ended, in seconds.
_FIRST_GUESS = 0.5
#: Weight of the newest duration in the mean.
_NEWEST = 0.2
#: Shapes whose durations are remembered.
_MAX_SHAPES = 256
#: Codes whose durations are remembered.
_MAX_CODES = 1_024
#: Weight of a duration that is shorter than expected.
_SHORTER = 0.3


class Durations:
    """How long attempts of each code are expected to last. One that was long is remembered for a while."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[Code, float] = OrderedDict()

    def observe(self, code: Code, seconds: float) -> None:
        """An attempt of `code` has lasted `seconds`."""
        known = self._seconds.pop(code, 0.0)
        self._seconds[code] = max(seconds, known + _SHORTER * (seconds - known))
        if len(self._seconds) > _MAX_CODES:
            self._seconds.popitem(last=False)

    def expected(self, code: Code) -> float:
        """Seconds that an attempt of `code` may take; infinite if none has ended yet."""
        return self._seconds.get(code, math.inf)


class Pacing:
    """Limits per shape, from what the cluster has and how long tasks of the shape last.

    `most` is the limit where places do not matter: for the shortest tasks, and for those that ask for
    nothing that a node can run out of.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._nodes: Sequence[EngineNode] = ()
        self._seconds: OrderedDict[Shape, float] = OrderedDict()

    def set_nodes(self, nodes: Sequence[EngineNode]) -> None:
        """What the cluster has now."""
        self._nodes = nodes

    def observe(self, shape: Shape, seconds: float) -> None:
        """A task of `shape` has lasted `seconds`."""
        mean = self._seconds.pop(shape, _FIRST_GUESS)
        self._seconds[shape] = mean + _NEWEST * (max(seconds, 0.0) - mean)
        if len(self._seconds) > _MAX_SHAPES:
            self._seconds.popitem(last=False)

    def limit(self, shape: Shape) -> int:
        """Most tasks of `shape` that the engine should have."""
        places = sum(shape.places(node) for node in self._nodes)
        mean = max(self._seconds.get(shape, _FIRST_GUESS), 1e-4)
        # A few more than that: a cluster that scales itself must see that more is wanted.
        wanted = 4 + places * (2 + _AHEAD / mean)
        return self._most if wanted >= self._most else math.ceil(wanted)
