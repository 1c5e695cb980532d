"""The orchestrator as a Serve deployment with one stateful replica.

Serve restarts it when its process dies or its health check fails, and calls made meanwhile wait. A rolling
update can have two alive for a moment; the lease in the store lets only the newer one write.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ray import serve

from deployments.routing import new_dispatcher
from deployments.serve_logs import use_serve_logs
from lattice.assembly import build_orchestrator
from lattice.errors import LatticeError
from lattice.ports.service import LogMessages
from lattice.settings import LatticeSettings


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as an answer: expected errors cost no stack trace in a log and no wrapping by the engine."""

    error: LatticeError


@serve.deployment(
    name="orchestrator",
    num_replicas=1,
    # Every open stream holds a slot; beyond the bound, calls would hang without an answer.
    max_ongoing_requests=100_000,
    ray_actor_options={"num_cpus": 0},
    health_check_period_s=1,
    health_check_timeout_s=10,
    graceful_shutdown_wait_loop_s=0.2,
    graceful_shutdown_timeout_s=10,
    # The ingress logs each request; a second line for the same one tells nothing.
    logging_config={"enable_access_log": False},
)
class OrchestratorDeployment:
    """A few lines around `lattice.orchestrator.Orchestrator`."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, settings: LatticeSettings
    ) -> None:
        use_serve_logs(settings.log_format)
        self._orchestrator = build_orchestrator(settings, around=new_dispatcher)
        await self._orchestrator.start_monitor()

    async def call(self, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
        """Calls a method of the orchestrator; an expected error comes back as a `Refusal`."""
        try:
            return await getattr(self._orchestrator, method)(*args, **kwargs)
        except LatticeError as error:
            return Refusal(error)

    async def follow(
        self, run_id: Any, workflow_id: Any, after: int, logs: bool
    ) -> AsyncIterator[list[str] | LogMessages | Refusal]:
        """Messages of a run in groups; an expected error comes as a last `Refusal`."""
        try:
            async for group in self._orchestrator.follow(run_id, workflow_id, after, logs=logs):
                yield group
        except LatticeError as error:
            yield Refusal(error)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: it can make nothing durable any more."""
        await self._orchestrator.ready()

    async def __del__(self) -> None:
        # Serve awaits this at shutdown. There is nothing to close where the constructor failed.
        if hasattr(self, "_orchestrator"):
            await self._orchestrator.close()
