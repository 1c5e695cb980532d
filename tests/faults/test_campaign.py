"""Processes of every kind killed at random moments under load: nothing is lost, nothing finished runs twice.

More kills than here: `python -m tests.faults.campaign --kills 100`.
"""

from __future__ import annotations

from tests.faults.campaign.campaign import run
from tests.faults.campaign.report import summary, table
from tests.faults.campaign.victims import NOTHING

_KILLS = 24
_SEED = 7


def test_what_clients_were_told_is_so_after_kills_of_every_kind() -> None:
    """Told, stored and done agree, and the table of what was killed is printed."""
    result = run(_KILLS, _SEED, print)
    print(table(result))
    assert result.verdict.violations == [], summary(result)
    assert sum(kill.kind != NOTHING for kill in result.kills) >= 20
    # Kills met runs, and the load went on through all of them.
    assert sum(kill.in_flight for kill in result.kills) > _KILLS
    assert result.runs > _KILLS
