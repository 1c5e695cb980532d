"""What a job for replicas waits for, for people."""

from __future__ import annotations

from deployments.replicas import identity
from deployments.replicas.application import Attempt
from lattice.execution.shape import Shape
from lattice.execution.shortage import Room, shortage


def reason(taken: Attempt, rooms: list[Room] | None, places: str, now: float) -> str:
    """Why a job has not begun.

    Args:
        rooms: what the nodes of the cluster have free, if that is known.
        places: how many of the places for definitions are taken.
        now: in seconds of the event loop.
    """
    application = taken.application
    if application.deleting:
        return "the former replicas of its definition to be removed"
    if application.handle is None:
        if application.creating is None:
            return f"room for one more task definition: {places} are deployed"
        return "its definition to be deployed"
    if not application.ready:
        lacking = rooms and shortage(Shape.of(application.definition), rooms)
        return lacking or f"replica starting, {now - application.cold_since:.1f} s"
    if taken.group is None:
        busy = f"{application.ready} replicas" if application.ready > 1 else "the replica"
        return f"{busy} to have room"
    policy = identity.batch_policy(application.definition)
    left = policy.batch_timeout - (now - taken.sent)
    if policy.batch_size == 1 or left <= 0:
        if application.definition.secrets:
            return "the calls before it on its replica, or its code to be loaded with its secrets"
        return "the calls before it on its replica"
    together = sum(not each.started for group in application.groups for each in group.open.values())
    size = min(policy.batch_size, together)
    return f"batch {size} of {policy.batch_size}, {left * 1000:.0f} ms left"
