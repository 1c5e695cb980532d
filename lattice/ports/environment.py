"""What else the orchestrator is given from outside: time, ids, and who counts for the operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Time and timers."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` on the loop after `delay` seconds; calling what it returns prevents that."""


class IdSource(Protocol):
    """New ids."""

    def new_id(self) -> str:
        """An id that was never given before: a UUID in its usual form."""


class Telemetry(Protocol):
    """What an operator counts."""

    def run_started(self) -> None:
        """A run was started or taken up again after a restart."""

    def run_finished(self, status: str, seconds: float) -> None:
        """A run ended, `seconds` after it was requested."""

    def task_finished(self, state: str, seconds: float) -> None:
        """An attempt ended (`succeeded`, `failed`, `lost`), `seconds` after it began."""

    def committed(self, writes: int, seconds: float) -> None:
        """A group of writes became durable within `seconds`."""
