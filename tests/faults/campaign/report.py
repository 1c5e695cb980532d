"""The result of a campaign as a table for people."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence

from tests.faults.campaign.campaign import Kill, Result
from tests.faults.campaign.checker import Breach

_HEADER = (
    "| killed | times | runs in flight | lost | run twice | begun again, unfinished | answers again, s | "
    "all runs go on, s |\n|---|---|---|---|---|---|---|---|"
)
#: Where what no single kill explains is counted.
_NONE = "(no single kill)"


def table(result: Result) -> str:
    """A row for each kind of process, as Markdown. Violations are counted at the last kill before them."""
    counts = {
        breach: Counter(
            _last(result.kills, each.at)
            for each in result.verdict.violations
            if each.breach is breach
        )
        for breach in Breach
    }
    again = Counter(_last(result.kills, at) for at in result.verdict.repetitions)
    rows = []
    for kind in sorted({kill.kind for kill in result.kills} | {*counts[Breach.LOST]}):
        kills = [kill for kill in result.kills if kill.kind == kind]
        flying = [kill.in_flight for kill in kills] or [0]
        cells = (
            kind,
            len(kills),
            f"{statistics.mean(flying):.1f} ({min(flying)} to {max(flying)})",
            counts[Breach.LOST][kind],
            counts[Breach.TWICE][kind],
            again[kind],
            _spread(kill.answered for kill in kills),
            _spread(kill.goes_on for kill in kills),
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join([_HEADER, *rows])


def summary(result: Result) -> str:
    """What was done, and every violation."""
    killed = sum(not kill.kind.startswith("(") for kill in result.kills)
    lines = [
        f"{killed} kills, {result.runs} runs, {result.messages} messages and {result.calls} calls "
        f"of tasks in {result.seconds:.0f} s; {len(result.verdict.violations)} violations"
    ]
    return "\n".join(
        lines
        + [
            f"- {each.breach.value}, after {_last(result.kills, each.at)}: {each.text}"
            for each in result.verdict.violations
        ]
    )


def _last(kills: Sequence[Kill], at: float) -> str:
    return next((kill.kind for kill in reversed(kills) if kill.at <= at), _NONE)


def _spread(seconds: Iterable[float | None]) -> str:
    """Median and maximum of what was measured."""
    known = [each for each in seconds if each is not None]
    return f"{statistics.median(known):.1f} (max {max(known):.1f})" if known else "-"
