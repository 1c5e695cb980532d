"""The orchestrator in seeded random worlds: whatever strikes, its promises hold.

More worlds than here: `python -m tests.simulation --seeds 1000000`.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.simulation.__main__ import replay
from tests.simulation.world import run

_WORLDS = 2_000
_PARTS = 8

_ROOT = Path(__file__).parents[2]

_DIGEST = """
import hashlib
from tests.simulation.world import run
traces = [line for seed in range(40) for line in run(seed).trace]
print(hashlib.sha256("\\n".join(traces).encode()).hexdigest())
"""


@pytest.mark.parametrize("part", range(_PARTS))
def test_every_promise_holds_in_every_world(part: int) -> None:
    """Crashes, outages, take-overs, lost and late reports: nothing acknowledged is lost or told twice."""
    for seed in range(part, _WORLDS, _PARTS):
        outcome = run(seed)
        assert outcome.violation is None, replay(outcome)


def test_a_seed_replays_exactly() -> None:
    """The same seed gives the same trace in every process, so that a failure can be looked into."""
    here = [line for seed in range(40) for line in run(seed).trace]
    expected = hashlib.sha256("\n".join(here).encode()).hexdigest()
    for hash_seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(_ROOT)}
        printed = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            cwd=_ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert printed.strip() == expected
