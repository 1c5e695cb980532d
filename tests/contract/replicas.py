"""Dispatchers over replicas, as the suites of dispatchers want them."""

from __future__ import annotations

from typing import Any

from deployments.replicas.dispatcher import ReplicaDispatcher
from deployments.replicas.fleet import Fleet
from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.execution.ray_tasks import RayTaskDispatcher


def new_routing(
    url: str, *, cancel_grace: float = 0.5, everything: bool = False, **changes: Any
) -> RoutingDispatcher:
    """A dispatcher that is not started; `url` is its storage and its scope."""
    options: dict[str, Any] = {
        "scope": url,
        "owner": None,
        "bounds": Bounds(4, 1.0),
        "max_applications": 100,
        "idle_seconds": 300.0,
        "grace": cancel_grace,
    }
    fleet = Fleet(url, **(options | changes))
    tasks = RayTaskDispatcher(url, 1024, cancel_grace=cancel_grace)
    replicas = ReplicaDispatcher(fleet, url, 1024, held=tasks.held, cancel_grace=cancel_grace)
    return RoutingDispatcher(tasks, replicas, everything=everything)
