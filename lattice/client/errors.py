"""What the SDK raises beside `InvalidRequestError` and `CycleError` for what it refuses to send.

LatticeError
├── UnpicklableError       code or arguments that use something that cannot be sent
├── ConnectionFailedError  nobody answers, or the connection broke
├── DeadlineError          nothing came within the time allowed
├── ServiceError           the service refused; its status and its words
├── VersionMismatchError   code pickled here does not run there, or the two do not understand each other
├── RunFailedError         a task of the run failed; its traceback
├── RunCancelledError      somebody cancelled the run
└── RemoteError            a function that was called on the service raised; its traceback

Raised by clients only; they cross no process boundary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lattice.errors import LatticeError


class UnpicklableError(LatticeError):
    """Something that cannot be sent.

    Attributes:
        name: the function, class or value that was to be sent.
        path: how to get from it to the culprit, as far as known.
        kind: type of the culprit.
        reason: what pickle says.
    """

    def __init__(self, name: str, path: str, kind: str, reason: str) -> None:
        super().__init__(name, path, kind, reason)
        self.name = name
        self.path = path
        self.kind = kind
        self.reason = reason

    def __str__(self) -> str:
        where = f": it uses {self.path} ({self.kind})" if self.path else ""
        return (
            f"{self.name} cannot be sent to the service{where}: {self.reason}; make such objects "
            "inside the task, and import from your modules only the names that the task needs"
        )


class ConnectionFailedError(LatticeError, ConnectionError):
    """No connection. `url` is the service's address, `reason` what the network says."""

    def __init__(self, url: str, reason: str, advice: str | None = None) -> None:
        super().__init__(url, reason, advice)
        self.url = url
        self.reason = reason
        self.advice = advice or (
            "start a service with `make serve` (or `serve run configs/lattice.yaml`), or give the "
            "address of a running one as `url`"
        )

    def __str__(self) -> str:
        return f"no answer from {self.url} ({self.reason}); {self.advice}"


class DeadlineError(LatticeError, TimeoutError):
    """Nothing came in time. `what` was waited for, for `seconds`."""

    def __init__(self, what: str, seconds: float) -> None:
        super().__init__(what, seconds)
        self.what = what
        self.seconds = seconds

    def __str__(self) -> str:
        return f"{self.what}: not within {self.seconds:g} s"


class ServiceError(LatticeError):
    """The service refused. `status` is the HTTP status, `detail` what it said."""

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(status, detail)
        self.status = status
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.detail} (status {self.status})"


class VersionMismatchError(LatticeError):
    """The two sides do not go together. `here` and `there` are versions of `what`.

    `advice` says why and what to do; by default that code pickled here does not run there.
    """

    def __init__(self, what: str, here: str, there: str, advice: str | None = None) -> None:
        super().__init__(what, here, there, advice)
        self.what = what
        self.here = here
        self.there = there
        self.advice = advice or (
            f"code pickled by one does not run on the other; use {what} {there} here, or "
            f"start the service with {what} {here}"
        )

    def __str__(self) -> str:
        return (
            f"this client has {self.what} {self.here}, the service has {self.what} {self.there}: "
            f"{self.advice}"
        )


@dataclass(frozen=True, slots=True)
class TaskFailure:
    """How a task of a run failed; `traceback` is the user's own, and empty where there is none."""

    task: str
    task_id: str
    error_type: str
    message: str
    traceback: str

    def __str__(self) -> str:
        cause = f"{self.error_type}: {self.message}" if self.message else self.error_type
        return f"task {self.task!r} failed with {cause}"


class RunFailedError(LatticeError):
    """A run failed. `failures` has every task that failed for good; the attributes tell of the first.

    Attributes:
        run_id: the run.
        reason: why the run failed by itself, such as a deadline that passed; else empty.
        task, task_id, error_type, message, traceback: those of the first failure.
    """

    def __init__(self, run_id: str, failures: Sequence[TaskFailure], reason: str = "") -> None:
        super().__init__(run_id, tuple(failures), reason)
        self.run_id = run_id
        self.reason = reason
        self.failures = tuple(failures)
        first = self.failures[0] if self.failures else TaskFailure("", "", "", "", "")
        self.task = first.task
        self.task_id = first.task_id
        self.error_type = first.error_type
        self.message = first.message
        self.traceback = first.traceback

    def __str__(self) -> str:
        if self.reason or not self.failures:
            return f"run {self.run_id} failed" + (f": {self.reason}" if self.reason else "")
        text = str(self.failures[0])
        others = [failure.task for failure in self.failures[1:]]
        if others:
            text += f" (as did {', '.join(others[:5])}{' and more' if len(others) > 5 else ''})"
        return f"{text}\n\n{self.traceback}" if self.traceback else text


class RunCancelledError(LatticeError):
    """The run was cancelled before it ended."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.run_id = run_id

    def __str__(self) -> str:
        return f"run {self.run_id} was cancelled"


class RemoteError(LatticeError):
    """A function raised on the service. `task` is its name, `traceback` the user's own."""

    def __init__(self, task: str, traceback: str) -> None:
        super().__init__(task, traceback)
        self.task = task
        self.traceback = traceback

    def __str__(self) -> str:
        return f"{self.task!r} failed on the service\n\n{self.traceback}"
