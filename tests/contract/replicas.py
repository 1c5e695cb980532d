"""Dispatchers over replicas, as the suites of dispatchers want them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import serve

from deployments.replicas.dispatcher import ReplicaDispatcher
from deployments.replicas.fleet import Fleet
from deployments.replicas.identity import Bounds
from deployments.routing import RoutingDispatcher
from lattice.execution.ray_tasks import RayTaskDispatcher
from tests.contract.dispatching import short_folder


@contextmanager
def running_engine() -> Iterator[Path]:
    """A Ray of two CPUs and a GPU that is none, with Serve; the folder that it writes to."""
    with short_folder() as folder:
        ray.init(
            num_cpus=2,
            num_gpus=1,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=folder,
        )
        serve.start(proxy_location="Disabled")
        try:
            yield Path(folder)
        finally:
            serve.shutdown()
            ray.shutdown()


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
    secrets = changes.get("secrets")
    tasks = RayTaskDispatcher(url, 1024, cancel_grace=cancel_grace, secrets=secrets)
    replicas = ReplicaDispatcher(fleet, url, 1024, held=tasks.held, cancel_grace=cancel_grace)
    return RoutingDispatcher(tasks, replicas, everything=everything)
