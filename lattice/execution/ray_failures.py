"""What the engine's errors mean for a task, in words for its user."""

from __future__ import annotations

from ray import exceptions

from lattice.execution.failures import MAX_MESSAGE, printable, shortened
from lattice.execution.wire import FrameError
from lattice.ports.secrets import SecretError
from lattice.workflow.events import ErrorInfo

_PROCESS_DIED = "the process that ran the task died (killed, out of memory, or os._exit)"

#: Errors after which the attempt counts as lost: neither the user's code nor its values are to blame.
_LOST: tuple[tuple[type[Exception], str], ...] = (
    (
        exceptions.OutOfMemoryError,
        "the process that ran the task was killed because its node ran out of memory; ask for what the "
        "task needs with cpu_mem in its resources",
    ),
    (exceptions.NodeDiedError, "the node that ran the task died"),
    (exceptions.LocalRayletDiedError, "the node that ran the task died"),
    (exceptions.WorkerCrashedError, _PROCESS_DIED),
    (exceptions.RayActorError, _PROCESS_DIED),
    (exceptions.ObjectLostError, "an input of the task was lost with the node that held it"),
    (exceptions.ObjectStoreFullError, "the node's object store is full"),
    (exceptions.OutOfDiskError, "the node's disk is full"),
    (FrameError, "the report of the task cannot be read: its process was damaged by user code"),
    (exceptions.TaskCancelledError, "the task was cancelled from outside Lattice"),
)

#: Errors that trying again does not help; the engine's own text says more and follows.
_FAILED: tuple[tuple[type[Exception], str], ...] = (
    (SecretError, "a secret of the task cannot be had"),
    (exceptions.RuntimeEnvSetupError, "the task's runtime_env could not be set up"),
    (exceptions.TaskUnschedulableError, "no node of the cluster can run the task"),
    (exceptions.UnserializableException, "the task raised an exception that cannot be passed on"),
    (exceptions.RaySystemError, "what the task returned cannot be read"),
    (exceptions.RayTaskError, "the worker could not run the task"),
)


def is_lost(error: BaseException) -> bool:
    """Whether `error` means that the attempt was lost, and not that the task failed."""
    return isinstance(error, tuple(kind for kind, _ in _LOST))


def explain(error: BaseException) -> ErrorInfo:
    """`error`, raised by the engine in place of a report, in words."""
    kind = f"{type(error).__module__}.{type(error).__qualname__}"
    for lost, words in _LOST:
        if isinstance(error, lost):
            return ErrorInfo(kind, words)
    for failed, words in _FAILED:
        if isinstance(error, failed):
            return ErrorInfo(kind, _with_detail(words, error))
    return ErrorInfo(kind, _with_detail("the engine could not run the task", error))


def _with_detail(words: str, error: BaseException) -> str:
    return f"{words}: {shortened(printable(str(error)), MAX_MESSAGE)}"
