"""Faults to plant in the orchestrator, to see that the simulation finds them.

Each breaks one thing that a developer might break, by patching the real class, and nothing else. They
stand in `planted_service`, for what people see, and `planted_runs`, for what becomes of runs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]


class Faults(dict[str, Plant]):
    """Faults by what an orchestrator does that has them."""

    def does(self, text: str) -> Callable[[Plant], Plant]:
        """Adds a fault."""

        def add(plant: Plant) -> Plant:
            self[text] = plant
            return plant

        return add
