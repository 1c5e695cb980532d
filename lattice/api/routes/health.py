"""Whether the service is alive and ready, and its metrics."""

from __future__ import annotations

import asyncio
import platform
from importlib.metadata import version

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lattice.api.access import operators_only
from lattice.api.dependencies import AppHolder, readiness
from lattice.api.errors import refusals
from lattice.api.models.schemas import HealthResponse, ReadyResponse
from lattice.errors import UnavailableError
from lattice.observability.exposition import merge
from lattice.observability.metrics import PROMETHEUS_TEXT
from lattice.versions import PROTOCOL, release

#: How long the metrics of other processes are waited for, in seconds: a scraper itself waits for ten.
_OTHERS_WITHIN = 5.0

router = APIRouter(tags=["service"])


@router.get("/healthz")
async def healthz() -> HealthResponse:
    """Answers while the process that serves HTTP lives, whatever the state of the orchestrator."""
    return HealthResponse(
        version=release(),
        protocol=PROTOCOL,
        python=platform.python_version(),
        cloudpickle=version("cloudpickle"),
    )


@router.get("/readyz", dependencies=[Depends(readiness)])
async def readyz() -> ReadyResponse:
    """Answers 200 when runs can be started, else 503."""
    return ReadyResponse()


@router.get(
    "/metrics",
    dependencies=[Depends(operators_only)],
    response_class=Response,
    responses={
        200: {
            "description": "Metrics of all processes of the service, in Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **refusals(404),
    },
)
async def metrics(holder: AppHolder) -> Response:
    """Metrics for Prometheus, where `metrics_exporter` is `prometheus`.

    Where API keys are configured, it needs an `admin` key.
    """
    text = None if holder.metrics is None else holder.metrics.render()
    if holder.metrics is None or text is None:
        raise HTTPException(
            404, "No metrics here: metrics_enabled is off, or metrics_exporter sends them elsewhere"
        )
    if holder.exposition is not None:
        try:
            async with asyncio.timeout(_OTHERS_WITHIN):
                text = await holder.exposition.collect(holder.metrics.process, text)
        except (UnavailableError, TimeoutError):
            # Better those of this process than none: that the others are missing is news, too.
            text = merge({holder.metrics.process: text})
    return Response(text, media_type=PROMETHEUS_TEXT)
