"""The Ray tasks themselves: thin functions around `attempt`, run in worker processes.

They catch everything, and return frames and pickles as opaque bytes: what a worker sends back is never
unpickled by the process that submitted the task.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Sequence

import ray
import ray.exceptions
from ray.actor import ActorHandle

from lattice.execution import attempt, capture, wire
from lattice.execution.announcer import Announcer
from lattice.execution.attempt import Assignment, Large
from lattice.execution.mailbox import Mailbox
from lattice.execution.ray_remote import CodeSource
from lattice.ids import NodeId
from lattice.ports.execution import LogEntry
from lattice.workflow.events import Placement, TaskStarted, Value
from lattice.workflow.task import Code

#: The Ray namespace of mailbox actors.
NAMESPACE = "lattice"

_announcer = Announcer()


def run_attempt(
    assignment: bytes, code: list[CodeSource], *upstream: Large | None
) -> tuple[bytes, Large | None]:
    """An attempt of a task. A reference to its code is nested, so that it is fetched only where it is not loaded."""
    assigned = attempt.decode(assignment)
    placement = _placement()
    if assigned.timed:
        # Code that never lets go of the interpreter would keep the announcer's thread from telling.
        announce(assigned, placement)
    else:
        _announcer.begin(functools.partial(announce, assigned, placement))
    try:
        with capture.recording(assigned.log_bytes, teller([assigned])) as recorder:
            frame, large = attempt.run_attempt(assigned, _fetch(code), upstream, placement)
        return wire.logs_before(recorder.kept()) + frame, large
    finally:
        _announcer.end()


def run_function(
    code: Code,
    data: list[CodeSource],
    args: bytes,
    kwargs: bytes,
    has_gpu: bool,
    limit: int,
) -> bytes:
    """A call of a function by itself."""
    return attempt.run_function(code, _fetch(data), args, kwargs, has_gpu=has_gpu, limit=limit)


def render(value: Value, storage_url: str, limit: int) -> bytes:
    """A stored value as JSON."""
    return attempt.render(value, storage_url, limit)


def _fetch(code: list[CodeSource]) -> Callable[[], bytes]:
    (source,) = code
    return lambda: source if isinstance(source, bytes) else ray.get(source)


@functools.cache
def _node() -> tuple[NodeId, str]:
    node_ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own gap
    return NodeId(ray.get_runtime_context().get_node_id()), node_ip


def _placement() -> Placement:
    node_id, node_ip = _node()
    return Placement(node_id, node_ip, time.time())


def announce(assigned: Assignment, placement: Placement) -> None:
    """Tells the dispatcher that an attempt begins; the report of its end makes up for what is not heard."""
    started = TaskStarted(assigned.task_id, assigned.attempt, placement)
    note = wire.encode_start(assigned.run_id, started)
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        _mailbox(assigned.mailbox).push.remote(note)


def teller(assignments: Sequence[Assignment]) -> Callable[[list[LogEntry]], None]:
    """What tells the dispatchers that attempts, which share a batch if they are many, have printed something."""

    def tell(entries: list[LogEntry]) -> None:
        for mailbox in {each.mailbox for each in assignments}:
            attempts = [
                (each.run_id, each.task_id, each.attempt)
                for each in assignments
                if each.mailbox == mailbox
            ]
            with contextlib.suppress(ValueError, ray.exceptions.RayError):
                _mailbox(mailbox).push_logs.remote(wire.encode_logs(attempts, entries))

    return tell


@functools.lru_cache(maxsize=4)
def _mailbox(name: str) -> ActorHandle[Mailbox]:
    return ray.get_actor(name, namespace=NAMESPACE)
