"""The ingress as a Serve deployment: the FastAPI application, and the orchestrator behind a handle.

Stateless: any number of replicas may run, and each may die at any moment.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import grpc
import ray.exceptions
from fastapi import FastAPI
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator

from deployments import engine_headers
from deployments.orchestrator import Refusal
from deployments.serve_logs import use_serve_logs
from lattice.api.server import create_app
from lattice.errors import UnavailableError
from lattice.ids import RunId, WorkflowId
from lattice.observability.traces import current
from lattice.ports.service import ANYBODY, Caller, LogMessages, Once, OrchestratorService
from lattice.settings import LatticeSettings

#: How long a call may take beyond what it does by itself, in seconds: a restart of the orchestrator
#: takes a few, during which calls wait.
_CALL_SECONDS = 30.0

#: What changes nothing, or the same when it is done twice, may be asked again after a crash.
_REPEATABLE = frozenset(
    (
        "save_task",
        "add_edge",
        "workflow_tasks",
        "list_runs",
        "describe_run",
        "cancel_run",
        "task_result",
        "task_logs",
        "value_json",
        "value_pickle",
        "connect_worker",
        "disconnect_worker",
        "workers",
        "head_port",
        "ready",
    )
)
#: By default Serve hands a request on between three event loops of the process: its own, that of the routes to other
#: deployments, and the application's. Nothing of ours blocks the loop that it is on, so that they can be one.
_ONE_LOOP = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}
#: The orchestrator is asked over gRPC, in half the time of the tasks of an actor that Serve sends by default. With this
#: answers may be as large as values are. Requests may have 4 MiB, as the orchestrator's process has no such setting:
#: the tasks that it starts would inherit it, and none of Ray's waiting processes would do for them.
_LARGE_ANSWERS = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(2**31 - 1)}
_ENGINE_ERRORS = (ray.exceptions.RayError, RayServeException, grpc.aio.AioRpcError)


class RemoteOrchestrator:
    """Implements `lattice.ports.service.OrchestratorService` by calls to the orchestrator's deployment.

    The metrics of all processes come together there, too: `lattice.api.dependencies.Exposition`.
    """

    def __init__(self, handle: DeploymentHandle[Any], call_timeout: float, caller: Caller) -> None:
        self._handle = handle
        self._call_timeout = call_timeout
        self._caller = caller

    def for_caller(self, caller: Caller) -> OrchestratorService:
        """The same as `caller` sees it."""
        return cast(
            OrchestratorService, RemoteOrchestrator(self._handle, self._call_timeout, caller)
        )

    def __getattr__(self, method: str) -> Callable[..., Awaitable[object]]:
        if method.startswith("_") or not hasattr(OrchestratorService, method):
            raise AttributeError(method)

        async def call(*args: object, **kwargs: object) -> object:
            return await self._call(method, args, kwargs)

        return call

    async def _call(
        self, method: str, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> object:
        seconds = _CALL_SECONDS
        trace = current()
        handle = self._handle
        if method == "run_langgraph_task":
            seconds += self._call_timeout
        try:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        answer = await handle.call.remote(method, args, kwargs, trace, self._caller)
                    except ray.exceptions.RayTaskError:
                        raise  # a defect in the orchestrator, which would only come again
                    except _ENGINE_ERRORS as error:
                        if _is_too_large(error):
                            handle = handle.options(_by_reference=True)
                            continue
                        keyed = any(isinstance(each, Once) for each in (*args, *kwargs.values()))
                        if method not in _REPEATABLE and not keyed:
                            raise _unavailable(error) from error
                        # The handle's next call waits until there is an orchestrator.
                        await asyncio.sleep(0.1)
                    else:
                        break
        except TimeoutError:
            raise UnavailableError(
                f"the orchestrator has not answered within {seconds:g} s"
            ) from None
        if isinstance(answer, Refusal):
            raise answer.error
        return answer

    async def publish(self, process: str, text: bytes) -> None:
        """Notes the metrics of this process. Raises UnavailableError."""
        try:
            await self._handle.note_metrics.remote(process, text)
        except _ENGINE_ERRORS as error:
            raise _unavailable(error) from error

    async def collect(self, process: str, text: bytes) -> bytes:
        """Metrics of all processes. Raises UnavailableError."""
        try:
            return cast(bytes, await self._handle.collect_metrics.remote(process, text))
        except _ENGINE_ERRORS as error:
            raise _unavailable(error) from error

    async def follow(
        self, run_id: RunId, workflow_id: WorkflowId | None, after: int, *, logs: bool = False
    ) -> AsyncIterator[list[str] | LogMessages]:
        """Messages of a run. Raises UnavailableError when the orchestrator dies; follow again then."""
        stream = cast(
            "DeploymentResponseGenerator[list[str] | LogMessages | Refusal]",
            self._handle.options(stream=True).follow.remote(
                run_id, workflow_id, after, logs, self._caller
            ),
        )
        try:
            async for group in stream:
                if isinstance(group, Refusal):
                    raise group.error
                if group:
                    yield group
        except ray.exceptions.RayTaskError:
            raise
        except _ENGINE_ERRORS as error:
            raise _unavailable(error) from error
        finally:
            # Dropping the stream would leave the generator running at the other end.
            stream.cancel()  # type: ignore[no-untyped-call]  # Ray gives it no types


def _is_too_large(error: Exception) -> bool:
    """Whether a request was refused, before anything was done, as it is too large for gRPC."""
    refused = grpc.StatusCode.RESOURCE_EXHAUSTED
    return isinstance(error, grpc.aio.AioRpcError) and error.code() == refused


def _unavailable(error: Exception) -> UnavailableError:
    return UnavailableError(f"the orchestrator is restarting ({type(error).__name__})")


class Ingress:
    """Builds the FastAPI application on the replica, so that it need not be picklable."""

    def __init__(self, settings: LatticeSettings, orchestrator: DeploymentHandle[Any]) -> None:
        self._settings = settings
        self._orchestrator = orchestrator

    def __serve_build_asgi_app__(self) -> FastAPI:
        use_serve_logs(self._settings.log_format)
        handle = self._orchestrator.options(_by_reference=False)
        # For whoever needs no key: with keys, each request asks as its own caller.
        service = RemoteOrchestrator(handle, self._settings.call_timeout, ANYBODY)
        replica = serve.get_replica_context().replica_id.unique_id
        app: FastAPI = create_app(
            metrics_enabled=self._settings.metrics_enabled,
            metrics_exporter=self._settings.metrics_exporter,
            metrics_endpoint=self._settings.metrics_endpoint,
            orchestrator=cast(OrchestratorService, service),
            settings=self._settings,
            exposition=service,
            process=f"ingress-{replica}",
        )
        return app


IngressDeployment = serve.deployment(
    name="ingress",
    # Every open WebSocket holds a slot; beyond the bound, requests would hang without an answer. `max_open_streams`
    # stays below it.
    max_ongoing_requests=10_000,
    ray_actor_options={
        "num_cpus": 0,
        "runtime_env": {"env_vars": engine_headers.ENVIRONMENT | _ONE_LOOP | _LARGE_ANSWERS},
    },
    health_check_period_s=1,
    graceful_shutdown_wait_loop_s=0.2,
    graceful_shutdown_timeout_s=10,
)(serve.ingress()(Ingress))
