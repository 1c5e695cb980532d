"""What else the orchestrator is given from outside: time, ids, and who counts for the operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Gauges:
    """How much there is just now.

    Attributes:
        runs, tasks: that have not ended.
        waiting, engaged: attempts that wait in this process, and that the engine has.
        replicas, definitions: replicas that take calls, and definitions that are deployed.
        streams: open streams of messages.
        available: the database can be written to.
    """

    runs: int
    tasks: int
    waiting: int
    engaged: int
    replicas: int
    definitions: int
    streams: int
    available: bool


class Telemetry(Protocol):
    """What an operator counts."""

    def watch(self, read: Callable[[], Gauges]) -> None:
        """Numbers to read whenever somebody looks, in any thread."""

    def run_finished(self, status: str, seconds: float) -> None:
        """A run ended, `seconds` after it was requested."""

    def attempt_ended(self, task: str, state: str, timing: Mapping[str, float]) -> None:
        """An attempt of a task of this name ended: `succeeded`, `failed`, `timed_out`, `lost` or `restarted`.

        `timing`: the seconds that it was `queued`, `starting`, `batching` and `running`.
        """

    def call_began(self, batch_size: int) -> None:
        """A call began in a batch of so many."""

    def committed(self, writes: int, seconds: float) -> None:
        """A group of writes became durable within `seconds`."""

    def commit_failed(self) -> None:
        """The database did not make a group of writes durable; it is asked again."""
