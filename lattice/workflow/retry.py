"""When a task whose own code failed is tried again, and how long that waits.

The wait grows with each failure and is jittered, so that tasks that failed together (a service that they
all call was down) do not come back together. It is "equal jitter": half of the wait is fixed, so a
`backoff` stays a pause that can be relied on, and the other half is left to chance (Marc Brooker,
"Exponential Backoff And Jitter", AWS Architecture Blog, 2015; his "full jitter" may not wait at all).

The domain knows no randomness, so chance is a hash of run, task and attempt: spread evenly over tasks and
runs, and the same whenever the same history is played again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from lattice.errors import InvalidRequestError
from lattice.ids import RunId, TaskId
from lattice.workflow import checks
from lattice.workflow.events import ErrorInfo

#: The type of the error of an attempt that was ended by its time-out.
TIMEOUT_ERROR = "TaskTimeoutError"

#: Most names in `on`, and longest of them, in characters.
_MAX_NAMES = 100
_MAX_NAME = 500


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a task is tried when its own code fails; times are in seconds.

    The wait before try n + 1 is between half and all of `backoff * 2 ** (n - 1)`, which is at most
    `max_backoff`. The death of the process or node that ran a task is counted apart, against
    `LOST_ATTEMPTS`.

    Attributes:
        on: names of exception classes, by their last part (`Timeout`) or whole (`requests.exceptions.Timeout`);
            an exception of one of them or of a subclass is tried again, any other is not. None: all.
            A time-out is `TaskTimeoutError`.
    """

    max_attempts: int = 1
    backoff: float = 1.0
    max_backoff: float = 60.0
    on: tuple[str, ...] | None = None

    @classmethod
    def parse(cls, document: object, field: str = "retry") -> RetryPolicy:
        """Reads `{"max_attempts", "backoff", "max_backoff", "on"}`. Raises InvalidRequestError."""
        if document is None:
            return cls()
        given = checks.mapping(document, field)
        checks.known_keys(given, field, ("max_attempts", "backoff", "max_backoff", "on"))
        return cls(
            max_attempts=checks.whole(
                given.get("max_attempts", 1), f"{field}.max_attempts", minimum=1, maximum=1000
            ),
            backoff=checks.number(given.get("backoff", 1.0), f"{field}.backoff", maximum=86_400),
            max_backoff=checks.number(
                given.get("max_backoff", 60.0), f"{field}.max_backoff", maximum=86_400
            ),
            on=_names(given.get("on"), f"{field}.on"),
        )

    def document(self) -> dict[str, object]:
        """The wire form."""
        document: dict[str, object] = {
            "max_attempts": self.max_attempts,
            "backoff": self.backoff,
            "max_backoff": self.max_backoff,
        }
        # Left out where it says nothing, so that a graph of before it was there keeps its digest.
        return document if self.on is None else document | {"on": list(self.on)}

    def covers(self, error: ErrorInfo) -> bool:
        """Whether an attempt that failed with `error` may be tried again."""
        if self.on is None:
            return True
        kinds = {error.type, *error.kinds}
        named = kinds | {kind.rpartition(".")[2] for kind in kinds}
        return not named.isdisjoint(self.on)

    def delay(self, failures: int) -> float:
        """The longest wait after the given number of failures, at least one, in seconds."""
        return float(min(self.max_backoff, self.backoff * 2.0 ** min(failures - 1, 60)))

    def wait(self, failures: int, chance: float) -> float:
        """The wait after the given number of failures, for a `chance` from 0 to 1, in seconds."""
        return self.delay(failures) * (1.0 + chance) / 2.0


def chance_of(run_id: RunId, task_id: TaskId, attempt: int) -> float:
    """A number from 0 to 1, always the same for an attempt, as good as random among attempts."""
    digest = hashlib.sha256(f"{run_id}\n{task_id}\n{attempt}".encode()).digest()
    return int.from_bytes(digest[:8]) / 2**64


def with_defaults(definition: Mapping[str, object], defaults: RetryPolicy) -> Mapping[str, object]:
    """A task's definition, with `retry` filled in as far as it does not say so itself."""
    given = definition.get("retry")
    if given is not None and not isinstance(given, Mapping):
        return definition  # to be refused as it is
    return {**definition, "retry": defaults.document() | dict(given or {})}


def _names(value: object, field: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not value or len(value) > _MAX_NAMES:
        raise InvalidRequestError(
            field,
            checks.shown(value),
            f"a list of 1 to {_MAX_NAMES} names of exception classes is allowed",
        )
    for name in value:
        if (
            not isinstance(name, str)
            or len(name) > _MAX_NAME
            or not all(part.isidentifier() for part in name.replace(".<locals>", "").split("."))
        ):
            raise InvalidRequestError(
                field,
                checks.shown(name),
                "the name of an exception class is allowed, such as 'ValueError' or "
                "'requests.exceptions.Timeout'",
            )
    # What a worker reports of a builtin class has no module.
    return tuple(name.removeprefix("builtins.") for name in value)
