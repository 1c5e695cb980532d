"""The library's composition root: chooses the implementations and builds an orchestrator from settings.

The other one is `deployments/app.py`, which chooses the Serve deployments around it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable

from lattice.execution.ray_cluster import connect
from lattice.execution.ray_tasks import RayTaskDispatcher
from lattice.execution.secrets import SecretFolder
from lattice.execution.storage import FsspecStorage
from lattice.ids import Tenant
from lattice.observability.telemetry import NoTelemetry
from lattice.orchestrator import (
    Defaults,
    Limits,
    Orchestrator,
    Retention,
    Surroundings,
    Tenancy,
)
from lattice.ports.environment import Telemetry
from lattice.ports.execution import Dispatcher
from lattice.ports.secrets import NoSecrets, Secrets
from lattice.ports.tracing import SpanExport, Traces
from lattice.settings import LatticeSettings
from lattice.store import open_store
from lattice.workflow.retry import RetryPolicy


class SystemClock:
    """The machine's time, and timers of the running event loop."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Callable[[], None]:
        """Calls `callback` on the loop after `delay` seconds; calling what it returns prevents that."""
        return asyncio.get_running_loop().call_later(delay, callback).cancel


class RandomIds:
    """Random UUIDs (RFC 9562, version 4)."""

    def new_id(self) -> str:
        """A new id."""
        return str(uuid.uuid4())


def build_orchestrator(
    settings: LatticeSettings,
    *,
    ray_head_port: int | None = None,
    telemetry: Telemetry | None = None,
    traces: Traces | None = None,
    around: Callable[[LatticeSettings, RayTaskDispatcher], Dispatcher] | None = None,
) -> Orchestrator:
    """An orchestrator that runs tasks as Ray tasks, not started yet.

    `around` may make a dispatcher that runs some tasks otherwise, such as on Serve, which is not known here.

    Ray is joined where this process has not done so: at `ray_head_port` of this machine if a head
    listens there, else as a cluster of its own.

    Raises:
        StoreUnavailableError: the database cannot be opened.
    """
    if ray_head_port is not None:
        connect(ray_head_port)
    storage_url = settings.resolved_storage_url
    span_export = None
    if traces is not None:
        span_export = SpanExport(settings.traces_exporter, settings.traces_endpoint)
    secrets: Secrets = NoSecrets()
    if settings.secrets_dir is not None:
        secrets = SecretFolder(settings.secrets_dir.expanduser().absolute())
    tasks = RayTaskDispatcher(
        storage_url,
        settings.inline_value_bytes,
        max_result_bytes=settings.max_result_bytes,
        max_log_bytes=settings.max_log_bytes,
        span_export=span_export,
        secrets=secrets,
    )
    surroundings = Surroundings(
        store=open_store(settings.resolved_store_url),
        storage=FsspecStorage(storage_url),
        dispatcher=tasks if around is None else around(settings, tasks),
        clock=SystemClock(),
        ids=RandomIds(),
        telemetry=telemetry or NoTelemetry(),
        traces=traces,
        secrets=secrets,
        limits=Limits(
            max_tasks_per_workflow=settings.max_tasks_per_workflow,
            max_result_bytes=settings.max_result_bytes,
            call_timeout=settings.call_timeout,
            max_live_runs=settings.max_live_runs,
            max_unfinished_tasks=settings.max_unfinished_tasks,
            max_log_bytes=settings.max_log_bytes,
            no_node_seconds=settings.no_node_seconds,
            max_edges_per_workflow=settings.max_edges_per_workflow,
            max_workflow_bytes=settings.max_workflow_bytes,
            max_code_bytes=settings.max_code_bytes,
            max_batch_size=settings.max_batch_size,
            max_timeout=settings.max_timeout,
            max_deadline=settings.max_deadline,
            max_workflows_per_tenant=settings.max_workflows_per_tenant,
            max_live_runs_per_tenant=settings.max_live_runs_per_tenant,
        ),
        defaults=Defaults(
            retry=RetryPolicy(
                settings.default_retry_attempts,
                settings.default_retry_backoff,
                # A first wait that is longer than the usual bound is meant.
                max(RetryPolicy().max_backoff, settings.default_retry_backoff),
            ),
            timeout=settings.default_timeout,
            deadline=settings.default_deadline,
        ),
        retention=Retention(
            run_seconds=settings.retention_seconds,
            runs=settings.retention_runs,
            reply_seconds=settings.idempotency_seconds,
            node_seconds=settings.lost_worker_seconds,
            period=settings.housekeeping_seconds,
        ),
        tenancy=Tenancy(
            share_definitions=settings.batches_across_tenants,
            max_concurrent_tasks={
                Tenant(key.name): key.max_concurrent_tasks
                for key in settings.api_keys
                if key.max_concurrent_tasks is not None
            },
        ),
    )
    return Orchestrator(surroundings, warm_up=settings.replica_warm_up)
