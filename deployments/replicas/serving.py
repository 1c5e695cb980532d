"""What Serve is told about the applications of task definitions, and what it says of them. All blocks."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray import serve
from ray.runtime_env import RuntimeEnv
from ray.serve.context import _get_global_client

from deployments.replicas import identity
from deployments.replicas.identity import Bounds
from deployments.task_replica import ReplicaTask, TaskDeployment
from lattice.execution import wire
from lattice.execution.failures import shortened
from lattice.ports.execution import Definition, LogEntry
from lattice.workflow.events import ErrorInfo

_FAILED = ("UNHEALTHY", "DEPLOY_FAILED")
#: How long a replica that has a process may take to say so, in seconds.
_ANSWER = 2.0
#: How long replicas without one are looked for in applications that are being deleted, in seconds.
_DELETING = 5.0
#: Where the names of Serve's actors are.
_NAMESPACE = "serve"
#: Longest text of Serve that becomes an error's message.
_MAX_MESSAGE = 4_000


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an application can have no replica: the user's own error, where that is the reason.

    Attributes:
        printed: what the code printed before.
    """

    info: ErrorInfo
    printed: tuple[LogEntry, ...] = ()

    def __str__(self) -> str:
        return f"{self.info.type}: {self.info.message}"


@dataclass(frozen=True, slots=True)
class Status:
    """An application as Serve sees it.

    Attributes:
        ready: replicas that take calls.
        deleting: it is being deleted.
    """

    ready: int
    failure: Failure | None
    deleting: bool


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


def _applications() -> Mapping[str, Mapping[str, Any]]:
    """What Serve knows of its applications, by name; none before it has started.

    `serve.status()` tells less, and pickles each router that it reads of on the way.
    """
    client = _get_global_client(raise_if_no_controller_running=False)
    found: Mapping[str, Mapping[str, Any]] = (
        {} if client is None else client.get_serve_details()["applications"]
    )
    return found


def is_leaving(name: str) -> bool:
    """Whether an application is being deleted, or is gone."""
    application = _applications().get(name)
    return application is None or application["status"] == "DELETING"


def adopt(name: str) -> Any:
    """The handle of an application that is there already."""
    return serve.get_deployment_handle(TaskDeployment.name, name)


def delete(names: Collection[str]) -> None:
    """Begins to delete applications; one that is not there is no error."""
    for name in names:
        serve.delete(name, _blocking=False)
    end_unplaced(names)


def end_unplaced(names: Collection[str]) -> None:
    """Ends the replicas without a process, as no node has room for them, of applications that are being deleted.

    Serve lets each replica finish its batch, and so would wait an hour for one that has never been anywhere. Until its
    next turns it starts others in their place.
    """
    replicas = _replicas(names)
    placed = _answering(replicas)
    until = time.monotonic() + _DELETING
    while replicas != placed and time.monotonic() < until:
        there = [application for name, application in _applications().items() if name in names]
        if not there:
            return
        if all(application["status"] == "DELETING" for application in there):
            for actor in _replicas(names) - placed:
                with contextlib.suppress(ValueError):  # it is gone
                    ray.kill(ray.get_actor(actor, _NAMESPACE))
        time.sleep(0.1)


def _replicas(names: Collection[str]) -> set[str]:
    """The actors of the replicas of applications, also of those that are being stopped."""
    prefixes = tuple(f"SERVE_REPLICA::{name}#" for name in names)
    found = ray.util.list_named_actors(all_namespaces=True) if names else []
    return {actor["name"] for actor in found if actor["name"].startswith(prefixes)}


def _answering(replicas: Collection[str]) -> set[str]:
    """Those that have a process, which says so."""
    answers: dict[ray.ObjectRef[Any], str] = {}
    for actor in replicas:
        with contextlib.suppress(ValueError):  # it is gone
            answers[ray.get_actor(actor, _NAMESPACE).__ray_ready__.remote()] = actor
    if not answers:
        return set()
    come, _ = ray.wait([*answers], num_returns=len(answers), timeout=_ANSWER, fetch_local=False)
    return {answers[each] for each in come}


def statuses(prefix: str) -> dict[str, Status]:
    """The applications whose names begin with `prefix`."""
    found: dict[str, Status] = {}
    for name, application in _applications().items():
        if not name.startswith(prefix):
            continue
        texts = [application["message"]] if application["status"] == "DEPLOY_FAILED" else []
        ready = 0
        failure = None
        deployment = application["deployments"].get(TaskDeployment.name)
        if deployment is not None:
            ready = sum(replica["state"] == "RUNNING" for replica in deployment["replicas"])
            if deployment["status"] != "HEALTHY":
                # Serve tries three times; the user's own error is known after the first.
                failure = own_failure(deployment["message"])
            failed = deployment["status"] in _FAILED
            if failed and "HEALTH_CHECK" not in deployment["status_trigger"]:
                texts.insert(0, deployment["message"])
        if failure is None and texts:
            failure = _start_failure(texts[0])
        deleting = application["status"] == "DELETING"
        found[name] = Status(ready, None if ready else failure, deleting)
    return found


def own_failure(message: str) -> Failure | None:
    """The user's own error in a text of Serve's."""
    found = wire.find_error(message)
    return None if found is None else Failure(*found)


def _start_failure(message: str) -> Failure:
    """What keeps a replica from starting, where it is not the code: its environment, its process."""
    known = own_failure(message)
    if known is not None:
        return known
    text = shortened(re.sub(r"\x1b\[[0-9;]*m", "", message).strip(), _MAX_MESSAGE)
    said = f"the replica of the task could not be started: {text}"
    return Failure(ErrorInfo("ReplicaStartError", said))
