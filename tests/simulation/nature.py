"""Chance: everything that is random in a world comes from one seeded generator, asked in one order."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Mood:
    """How often what goes wrong in one world; probabilities, except for `steps_between_crashes`."""

    steps_between_crashes: float
    crash_in_commit: float
    outage: float
    takeover: float
    request_given_up: float
    task_fails: float
    task_lost: float
    task_hangs: float
    report_repeated: float
    report_late: float
    blocking: float


@dataclass(slots=True)
class Nature:
    """A seeded generator, and the mood of its world. While `calm`, nothing strikes."""

    seed: int
    calm: bool = False
    #: How many tasks of the tenant of this world may run at once; None where nobody is bounded.
    bound: int | None = field(init=False)
    chance: random.Random = field(init=False)
    mood: Mood = field(init=False)

    def __post_init__(self) -> None:
        self.bound = {0: 1, 1: 2}.get(self.seed % 4)
        self.chance = chance = random.Random(self.seed)

        def rate(highest: float) -> float:
            # Squared, so that many worlds are nearly free of a fault and some are full of it.
            return highest * chance.random() ** 2

        self.mood = Mood(
            steps_between_crashes=chance.choice((150.0, 500.0, 2000.0, 1e9)),
            crash_in_commit=rate(0.15),
            outage=rate(0.05),
            takeover=rate(0.6),
            request_given_up=rate(0.3),
            task_fails=rate(0.6),
            task_lost=rate(0.5),
            task_hangs=rate(0.4),
            report_repeated=rate(0.6),
            report_late=rate(0.8),
            blocking=chance.choice((0.0005, 0.005, 0.1)),
        )

    def strikes(self, rate: float) -> bool:
        """Whether something that happens with probability `rate` happens now."""
        return not self.calm and self.chance.random() < rate

    def flips(self, rate: float) -> bool:
        """The same for what is no fault and goes on when the world is calm."""
        return self.chance.random() < rate

    def delay(self, mean: float) -> float:
        """A random time of this mean; now and then none at all, or a long one."""
        kind = self.chance.random()
        if kind < 0.1:
            return 0.0
        drawn = self.chance.expovariate(1.0 / mean) * (8.0 if kind > 0.95 else 1.0)
        # Bounded, so that who waits longer than the world's patience waits in vain.
        return min(drawn, 20.0 * mean)

    def steps_to_crash(self) -> float:
        """How many steps of the loop pass before the next crash."""
        return self.chance.expovariate(1.0 / self.mood.steps_between_crashes)

    def choice(self, among: Sequence[T]) -> T:
        """One of several."""
        return self.chance.choice(among)
