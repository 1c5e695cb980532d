"""The Ray tasks themselves: thin functions around `attempt`, run in worker processes.

They catch everything, and return frames and pickles as opaque bytes: what a worker sends back is never
unpickled by the process that submitted the task.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import ray
import ray.exceptions
from ray.actor import ActorHandle

from lattice.execution import attempt, capture, process_names, wire
from lattice.execution.announcer import Announcer
from lattice.execution.assignment import Assignment
from lattice.execution.attempt import Large
from lattice.execution.fusion import Fusion
from lattice.execution.mailbox import Mailbox
from lattice.execution.ray_remote import CodeSource
from lattice.ids import Digest, NodeId, RunId, TaskId
from lattice.ports.execution import LogEntry
from lattice.workflow.events import Placement, TaskStarted, Value
from lattice.workflow.task import Code

#: The Ray namespace of mailbox actors.
NAMESPACE = "lattice"

_announcer = Announcer()
_secrets = capture.SeenSecrets()


def run_attempts(
    assignments: bytes,
    codes: Mapping[Digest, CodeSource],
    secrets: Mapping[str, str],
    *upstream: Large | None,
) -> tuple[bytes, Large | None]:
    """Attempts of a run, one after the other; their ends, and the large outputs of the last that ended.

    References to code are nested, so that code is fetched only where it is not loaded. `secrets` are those that an
    attempt asked for, which then is alone.
    """
    group = attempt.decode_group(assignments)
    process_names.take(group[0].call_name)
    fusion = Fusion(group)
    large: Large | None = None
    while (assigned := fusion.next()) is not None:
        if secrets:
            assigned = dataclasses.replace(assigned, secrets=secrets)
        frame, large = _run_attempt(assigned, fusion, codes[assigned.code.digest], upstream)
        fusion.ended(frame, large=large is not None)
    return fusion.frame(), large


def _run_attempt(
    assigned: Assignment, fusion: Fusion, code: CodeSource, upstream: Sequence[Large | None]
) -> tuple[bytes, Large | None]:
    placement = _placement()
    if assigned.timed:
        # Code that never lets go of the interpreter would keep the announcer's thread from telling.
        announce(assigned, placement)
    _announcer.begin(
        functools.partial(_takes_long, assigned, placement, fusion), announced=assigned.timed
    )
    try:
        _secrets.add(assigned.secrets.values())
        with capture.recording(assigned.log_bytes, teller([assigned]), _secrets.values) as recorder:
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
    mailbox: str,
    call_id: RunId,
    secrets: Mapping[str, str],
) -> bytes:
    """A call of a function by itself, which tells the dispatcher where it runs if it takes long.

    `secrets` are those that it asked for.
    """
    process_names.take(call_id)
    # It is in no run, and goes by an id of its own in the place of a run's.
    note = wire.StartNote(call_id, TaskStarted(TaskId(""), 0, _placement()))
    _announcer.begin(functools.partial(_push, mailbox, note))
    try:
        _secrets.add(secrets.values())
        # Nothing is recorded of a call, but what it prints goes to the log of this process.
        with capture.recording(0, lambda entries: None, _secrets.values):
            return attempt.run_function(
                code, _fetch(*data), args, kwargs, has_gpu=has_gpu, limit=limit, secrets=secrets
            )
    finally:
        _announcer.end()


def render(call_id: str, value: Value, storage_url: str, limit: int) -> bytes:
    """A stored value as JSON."""
    process_names.take(call_id)
    return attempt.render(value, storage_url, limit)


def kill_process(name: str) -> bytes:
    """Ends what goes by that name on this node; the ids of the processes, as a text."""
    return ", ".join(map(str, process_names.kill(name))).encode()


def _fetch(source: CodeSource) -> Callable[[], bytes]:
    return lambda: source if isinstance(source, bytes) else ray.get(source)


@functools.cache
def _node() -> tuple[NodeId, str]:
    node_ip = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray's own gap
    return NodeId(ray.get_runtime_context().get_node_id()), node_ip


def _placement() -> Placement:
    node_id, node_ip = _node()
    return Placement(node_id, node_ip, time.time())


def _takes_long(assigned: Assignment, placement: Placement, fusion: Fusion) -> None:
    ends = fusion.alone(assigned)
    if ends is not None:
        announce(assigned, placement, ends)


def announce(assigned: Assignment, placement: Placement, ends: bytes = b"") -> None:
    """Tells the dispatcher that an attempt begins, and the ends of those before it in its call.

    The report of its own end makes up for what is not heard.
    """
    started = TaskStarted(assigned.task_id, assigned.attempt, placement)
    _push(assigned.mailbox, wire.StartNote(assigned.run_id, started, assigned.call, ends))


def _push(mailbox: str, note: wire.StartNote) -> None:
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        _mailbox(mailbox).push.remote(wire.encode_start(note))


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
