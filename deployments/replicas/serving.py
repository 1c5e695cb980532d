"""What Serve is told about the applications of task definitions, and what it says of them. All blocks."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray import serve
from ray.runtime_env import RuntimeEnv

from deployments.replicas import identity
from deployments.replicas.identity import Bounds
from deployments.task_replica import ReplicaTask, TaskDeployment
from lattice.execution import wire
from lattice.execution.failures import shortened
from lattice.ports.execution import Definition
from lattice.workflow.events import ErrorInfo

_FAILED = ("UNHEALTHY", "DEPLOY_FAILED")
#: Longest text of Serve that becomes an error's message.
_MAX_MESSAGE = 4_000


@dataclass(frozen=True, slots=True)
class Status:
    """An application as Serve sees it.

    Attributes:
        ready: replicas that take calls.
        failure: why it can have no replica: the user's own error, where that is the reason.
    """

    ready: int
    failure: ErrorInfo | None


@serve.deployment(
    name="front",
    ray_actor_options={"num_cpus": 0},
    autoscaling_config={"min_replicas": 0, "initial_replicas": 0, "max_replicas": 1},
)
class Front:
    """The first deployment of each application, which is never called and has no replica.

    Serve lets HAProxy choose among the replicas of an application's first deployment, and refuses a router
    of its own there, even where no route leads to it.
    """

    def __init__(self, task: object) -> None:
        """Takes the deployment that has the replicas."""


def deploy(name: str, definition: Definition, task: ReplicaTask, bounds: Bounds) -> Any:
    """Creates the application; returns its handle. Unless it is to have some, it has no replica yet.

    Raises:
        ValueError, TypeError: options that the engine refuses, such as a malformed runtime_env.
    """
    options = identity.actor_options(definition)
    # Serve itself would only find out when it starts a replica.
    RuntimeEnv(**options.get("runtime_env", {}))
    deployment: Any = TaskDeployment.options(
        ray_actor_options=options, autoscaling_config=identity.autoscaling(definition, bounds)
    )
    front: Any = Front
    application = front.bind(deployment.bind(task))
    target = serve.RunTarget(target=application, name=name, route_prefix=None)
    serve.run_many([target], wait_for_applications_running=False)
    return adopt(name)


def is_leaving(name: str) -> bool:
    """Whether an application is being deleted, or is gone."""
    application = serve.status().applications.get(name)
    return application is None or application.status.value == "DELETING"


def adopt(name: str) -> Any:
    """The handle of an application that is there already."""
    return serve.get_deployment_handle(TaskDeployment.name, name)


def delete(names: Iterable[str]) -> None:
    """Begins to delete applications; one that is not there is no error."""
    for name in names:
        serve.delete(name, _blocking=False)


def statuses(prefix: str) -> dict[str, Status]:
    """The applications whose names begin with `prefix`."""
    found: dict[str, Status] = {}
    for name, application in serve.status().applications.items():
        if not name.startswith(prefix):
            continue
        texts = [application.message] if application.status.value == "DEPLOY_FAILED" else []
        ready = 0
        failure = None
        deployment = application.deployments.get(TaskDeployment.name)
        if deployment is not None:
            ready = sum(
                count for each, count in deployment.replica_states.items() if each == "RUNNING"
            )
            if deployment.status.value != "HEALTHY":
                # Serve tries three times; the user's own error is known after the first.
                failure = wire.find_error(deployment.message)
            failed = deployment.status.value in _FAILED
            if failed and "HEALTH_CHECK" not in deployment.status_trigger.value:
                texts.insert(0, deployment.message)
        if failure is None and texts:
            failure = _start_failure(texts[0])
        found[name] = Status(ready, None if ready else failure)
    return found


def _start_failure(message: str) -> ErrorInfo:
    """What keeps a replica from starting, where it is not the code: its environment, its process."""
    known = wire.find_error(message)
    if known is not None:
        return known
    text = shortened(re.sub(r"\x1b\[[0-9;]*m", "", message).strip(), _MAX_MESSAGE)
    return ErrorInfo("ReplicaStartError", f"the replica of the task could not be started: {text}")
