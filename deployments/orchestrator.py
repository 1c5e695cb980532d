"""The orchestrator as a Serve deployment with one stateful replica.

Serve restarts it when its process dies or its health check fails, and calls made meanwhile wait. A rolling
update can have two alive for a moment; the lease in the store lets only the newer one write.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from ray import serve

from deployments.routing import new_dispatcher
from deployments.serve_logs import use_serve_logs
from lattice.assembly import build_orchestrator
from lattice.errors import LatticeError, StoreRefusedError, StoreUnavailableError
from lattice.observability.exposition import Published, merge
from lattice.observability.metrics import Metrics
from lattice.observability.telemetry import MeterTelemetry, NoTelemetry
from lattice.observability.traces import tracer_of, within
from lattice.orchestrator import Orchestrator
from lattice.ports.environment import Telemetry
from lattice.ports.service import ANYBODY, Caller, LogMessages, OrchestratorService
from lattice.settings import LatticeSettings

_log = logging.getLogger(__name__)

#: How long until a database that cannot be reached at the start is tried again, in seconds.
_PAUSE = 1.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error as an answer: expected errors cost no stack trace in a log and no wrapping by the engine."""

    error: LatticeError


def _seen(orchestrator: Orchestrator, caller: Caller) -> OrchestratorService:
    return orchestrator if caller == ANYBODY else orchestrator.for_caller(caller)


@serve.deployment(
    name="orchestrator",
    num_replicas=1,
    # Every open stream holds a slot; beyond the bound, calls would hang without an answer.
    max_ongoing_requests=100_000,
    # On the head, whose end is that of the cluster: workers come and go, and another machine may not have the
    # files of the database.
    ray_actor_options={"num_cpus": 0, "resources": {"node:__internal_head__": 0.001}},
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
        self._settings = settings
        self._metrics: Metrics | None = None
        self._telemetry: Telemetry = NoTelemetry()
        if settings.metrics_enabled:
            self._metrics = Metrics(
                settings.metrics_exporter, settings.metrics_endpoint, "orchestrator"
            )
            self._telemetry = MeterTelemetry(self._metrics.meter)
        self._tracer = tracer_of(
            settings.traces_exporter,
            settings.traces_endpoint,
            "orchestrator",
            settings.traces_sample_ratio,
        )
        self._published = Published()
        #: The orchestrator, or why there is none yet: its database is away.
        self._orchestrator: Orchestrator | StoreUnavailableError = await self._try_to_start()
        self._starting: asyncio.Task[None] | None = None
        if isinstance(self._orchestrator, StoreUnavailableError):
            # A replica that failed to start would be tried again more and more rarely, and calls would wait.
            self._starting = asyncio.create_task(self._keep_trying())

    async def _try_to_start(self) -> Orchestrator | StoreUnavailableError:
        try:
            orchestrator = await asyncio.to_thread(
                build_orchestrator,
                self._settings,
                telemetry=self._telemetry,
                traces=self._tracer,
                around=new_dispatcher,
            )
            try:
                await orchestrator.start_monitor()
            except BaseException:
                await orchestrator.close()
                raise
        except StoreRefusedError:
            raise
        except StoreUnavailableError as error:
            _log.warning("the database is away, trying again every %g s: %s", _PAUSE, error)
            return error
        return orchestrator

    async def _keep_trying(self) -> None:
        while isinstance(self._orchestrator, StoreUnavailableError):
            await asyncio.sleep(_PAUSE)
            self._orchestrator = await self._try_to_start()

    async def call(
        self,
        method: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        trace: str | None,
        caller: Caller,
    ) -> object:
        """Calls a method of the orchestrator for `caller`; an expected error comes back as a `Refusal`.

        `trace` is the trace context of the request.
        """
        if isinstance(self._orchestrator, StoreUnavailableError):
            return Refusal(self._orchestrator)
        try:
            with within(trace):
                return await getattr(_seen(self._orchestrator, caller), method)(*args, **kwargs)
        except LatticeError as error:
            return Refusal(error)

    async def follow(
        self, run_id: Any, workflow_id: Any, after: int, logs: bool, caller: Caller
    ) -> AsyncIterator[list[str] | LogMessages | Refusal]:
        """Messages of a run in groups, one of them empty if there are none.

        An expected error comes as a last `Refusal`.
        """
        if isinstance(self._orchestrator, StoreUnavailableError):
            yield Refusal(self._orchestrator)
            return
        empty = True
        try:
            seen = _seen(self._orchestrator, caller)
            async for group in seen.follow(run_id, workflow_id, after, logs=logs):
                yield group
                empty = False
            if empty:
                # Serve takes a stream that ends without any message for a failed one, now and then.
                yield []
        except LatticeError as error:
            yield Refusal(error)

    async def note_metrics(self, process: str, text: bytes) -> None:
        """Notes the metrics of another process."""
        self._published.note(process, text)

    async def collect_metrics(self, process: str, text: bytes) -> bytes:
        """Notes the metrics of another process; those of all, in Prometheus' text format."""
        # Thousands of lines are no work for the event loop.
        return await asyncio.to_thread(self._merged, self._published.note(process, text))

    def _merged(self, texts: dict[str, bytes]) -> bytes:
        if self._metrics is not None and (own := self._metrics.render()) is not None:
            texts[self._metrics.process] = own
        return merge(texts)

    async def check_health(self) -> None:
        """Serve replaces the replica when this raises: it can make nothing durable any more."""
        if isinstance(self._orchestrator, Orchestrator):
            await self._orchestrator.check_health()
        elif self._starting is not None and self._starting.done():
            self._starting.result()

    async def __del__(self) -> None:
        # Serve awaits this at shutdown. There is nothing to close where the constructor failed.
        if (starting := getattr(self, "_starting", None)) is not None:
            starting.cancel()
            await asyncio.wait([starting])
        if isinstance(orchestrator := getattr(self, "_orchestrator", None), Orchestrator):
            await orchestrator.close()
        if (metrics := getattr(self, "_metrics", None)) is not None:
            # A last export may wait for the network.
            await asyncio.to_thread(metrics.shutdown)
        if (tracer := getattr(self, "_tracer", None)) is not None:
            await asyncio.to_thread(tracer.shutdown)
