"""The simulation finds bugs: each planted fault breaks a promise within a few worlds."""

from __future__ import annotations

import pytest

from tests.simulation import planted_runs, planted_service
from tests.simulation.planted import Plant
from tests.simulation.world import run

FAULTS = planted_service.FAULTS | planted_runs.FAULTS

#: A fault that is not found within so many worlds would slip through in daily work.
_WORLDS = 300


def worlds_needed(plant: Plant, at_most: int) -> tuple[int, str] | None:
    """How many worlds it took to find a fault, and what was broken; None if it was not found."""
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        for seed in range(at_most):
            outcome = run(seed)
            if outcome.violation is not None:
                return seed + 1, str(outcome.violation)
    return None


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found(name: str) -> None:
    """An orchestrator with the fault breaks a promise in one of the first worlds."""
    needed = worlds_needed(FAULTS[name], _WORLDS)
    if needed is None:
        later = worlds_needed(FAULTS[name], 10 * _WORLDS)
        pytest.fail(
            f"an orchestrator that {name} passed {_WORLDS} worlds; found after {later or 'none'}"
        )


if __name__ == "__main__":
    for fault, planted in FAULTS.items():
        print(fault, worlds_needed(planted, _WORLDS), sep=": ", flush=True)
