"""Whether the service is alive and ready, and its metrics."""

from __future__ import annotations

import platform
from importlib.metadata import version

from fastapi import APIRouter, Depends
from starlette.exceptions import HTTPException
from starlette.responses import Response

from lattice.api.dependencies import AppHolder, readiness
from lattice.api.errors import refusals
from lattice.api.models.schemas import HealthResponse, ReadyResponse
from lattice.observability.metrics import PROMETHEUS_TEXT

router = APIRouter(tags=["service"])


@router.get("/healthz")
async def healthz() -> HealthResponse:
    """Answers while the process that serves HTTP lives, whatever the state of the orchestrator."""
    return HealthResponse(
        version=version("lattice"),
        python=platform.python_version(),
        cloudpickle=version("cloudpickle"),
    )


@router.get("/readyz", dependencies=[Depends(readiness)])
async def readyz() -> ReadyResponse:
    """Answers 200 when runs can be started, else 503."""
    return ReadyResponse()


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "description": "Metrics of the process that answers, in Prometheus' text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}},
        },
        **refusals(404),
    },
)
async def metrics(holder: AppHolder) -> Response:
    """Metrics for Prometheus, where `metrics_exporter` is `prometheus`."""
    text = None if holder.metrics is None else holder.metrics.render()
    if text is None:
        raise HTTPException(
            404, "No metrics here: metrics_enabled is off, or metrics_exporter sends them elsewhere"
        )
    return Response(text, media_type=PROMETHEUS_TEXT)
